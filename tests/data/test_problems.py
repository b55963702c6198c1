import dataclasses
import pickle

import pytest

from data import game24, problems
from data.errors import DataError


def test_prompts_carry_nothing_to_cheat_with():
    assert [f.name for f in dataclasses.fields(problems.Prompt)] == ["id", "split", "text"]


def test_a_problem_verifies_completions():
    problem = problems.game24_problem([10, 4, 6, 5])
    assert problem.prompt == problems.Prompt(
        id="game24/4-5-6-10", split="custom", text="4 5 6 10\n"
    )
    right = "10 - 4 = 6 left 5 6 6\n5 * 6 = 30 left 6 30\n30 - 6 = 24"
    again = pickle.loads(pickle.dumps(problem))
    assert problem.verify(right) and again.verify(right)
    assert not problem.verify(right.replace("10 - 4", "10 - 5"))


@pytest.mark.parametrize("split", game24.SPLITS)
def test_splits_load(split):
    loaded = problems.load_problems("game24", split)
    assert [p.prompt.text for p in loaded] == [game24.prompt_text(n) for n in game24.split(split)]
    assert {p.prompt.split for p in loaded} == {split}
    assert len({p.prompt.id for p in loaded}) == len(loaded)


def test_an_unsolvable_puzzle_is_refused():
    with pytest.raises(DataError, match=r"\(1, 1, 1, 1\), which has none"):
        problems.game24_problem((1, 1, 1, 1))


def test_unknown_names_are_refused():
    with pytest.raises(DataError, match="Did you mean 'game24'"):
        problems.load_problems("game25", "train")
    with pytest.raises(DataError, match="split"):
        problems.load_problems("game24", "dev")
