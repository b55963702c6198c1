"""SearchRecord: one played game, and its form as JSON.

The JSON objects have the fields of the dataclasses below (docs/records.md has an example). Equal
records give equal bytes: floats have 6 significant digits, and there is no clock or host name.

A change of the form raises `SCHEMA_VERSION`, except a new optional field: it has a default, and a
record where it has that default is written without it. So older records stay readable, and they
keep their bytes when they are written again.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from data.errors import DataError

SCHEMA_VERSION = 1

Tokens = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """One searched position of a game, with k candidate moves.

    Attributes:
      offset: completion tokens before this move.
      candidates: k moves, each a run of tokens.
      weights: k+1 improved policy weights that sum to 1; the last is all that is not a candidate.
      visits: k visit counts of the search.
      root_value: the value of the position after the search, a probability of success.
      prior: k probabilities before the search.
    """

    offset: int
    candidates: tuple[Tokens, ...]
    weights: tuple[float, ...]
    visits: tuple[int, ...]
    root_value: float
    prior: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """A finished text that the search reached.

    Attributes:
      tokens: from the end of the prompt to the end of the text.
      outcome: 1.0 right, 0.0 wrong, None never checked.
    """

    tokens: Tokens
    outcome: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
    """The tree of one position; node 0 is the root and parents come before their children.

    Attributes:
      parent: node number, -1 for the root.
      edge_tokens: move from the parent to the node; empty for the root.
      prior, visits, value: per node.
      outcome: per node: 1.0 or 0.0 for a finished text that was checked, else None.
      q: per node: what the search took the move into it to be worth; optional, () if not written.
        It differs from `value` at a finished text, whose worth belongs to its last move.
    """

    parent: tuple[int, ...]
    edge_tokens: tuple[Tokens, ...]
    prior: tuple[float, ...]
    visits: tuple[int, ...]
    value: tuple[float, ...]
    outcome: tuple[float | None, ...]
    q: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """One played game.

    Attributes:
      prompt_tokens, completion_tokens: the ids of the two texts (the completion with its
        end-of-text token, if it came to an end).
      outcome: 1.0 right, 0.0 wrong, None never checked.
      settings: the search config that played it.
      trees: one per position, or none at all.
      tokenizer: name of the tokenizer of all ids; optional, None if not written.
      game: number of this game among those that one search plays of this problem; optional, None if
        not written.
    """

    problem_id: str
    split: str
    prompt: str
    completion: str
    prompt_tokens: Tokens
    completion_tokens: Tokens
    outcome: float | None
    seed: int
    settings: dict[str, Any]
    positions: tuple[Position, ...]
    leaves: tuple[Leaf, ...] = ()
    trees: tuple[Tree, ...] = ()
    tokenizer: str | None = None
    game: int | None = None
    schema_version: int = SCHEMA_VERSION


# --------------------------------------------------------------------------- one record as JSON


def to_json(record: SearchRecord) -> bytes:
    """The payload of a record; arrays and numpy numbers become lists and plain numbers."""
    fields = to_fields(record)
    from_fields(fields)
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def to_fields(record: SearchRecord) -> dict[str, Any]:
    """The JSON object of a record, as dictionaries, lists and plain numbers."""
    fields = _plain(record)
    for part, optional in (
        (fields, ("tokenizer", "game")),
        *((t, ("q",)) for t in fields["trees"]),
    ):
        for name in optional:
            if part[name] in (None, []):
                del part[name]
    return fields


def from_json(payload: bytes) -> SearchRecord:
    """The record of a payload.

    Raises:
      DataError: if it is not a whole record of this schema version.
    """
    try:
        fields = json.loads(payload)
    except ValueError as error:
        raise DataError(
            f"a record is a JSON object; got {payload[:60]!r}: {error}. "
            "Run the search that made it again."
        ) from error
    return from_fields(fields)


def _plain(value: Any) -> Any:
    """Lists, dictionaries and plain numbers; floats with 6 significant digits."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [item if type(item) is int else _plain(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def from_fields(fields: dict[str, Any]) -> SearchRecord:
    """The record of a JSON object.

    Raises:
      DataError: if it is not a whole record of this schema version.
    """
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(version_message("a record", version))
    try:
        parts: dict[str, Any] = {
            "positions": tuple(Position(**_freeze_all(part)) for part in fields["positions"]),
            "leaves": tuple(Leaf(**_freeze_all(part)) for part in fields["leaves"]),
            "trees": tuple(Tree(**_freeze_all(part)) for part in fields["trees"]),
        }
        rest = {name: value for name, value in fields.items() if name not in ("settings", *parts)}
        record = SearchRecord(**_freeze_all(rest), settings=fields["settings"], **parts)
        problem = next(_problems(record), None)
    except (TypeError, KeyError, AttributeError) as error:
        problem = f"its fields: {error}"
    if problem:
        name = fields.get("problem_id")
        raise DataError(
            f"a record of schema {SCHEMA_VERSION} must be whole and consistent; got "
            f"{name!r} with wrong {problem}. Write it again with this version of the search."
        )
    return record


def _freeze_all(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: _frozen(value) for name, value in fields.items()}


def version_message(what: str, version: Any) -> str:
    newer = isinstance(version, int) and version > SCHEMA_VERSION
    remedy = "Update this code" if newer else "Run the search again"
    return f"{what} has schema version {SCHEMA_VERSION}; got {version!r}. {remedy}."


def _problems(record: SearchRecord) -> Iterator[str]:
    """What contradicts the docstrings above."""
    texts = (record.problem_id, record.split, record.prompt, record.completion)
    token_runs = [record.prompt_tokens, record.completion_tokens]
    token_runs += [leaf.tokens for leaf in record.leaves]
    outcomes = [record.outcome, *(leaf.outcome for leaf in record.leaves)]
    for position in record.positions:
        k = len(position.candidates)
        token_runs += position.candidates
        if not 0 <= position.offset <= len(record.completion_tokens):
            yield f"offset {position.offset}"
        if (len(position.weights), len(position.visits), len(position.prior)) != (k + 1, k, k):
            yield f"numbers of weights, visits or priors for {k} candidates"
        if not _finite(position.weights, position.prior, [position.root_value]):
            yield f"numbers at offset {position.offset}"
    for tree in record.trees:
        columns = (tree.edge_tokens, tree.prior, tree.visits, tree.value, tree.outcome)
        optional_columns = (tree.q,) if tree.q else ()
        token_runs += tree.edge_tokens
        outcomes += tree.outcome
        if any(len(c) != len(tree.parent) for c in (*columns, *optional_columns)):
            yield "column lengths of a tree"
        if any(not _is_parent(parent, i) for i, parent in enumerate(tree.parent)):
            yield "parents of a tree"
        if not _finite(tree.prior, tree.value, tree.q):
            yield "numbers of a tree"
    if record.trees and len(record.trees) != len(record.positions):
        yield f"number of trees: {len(record.trees)} for {len(record.positions)} positions"
    if not all(isinstance(text, str) for text in texts) or not isinstance(record.settings, dict):
        yield "texts or settings"
    if not isinstance(record.tokenizer, (str, type(None))):
        yield "tokenizer"
    if record.game is not None and (type(record.game) is not int or record.game < 0):
        yield "game"
    if not all(type(token) is int and token >= 0 for tokens in token_runs for token in tokens):
        yield "token ids"
    if not all(outcome in (None, 0, 1) for outcome in outcomes):
        yield "outcomes"


def _is_parent(parent: int, node: int) -> bool:
    return 0 <= parent < node if node else parent == -1


def _finite(*columns: Iterable[float]) -> bool:
    return all(math.isfinite(number) for column in columns for number in column)
