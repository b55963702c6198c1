"""What some records hold, in numbers: for a terminal, a page or a report.

Needs no model and no tokenizer. `dataclasses.asdict` of what comes back is JSON.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from data import proportions
from data.search_record import SearchRecord, Tree

NUM_BINS = 10


@dataclasses.dataclass(frozen=True)
class Share:
    """A counted share with its 95% interval (Wilson); the three are None where nothing counts."""

    num: int
    of: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


def share(num: int, of: int) -> Share:
    if not of:
        return Share(num, of)
    low, high = proportions.wilson_interval(num, of)
    return Share(num, of, num / of, low, high)


@dataclasses.dataclass(frozen=True)
class Bin:
    """Positions whose value lies in low <= value < high (the last bin holds 1 too)."""

    low: float
    high: float
    mean_value: float | None
    solved: Share


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts of games and of what is in them.

    Attributes:
      solved: checked games that ended right.
      problems_solved: problems with a game that ended right, of those with a checked game.
      found: checked games in which the game or a finished text of the search is right.
      greedy: games whose likeliest path (`greedy_path`) ends right, of those whose tree has its end
        checked; solved_beside_greedy: the same games, as they were played.
      depth: `depth[d]` nodes that are d moves below their root.
      visits: `visits[i]` nodes without roots of 2^i <= visits < 2^(i+1); without trees candidates.
      calibration: value of a position against how its game ended, in ten bins.
      brier: mean (value - outcome)^2 over these positions; None without any.
      mean_tokens: completion tokens per game.
    """

    games: int
    problems: int
    splits: tuple[str, ...]
    solved: Share
    problems_solved: Share
    found: Share
    greedy: Share
    solved_beside_greedy: Share
    positions: int
    candidates: int
    leaves: int
    solved_leaves: int
    tree_nodes: int
    depth: tuple[int, ...]
    visits: tuple[int, ...]
    calibration: tuple[Bin, ...]
    brier: float | None
    prompt_tokens: int
    completion_tokens: int
    mean_tokens: float


def statistics(games: Iterable[SearchRecord]) -> Statistics:
    """Reads the games once; holds no more of them than their numbers."""
    count = dict.fromkeys(
        ("games", "positions", "candidates", "leaves", "solved_leaves", "tree_nodes"), 0
    )
    count |= {"prompt_tokens": 0, "completion_tokens": 0}
    splits, problems, checked, solved_problems = set(), set(), set(), set()
    solved: list[bool] = []
    found: list[bool] = []
    versus: list[tuple[bool, bool]] = []
    depth: dict[int, int] = {}
    visits: dict[int, int] = {}
    pairs: list[tuple[float, float]] = []
    for game in games:
        count["games"] += 1
        count["prompt_tokens"] += len(game.prompt_tokens)
        count["completion_tokens"] += len(game.completion_tokens)
        count["positions"] += len(game.positions)
        count["candidates"] += sum(len(position.candidates) for position in game.positions)
        count["leaves"] += len(game.leaves)
        right = sum(leaf.outcome == 1 for leaf in game.leaves)
        count["solved_leaves"] += right
        count["tree_nodes"] += sum(len(tree.parent) for tree in game.trees)
        splits.add(game.split)
        problems.add(game.problem_id)
        if game.outcome is not None:
            solved.append(game.outcome == 1)
            found.append(game.outcome == 1 or right > 0)
            checked.add(game.problem_id)
            if game.outcome == 1:
                solved_problems.add(game.problem_id)
            pairs += [(position.root_value, game.outcome) for position in game.positions]
            if (greedy := greedy_outcome(game)) is not None:
                versus.append((greedy == 1, game.outcome == 1))
        for tree in game.trees:
            for node, level in enumerate(depths(tree)):
                depth[level] = depth.get(level, 0) + 1
                if node:
                    _add_visits(visits, tree.visits[node])
        if not game.trees:
            for position in game.positions:
                for number in position.visits:
                    _add_visits(visits, number)
    return Statistics(
        **count,
        problems=len(problems),
        splits=tuple(sorted(splits)),
        solved=share(sum(solved), len(solved)),
        problems_solved=share(len(solved_problems), len(checked)),
        found=share(sum(found), len(found)),
        greedy=share(sum(greedy for greedy, _ in versus), len(versus)),
        solved_beside_greedy=share(sum(played for _, played in versus), len(versus)),
        depth=_as_row(depth),
        visits=_as_row(visits),
        calibration=calibration(pairs),
        brier=sum((v - z) ** 2 for v, z in pairs) / len(pairs) if pairs else None,
        mean_tokens=count["completion_tokens"] / max(count["games"], 1),
    )


def _add_visits(histogram: dict[int, int], visits: int) -> None:
    if visits > 0:
        level = visits.bit_length() - 1
        histogram[level] = histogram.get(level, 0) + 1


def _as_row(histogram: dict[int, int]) -> tuple[int, ...]:
    return tuple(histogram.get(i, 0) for i in range(max(histogram, default=-1) + 1))


def calibration(pairs: Sequence[tuple[float, float]]) -> tuple[Bin, ...]:
    """(value, outcome) pairs in ten bins of the value."""
    bins: list[list[tuple[float, float]]] = [[] for _ in range(NUM_BINS)]
    for value, outcome in pairs:
        bins[min(max(int(value * NUM_BINS), 0), NUM_BINS - 1)].append((value, outcome))
    return tuple(
        Bin(
            low=i / NUM_BINS,
            high=(i + 1) / NUM_BINS,
            mean_value=math.fsum(value for value, _ in inside) / len(inside) if inside else None,
            solved=share(sum(outcome == 1 for _, outcome in inside), len(inside)),
        )
        for i, inside in enumerate(bins)
    )


# ----------------------------------------------------------------------------- paths in a tree


def depths(tree: Tree) -> list[int]:
    """Moves between the root and each node."""
    found = [0]
    for parent in tree.parent[1:]:
        found.append(found[parent] + 1)
    return found


def children_of(tree: Tree) -> list[list[int]]:
    """The children of each node."""
    children: list[list[int]] = [[] for _ in tree.parent]
    for node, parent in enumerate(tree.parent[1:], 1):
        children[parent].append(node)
    return children


def q_values(game: SearchRecord, tree: Tree) -> tuple[float | None, ...]:
    """What the move into each node of a tree of the game was worth to the search, if that is known.

    Recorded, or else: the outcome of an end that an oracle judged, and the value of the node where
    the text goes on. An end that was not judged has value 0 in the tree, whatever its move was
    worth: None.
    """
    if tree.q:
        return tree.q
    goes_on = set(tree.parent)
    ends = tree.outcome if game.settings.get("use_oracle", True) else (None,) * len(tree.outcome)
    return tuple(
        value if (value or node in goes_on) and tree.outcome[node] is None else ends[node]
        for node, value in enumerate(tree.value)
    )


def greedy_path(tree: Tree) -> list[int]:
    """Nodes below the root on the path of the model's likeliest moves, as far as it is known.

    A tree holds the moves that were visited. The path ends where none is, or where one that is not
    in the tree could be likelier: where the likeliest child has less than what the others leave.
    """
    children = children_of(tree)
    path: list[int] = []
    node = 0
    while children[node]:
        best = max(children[node], key=lambda child: tree.prior[child])
        unseen = 1 - math.fsum(tree.prior[child] for child in children[node])
        if tree.prior[best] < unseen - 1e-4:
            break
        path.append(node := best)
    return path


def chosen_path(game: SearchRecord, move: int) -> list[int]:
    """Nodes below the root of a move's tree that the game went on to play."""
    tree, position = game.trees[move], game.positions[move]
    children = children_of(tree)
    path: list[int] = []
    node, played = 0, position.offset
    while True:
        ahead = game.completion_tokens[played:]
        fitting = (
            child
            for child in children[node]
            if (edge := tree.edge_tokens[child]) and ahead[: len(edge)] == edge
        )
        following = next(fitting, None)
        if following is None:
            return path
        path.append(node := following)
        played += len(tree.edge_tokens[node])


def greedy_outcome(game: SearchRecord) -> float | None:
    """How the likeliest path from the prompt ends; None if its end is not in the first tree."""
    if not game.trees or game.positions[0].offset:
        return None
    path = greedy_path(game.trees[0])
    return game.trees[0].outcome[path[-1]] if path else None
