"""The stages of a circle: who plays, what is learned from, what is measured."""

import pytest

from configs import load
from evaluation.methods import BestOfN, Greedy
from train import pipeline


def stages(name):
    return {stage.name: stage.config for stage in load.find(name).stages}


@pytest.mark.parametrize("name", ["game24_system2", "game24_quickstart", "grade_school_system2"])
def test_every_round_plays_with_the_last_model_and_learns_from_all_records(name):
    found = stages(name)
    rounds = sum(stage.startswith("search") for stage in found)
    player = "stage:base"
    for n in range(1, rounds + 1):
        play, learn = found[f"search{n}"], found[f"learn{n}"]
        assert play.checkpoint == learn.initial_checkpoint == player
        assert play.search.use_oracle and play.search.use_value == (n > 1)
        paths = [source.path for source in learn.hybrid.records]
        assert paths == [f"stage:search{m}/records" for m in range(1, n + 1)]
        weights = [source.weight for source in learn.hybrid.records]
        assert weights == sorted(weights) and weights[-1] == 1
        player = f"stage:learn{n}"
    assert (found["evaluation"].checkpoint, found["evaluation"].base_checkpoint) == (
        player, "stage:base",
    )  # fmt: skip
    assert found["evaluation"].tasks == (found["search1"].problem_set,)


def test_rounds_play_new_problems_where_there_are_more_of_them():
    small = stages("grade_school_system2")
    assert [small[f"search{n}"].first for n in (1, 2)] == [0, small["search1"].limit]
    assert stages("game24_system2")["search2"].first == 0


def test_answers_to_word_problems_have_room_and_no_more_solutions_are_read():
    found = stages("grade_school_system2")
    room = found["search1"].search.action.max_completion_tokens
    for method in found["evaluation"].methods:
        if isinstance(method, Greedy | BestOfN):
            assert method.max_completion_tokens == room
        else:
            assert method.search.action.max_completion_tokens == room
    moved = {s.name: s.config for s in pipeline.reseed(load.find("grade_school_system2"), 3).stages}
    for config in (found, moved):
        *solutions, first, second = config["learn2"].sources
        assert tuple(solutions) == config["base"].sources
        assert [first.path, second.path] == ["stage:search1/records", "stage:search2/records"]
        assert {first.include, second.include} == {"solved"}
