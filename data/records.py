"""SearchRecord: one played game, what search writes and training reads.

Record shards are ArrayRecord files whose payloads are UTF-8 JSON objects of the fields below, so
anything can read them. Beside each shard lies `<shard>.json` with its count, schema version and
SHA-256, written last: a shard without it was never finished. Equal records give equal bytes
(floats have 6 significant digits; there is no clock or host name).
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from array_record.python import array_record_module

from data.errors import DataError

SCHEMA_VERSION = 1
SUFFIX = ".arrayrecord"

Path = str | os.PathLike[str]
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
    """

    parent: tuple[int, ...]
    edge_tokens: tuple[Tokens, ...]
    prior: tuple[float, ...]
    visits: tuple[int, ...]
    value: tuple[float, ...]
    outcome: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """One played game.

    Attributes:
      prompt_tokens, completion_tokens: the ids of the two texts (the completion with its
        end-of-text token, if it came to an end).
      outcome: 1.0 right, 0.0 wrong, None never checked.
      settings: the search config that played it.
      trees: one per position, or none at all.
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
    schema_version: int = SCHEMA_VERSION


# --------------------------------------------------------------------------- one record as JSON


def to_json(record: SearchRecord) -> bytes:
    """The payload of a record; arrays and numpy numbers become lists and plain numbers."""
    fields = _plain(record)
    _from_fields(fields)
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


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
    return _from_fields(fields)


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


def _from_fields(fields: dict[str, Any]) -> SearchRecord:
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(_version_message("a record", version))
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


def _version_message(what: str, version: Any) -> str:
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
        token_runs += tree.edge_tokens
        outcomes += tree.outcome
        if any(len(column) != len(tree.parent) for column in columns):
            yield "column lengths of a tree"
        if any(not _is_parent(parent, i) for i, parent in enumerate(tree.parent)):
            yield "parents of a tree"
        if not _finite(tree.prior, tree.value):
            yield "numbers of a tree"
    if record.trees and len(record.trees) != len(record.positions):
        yield f"number of trees: {len(record.trees)} for {len(record.positions)} positions"
    if not all(isinstance(text, str) for text in texts) or not isinstance(record.settings, dict):
        yield "texts or settings"
    if not all(type(token) is int and token >= 0 for tokens in token_runs for token in tokens):
        yield "token ids"
    if not all(outcome in (None, 0, 1) for outcome in outcomes):
        yield "outcomes"


def _is_parent(parent: int, node: int) -> bool:
    return 0 <= parent < node if node else parent == -1


def _finite(*columns: Iterable[float]) -> bool:
    return all(math.isfinite(number) for column in columns for number in column)


# -------------------------------------------------------------------------------------- shards


def write_shard(path: Path, records: Iterable[SearchRecord]) -> None:
    """Writes a shard and its sidecar so that a crash leaves either both whole or a refused file."""
    path = pathlib.Path(path)
    if path.suffix != SUFFIX:
        raise DataError(f"a record shard ends in {SUFFIX}; got {path}. Rename it.")
    payloads = [to_json(record) for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()
    _commit(partial, path)

    contents = {
        "count": len(payloads),
        "schema_version": SCHEMA_VERSION,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    sidecar = sidecar_path(path)
    partial = sidecar.with_name(f".{sidecar.name}.partial")
    partial.write_text(json.dumps(contents) + "\n", "utf-8")
    _commit(partial, sidecar)


def _commit(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a finished file its name, surely on the disk."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def sidecar_path(path: Path) -> pathlib.Path:
    return pathlib.Path(f"{path}.json")


def read_shard(path: Path) -> list[SearchRecord]:
    """All records of a shard.

    Raises:
      DataError: if the shard or its sidecar is missing, torn, changed or of another schema.
    """
    path = pathlib.Path(path)
    sidecar = sidecar_path(path)
    again = f"Delete {path.name} and {sidecar.name} and run the search again with --resume."
    try:
        contents = json.loads(sidecar.read_text("utf-8"))
        count, version, sha256 = (contents[k] for k in ("count", "schema_version", "sha256"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"a record shard needs a whole sidecar; got {sidecar}: {error}. {again}"
        ) from error
    if version != SCHEMA_VERSION:
        raise DataError(_version_message(f"{path}: a record shard", version))
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"a sidecar stands beside its shard; got {path}: {error}. {again}"
        ) from error
    if found != sha256:
        raise DataError(
            f"a record shard must have the bytes that were written; got {path} with sha256 "
            f"{found[:12]}..., written with {str(sha256)[:12]}.... {again}"
        )
    payloads = _payloads(path)
    if len(payloads) != count:
        raise DataError(f"{path} must hold {count} records; got {len(payloads)}. {again}")
    try:
        return [from_json(payload) for payload in payloads]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _payloads(path: pathlib.Path) -> list[bytes]:
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        return reader.read_all() if reader.num_records() else []
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"a record shard is an ArrayRecord file; got {path}: {error}. "
            "Delete it and its sidecar and run the search again."
        ) from error


def read_folder(folder: Path) -> Iterator[SearchRecord]:
    """All records of all shards of a folder, in the order of the file names.

    Raises:
      DataError: if there is no shard, or as `read_shard`.
    """
    folder = pathlib.Path(folder)
    shards = set(folder.glob(f"*{SUFFIX}"))
    shards |= {path.with_suffix("") for path in folder.glob(f"*{SUFFIX}.json")}
    if not shards:
        raise DataError(
            f"a record folder holds shards named *{SUFFIX}; got {folder} without any. "
            "Run the search first, or correct the path."
        )
    for path in sorted(shards):
        yield from read_shard(path)


def summary(records: Iterable[SearchRecord]) -> dict[str, float]:
    """Counts that tell at a glance what some records hold, and the share of solved games."""
    counts = dict.fromkeys(
        ("games", "checked", "solved", "problems", "solved_problems", "positions"), 0
    )
    counts |= dict.fromkeys(("leaves", "solved_leaves", "tree_nodes", "completion_tokens"), 0)
    problems, solved = set(), set()
    for record in records:
        problems.add(record.problem_id)
        if record.outcome == 1:
            solved.add(record.problem_id)
        counts["games"] += 1
        counts["checked"] += record.outcome is not None
        counts["solved"] += record.outcome == 1
        counts["positions"] += len(record.positions)
        counts["leaves"] += len(record.leaves)
        counts["solved_leaves"] += sum(leaf.outcome == 1 for leaf in record.leaves)
        counts["tree_nodes"] += sum(len(tree.parent) for tree in record.trees)
        counts["completion_tokens"] += len(record.completion_tokens)
    counts |= {"problems": len(problems), "solved_problems": len(solved)}
    return counts | {"solved_share": counts["solved"] / max(counts["checked"], 1)}
