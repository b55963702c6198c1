"""The texts of a record's token runs, and records for models with another tokenizer.

A run of tokens may write another text in one place than in another (a word brings its space, a
byte is a part of a character), so a run's text is what it adds to the text before it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from data import tokenizer as tokenizers
from data.errors import DataError
from data.search_record import Leaf, Position, SearchRecord, Tokens, Tree
from data.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"  # what bytes that are no character decode to

Item = TypeVar("Item")


def is_written_with(record: SearchRecord, tokenizer: Tokenizer) -> bool:
    """Whether the record's ids say what its prompt and its completion say."""
    try:
        return (
            tokenizer.decode(record.prompt_tokens) == record.prompt
            and tokenizer.decode(record.completion_tokens) == record.completion
        )
    except DataError:  # ids that it does not have
        return False


def tokenizer_of(record: SearchRecord) -> Tokenizer:
    """The tokenizer that the record names, or else one of ours that its texts fit.

    Raises:
      DataError: there is none, or the named one does not fit the texts.
    """
    names = tokenizers.names() if record.tokenizer is None else [record.tokenizer]
    for name in names:
        if is_written_with(record, found := tokenizers.load_tokenizer(name)):
            return found
    raise DataError(
        f"the ids of a record must decode to its texts; got {record.problem_id}, whose do not with "
        f"{' or '.join(map(repr, names))}. Name the tokenizer it was searched with."
    )


def runs_in_context(
    tokenizer: Tokenizer, before: Tokens, runs: Iterable[Tokens]
) -> list[str | None]:
    """What each run adds to the text of `before`; None where one ends inside a character."""
    text = tokenizer.decode(before)
    wholes = (tokenizer.decode(before + run) for run in runs)
    return [
        whole[len(text) :] if whole.startswith(text) and _UNKNOWN not in whole else None
        for whole in wholes
    ]


def candidate_texts(
    record: SearchRecord, position: Position, tokenizer: Tokenizer
) -> list[str | None]:
    """The texts of the candidates of a position."""
    before = record.completion_tokens[: position.offset]
    return runs_in_context(tokenizer, before, position.candidates)


def edge_texts(
    record: SearchRecord, position: Position, tree: Tree, tokenizer: Tokenizer
) -> list[str | None]:
    """The texts of the edges of the tree of a position; that of the root is empty."""
    paths = node_paths(record, position, tree)
    whole = [tokenizer.decode(path) for path in paths]
    texts: list[str | None] = [""]
    for node, parent in enumerate(tree.parent[1:], 1):
        added = whole[node].startswith(whole[parent]) and _UNKNOWN not in whole[node]
        texts.append(whole[node][len(whole[parent]) :] if added else None)
    return texts


def node_paths(record: SearchRecord, position: Position, tree: Tree) -> list[Tokens]:
    """The completion tokens at each node of the tree of a position."""
    paths = [record.completion_tokens[: position.offset]]
    for parent, edge in zip(tree.parent[1:], tree.edge_tokens[1:], strict=True):
        paths.append(paths[parent] + edge)
    return paths


def judge(record: SearchRecord, check: Callable[[str], bool], tokenizer: Tokenizer) -> SearchRecord:
    """The record with the outcomes that a checker gives to all that was not checked.

    That is the game itself, its finished texts, and the finished nodes of its trees, which are
    those that end with the end-of-text token.
    """

    def outcome(tokens: Tokens, known: float | None) -> float | None:
        if known is not None or tokens[-1:] != (tokenizer.eos_id,):
            return known
        return float(check(tokenizer.decode(tokens)))

    trees = []
    for position, tree in zip(record.positions, record.trees):
        paths = node_paths(record, position, tree)
        trees.append(dataclasses.replace(tree, outcome=tuple(map(outcome, paths, tree.outcome))))
    return dataclasses.replace(
        record,
        outcome=float(check(record.completion)) if record.outcome is None else record.outcome,
        leaves=tuple(
            Leaf(tokens=x.tokens, outcome=outcome(x.tokens, x.outcome)) for x in record.leaves
        ),
        trees=tuple(trees),
    )


# ------------------------------------------------------------------------ for another tokenizer


def retokenize(
    record: SearchRecord, from_tokenizer: Tokenizer, to_tokenizer: Tokenizer
) -> SearchRecord:
    """The same game in the tokens of another tokenizer.

    Every text stays what it is, and is encoded as a whole. A place in a text (before a move, after
    a candidate or a node) exists for the other tokenizer if one of its tokens ends there. What
    stands at other places is left out, as is what the other tokenizer cannot write:
      a position: with its tree,
      a candidate: its weight joins the rest. Candidates that are the same text become one, with
        the sum of their weights, visits and priors; one that another candidate goes on from is
        left out, since what is left of it belongs to the rest,
      a node of a tree: with all that is below it,
      a finished text.
    Values and counts stay as the search found them. Settings still tell of the old tokens.

    Raises:
      DataError: `from_tokenizer` is not the one of the record, or the other tokenizer cannot write
        its prompt or completion.
    """
    if not is_written_with(record, from_tokenizer):
        raise DataError(
            "a record is read with the tokenizer that wrote it; the ids of "
            f"{record.problem_id} do not decode to its texts. Name another one."
        )
    other = _Other(from_tokenizer, to_tokenizer)
    prompt, completion = other.whole(record.prompt_tokens), other.whole(record.completion_tokens)
    if prompt is None or completion is None:
        raise DataError(
            "a record can be learned from with a tokenizer that writes its texts; got "
            f"{record.problem_id}, {record.prompt + record.completion!r}, which the other "
            f"one of {to_tokenizer.vocab_size} tokens cannot. Choose another tokenizer or "
            "other records."
        )
    trees = record.trees or (None,) * len(record.positions)
    kept = []
    for position, tree in zip(record.positions, trees, strict=True):
        before = record.completion_tokens[: position.offset]
        start = other.run((), before)
        if start is None or completion[: len(start)] != start:
            continue
        moved = _position(other, position, before, len(start))
        kept.append((moved, tree and _tree(other, tree, node_paths(record, position, tree))))
    leaves = tuple(
        Leaf(tokens=tokens, outcome=leaf.outcome)
        for leaf in record.leaves
        if (tokens := other.whole(leaf.tokens)) is not None
    )
    return dataclasses.replace(
        record,
        prompt_tokens=prompt,
        completion_tokens=completion,
        positions=tuple(position for position, _ in kept),
        leaves=leaves,
        trees=tuple(tree for _, tree in kept if tree),
        tokenizer=None,
    )


class _Other:
    """Token runs of one tokenizer in the tokens of another one."""

    def __init__(self, old: Tokenizer, new: Tokenizer):
        self._old, self._new = old, new
        self._known: dict[Tokens, Tokens | None] = {}

    def whole(self, tokens: Tokens) -> Tokens | None:
        """A text from its beginning; None if the other tokenizer cannot write it."""
        if tokens not in self._known:
            self._known[tokens] = self._encode(tokens)
        return self._known[tokens]

    def _encode(self, tokens: Tokens) -> Tokens | None:
        ends = tokens[-1:] == (self._old.eos_id,)
        plain = tokens[:-1] if ends else tokens
        text = self._old.decode(plain)
        if _UNKNOWN in text or set(plain) & set(self._old.special_ids):
            return None
        try:
            ids = self._new.encode(text)
        except DataError:  # a word that it does not have
            return None
        if self._new.decode(ids) != text:
            return None
        return (*ids, self._new.eos_id) if ends else tuple(ids)

    def run(self, before: Tokens, run: Tokens) -> Tokens | None:
        """A run after other tokens; None if one of the other's tokens reaches over the border."""
        start, end = self.whole(before), self.whole(before + run)
        if start is None or end is None or end[: len(start)] != start:
            return None
        return end[len(start) :]


def _position(other: _Other, position: Position, before: Tokens, offset: int) -> Position:
    """The position with the candidates that the other tokenizer has."""
    *weights, rest = position.weights
    merged: dict[Tokens, list[float]] = {}
    columns = zip(position.candidates, weights, position.visits, position.prior, strict=True)
    for candidate, *numbers in columns:
        if run := other.run(before, candidate):
            merged[run] = [sum(pair) for pair in zip(merged.get(run, (0.0, 0, 0.0)), numbers)]
    ordered = sorted(merged)  # a run comes right before one that goes on from it
    for run, following in itertools.pairwise(ordered):
        if following[: len(run)] == run:
            del merged[run]
    kept = list(merged.values())
    lost = math.fsum(weights) - math.fsum(weight for weight, _, _ in kept)
    return Position(
        offset=offset,
        candidates=tuple(merged),
        weights=(*(weight for weight, _, _ in kept), rest + max(lost, 0.0)),
        visits=tuple(int(visits) for _, visits, _ in kept),
        root_value=position.root_value,
        prior=tuple(prior for _, _, prior in kept),
    )


def _tree(other: _Other, tree: Tree, paths: Sequence[Tokens]) -> Tree:
    """The nodes that the other tokenizer has, renumbered."""
    number_of: dict[int, int] = {0: 0}
    edges: list[Tokens] = [()]
    for node, parent in enumerate(tree.parent[1:], 1):
        if parent in number_of and (edge := other.run(paths[parent], tree.edge_tokens[node])):
            number_of[node] = len(number_of)
            edges.append(edge)

    def kept(column: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(column[node] for node in number_of) if column else ()

    return Tree(
        parent=tuple(number_of[parent] if parent >= 0 else -1 for parent in kept(tree.parent)),
        edge_tokens=tuple(edges),
        prior=kept(tree.prior),
        visits=kept(tree.visits),
        value=kept(tree.value),
        outcome=kept(tree.outcome),
        q=kept(tree.q),
    )
