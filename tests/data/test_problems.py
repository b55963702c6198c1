import dataclasses
import pickle
from fractions import Fraction

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


def test_every_problem_set_says_what_the_same_answer_is():
    assert problems._ANSWER_KEYS.keys() == problems._BY_NAME.keys()
    assert problems.answer_key("game24")("4 + 5 = 9") == "4 + 5 = 9"
    assert problems.answer_key("game24")("") is None
    strict, flexible = map(problems.answer_key, ("gsm8k", "gsm8k_flexible"))
    assert strict("so 9.\n#### 18.00") == strict("#### $18") == 18
    assert strict("so 18") is None and flexible("so 18") == 18
    assert problems.answer_key("grade_school")("#### 7") == 7
    assert problems.answer_key("math500")("\\boxed{0.5}") == Fraction(1, 2)
    with pytest.raises(DataError, match="Did you mean 'game24'"):
        problems.answer_key("game25")


def test_right_answers_of_a_problem_have_one_key():
    """And no wrong one has it: what the checker accepts is what is voted for."""
    key = problems.answer_key("grade_school_short")
    for problem in problems.load_problems("grade_school_short", "validation")[:20]:
        gold = int(problem.checker.args[0])
        texts = [f"#### {gold}", f"1 + 1 = 2\n#### {gold}.00", f"#### ${gold}", f"#### {gold + 1}"]
        keys = [key(text) for text in texts]
        assert [each == keys[0] for each in keys] == [problem.verify(text) for text in texts]
