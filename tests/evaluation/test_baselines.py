"""Votes, samples that several rows share, and beams that cost no more than a search."""

import dataclasses
import functools
import json
import lzma

import pytest

from configs.game24_system2 import ACTION
from data import math_checker, problems, tokenizer
from evaluation import methods, run, sampling
from evaluation.methods import Beam, BestOfN, Greedy
from search.token_model import ActionConfig
from tests.evaluation.test_run import player, saved  # noqa: F401 (fixtures)
from train.errors import ConfigError

TOKENIZER = tokenizer.load_tokenizer("game24")
TRAINED = "docs/results/game24_system2/params"


def asked(num_problems: int, budgets=None, first: int = 0) -> methods.Questions:
    numbers = list(range(first, first + num_problems))
    found = problems.load_problems("game24", "test")
    prompts = [found[number].prompt for number in numbers]
    return methods.Questions(task="game24", numbers=numbers, prompts=prompts, budgets=budgets)


# ------------------------------------------------------------------------------------- votes


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ([7, 8, 8], 1),
        ([7, 8, 8, 7], 0),
        ([8, 7, 7, 8, 9], 0),
        ([None, 8, None], 1),
        ([None, None, 8, 7, 7], 3),
        ([None, None], None),
        ([], None),
        ([0, 0, 1], 0),  # a number that is false
        (["", "b"], 0),
    ],
)
def test_the_most_frequent_answer_wins_and_of_equal_ones_the_first(answers, winner):
    assert sampling.vote(answers) == winner


def test_majorities_of_published_samples(data_file):
    """100 MATH problems with 8 samples: 93 are right, as their repository says of majority@8."""
    with lzma.open(data_file("math/rm_maj_example_100x8.jsonl.xz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    winners = [sampling.vote([math_checker.answer_key(text) for text in r["code"]]) for r in rows]
    assert sum(row["score"][n] for row, n in zip(rows, winners, strict=True)) == 93
    assert sum(row["score"][0] for row in rows) == 90
    for row in rows:  # samples with one key have one verdict
        keys = [math_checker.answer_key(text) for text in row["code"]]
        assert len(set(zip(keys, row["score"]))) == len(set(keys))


def last_word(text: str) -> str | None:
    return None if text == "4" else text.split()[-1]


def test_finished_samples_vote_with_their_answers(player):  # noqa: F811
    def ids(words):
        return (*TOKENIZER.encode(words), TOKENIZER.eos_id)

    samples = [ids("4"), ids("1 + 5"), ids("4"), ids("2 + 9"), ids("4"), ids("3 + 5"), ids("2 + 9")]
    unfinished = [tuple(TOKENIZER.encode("7 + 9"))] * 5
    prompt = TOKENIZER.encode("4 5 6 10\n")
    choose = functools.partial(BestOfN()._choose, player, prompt, answer_key=last_word)
    attempt = choose(samples=unfinished + samples)
    assert attempt.voted == "1 + 5"  # two of 5 before two of 9; three have no answer
    texts = (attempt.completion, *attempt.others)
    assert dict(zip(texts, attempt.counts)) == {"4": 3, "1 + 5": 1, "2 + 9": 2, "3 + 5": 1}
    assert attempt.num_samples == 12
    assert attempt.evaluations == 5 + 3 * 2 + 4 * 4 + 5 * 3
    assert attempt.evaluations_of_one == pytest.approx(5 + (3 * 2 + 4 * 4 + 5 * 3) / 12)
    alone = choose(samples=[ids("4"), *unfinished])
    assert alone.finished and alone.voted is None
    none = choose(samples=unfinished)
    assert (none.finished, none.voted, none.counts) == (False, None, (0,))


# ---------------------------------------------------------------- rows from the same samples

RIGHT = "10 - 4 = 6 left 5 6 6\n5 * 6 = 30 left 6 30\n30 - 6 = 24"
WRONG = "10 - 4 = 6 left 5 6 6\n5 * 6 = 24"


def sampled(texts_and_counts, voted, num_samples=10) -> run.Answer:
    """The first text is the one of the highest value."""
    (completion, *others), counts = zip(*texts_and_counts)
    attempt = methods.Attempt(
        completion=completion,
        finished=True,
        value=0.5,
        others=tuple(others),
        num_samples=num_samples,
        evaluations=100,
        counts=counts,
        voted=voted,
        evaluations_of_one=20.0,
    )
    return run.check(problems.game24_problem((4, 5, 6, 10)), attempt, 0.5)


def test_every_choice_has_a_row_of_its_own():
    answers = [
        sampled([(WRONG, 2), (RIGHT, 4)], voted=RIGHT),
        sampled([(RIGHT, 1), (WRONG, 3)], voted=WRONG),
        sampled([(WRONG, 5), (RIGHT, 1)], voted=None),
        sampled([(WRONG, 5)], voted=WRONG),
    ]
    method = BestOfN(choices=("chance", "value", "majority", "checker"))
    rows = run.make_rows(method, answers, "game24", "")
    assert [(row.method, row.score) for row in rows] == [
        ("one sample", pytest.approx((0.4 + 0.1 + 0.1) / 4)),
        ("best-of-n, value-chosen", 0.25),
        ("majority of n", 0.25),
        ("best-of-n, checker-chosen (pass@n)", 0.75),
    ]
    assert [row.forward_passes_per_problem for row in rows] == [20, 100, 100, 100]
    assert [(row.use_value, row.use_oracle) for row in rows] == [
        (False, False), (True, False), (False, False), (False, True),
    ]  # fmt: skip
    assert [row.settings["num_samples"] for row in rows] == [1, 10, 10, 10]
    assert rows[0].low < rows[0].score < rows[0].high and json.dumps(rows[0].settings)


def test_a_search_is_tested_against_every_choice_but_those_of_checker_and_chance():
    answers = [
        sampled([(WRONG, 2), (RIGHT, 4)], voted=RIGHT),
        sampled([(RIGHT, 1), (WRONG, 3)], voted=WRONG),
        sampled([(RIGHT, 5), (WRONG, 1)], voted=RIGHT),
    ]
    method = BestOfN(choices=("majority", "chance", "checker", "value"))
    rows = run.make_rows(method, answers, "game24", "")
    assert run.rows_tested(method, answers, rows) == [
        (rows[0], [True, False, True]),
        (rows[3], [False, True, True]),
    ]
    search = run.make_rows(methods.Search(), answers, "game24", "")
    ((row, right),) = run.rows_tested(methods.Search(), answers, search)
    assert row.method == "search" and right == [False, True, True]


def test_a_number_of_samples_is_given_or_follows_from_a_search(player):  # noqa: F811
    draw = functools.partial(
        BestOfN._draw, player=player, prompt=asked(1).prompts[0], number=0, budget=float("inf")
    )
    few, many = (
        draw(BestOfN(match=None, num_samples=n, max_completion_tokens=4)) for n in (3, 150)
    )
    assert (len(few), len(many)) == (3, 150)  # more than are drawn at once
    assert many[:3] == few
    capped = BestOfN(num_samples=5, max_completion_tokens=4).play(player, asked(2, (10**6, 13)))
    assert capped[0].num_samples == 5 and capped[1].num_samples <= 2
    assert capped[1].evaluations <= 13


@pytest.mark.parametrize(
    ("method", "budgets"),
    [
        (BestOfN(), None),
        (BestOfN(match=None, num_samples=2), (100,)),
        (Beam(match="search-50"), None),
    ],
)
def test_budgets_are_given_exactly_when_they_are_needed(player, method, budgets):  # noqa: F811
    with pytest.raises(ValueError, match="exactly when a method matches a search"):
        method.play(player, asked(1, budgets))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestOfN(match=None), "match=None and num_samples=None"),
        (lambda: BestOfN(num_samples=0), "num_samples=0"),
        (lambda: BestOfN(choices=()), "choices"),
        (lambda: Beam(width=0), "width=0"),
        (lambda: Beam(max_moves=0), "max_moves=0"),
        (lambda: run.EvaluationConfig(checkpoint="x", methods=(Beam(match="search-50"),)),
         "'beam-4-search-50' matches an earlier search"),
    ],
)  # fmt: skip
def test_a_method_says_what_does_not_fit(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_texts_may_be_longer_than_32_tokens(player):  # noqa: F811
    action = ActionConfig(kind="token", num_candidates=2, max_completion_tokens=48)
    lengths = []
    for method in (
        Greedy(max_completion_tokens=48),
        BestOfN(match=None, num_samples=4, max_completion_tokens=48),
        Beam(action=action, width=2, max_moves=48),
    ):
        (attempt,) = method.play(player, asked(1))
        lengths.append(len(TOKENIZER.encode(attempt.completion)))
    assert max(lengths) <= 48 and sum(length > 32 for length in lengths) >= 2


# ------------------------------------------------------------------------------ a trained model


@pytest.fixture(scope="module")
def trained():
    return run.Players(run.EvaluationConfig(checkpoint=TRAINED))("trained")


@pytest.mark.slow
def test_a_beam_is_as_wide_as_its_budget_allows_and_no_wider(trained):
    questions = asked(4)
    fixed = {
        width: Beam(action=ACTION, width=width).play(trained, questions) for width in (1, 2, 3, 4)
    }
    costs = {width: [a.evaluations for a in attempts] for width, attempts in fixed.items()}
    assert costs[1] < costs[2] < costs[3] < costs[4]
    budgets = [costs[1][0] - 1, costs[2][1], costs[4][2] - 1, 10**6]
    matched = Beam(action=ACTION, width=4, match="search-50")
    found = matched.play(trained, dataclasses.replace(questions, budgets=budgets))
    # At least the narrowest one; one that just fits; the one below; the widest that is allowed.
    assert found == [fixed[width][row] for row, width in enumerate((1, 2, 3, 4))]
    assert all(a.evaluations <= budget for a, budget in zip(found[1:], budgets[1:]))
    pair = dataclasses.replace(trained, num_networks=2)
    twice = Beam(action=ACTION, width=1).play(pair, questions)
    assert [a.evaluations for a in twice] == [2 * cost for cost in costs[1]]


@pytest.mark.slow
def test_a_beam_solves_what_greedy_decoding_does_not(trained):
    """The committed model on 20 test puzzles, its values followed with one text."""
    questions = asked(20)
    found = problems.load_problems("game24", "test")[:20]
    right = []
    for method in (Greedy(), Beam(action=ACTION, width=1)):
        attempts = method.play(trained, questions)
        right.append([p.verify(a.completion) and a.finished for p, a in zip(found, attempts)])
    greedy, by_value = map(sum, right)
    assert greedy <= 14 and by_value >= 18  # measured: of all 100 puzzles 35 and 97
