import collections
import pickle
import random
import time
from fractions import Fraction
from functools import partial

import pytest

from data import files, gsm8k_checker
from tests.data import answer_formats

FUZZ_PIECES = [
    *"0123456789.,-+$%/ \n#{}\\^²½०", "####", "#### ", "\\boxed{", "\\frac{", "}{", "1,000", "and",
    "\\text{", "million", "\\", "9" * 50, "1,1" * 30, "{" * 40, "½", "m^2", "\ud800", "\x00",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#### 18", 18),
        ("#### 1,234", 1234),
        ("#### $1,234.50 in all", Fraction(2469, 2)),
        ("#### -1 3/4", Fraction(-7, 4)),
        ("#### 1½ cups", Fraction(3, 2)),
        ("#### 5 hundred thousand dollars", 500_000),
        ("#### 7\n#### 8", 8),
        ("#### 7\n#### ", None),
        ("7", None),
    ],
)
def test_strict_answers_by_hand(text, value):
    assert gsm8k_checker.answer(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so 10-4 = 6", 6),
        ("so 10-4", 4),
        ("it fell to -4", -4),
        ("a plot of 24 m2", 24),
        ("the 24 of the 3rd", 24),
        ("x2 is 7, H2O", 7),
        ("half of it: 3/4", Fraction(3, 4)),
        ("that is 1,000,000.", 1_000_000),
        ("that is 1,00", None),
        ("on 12/25/2024", None),
        ("#### $5 ... , .", 5),
        ("none", None),
        ("", None),
    ],
)
def test_flexible_answers_by_hand(text, value):
    assert gsm8k_checker.answer(text, mode="flexible") == value


def test_adversarial_formats():
    """More than 10,000 texts whose verdict is known by their making."""
    seen = collections.Counter()
    for gold, text, verdict in answer_formats.cases(seed=0, num_values=20):
        assert gsm8k_checker.check(gold, text) == verdict, (gold, text, verdict)
        seen[verdict] += 1
    assert sum(seen.values()) > 10_000 and min(seen.values()) > 5_000


def test_flexible_reads_what_stands_last():
    """A number in any form, after any other text, is the last one."""
    for gold, number in [(v, n) for v in (Fraction(7), Fraction(-1234), Fraction(5, 4))
                         for n in answer_formats.written(v)]:  # fmt: skip
        for presented in answer_formats.dressed(number):
            text = f"First 12, then 3 - 4; so it is {presented}"
            assert gsm8k_checker.answer(text, mode="flexible") == gold, text


@pytest.mark.parametrize("mode", ["strict", "flexible"])
def test_every_gold_answer_verifies_itself(data_file, mode):
    names = ("gsm8k/train.jsonl.xz", "gsm8k/test.jsonl")
    rows = [
        row
        for name in names
        for row in files.read_json_lines(str(data_file(name)), fields=("question", "answer"))
    ]
    assert len(rows) == 8792
    for row in rows:
        gold = int(row["answer"].rsplit("#### ", 1)[1].replace(",", ""))
        assert gsm8k_checker.answer(row["answer"], mode=mode) == gold


@pytest.mark.parametrize("mode", ["strict", "flexible"])
def test_the_published_verdicts_are_reproduced(data_file, mode):
    """Four models' solutions with the verdicts of the dataset's authors; no verdict differs."""
    check = partial(gsm8k_checker.check, mode=mode, marker="A:")
    count, differences = collections.Counter(), []
    path = str(data_file("gsm8k/example_model_solutions.jsonl.xz"))
    for row in files.read_json_lines(path, fields=("ground_truth",)):
        gold = gsm8k_checker.answer(row.pop("ground_truth"), marker="A:")
        del row["question"]
        for model, one in row.items():
            count[model] += one["is_correct"]
            if check(gold, one["solution"]) != one["is_correct"]:
                differences.append((model, gold, one["solution"]))
    assert differences == []
    assert count == {
        "175b_verification": 742, "175b_finetuning": 458, "6b_verification": 515,
        "6b_finetuning": 286,
    }  # fmt: skip


def fuzz(num_calls: int) -> None:
    rng = random.Random(0)
    for _ in range(num_calls):
        text = "".join(rng.choices(FUZZ_PIECES, k=rng.randrange(30)))
        mode = rng.choice(["strict", "flexible"])
        started = time.process_time()
        assert gsm8k_checker.check(rng.randrange(10), text, mode=mode) in (True, False)
        assert time.process_time() - started < 0.5, text


def test_fuzz():
    fuzz(1_900)


@pytest.mark.soak
def test_fuzz_long():
    fuzz(100_000)


@pytest.mark.parametrize("piece", ["1", "1,", "1/", "1 ", "1,1", "{", "\\boxed{", "$", "####", "½"])
@pytest.mark.parametrize("mode", ["strict", "flexible"])
def test_long_texts_take_linear_time(piece, mode):
    texts = [piece * (size // len(piece)) for size in (1_000, 50_000)]
    for text in (*texts, "#### " + texts[1], "\\boxed{" + texts[1]):
        started = time.process_time()
        gsm8k_checker.check(1, text, mode=mode)
        assert time.process_time() - started < 1.0


def test_what_is_no_text_is_wrong():
    assert not gsm8k_checker.check(1, None)
    assert not gsm8k_checker.check(1, "#### 1" + " " * gsm8k_checker.MAX_CHARACTERS)
    again = pickle.loads(pickle.dumps(partial(gsm8k_checker.check, 18)))
    assert again("#### 18") and not again("#### 19")
