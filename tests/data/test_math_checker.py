import collections
import concurrent.futures
import importlib.util
import os
import pickle
import random
import signal
import time
from functools import partial

import pytest

from data import files, math_checker
from data.errors import DataError

# Each takes sympy longer than anyone waits, or more memory than there is.
NEVER_ENDING = ["9^{9^{9^{9}}}", "(10^{10})!"]
FUZZ_PIECES = [
    *"0123456789xyn+-=^_(){}[]|!,.%$ ", "\\boxed{", "\\frac{", "}{", "\\sqrt{", "\\pi", "\\infty",
    "\\left(", "\\right)", "\\cup", "\\text{", "\\begin{pmatrix}", "\\end{pmatrix}", " & ", "\\\\",
    "\\sum_{n=1}^", "\\int_0^", "\\log_", "\\sin", "^{9^{9", "99999", "\\le", "\\in", "\x00",
    "\ud800",
]  # fmt: skip


@pytest.fixture(scope="module")
def pool():
    pool = math_checker.Pool(size=1, limit_seconds=1.0)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{1}{2}", "\\dfrac{2}{4}", True),
        ("\\frac{1}{2}", "0.51", False),
        ("10{,}000", "10000", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("x^2+2x+1", "(x-1)^2", False),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(\\pi/2, 3)", False),
        ("[2,5)", "[2,5]", False),
        ("\\{1,2\\}", "\\{2,1\\}", True),
        ("12", "12\\text{ cm}", True),
        ("12", "-12", False),
        ("3", "3 \\text{ or } 5", False),
        ("3", "3, 5", False),
        ("3", "", False),
        ("\\text{Evelyn}", "\\text{Evelyn}", True),
        ("\\text{Evelyn}", "\\text{Angela}", False),
    ],
)
def test_verdicts_by_hand(gold, answer, is_right):
    text = f"Not \\boxed{{777}}, but {{}} $\\boxed{{{answer}}}$."
    assert math_checker.check(gold, text) == is_right


@pytest.mark.parametrize(
    ("first", "second", "is_equal"),
    [
        ("\\frac12", "0.5", True),
        ("\\dfrac{1}{2}", "\\frac{2}{4}", True),
        ("1 \\frac34", "\\frac{7}{4}", True),
        ("10{,}000", "10000", True),
        ("\\$18.90", "18.9", True),
        ("x + 1", "x+1", True),
        ("\\text{Evelyn}", "\\text{Evelyn}", True),
        ("3i", "3", False),
        ("2x", "2", False),
        ("5!", "5", False),
        ("5\\%", "5", False),
        ("12_3", "12", False),
        ("90^\\circ", "90", False),
        ("3,5", "35", False),
        ("-3", "3", False),
        ("(2,3)", "(3,2)", False),
    ],
)
def test_answers_with_equal_keys_are_equal(first, second, is_equal):
    keys = [
        math_checker.answer_key(f"so \\boxed{{1}} or $\\boxed{{{x}}}$.") for x in (first, second)
    ]
    assert None not in keys and (keys[0] == keys[1]) == is_equal
    if is_equal:
        assert math_checker.check(first, f"\\boxed{{{second}}}")


@pytest.mark.parametrize(
    "text", ["", "5", "\\boxed{}", "\\boxed{ }", "\\boxed{5", None, "5" * 10**6]
)
def test_a_text_without_an_answer_has_no_key(text):
    assert math_checker.answer_key(text) is None


def test_only_the_last_box_is_read():
    assert math_checker.check("5", "\\boxed{4} \\boxed{5}")
    assert not math_checker.check("5", "\\boxed{5} \\boxed{4}")
    assert not math_checker.check("5", "\\boxed{5} \\boxed{5")
    assert not math_checker.check("5", "the answer is $5$")
    assert math_checker.check("5", "the answer is $5$", mode="flexible")
    assert not math_checker.check("5", None)
    assert math_checker.boxed("\\boxed{\\frac{1}{\\{2\\}}}") == "\\frac{1}{\\{2\\}}"


def test_every_math500_gold_verifies_itself(data_file):
    """By math-verify, not by being the same text; and as the last box of its own solution."""
    rows = files.read_json_lines(str(data_file("math/math500_test.jsonl")), fields=("answer",))
    assert len(rows) == 500
    golds = [f"\\boxed{{{row['answer']}}}" for row in rows]
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        verdicts = threads.map(math_checker._pool().judge, golds, golds)
        assert [gold for gold, one in zip(golds, verdicts) if one != "right"] == []
    assert all(math_checker.check(row["answer"], row["solution"]) for row in rows)


def test_agreement_with_published_verdicts(data_file):
    """800 sampled solutions with Qwen2.5-Math's verdicts: one differs, and there ours is right."""
    agreed, differences = 0, []
    path = str(data_file("math/rm_maj_example_100x8.jsonl.xz"))
    for row in files.read_json_lines(path, fields=("code", "pred", "score", "gt")):
        for solution, answer, score in zip(row["code"], row["pred"], row["score"], strict=True):
            if math_checker.check(row["gt"], solution) == score:
                agreed += 1
            else:
                differences.append((row["gt"], answer, score))
    assert agreed == 799
    assert differences == [("10{,}000", "10000", False)]


def test_what_never_ends_is_killed_and_replaced(pool):
    num_started, verdicts = pool.num_started, []
    for number, text in enumerate(NEVER_ENDING):
        verdict = pool.judge("\\boxed{1}", f"\\boxed{{{text}}}")
        assert verdict in ("too slow", "died", "wrong"), text
        verdicts.append(verdict)
        assert pool.judge("\\boxed{2}", "\\boxed{1+1}") == "right", number
    assert "too slow" in verdicts
    assert pool.num_started >= num_started + sum(one != "wrong" for one in verdicts)


def test_a_worker_that_dies_is_replaced(pool):
    assert pool.judge("\\boxed{1}", "\\boxed{1}") == "right"
    num_started = pool.num_started
    worker = pool._idle.get()
    worker.process.kill()
    worker.process.wait()
    pool._idle.put(worker)
    assert pool.judge("\\boxed{1}", "\\boxed{1}") == "died"
    assert pool.judge("\\boxed{1}", "\\boxed{1}") == "right"
    assert pool.num_started == num_started + 1


def test_a_worker_that_sleeps_is_killed(pool, monkeypatch):
    assert pool.judge("\\boxed{1}", "\\boxed{1}") == "right"
    worker = pool._idle.get()
    worker.process.send_signal(signal.SIGSTOP)
    pool._idle.put(worker)
    with monkeypatch.context() as patch:
        patch.setattr(math_checker, "WALL_SECONDS", 0.2)
        assert pool.judge("\\boxed{1}", "\\boxed{1}") == "too slow"
    assert worker.process.returncode == -signal.SIGKILL
    assert pool.judge("\\boxed{1}", "\\boxed{1}") == "right"


def test_threads_share_the_processes():
    check = pickle.loads(pickle.dumps(partial(math_checker.check, "x+1")))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(check, ["\\boxed{1+x}", "\\boxed{x-1}", "no"] * 40))
    assert verdicts == [True, False, False] * 40


def test_a_forked_child_starts_its_own(pool):
    math_checker.check("1", "\\boxed{0+1}")
    ours = math_checker._pool()
    child = os.fork()
    if not child:
        os._exit(0 if math_checker._pool() is not ours else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"'\.\[eval\]'"):
        math_checker.require_math_verify()


def formula(rng: random.Random, depth: int) -> str:
    """A well-formed one, and often too large to be worked out."""
    if not depth:
        return rng.choice(["x", "\\pi", "2", "9", "37", "10^{10}", "0.1"])
    a, b = formula(rng, depth - 1), formula(rng, depth - 1)
    forms = [f"({a})^{{{b}}}", f"({a})!", f"\\frac{{{a}}}{{{b}}}", f"\\sqrt[3]{{{a}}}", f"{a}+{b}"]
    return rng.choice([*forms, f"\\sin({a})", f"\\log_{{{a}}}({b})"])


def fuzz(pool: math_checker.Pool, num_calls: int) -> collections.Counter:
    """Verdicts by kind; what hangs is none, since the test would never end."""
    rng = random.Random(0)
    verdicts: collections.Counter = collections.Counter()
    for _ in range(num_calls):
        text = "".join(rng.choices(FUZZ_PIECES, k=rng.randrange(1, 25)))
        text = formula(rng, depth=3) if rng.random() < 0.01 else text
        started = time.monotonic()
        verdicts[pool.judge("\\boxed{\\frac{1}{2}}", f"\\boxed{{{text}}}")] += 1
        assert time.monotonic() - started < math_checker.WALL_SECONDS, text
    return verdicts


def test_fuzz(pool):
    assert sum(fuzz(pool, 100).values()) == 100


@pytest.mark.soak
def test_fuzz_long(pool):
    verdicts = fuzz(pool, 100_000)
    print(verdicts, f"{pool.num_started} processes")
    assert verdicts.total() == 100_000
