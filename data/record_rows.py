"""Search records -> rows of arrays: policy targets per position, value labels per text.

A state is a text: the tokens of the prompt and of the completion so far.
"""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from data.errors import DataError
from data.records import Position, SearchRecord, Tokens, Tree

Arrays = dict[str, np.ndarray]
Labels = dict[Tokens, float]


class SolvedTexts:
    """All texts (prompt and completion) that some record knows to be right."""

    def __init__(self, games: Iterable[SearchRecord]):
        self._ordered = sorted({text for game in games for text in _solved_texts(game)})

    def continue_from(self, state: Tokens) -> bool:
        """Whether one of them begins with these tokens."""
        place = bisect.bisect_left(self._ordered, state)  # a prefix sorts before what it begins
        return any(text[: len(state)] == state for text in self._ordered[place : place + 1])


def _solved_texts(game: SearchRecord) -> Iterator[Tokens]:
    if game.outcome == 1:
        yield game.prompt_tokens + game.completion_tokens
    yield from (game.prompt_tokens + leaf.tokens for leaf in game.leaves if leaf.outcome == 1)
    for root, tree in _rooted_trees(game):
        if 1 in tree.outcome:
            states = _node_states(root, tree)
            yield from (states[i] for i, outcome in enumerate(tree.outcome) if outcome == 1)


def _state(game: SearchRecord, position: Position) -> Tokens:
    """Prompt and completion before a move."""
    return game.prompt_tokens + game.completion_tokens[: position.offset]


def _rooted_trees(game: SearchRecord) -> Iterator[tuple[Tokens, Tree]]:
    for position, tree in zip(game.positions, game.trees, strict=False):
        yield _state(game, position), tree


def _node_states(root: Tokens, tree: Tree) -> list[Tokens]:
    """Prompt and completion at each node of a tree."""
    states = [root]
    for parent, edge in zip(tree.parent[1:], tree.edge_tokens[1:], strict=True):
        states.append(states[parent] + edge)
    return states


# ------------------------------------------------------------------------------- policy rows


def policy_rows(
    games: Iterable[SearchRecord],
    *,
    solved: SolvedTexts,
    solved_only: bool,
    num_candidates: int,
    prefix_tokens: int,
    candidate_tokens: int,
    pad_id: int,
) -> Arrays:
    """One row per position with candidates.

    Args:
      games: records, whose order is the order of the rows.
      solved: texts known to be right.
      solved_only: leave out the positions from which none of these texts goes on.
      num_candidates: k; of more candidates the ones of largest weight are kept.
      prefix_tokens: T, tokens before the move.
      candidate_tokens: s, tokens of a move.
      pad_id: fills the rows on the right.
    """
    rows = [
        (_state(game, position), *_largest(position, num_candidates))
        for game in games
        for position in game.positions
        if position.candidates and (not solved_only or solved.continue_from(_state(game, position)))
    ]
    k, s = num_candidates, candidate_tokens
    prefixes = [prefix for prefix, _, _ in rows]
    candidates = [moves + ((),) * (k - len(moves)) for _, moves, _ in rows]
    flat = list(itertools.chain(*candidates))
    weights = np.zeros((len(rows), k + 1), np.float32)
    for row, (_, moves, improved) in enumerate(rows):
        weights[row, : len(moves)] = improved[:-1]
        weights[row, k] = improved[-1]
    return {
        "tokens": _padded(prefixes, prefix_tokens, pad_id, "prefix_tokens"),
        "lengths": np.array([len(prefix) for prefix in prefixes], np.int32),
        "candidates": _padded(flat, s, pad_id, "candidate_tokens").reshape(len(rows), k, s),
        "candidate_lengths": np.array([len(move) for move in flat], np.int32).reshape(-1, k),
        "weights": weights,
    }


def _largest(position: Position, count: int) -> tuple[tuple[Tokens, ...], tuple[float, ...]]:
    """The candidates of largest weight, in their order; the weight of others joins the rest."""
    *weights, rest = position.weights
    by_weight = sorted(range(len(weights)), key=lambda i: -weights[i])
    kept, others = sorted(by_weight[:count]), by_weight[count:]
    rest += sum(weights[i] for i in others)
    return tuple(position.candidates[i] for i in kept), (*(weights[i] for i in kept), rest)


def _padded(runs: Sequence[Tokens], length: int, pad_id: int, field: str) -> np.ndarray:
    """Token runs as rows, padded on the right."""
    longest = max(map(len, runs), default=0)
    if longest > length:
        raise DataError(
            f"records must fit the shapes of the config; got {longest} tokens for "
            f"{field}={length}. Set {field} to at least {longest}."
        )
    padded = np.full((len(runs), length), pad_id, np.int32)
    for row, run in enumerate(runs):
        padded[row, : len(run)] = run
    return padded


# -------------------------------------------------------------------------------- value rows


def value_rows(
    games: Sequence[SearchRecord],
    *,
    solved: SolvedTexts,
    value_from: Literal["outcome", "tree"],
    min_explored: float,
    label_once: bool,
    path_tokens: int,
    pad_id: int,
) -> Arrays:
    """One row per longest labelled text, with a label at the end of each known state in it.

    Args:
      games: records, whose order is the order of the rows with value_from="outcome".
      solved: texts known to be right.
      value_from: labels by `outcome_labels` or by `tree_labels`.
      min_explored: see `tree_labels`.
      label_once: label a state in only one of the rows that pass through it.
      path_tokens: T.
      pad_id: fills the rows on the right.
    """
    if value_from == "tree":
        found = (tree_labels(game, solved, min_explored) for game in games)
        groups = [dict(itertools.chain.from_iterable(found))]
    else:
        groups = [dict(outcome_labels(game)) for game in games]
    rows = [row for labels in groups for row in _paths(labels, label_once)]
    tokens = _padded([path for path, _ in rows], path_tokens, pad_id, "path_tokens")
    target = np.zeros(tokens.shape, np.float32)
    mask = np.zeros(tokens.shape, np.float32)
    for row, (_, states) in enumerate(rows):
        for length, label in states:
            target[row, length - 1] = label
            mask[row, length - 1] = 1
    return {"tokens": tokens, "value_target": target, "value_mask": mask}


def outcome_labels(game: SearchRecord) -> Iterator[tuple[Tokens, float]]:
    """States of one game and how the game or the finished text ended."""
    for leaf in game.leaves:
        if leaf.outcome is not None:
            yield game.prompt_tokens + leaf.tokens, leaf.outcome
    if game.outcome is not None:
        yield from ((_state(game, position), game.outcome) for position in game.positions)
        yield game.prompt_tokens + game.completion_tokens, game.outcome


def tree_labels(
    game: SearchRecord, solved: SolvedTexts, min_explored: float
) -> Iterator[tuple[Tokens, float]]:
    """States of one game: 1 if a text known to be right goes on from there, 0 if that is refuted.

    Refuted are finished texts that are wrong, and the nodes of which the search has followed at
    least `min_explored` to a wrong end (see `explored_shares`). Other states stay unlabelled: that
    nothing was found where hardly anyone looked says nothing.
    """
    ends = [(leaf.tokens, leaf.outcome) for leaf in game.leaves]
    for tokens, outcome in [*ends, (game.completion_tokens, game.outcome)]:
        if outcome is not None:  # an end that ran out of room may still go on elsewhere
            state = game.prompt_tokens + tokens
            yield state, float(solved.continue_from(state))
    for root, tree in _rooted_trees(game):
        shares = explored_shares(tree)
        for state, share in zip(_node_states(root, tree), shares, strict=True):
            if solved.continue_from(state):
                yield state, 1.0
            elif share >= min_explored:
                yield state, 0.0


def explored_shares(tree: Tree) -> list[float]:
    """Per node, the share of the model's own continuations that the search knows the end of.

        e(finished and checked) = 1,   e(node) = sum over its children c of prior(c) e(c)

    Weighed by the model's prior, so that unlikely nonsense need not be looked at.
    """
    shares = [float(outcome is not None) for outcome in tree.outcome]
    for node in range(len(shares) - 1, 0, -1):  # children come after their parents
        shares[tree.parent[node]] += tree.prior[node] * shares[node]
    return shares


def _paths(labels: Labels, label_once: bool) -> Iterator[tuple[Tokens, list[tuple[int, float]]]]:
    """Longest labelled states, each with the (length, label) of the states that lead to it."""
    ordered = sorted(labels)  # a state comes right before those that go on from it
    below: list[Tokens] = []
    for state, following in itertools.zip_longest(ordered, ordered[1:], fillvalue=()):
        while below and state[: len(below[-1])] != below[-1]:
            below.pop()
        below.append(state)
        if following[: len(state)] != state:
            yield state, [(len(prefix), labels[prefix]) for prefix in below]
            if label_once:
                below.clear()
