"""Counts of records, and paths in their trees."""

import dataclasses
import json

import pytest

from data import record_statistics, records
from tests.data import synthetic_records

WORDS = synthetic_records.TOKENIZER


def tree(parent, prior, **columns):
    count = len(parent)
    filled = {
        "edge_tokens": ((), *((10 + node,) for node in range(1, count))),
        "visits": (9,) + (1,) * (count - 1),
        "value": (0.5,) * count,
        "outcome": (None,) * count,
    }
    return records.Tree(parent=parent, prior=prior, **filled | columns)


def test_counts_by_hand():
    solved = synthetic_records.solved_record()
    lost = dataclasses.replace(solved, outcome=0.0, leaves=solved.leaves, seed=1)
    open_end = dataclasses.replace(solved, problem_id="other", outcome=None, leaves=())
    stats = record_statistics.statistics([solved, lost, open_end])
    assert (stats.games, stats.problems, stats.splits) == (3, 2, ("train",))
    assert (stats.solved.num, stats.solved.of, stats.solved.share) == (1, 2, 0.5)
    assert stats.solved.low == pytest.approx(0.0945, abs=1e-4)  # Wilson, 1 of 2
    assert (stats.problems_solved.num, stats.problems_solved.of) == (1, 1)
    assert (stats.found.num, stats.found.of) == (2, 2)  # lost, although a right text was found
    assert (stats.positions, stats.candidates, stats.leaves) == (9, 18, 4)
    assert stats.depth == () and stats.visits == (0, 0, 9, 9)  # 12 and 4 visits
    assert stats.completion_tokens == 3 * len(solved.completion_tokens)
    middle = stats.calibration[5]
    assert (middle.mean_value, middle.solved.num, middle.solved.of) == (0.5, 3, 6)
    assert stats.brier == 0.25
    assert stats.greedy.share is None
    json.dumps(dataclasses.asdict(stats), allow_nan=False)
    empty = record_statistics.statistics([])
    assert (empty.games, empty.solved.share, empty.brier) == (0, None, None)


def test_depth_and_visits_of_trees():
    games = [synthetic_records.random_record(seed) for seed in range(5)]
    stats = record_statistics.statistics(games)
    nodes = [node for game in games for t in game.trees for node in range(len(t.parent))]
    assert sum(stats.depth) == stats.tree_nodes == len(nodes)
    assert stats.depth[0] == sum(len(game.trees) for game in games)
    visits = [n for game in games for t in game.trees for n in t.visits[1:]]
    assert stats.visits == tuple(sum(2**i <= n < 2 ** (i + 1) for n in visits) for i in range(6))
    assert record_statistics.depths(tree((-1, 0, 1, 0, 2), (1,) * 5)) == [0, 1, 2, 1, 3]


def test_the_greedy_path_goes_as_far_as_it_is_sure():
    sure = tree((-1, 0, 0, 1, 3), (1, 0.6, 0.3, 0.5, 0.7))
    assert record_statistics.greedy_path(sure) == [1, 3, 4]
    a_likelier_one_may_be_unseen = tree((-1, 0, 0, 1), (1, 0.6, 0.3, 0.45))
    assert record_statistics.greedy_path(a_likelier_one_may_be_unseen) == [1]
    assert record_statistics.greedy_path(tree((-1,), (1,))) == []


def test_the_chosen_path_is_what_the_game_played():
    game = dataclasses.replace(synthetic_records.solved_record(), completion_tokens=(11, 13, 12))
    played = tree((-1, 0, 0, 1, 3), (1,) * 5)
    game = dataclasses.replace(game, positions=game.positions[:1], trees=(played,))
    assert record_statistics.chosen_path(game, 0) == [1, 3]


def test_greedy_and_played_ends_are_compared():
    game = synthetic_records.solved_record()
    ends = tree((-1, 0, 0), (1, 0.7, 0.2), outcome=(None, 0.0, 1.0))
    with_trees = dataclasses.replace(game, trees=(ends,) * 3)
    assert record_statistics.greedy_outcome(with_trees) == 0
    stats = record_statistics.statistics([with_trees])
    assert (stats.greedy.num, stats.solved_beside_greedy.num, stats.greedy.of) == (0, 1, 1)
    later = dataclasses.replace(with_trees, positions=game.positions[1:], trees=(ends,) * 2)
    assert record_statistics.greedy_outcome(later) is None  # its first moves were drawn


def test_the_worth_of_moves():
    game = synthetic_records.solved_record()
    ends = tree((-1, 0, 0, 1), (1,) * 4, outcome=(None, None, 1.0, None), value=(0.5, 0.25, 0, 0))
    assert record_statistics.q_values(game, ends) == (0.5, 0.25, 1.0, None)
    free = dataclasses.replace(game, settings={"use_oracle": False})  # judged only afterwards
    assert record_statistics.q_values(free, ends) == (0.5, 0.25, None, None)
    told = dataclasses.replace(ends, q=(0.1, 0.2, 0.3, 0.4))
    assert record_statistics.q_values(free, told) == told.q
