"""Answers that a checker may get wrong. `STEPS` solves 4 5 6 10 and is varied below."""

import random
import time

import numpy as np
import pytest

from data import game24

PUZZLE = (4, 5, 6, 10)
STEPS = "10 - 4 = 6 left 5 6 6\n5 * 6 = 30 left 6 30\n30 - 6 = 24"
EQUATION = "(10 - 4) * 5 - 6"
FRACTIONS = "8 / 3 = 8/3 left 3 8 8/3\n3 - 8/3 = 1/3 left 8 1/3\n8 / 1/3 = 24"
NEGATIVE = "2 - 10 = -8 left -8 2 8\n2 * 8 = 16 left -8 16\n16 - -8 = 24"

RIGHT = {
    PUZZLE: [
        STEPS,
        STEPS + "\n",
        "\n  " + STEPS + "  \n",
        STEPS + " left 24",
        STEPS.replace("left 5 6 6", "left 6 5 6"),
        STEPS.replace("5 * 6", "6 * 5"),
        STEPS.replace("*", "×").replace("-", "−"),
        STEPS.replace(" ", "  "),
        EQUATION,
        EQUATION + " = 24",
        "(10-4)*5-6=24",
        "(10 − 4) × 5 − 6 = 24",
        "5 * (10 - 4) - 6 = 24",
        "((((10 - 4)) * 5) - (6)) = 24",
        "  ( 10 - 4 ) * 5 - 6 =24  ",
        EQUATION + " = 24\n",
        "(10 - 4)*5   - 6",
    ],
    (10, 6, 4, 5): [STEPS, EQUATION],  # the order of the given numbers does not matter
    (3, 3, 8, 8): [
        "8 / (3 - 8 / 3) = 24",
        "8÷(3−8÷3)",
        "8/(3-8/3)=24",
        FRACTIONS,
        FRACTIONS.replace("1/3", "2/6"),
        FRACTIONS.replace("left 3 8 8/3", "left 8/3 8 3"),
    ],
    (2, 2, 8, 10): [NEGATIVE, NEGATIVE.replace("-8", "−8"), "2 * 8 - (2 - 10) = 24"],
    (1, 5, 5, 5): ["5 * (5 - 1 / 5)", "(5 - 1/5) * 5 = 24"],
    (1, 1, 4, 6): ["4 * 6 * 1 * 1", "4 * 6 + 1 - 1", "4*6*(1/1)", "1 - 1 + 4 * 6 = 24"],
    (6, 6, 6, 6): ["6 + 6 + 6 + 6", "(6 * 6) - 6 - 6", "6*6-6-6"],
    (4, 6): ["4 * 6 = 24", "4 * 6", "6 * 4", "6 * 4 = 24 left 24"],
    (24,): ["24", "24 = 24", "(24)"],
    (0, 4, 6): ["4 * 6 + 0", "0 + 4 * 6 = 24", "4 * 6 = 24 left 0 24\n24 + 0 = 24"],
}

ONE_CHANGE = [  # (part of STEPS, what makes it wrong)
    ("10 - 4 = 6", "10 - 4 = 5"),  # a wrong result
    ("10 - 4 = 6", "10 - 4 = 06"),
    ("10 - 4 = 6", "10 - 4 = 6.0"),
    ("10 - 4 = 6", "10 - 4 = +6"),
    ("10 - 4 = 6", "10 - 4 = 6 = 6"),
    ("10 - 4 = 6", "10 - 4 == 6"),
    ("10 - 4 = 6", "10 - 4 6"),
    ("10 - 4 = 6", "10 - 4 ="),
    ("10 - 4 = 6", "10 - 4 = six"),
    ("10 - 4 = 6", "6 = 10 - 4"),
    ("10 - 4 = 6", "10-4=6"),  # words are separated by spaces
    ("10 - 4 = 6", "10 - 4 = 6,"),
    ("10 - 4 = 6", "10 - 4 = 6/0"),
    ("10 - 4 = 6", "10 - 4 = -6"),
    ("10 - 4 = 6", "4 - 10 = 6"),
    ("10 - 4 = 6", "11 - 5 = 6"),  # a number that is not there
    ("10 - 4 = 6", "10 - 10 = 0"),
    ("10 - 4 = 6", "12 / 2 = 6"),
    ("10 - 4 = 6", "10 -- 4 = 6"),
    ("10 - 4 = 6", "10 +- 4 = 6"),
    ("10 - 4 = 6", "10 ** 4 = 6"),
    ("10 - 4 = 6", "10 // 4 = 2"),
    ("10 - 4 = 6", "10 % 4 = 2"),
    ("10 - 4 = 6", "10 ^ 4 = 14"),
    ("10 - 4 = 6", "010 - 4 = 6"),
    ("10 - 4 = 6", "1 0 - 4 = 6"),
    ("10 - 4 = 6", "10 - 4 - 0 = 6"),
    ("10 - 4 = 6", "(10 - 4) = 6"),
    ("10 - 4 = 6", "1. 10 - 4 = 6"),
    ("10 - 4 = 6", "Step 10 - 4 = 6"),
    ("left 5 6 6", ""),  # a missing list
    ("left 5 6 6", "left"),
    ("left 5 6 6", "left 5 6"),
    ("left 5 6 6", "left 5 6 6 6"),
    ("left 5 6 6", "left 5 5 6"),
    ("left 5 6 6", "left 4 5 6"),
    ("left 5 6 6", "left 5 6 6 0"),
    ("left 5 6 6", "left 5 66"),
    ("left 5 6 6", "left 56 6"),
    ("left 5 6 6", "left 5, 6, 6"),
    ("left 5 6 6", "(left: 5 6 6)"),
    ("left 5 6 6", "left left 5 6 6"),
    ("left 5 6 6", "right 5 6 6"),
    ("left 5 6 6", "LEFT 5 6 6"),
    ("left 5 6 6", "5 6 6"),
    ("left 5 6 6", "left 5 6 6."),
    ("left 5 6 6", "left 5 6 six"),
    ("left 5 6 6", "left 4 5 6 6 10"),
    ("left 5 6 6", "left 5 6 6 left 5 6 6"),
    ("left 5 6 6", "left 05 6 6"),
    ("5 * 6 = 30", "5 * 5 = 25"),  # the second 5 does not exist
    ("5 * 6 = 30", "5 x 6 = 30"),
    ("5 * 6 = 30", "5 times 6 = 30"),
    ("5 * 6 = 30", "5 * 6 = 31"),
    ("5 * 6 = 30", "10 * 6 = 60"),  # 10 was used
    ("5 * 6 = 30", "5 * 4 = 20"),
    ("left 6 30", "left 30"),
    ("left 6 30", "left 6 6 30"),
    ("left 6 30", "left 24"),
    ("left 6 30", "left 6 30\n"),  # a blank line
    ("left 6 30", "left 6 30\n6 * 1 = 6 left 6 30"),
    ("30 - 6 = 24", ""),  # stops early
    ("30 - 6 = 24", "30 + 6 = 36"),
    ("30 - 6 = 24", "30 + 6 = 24"),
    ("30 - 6 = 24", "24 = 24"),
    ("30 - 6 = 24", "24"),
    ("30 - 6 = 24", "6 - 30 = 24"),
    ("30 - 6 = 24", "6 - 30 = -24"),
    ("30 - 6 = 24", "20 + 4 = 24"),
    ("30 - 6 = 24", "12 * 2 = 24"),
    ("30 - 6 = 24", "30 - 6 = 24 left"),
    ("30 - 6 = 24", "30 - 6 = 24 left 6"),
    ("30 - 6 = 24", "30 - 6 = 24 left 24 24"),
    ("30 - 6 = 24", "30 - 6 = 24\n24 + 0 = 24"),
    ("30 - 6 = 24", "30 - 6 = 24\n24"),
    ("30 - 6 = 24", "30 - 6 = 24 done"),
    ("30 - 6 = 24", "30 - 6 = 24."),
    ("30 - 6 = 24", "30 - 6 = 24!"),
    ("30 - 6 = 24", "30 - 6 = 24\nAnswer: (10 - 4) * 5 - 6 = 24"),
    ("30 - 6 = 24", "30 - 6 = 2 4"),
    ("30 - 6 = 24", "30 - 6 = 24.0"),
    ("30 - 6 = 24", "30 - 6 = 48/2x"),
    ("30 - 6 = 24", "30 - 6 = ２４"),
    ("30 - 6 = 24", "30 - 6 = ٢٤"),
    ("30 - 6 = 24", "30 - 6 = 24\x00"),
    ("30 - 6 = 24", "30 - 6\x0b= 24"),
    ("30 - 6 = 24", "30\xa0- 6 = 24"),
    ("30 - 6 = 24", "30\u2003- 6 = 24"),
    ("30 - 6 = 24", "30 - 6 = 24<eos>"),
    ("30 - 6 = 24", "30 - 6 = 24 = 24"),
    ("\n", " "),  # lines run together
    ("\n", "\n\n"),
    ("\n", "; "),
    ("\n", "\r"),
    ("\n", "\r\n"),
    ("30 - 6", "30\t- 6"),
    ("30 - 6 = 24", "30 - 6 = 24\t"),
    ("\n", "\u2028"),
    ("\n", "\\n"),
]

WRONG_EQUATIONS = [
    "",
    " ",
    "\n\n",
    "24",
    "24 = 24",
    "= 24",
    "=",
    "10",
    "4 5 6 10",
    "4 + 5 + 6 + 10",
    "4 + 5 + 6 + 10 = 24",
    "4 * 6 = 24",  # 5 and 10 are missing
    "4 * 6",
    "(10 - 5) * 4 + 4 = 24",  # 4 twice, no 6
    "4 * 6 + 10 - 5 - 5 = 24",
    "4 * 6 * (10 - 5 - 4)",
    "(10 - 4) * 5 - 6 - 0",
    "(10 - 4) * 5 - 6 + 0 = 24",
    "(10 - 4) * 5 * 1 - 6",
    "(10 - 4) * 5 - 06",
    "(010 - 4) * 5 - 6",
    "(10.0 - 4) * 5 - 6",
    "(1e1 - 4) * 5 - 6",
    "(0xa - 4) * 5 - 6",
    "(1_0 - 4) * 5 - 6",
    "(1 0 - 4) * 5 - 6",
    "(10j - 4) * 5 - 6",
    "(10 - 4) * 5 -6 = 25",
    "(10 - 4) * 5 - 6 = 024",
    "(10 - 4) * 5 - 6 = 24.0",
    "(10 - 4) * 5 - 6 = 24 = 24",
    "(10 - 4) * 5 - 6 == 24",
    "(10 - 4) * 5 - 6 = 20 + 4",
    "(10 - 4) * 5 = 24 + 6",
    "24 = (10 - 4) * 5 - 6",
    "(10 - 4) * 5 - 6 =",
    "(10 - 4) * 5 - 6 = x",
    "(10 - 4) * 5 - 6 = 24 left 24",
    "(10 - 4) * 5 - 6 = 24 left",
    "(10 - 4) * 5 - 6 = 24 is the answer",
    "Answer: (10 - 4) * 5 - 6 = 24",
    "answer (10 - 4) * 5 - 6 = 24",
    "(10 - 4) * 5 - 6 # 24",
    "(10 - 4) * 5 - 6 or 24",
    "(10 - 4) * 5 - 6; 24",
    "(10 - 4) * 5 - 6, 24",
    "(10 - 4) * 5 - 6\n= 24",
    "(10 - 4) * 5\n- 6 = 24",
    "(10 - 4) * 5 - 6\n(10 - 4) * 5 - 6",
    "(10 - 4) * 5 - 6 = 24\n(10 - 4) * 5 - 6 = 24",
    "(10 - 4 * 5 - 6",
    "10 - 4) * 5 - 6",
    "(10 - 4) * 5 - 6)",
    "((10 - 4) * 5 - 6",
    ")10 - 4( * 5 - 6",
    "(10 - 4)5 - 6",
    "(10 - 4)(5) - 6",
    "5(10 - 4) - 6",
    "[10 - 4] * 5 - 6",
    "{10 - 4} * 5 - 6",
    "(10 - 4) x 5 - 6",
    "(10 - 4) X 5 - 6",
    "(10 - 4) · 5 - 6",
    "(10 - 4) ∗ 5 - 6",
    "(10 – 4) * 5 – 6",  # en dashes
    "(10 - 4) * 5 6 -",
    "10 4 - 5 * 6 -",
    "- 6 + (10 - 4) * 5",  # unary minus
    "-(4 - 10) * 5 - 6",
    "(10 + -4) * 5 - 6",
    "+(10 - 4) * 5 - 6",
    "(10 - 4) * 5 - +6",
    "(10 - - 4) * 5 - 6",
    "(10 - 4) ** 5 - 6",
    "(10 - 4) ^ 5 - 6",
    "10 ** 4 ** 5 ** 6",
    "10 ^ 4 ^ 5 ^ 6",
    "(10 - 4) // 5 - 6",
    "(10 % 4) * 5 - 6",
    "10 * 4 - 5 - 6 - 5",
    "4! * 6 / 6",
    "4!",
    "sqrt(4) * 10 + 4",
    "106 - 54",
    "4 * 56 / 10",  # concatenated
    "46 - 10 * 5",
    "5 / (10 - 10) * 4",
    "6 / (10 - 4 - 5 - 1)",
    "(10 - 4) / (5 - 5)",
    "10 / 0 + 4 + 5 + 6",
    "((10 - 4) * 5 - 6) / 1",
    "(10 - 4) * 5 - 6 + 10 - 10",
    "(10 - 4) * 5 - 6 - ()",
    "()",
    "(())",
    "+",
    "-*/",
    "(10 - 4) * 5 - ６",
    "(10 - 4) * ⁵ - 6",
    "(10 - 4) * 5 - 六",
    "(¹0 - 4) * 5 - 6",
    "(10 - 4) * 5 - 6 = ²4",
    "(10 - 4) * 5 - 6\x00",
    "(10 - 4)\x0c* 5 - 6",
    "(10 - 4)\u200b* 5 - 6",
    "\ufeff(10 - 4) * 5 - 6",
    "(10 - 4) * 5 - 6" + " " * 1000,
    "(" * 400 + "10 - 4" + ")" * 400 + " * 5 - 6",
    "(" * 60 + EQUATION + ")" * 60,
    "(" * 900,
    "9" * 900,
    "9" * 30 + " - 4 * 5 - 6",
    "10 - 4 * " * 90 + "5 - 6",
    "__import__('os').getcwd()",
    "exit()",
    "1 if True else 0",
    "lambda: 24",
    "None",
    "nan",
    "inf",
    "left",
    "left 24",
    "left left left",
    "\ud800",
    "𝟐𝟒",
]

WRONG_ELSEWHERE = {
    (3, 3, 8, 8): [
        "8 / (3 - 2.6666666666666665)",
        "8 / (3 - 8 / 3",
        "8 / 3 = 2 left 2 3 8\n3 - 2 = 1 left 1 8\n8 * 1 = 8",
        FRACTIONS.replace("8/3", "2.667"),
        FRACTIONS.replace("8/3", "8 / 3"),
        FRACTIONS.replace("1/3", "0.333"),
        FRACTIONS.replace("1/3", "1/4"),
        FRACTIONS.replace("1/3", "1/0"),
        FRACTIONS.replace("1/3", "01/3"),
        "3 * 8 = 24 left 3 8 24\n24 * 3 = 72 left 8 72\n72 / 8 = 9",
        "3 * 8 = 24",
        "3 * 8",
        "8/3",
    ],
    (2, 2, 8, 10): [NEGATIVE.replace("left -8 2 8", "left 8 2 8"), NEGATIVE.replace("-8", "--8")],
    (1, 1, 4, 6): [
        "4 * 6 + 1 / 1 - 1",
        "4 * 6 * 1",
        "4 * 6 * 11 / 11",
        "(4 * 6) / (1 - 1)",
        "1 - 1 = 0 left 0 4 6\n4 / 0 = 24 left 6 24\n24 / 6 = 4",
        "1 - 1 = -0 left 0 4 6\n4 * 6 = 24 left 0 24\n24 - 0 = 25",
    ],
    (24, 1, 1): ["24 * 1 = 24 left 1 24\n7 * 7 = 49", "24 * 1 = 24 left 1 24\n24 * 1 = 24 left 1"],
    (4, 6): ["46", "6 * 4 = 24 left 4", "24", "6 + 4 = 24", "4 * 6 * 1"],
    (24,): ["", "24 + 0", "25", "-24"],
    (): ["", "24", "()", "= 24"],
    (2, 4): ["24", "2 4", "(2)(4)"],
}


def cases(table):
    return [(numbers, answer) for numbers, answers in table.items() for answer in answers]


WRONG = [(PUZZLE, STEPS.replace(old, new)) for old, new in ONE_CHANGE]
WRONG += [(PUZZLE, answer) for answer in WRONG_EQUATIONS] + cases(WRONG_ELSEWHERE)


@pytest.mark.parametrize(("numbers", "answer"), cases(RIGHT))
def test_right_answers_are_accepted(numbers, answer):
    assert game24.check(numbers, answer)


@pytest.mark.parametrize(("numbers", "answer"), WRONG, ids=range(len(WRONG)))
def test_wrong_answers_are_refused(numbers, answer):
    assert not game24.check(numbers, answer), answer


def test_there_are_many_wrong_answers():
    assert len({answer for _, answer in WRONG}) >= 200
    assert all(old in STEPS for old, _ in ONE_CHANGE)


@pytest.mark.parametrize("answer", [None, 24, b"(10 - 4) * 5 - 6", ["24"], float("nan")])
def test_other_types_are_refused(answer):
    assert not game24.check(PUZZLE, answer)


def test_given_numbers_may_be_numpy():
    assert game24.check(np.array(PUZZLE), STEPS) and game24.check(np.array(PUZZLE), EQUATION)


def test_random_changes_never_raise_and_take_no_time():
    rng = random.Random(0)
    alphabet = "0123456789+-*/()= \nleft×÷−.^eE_x\x00٣²\u2028"
    start = time.process_time()
    for trial in range(4000):
        text = list(rng.choice([STEPS, EQUATION, FRACTIONS, "", "(" * 500, "9" * 999]))
        for _ in range(rng.randrange(1, 12)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randrange(3)] = rng.choices(alphabet, k=rng.randrange(4))
        assert game24.check(PUZZLE, "".join(text)) in (True, False), trial
    assert time.process_time() - start < 10  # about 0.3 s on an idle core


def test_checker_agrees_with_random_play():
    """Legal plays are right exactly when their last result is 24."""
    plays = game24.iterate_legal_plays(11)
    outcomes = []
    for prompt, completion in (next(plays) for _ in range(3000)):
        outcomes.append(completion.endswith("= 24"))
        assert game24.check(tuple(map(int, prompt.split())), completion) == outcomes[-1]
    assert 10 < sum(outcomes) < 200
