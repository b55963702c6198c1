"""Tasks: their questions, resuming, rows; the command on a folder of transformers."""

import dataclasses
import json
import math

import jax
import pytest

from data import tokenizer
from evaluation import __main__ as command
from evaluation import asking, choices, compare, perplexity, report, statistics, tasks
from evaluation.methods import BestOfN, Greedy, Search
from evaluation.player import Attempt, Player
from evaluation.tasks import Question, Task, TaskOptions
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from tests.evaluation import tiny_folder
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

BYTES = tokenizer.load_tokenizer("bytes")


@pytest.fixture(scope="module")
def player():
    config = TransformerConfig(
        vocab_size=BYTES.vocab_size, width=8, num_layers=1, num_heads=1, head_dim=8
    )
    model = LanguageModel(config)
    return Player(model, jax.jit(model.init)(jax.random.key(0)), BYTES, "bytes")


def toy(**changes):
    questions = [
        Question(id=f"toy/{n}", prompt=f"{'why? ' * (1 + n % 3)}{n}:", continuations=(" y", " no"),
                 gold=n % 2, category="ab"[n % 2])
        for n in range(9)
    ]  # fmt: skip
    fields = {"name": "toy", "kind": "choose", "score": choices._score_letter}
    return Task(**(fields | {"load": lambda options: questions} | changes))


def ask(task, player, path, *, resume=False, stop=None, **fields):
    return asking.ask(
        task, TaskOptions(), lambda: player, path,
        longest_tokens=64, batch_size=2, batch_tokens=64, resume=resume, stop=stop, **fields,
    )  # fmt: skip


def without_seconds(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row | {"seconds": None} for row in rows]


class StopAfter(StopFlag):
    """Is requested when asked for the n-th time."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    @property
    def requested(self):
        self.left -= 1
        return "test" if self.left <= 0 else None


@pytest.mark.parametrize("kind", ["choose", "read"])
def test_an_evaluation_that_was_stopped_ends_like_one_that_was_not(player, tmp_path, kind):
    task = toy()
    if kind == "read":
        task = toy(kind="read", score=lambda question, response: {"nats": tuple(response)})
    whole = ask(task, player, tmp_path / "whole.jsonl")
    assert [sample.id for sample in whole] == [f"toy/{n}" for n in range(9)]
    path = tmp_path / "cut.jsonl"
    with pytest.raises(Preempted, match="of 9 of cut"):
        ask(task, player, path, stop=StopAfter(2))
    lines = path.read_text().splitlines(keepends=True)
    assert 2 < len(lines) < 9
    path.write_text("".join(lines) + lines[0][: len(lines[0]) // 2])  # killed while writing
    scored = []
    counting = dataclasses.replace(
        task, score=lambda question, response: scored.append(question.id) or
        task.score(question, response)
    )  # fmt: skip
    ask(counting, player, path, resume=True)
    assert without_seconds(path) == without_seconds(tmp_path / "whole.jsonl")
    kept = {json.loads(line)["id"] for line in lines}
    assert kept.isdisjoint(scored) and len(kept) + len(scored) == 9
    again = asking.ask(
        task, TaskOptions(), lambda: pytest.fail("no model is needed"), path,
        longest_tokens=64, batch_size=2, resume=True, stop=None,
    )  # fmt: skip
    assert [sample.response for sample in again] == [sample.response for sample in whole]


def test_answers_to_other_questions_are_not_continued(player, tmp_path):
    path = tmp_path / "toy.jsonl"
    samples = [
        asking.Sample(id="toy/0", category="", shown="", prompt_hash="other", response=[],
                      scores={}, tokens=1.0)
    ]  # fmt: skip
    asking.write_samples(path, samples)
    with pytest.raises(DataError, match="put otherwise"):
        ask(toy(), player, path, resume=True)
    asking.write_samples(path, [dataclasses.replace(samples[0], id="toy/99")])
    with pytest.raises(DataError, match="not asked"):
        ask(toy(), player, path, resume=True)
    path.write_text("[]\n")
    with pytest.raises(DataError, match="line 1 is none"):
        ask(toy(), player, path, resume=True)


def test_texts_are_written_by_a_method_in_batches_of_like_length(player, tmp_path, monkeypatch):
    played = []

    def play(self, player, questions):
        played.append([prompt.text for prompt in questions.prompts])
        return [
            Attempt(completion=f"<{prompt.id}>", finished=True, value=0.5, evaluations=7)
            for prompt in questions.prompts
        ]

    monkeypatch.setattr(Greedy, "play", play)
    task = toy(kind="write", score=lambda question, text: {"length": float(len(text))})
    samples = ask(task, player, tmp_path / "toy-greedy.jsonl", method=Greedy())
    assert [sample.response for sample in samples] == [f"<toy/{n}>" for n in range(9)]
    assert [len(batch) for batch in played] == [2] * 5
    lengths = [len(text) for batch in played for text in batch]
    assert lengths == sorted(lengths, reverse=True) and samples[0].tokens == 7


def test_rows_have_the_mean_its_interval_and_the_means_by_category():
    def sample(n, **scores):
        return asking.Sample(
            id=str(n), category="ab"[n % 2], shown="", prompt_hash="", response=None, scores=scores,
            tokens=float(n), seconds=0.5,
        )  # fmt: skip

    task = toy(exponential=("perplexity",))
    samples = [
        sample(n, accuracy=float(n < 3), length=float(n), perplexity=(2.0 * (n + 1), n + 1.0))
        for n in range(8)
    ]
    rows = asking.make_rows(task, samples, file="toy", stage="", method="m", settings={})
    accuracy, length, found = rows
    assert (accuracy.score, accuracy.low, accuracy.high) == pytest.approx(
        (3 / 8, *statistics.wilson_interval(3, 8))
    )
    assert (length.score, length.low) == pytest.approx(
        (3.5, statistics.student_interval(range(8))[0])
    )
    assert (found.score, found.low, found.high) == pytest.approx((math.exp(2),) * 3)
    assert accuracy.settings["by_category"] == {"a": 0.5, "b": 0.25}
    assert (accuracy.forward_passes_per_problem, accuracy.seconds_per_problem) == (3.5, 0.5)


def test_the_interval_of_a_ratio_is_that_of_a_mean_where_all_weigh_the_same():
    values = [0.2, 0.5, 0.9, 0.4]
    ratio = statistics.estimate([(3 * x, 3.0) for x in values])
    assert ratio == pytest.approx(statistics.estimate(values))
    assert statistics.estimate([(1.0, 2.0), (3.0, 2.0)])[0] == 1.0
    assert statistics.estimate([(0.0, 0.0)] * 2) == (0.0, 0.0, 0.0)


def test_the_bootstrap_knows_equal_from_different():
    equal = [float(n % 7) for n in range(60)]
    shifted = [x + 0.1 * (n % 2) for n, x in enumerate(equal)]
    other = list(reversed(equal))
    assert statistics.bootstrap_p_value(equal, equal) == 1.0
    assert statistics.bootstrap_p_value(equal, shifted) < 0.001
    assert statistics.bootstrap_p_value(equal, other) > 0.3
    pairs = [(x, 2.0) for x in equal], [(x, 2.0) for x in shifted]
    assert statistics.bootstrap_p_value(*pairs) < 0.001
    with pytest.raises(ValueError, match="same questions"):
        statistics.bootstrap_p_value(equal, equal[1:])


# --------------------------------------------------------------------------------- questions


def test_mmlu_asks_all_questions_in_the_form_of_the_harness(data_file):
    data_file(choices.MMLU_FILE)
    task = tasks.find("mmlu")
    assert len(task.questions(TaskOptions())) == 14_042
    (question,) = task.questions(TaskOptions(limit=1, shots=1, subjects=("anatomy",)))
    assert question.prompt == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "What is the embryological origin of the hyoid bone?\nA. The first pharyngeal arch\n"
        "B. The first and second pharyngeal arches\nC. The second pharyngeal arch\n"
        "D. The second and third pharyngeal arches\nAnswer: D\n\n" + question.shown
    )
    assert question.shown.startswith("A lesion causing compression") and question.gold == 0
    assert question.continuations == (" A", " B", " C", " D")
    with pytest.raises(ConfigError, match="subject is one of"):
        task.questions(TaskOptions(subjects=("anatomi",)))
    with pytest.raises(ConfigError, match="has 5 examples"):
        task.questions(TaskOptions(shots=6))


def test_truthfulqa_scores_the_likeliest_answer_and_the_share_of_true_ones():
    gold = {"mc1": [0, 1], "right": 0, "mc2": [[0, 1], [2, 1], [1, 0]]}
    question = Question(id="", prompt="", gold=gold)
    likely = [[math.log(p), False] for p in (0.3, 0.2, 0.1)]
    scores = choices._score_truthfulqa(question, likely)
    assert scores["mc1 accuracy"] == 1.0
    assert scores["mc2 accuracy"] == pytest.approx(0.4 / 0.6)
    unlikely = [[x - 2000, False] for x, _ in likely]
    assert choices._score_truthfulqa(question, unlikely) == pytest.approx(scores)


def test_perplexity_reads_articles_and_counts_bytes_and_words():
    text = " \n = First = \n \n one two . \n \n = = Part = = \n \n = Second = \n three\n"
    first, second = perplexity.documents(text)
    assert first.startswith(" = First") and "Part" in first and second.endswith("three\n")
    assert perplexity.documents("a\n<|endoftext|>\nb\n") == ["a\n", "b\n"]
    question = Question(id="", prompt="", gold={"bytes": 8, "words": 2})
    scores = perplexity._score(question, [-8 * math.log(2), 4])
    assert statistics.estimate([scores["bits per byte"]])[0] == pytest.approx(1)
    assert scores["nats per token"] == (8 * math.log(2), 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--tasks", "mmul"], DataError, "problem set is one of"),
        (["--tasks", "ifeval", "--method", "majority"], ConfigError, "no vote"),
        (["--tasks", "mmlu", "--method", "serach"], ConfigError, "method"),
        (["--tasks", "mmlu", "--limit", "0"], ConfigError, "at least one"),
        (["--tasks", "mt_bench", "--judge.kind", "endpoint"], ConfigError, "--judge.model"),
    ],
)
def test_bad_input_is_one_error_and_leaves_no_folder(arguments, error, message, tmp_path,
                                                      monkeypatch):  # fmt: skip
    folder = tmp_path / "runs" / "model"
    monkeypatch.setattr(command.checkpoints, "name_step", lambda path: path)
    with pytest.raises(error, match=message):
        command.main([str(folder), *arguments, "--run-folder", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_no_data_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(choices.files, "roots", lambda: (tmp_path,))
    choices.mmlu_rows.cache_clear()
    with pytest.raises(DataError, match="TAYLORZERO_DATA"):
        tasks.find("mmlu").questions(TaskOptions())
    with pytest.raises(ConfigError, match="Did you mean 'mmlu'"):
        tasks.find("mmlu_")


def test_methods_by_name():
    options = command.Options(method=("greedy", "majority", "best_of_n", "search"), samples=4,
                              tasks=("gsm8k",), simulations=(8, 16))  # fmt: skip
    greedy, majority, best, *searches = command.make_config("x", options).methods
    assert isinstance(greedy, Greedy) and isinstance(majority, BestOfN)
    assert (majority.choices, best.choices) == (("majority",), ("value",))
    assert majority.num_samples == best.num_samples == 4 and best.match is None
    assert [s.search.num_simulations for s in searches] == [8, 16]
    assert all(isinstance(s, Search) and not s.search.use_oracle for s in searches)
    (only,) = command.make_config("x", command.Options(tasks=("mmlu", "game24"))).methods
    assert isinstance(only, Greedy)


# -------------------------------------------------------------------- the command, end to end


@pytest.mark.slow
def test_the_command_compares_two_folders_of_transformers(data_file, tmp_path):
    data_file(choices.MMLU_FILE)
    text = tmp_path / "text.txt"
    text.write_text("how many words are there?\n<|endoftext|>\nthe right answer to it")
    for name, scale in (("one", 3.0), ("two", 4.0)):
        folder = tiny_folder.make(tmp_path / name, scale=scale)
        command.main(
            [str(folder), "--tasks", "mmlu", "perplexity", "readability", "--limit", "4",
             "--subjects", "anatomy", "--text", str(text), "--max-completion-tokens", "4",
             "--run-folder", str(tmp_path / f"run-{name}")]
        )  # fmt: skip
    found = report.read(tmp_path / "run-one" / "report" / "report.json")
    rows = {(row.task, row.metric): row for row in found.rows}
    assert rows["mmlu", "accuracy"].n == rows["readability", "words"].n == 4
    assert rows["perplexity", "nats per token"].n == 2
    assert rows["perplexity", "word perplexity"].score > 10
    out = tmp_path / "compared"
    runs = [str(tmp_path / f"run-{name}") for name in ("one", "two")]
    compare.main([*runs, "--names", "one", "two", "--out", str(out)])
    names = {path.name for path in out.iterdir()}
    assert names == {"report.json", "side_by_side.md", "scores.png", "texts.csv"}
    line = next(
        line for line in (out / "side_by_side.md").read_text().splitlines() if "bits per" in line
    )
    assert line.count("(") == 2 and ", p " in line
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        compare.main([*runs, "--names", "one", "two", "--out", str(out)])
