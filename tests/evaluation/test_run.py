"""Evaluations of a model too small to solve anything, and of attempts that are made up."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import problems, tokenizer
from evaluation import methods, paired_tests, report, run, standard
from evaluation.methods import Attempt, BestOfN, Greedy, Search
from models.language_model import LanguageModel
from models.paired import PairedModel
from models.transformer import TransformerConfig
from search import gumbel, token_model
from train import checkpoints
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

TOKENIZER = tokenizer.load_tokenizer("game24")
MODEL = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8,
    value_head_width=8,
)  # fmt: skip
TINY_SEARCH = gumbel.SearchConfig(
    action=token_model.ActionConfig(num_candidates=3, max_step_tokens=2, max_completion_tokens=4),
    num_simulations=4,
)


def save_model(path, seed: int) -> str:
    metadata = checkpoints.Metadata(
        model=MODEL,
        tokenizer="game24",
        tokenizer_fingerprint=TOKENIZER.fingerprint,
        data_hash="",
    )
    params = LanguageModel(MODEL).init(jax.random.key(seed))
    checkpoints.save_params(path, params, metadata, dtype="float32")
    return str(path)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Checkpoints "trained" and "base" by the name of their config field."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "checkpoint": save_model(folder / "trained", 0),
        "base_checkpoint": save_model(folder / "base", 1),
    }


@pytest.fixture(scope="session")
def player(saved):
    return run.Players(run.EvaluationConfig(**saved))("trained")


@pytest.mark.slow
def test_an_evaluation_writes_answers_and_a_report(saved, tmp_path):
    config = run.EvaluationConfig(
        **saved,
        batch_size=1,
        methods=(
            Greedy(limit=2, max_completion_tokens=4),
            Search(limit=2, search=TINY_SEARCH, max_moves=2),
            BestOfN(limit=2, match="search-4", max_completion_tokens=4),
            Search(limit=2, search=TINY_SEARCH, max_moves=2, model="base_prior"),
        ),
    )
    path = run.run(config, tmp_path, resume=False, stop=StopFlag())
    found = report.read(path)
    assert [(row.method, row.simulations) for row in found.rows] == [
        ("greedy", None),
        ("search", 4),
        ("best-of-n, value-chosen", None),
        ("best-of-n, checker-chosen (pass@n)", None),
        ("search, base prior, trained value", 4),
    ]
    assert all(row.n == 2 and row.score == 0 and row.high > 0.5 for row in found.rows)
    assert all(row.seconds_per_problem > 0 for row in found.rows)
    names = sorted(file.name for file in (tmp_path / "samples").iterdir())
    assert names == [
        "game24-test-best-of-n-search-4.jsonl",
        "game24-test-greedy.jsonl",
        "game24-test-search-4-base-prior.jsonl",
        "game24-test-search-4.jsonl",
    ]
    answers = run.read_answers(tmp_path / "samples" / "game24-test-search-4.jsonl")
    assert [a.id for a in answers] == [
        p.prompt.id for p in problems.load_problems("game24", "test")[:2]
    ]
    assert [(each.first, each.second) for each in found.comparisons] == [
        ("search, 4 simulations", "best-of-n, value-chosen"),
        ("search, 4 simulations", "greedy"),
        ("search, 4 simulations", "search, base prior, trained value, 4 simulations"),
    ]
    assert all(each.p_values == (1.0,) for each in found.comparisons)
    spent = found.rows[1].forward_passes_per_problem
    assert spent - 4 <= found.rows[2].forward_passes_per_problem <= spent


def test_best_of_n_spends_what_it_is_given_and_no_more(player):
    asked = problems.load_problems("game24", "test")[:2]
    questions = methods.Questions(
        task="game24", numbers=(0, 1), prompts=[p.prompt for p in asked], budgets=(60, 2000)
    )
    few, many = BestOfN(max_completion_tokens=4).play(player, questions)
    assert 56 < few.evaluations <= 60 and 1996 < many.evaluations <= 2000
    assert 1 < few.num_samples < many.num_samples
    alone = dataclasses.replace(questions, numbers=(1,), prompts=[asked[1].prompt], budgets=(2000,))
    again = BestOfN(max_completion_tokens=4).play(player, alone)
    assert again == [many]


def test_best_of_n_chooses_the_finished_text_of_the_highest_value(player):
    eos, prompt = TOKENIZER.eos_id, TOKENIZER.encode("4 5 6 10\n")
    texts = [(*TOKENIZER.encode(words), eos) for words in ("4 + 5", "6 + 10", "4", "5 5")]
    values = player.values([(*prompt, *ids) for ids in texts], width=20)
    want = player.model.outputs(player.params, jnp.array([[*prompt, *texts[1]]])).value[0, -1]
    assert values[1] == pytest.approx(float(want), abs=1e-6)
    unfinished = tuple(TOKENIZER.encode("6 6"))
    answer_key = problems.answer_key("game24")
    attempt = BestOfN()._choose(player, prompt, [unfinished, *texts, texts[0]], answer_key)
    best = int(np.argmax(values))
    assert attempt.finished and attempt.value == pytest.approx(max(values))
    assert attempt.completion == TOKENIZER.decode(texts[best])
    assert len(attempt.others) == 3 and TOKENIZER.decode(unfinished) not in attempt.others
    assert attempt.num_samples == 6
    assert not BestOfN()._choose(player, prompt, [unfinished], answer_key).finished


def test_best_of_n_leaves_unlikely_tokens_out(player):
    """With min_p = 1 nothing but the likeliest token is drawn: every sample is the greedy text."""
    prompt = problems.load_problems("game24", "test")[0].prompt
    questions = methods.Questions(task="game24", numbers=(0,), prompts=[prompt], budgets=(100,))
    (greedy,) = Greedy(max_completion_tokens=4).play(player, questions)
    (only,) = BestOfN(max_completion_tokens=4, min_p=1.0).play(player, questions)
    assert only.num_samples > 10 and only.completion == greedy.completion
    (free,) = BestOfN(max_completion_tokens=4).play(player, questions)
    assert free.completion != greedy.completion


def test_a_forward_pass_is_of_one_network(player, saved):
    assert player.num_networks == 1
    assert run.Players(run.EvaluationConfig(**saved))("base_prior").num_networks == 2
    pair = dataclasses.replace(player, num_networks=2)
    prompt = problems.load_problems("game24", "test")[0].prompt
    questions = methods.Questions(task="game24", numbers=(0,), prompts=[prompt], budgets=(201,))
    (one,), (two,) = (Greedy(max_completion_tokens=4).play(p, questions) for p in (player, pair))
    assert two.evaluations == 2 * one.evaluations
    (one,), (two,) = (BestOfN(max_completion_tokens=4).play(p, questions) for p in (player, pair))
    assert 196 < one.evaluations <= 201 and 192 < two.evaluations <= 200
    assert one.num_samples > 1.8 * two.num_samples


# ------------------------------------------------------------------ the checker comes afterwards


@pytest.fixture
def watched(monkeypatch):
    """A problem set whose checker raises while a method is playing."""
    state = SimpleNamespace(playing=False, checked=0)

    def checker(completion: str) -> bool:
        if state.playing:
            raise AssertionError("checked while searching")
        state.checked += 1
        return True

    def load(split):
        prompt = problems.Prompt(id="watched/0", split=split, text="4 5 6 10\n")
        return [problems.Problem(prompt=prompt, checker=checker)]

    def play(self, *arguments, original=Search.play):
        state.playing = True
        try:
            return original(self, *arguments)
        finally:
            state.playing = False

    monkeypatch.setitem(problems._BY_NAME, "watched", load)
    monkeypatch.setattr(Search, "play", play)
    return state


def watched_answers(player, tmp_path, use_oracle: bool) -> list[run.Answer]:
    # Every token is a candidate and is visited, the end of the text among them.
    size = TOKENIZER.vocab_size
    search = gumbel.SearchConfig(
        action=token_model.ActionConfig(
            kind="token", num_candidates=size, max_completion_tokens=2
        ),
        num_simulations=size,
        max_considered_actions=size - 1,
        use_oracle=use_oracle,
    )  # fmt: skip
    return run.answer_all(
        Search(search=search, max_moves=1),
        lambda role: player,
        "watched",
        tmp_path / "answers.jsonl",
        budgets=None,
        batch_size=1,
        resume=False,
        stop=None,
    )


def test_a_search_without_the_oracle_never_asks_the_checker(player, tmp_path, watched):
    (answer,) = watched_answers(player, tmp_path, use_oracle=False)
    assert answer.id == "watched/0"


def test_a_search_with_the_oracle_does(player, tmp_path, watched):
    with pytest.raises(Exception, match="checked while searching"):
        watched_answers(player, tmp_path, use_oracle=True)


def test_questions_carry_no_checker(monkeypatch, tmp_path):
    def play(self, player, questions):
        assert all(type(prompt) is problems.Prompt for prompt in questions.prompts)
        return [made_up("1")]

    monkeypatch.setattr(Greedy, "play", play)
    assert answer(Greedy(limit=1), tmp_path) != []


# ---------------------------------------------------------------------- attempts become numbers


def made_up(completion: str, finished: bool = True, others: tuple[str, ...] = ()) -> Attempt:
    return Attempt(
        completion=completion, finished=finished, value=0.5, others=others, evaluations=20
    )


def answer(method, folder, **changes) -> list[run.Answer]:
    options = {"budgets": None, "batch_size": 2, "resume": False, "stop": None} | changes
    return run.answer_all(method, lambda role: None, "game24", folder / "a.jsonl", **options)


RIGHT = "10 - 4 = 6 left 5 6 6\n5 * 6 = 30 left 6 30\n30 - 6 = 24"
WRONG = "10 - 4 = 6 left 5 6 6\n5 * 6 = 24"


@pytest.mark.parametrize(
    ("attempt", "correct", "solved_by_any"),
    [
        (made_up(RIGHT), True, True),
        (made_up(WRONG), False, False),
        (made_up(RIGHT, finished=False), False, False),
        (made_up(WRONG, others=(WRONG, RIGHT)), False, True),
    ],
)
def test_an_attempt_is_right_if_finished_and_the_checker_says_so(attempt, correct, solved_by_any):
    checked = run.check(problems.game24_problem((4, 5, 6, 10)), attempt, None)
    assert (checked.correct, checked.solved_by_any) == (correct, solved_by_any)


def test_rows_count_the_right_answers(monkeypatch, tmp_path):
    attempts = [made_up(RIGHT), made_up(WRONG, others=(RIGHT,)), made_up(WRONG), made_up(WRONG)]
    answers = [run.check(problems.game24_problem((4, 5, 6, 10)), a, 0.5) for a in attempts]
    answers[0] = dataclasses.replace(answers[0], seconds=None)
    (row,) = run.make_rows(Greedy(), answers, "game24", "round 1")
    assert (row.score, row.n, row.stage, row.seconds_per_problem) == (0.25, 4, "round 1", 0.5)
    assert row.low == pytest.approx(0.0456, abs=1e-4)
    by_value, by_checker = run.make_rows(BestOfN(), answers, "game24", "")
    assert (by_value.score, by_checker.score) == (0.25, 0.5)
    assert json.dumps(row.settings)


def test_an_evaluation_that_was_stopped_continues_with_the_next_batch(monkeypatch, tmp_path):
    asked: list[int] = []

    def play(self, player, questions):
        asked.extend(questions.numbers)
        return [made_up(f"answer {number}") for number in questions.numbers]

    monkeypatch.setattr(Greedy, "play", play)
    whole = answer(Greedy(limit=5), tmp_path / "whole")
    assert asked == [0, 1, 2, 3, 4, 4]  # the last batch is filled up
    asked.clear()
    stop = StopFlag()
    with monkeypatch.context() as patch:
        patch.setattr(
            run, "write_answers", lambda *a, f=run.write_answers: (f(*a), stop.request("test"))
        )
        with pytest.raises(Preempted, match="problem 2 of 5"):
            answer(Greedy(limit=5), tmp_path / "part", stop=stop)
    continued = answer(Greedy(limit=5), tmp_path / "part", resume=True)
    assert asked == [0, 1, 2, 3, 4, 4]
    without_time = [
        [dataclasses.replace(a, seconds=None) for a in answers] for answers in (whole, continued)
    ]
    assert without_time[0] == without_time[1]
    assert [a.seconds is None for a in continued] == [True, True, True, True, False]
    assert [a.completion for a in continued] == [f"answer {n}" for n in range(5)]


@pytest.mark.parametrize(("limit", "timed"), [(2, 2), (1, 1), (3, 1), (4, 2)])
def test_some_batch_is_timed_even_if_there_is_only_one(monkeypatch, tmp_path, limit, timed):
    """Batches of two: the first one compiles, so an only one is played again."""
    calls = []

    def play(self, player, questions):
        calls.append(list(questions.numbers))
        return [made_up("answer") for _ in questions.numbers]

    monkeypatch.setattr(Greedy, "play", play)
    answers = answer(Greedy(limit=limit), tmp_path)
    assert sum(a.seconds is not None for a in answers) == timed
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            Greedy(limit=2),
            Greedy(limit=2, split="train"),
            r"answer 0 in .*'game24/4-5-6-10'.*'game24/5-5-9-11'.* is asked now",
        ),
        (Greedy(limit=4), Greedy(limit=3), "answer 3 in .* where no problem is asked now"),
        (Greedy(limit=2), Greedy(limit=4), None),
    ],
)
def test_answers_to_other_problems_are_not_continued(monkeypatch, tmp_path, before, after, message):
    play = lambda self, player, questions: [made_up("x") for _ in questions.numbers]  # noqa: E731
    monkeypatch.setattr(Greedy, "play", play)
    answer(before, tmp_path)
    if message is None:
        assert len(answer(after, tmp_path, resume=True)) == 4
        return
    with pytest.raises(DataError, match=message):
        answer(after, tmp_path, resume=True)


# ------------------------------------------------------------------------------- paired tests


def test_search_is_tested_against_sampling_and_greedy_and_base_against_trained():
    search = gumbel.SearchConfig(value_scale=1.0)
    made = standard.standard_methods(search=search, ablation_splits=("test", "train"))
    assert paired_tests.compared_pairs(made) == [
        (("test", first), ("test", second))
        for first, second in (
            ("search-50", "best-of-n-search-50"),
            ("search-50", "greedy"),
            ("search-50", "best-of-n-search-50-min-p-0-05"),
            ("greedy", "greedy-base"),
            ("search-50", "search-50-base-prior"),
            ("search-50-oracle-no-value", "search-50-oracle-no-value-base"),
        )
    ]


def test_a_comparison_counts_the_problems_that_only_one_gets_right():
    answers = [run.check(problems.game24_problem((4, 5, 6, 10)), made_up(RIGHT), 0.5)] * 8
    (row,) = run.make_rows(Search(), answers, "game24", "round 1")
    (other,) = run.make_rows(Greedy(), answers, "game24", "round 1")
    first, second = [True] * 7 + [False], [True, *[False] * 6, True]
    found = paired_tests.compare(row, first, other, second)
    assert (found.first, found.second) == ("search, 50 simulations", "greedy")
    assert (found.only_first, found.only_second, found.n) == ((6,), (1,), 8)
    assert found.p_values == (0.125,)  # 2 (1 + 7) / 2^7


# ------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": (Greedy(), Greedy())}, "is twice"),
        ({"methods": (Greedy(), Greedy(split="train"), Greedy(label="other"))}, None),
        ({"methods": (BestOfN(),)}, "earlier search"),
        ({"methods": (Search(), BestOfN(limit=3))}, "earlier search"),
        ({"methods": (Greedy(model="base"),)}, "base_checkpoint"),
        ({"methods": ()}, "methods"),
        ({"batch_size": 0}, "batch size"),
    ],
)
def test_a_config_says_what_does_not_fit(fields, message):
    if message is None:
        run.EvaluationConfig(checkpoint="x", **fields)
        return
    with pytest.raises(ConfigError, match=message):
        run.EvaluationConfig(checkpoint="x", **fields)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Greedy(limit=0),
        lambda: Greedy(label="Best one"),
        lambda: BestOfN(temperature=-1.0),
        lambda: BestOfN(min_p=0.0),
        lambda: BestOfN(min_p=1.5),
        lambda: Search(search=gumbel.SearchConfig(root_noise=True)),
        lambda: Search(search=gumbel.SearchConfig(num_simulations=0)),
    ],
)
def test_a_method_says_what_does_not_fit(make):
    with pytest.raises(ConfigError, match="got"):
        make()


def test_the_standard_table_is_one_valid_config():
    search = gumbel.SearchConfig(use_oracle=True, root_noise=True, value_scale=1.0)
    made = standard.standard_methods(search=search)
    config = run.EvaluationConfig(checkpoint="x", base_checkpoint="y", methods=made)
    names = [(method.split, method.name) for method in config.methods]
    for wanted in ("greedy", "search-16", "search-400", "best-of-n-search-50", "greedy-base",
                   "search-50-base-prior", "search-50-oracle-no-value-base", "search-50-oracle",
                   "search-50-no-value", "search-50-oracle-no-value"):  # fmt: skip
        assert ("test", wanted) in names
    assert ("train", "search-50") in names and len(names) == len(set(names))
    searches = [method.search for method in made if isinstance(method, Search)]
    assert all(s.value_scale == 1.0 and not s.root_noise for s in searches)


# --------------------------------------------------------------------------------- two models


def test_a_pair_takes_the_next_token_from_one_and_the_value_from_the_other():
    other = dataclasses.replace(MODEL, width=8, num_heads=1)
    pair = PairedModel(MODEL, other)
    ours, theirs = pair.models
    tokens = jax.random.randint(jax.random.key(2), (2, 5), 0, MODEL.vocab_size)
    lengths = jnp.array([4, 4])

    @jax.jit
    def read_in_every_way():
        params = {"policy": ours.init(jax.random.key(0)), "value": theirs.init(jax.random.key(1))}
        whole = ours.outputs(params["policy"], tokens), theirs.outputs(params["value"], tokens)
        start, cache = pair.prefill(params, tokens[:, :4], lengths=lengths, capacity=8)
        lanes = pair.empty_lanes(2, 3, 2)
        lane, _ = pair.branch(params, cache, lanes, jnp.repeat(tokens[:, 4:5], 3, axis=1))
        after_one, _ = pair.decode(params, cache, tokens[:, 4])
        last_lane = jax.tree.map(lambda x: x[:, -1], lane)
        return whole, (start, last_lane, after_one)

    (want_policy, want_value), parts = read_in_every_way()
    for got, row in zip(parts, (slice(4), 4, 4), strict=True):
        np.testing.assert_allclose(got.logits, want_policy.logits[:, row], atol=1e-5)
        np.testing.assert_allclose(got.value, want_value.value[:, row], atol=1e-6)
    assert not np.allclose(want_policy.value, want_value.value)


def test_a_pair_needs_one_vocabulary():
    with pytest.raises(ValueError, match="one vocabulary"):
        PairedModel(MODEL, dataclasses.replace(MODEL, vocab_size=5))
