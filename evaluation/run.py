"""One evaluation: every method answers its problems, every answer is checked, a report is written.

    RUN/samples/TASK-SPLIT-METHOD.jsonl   one answer per line, saved after every batch
    RUN/samples/TASK[-METHOD].jsonl       of tasks that are no problem sets (evaluation.asking)
    RUN/report/                           report.json, table.md, table.csv, accuracy.png

The report is a function of the samples alone, so an evaluation that was stopped continues with the
next batch, and a finished one can be tabulated again without a model.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich

from data import problems, tokenizer
from evaluation import benchmarks, paired_tests, plots, report, statistics
from evaluation.judges import JudgeConfig
from evaluation.methods import (
    AnyMethod,
    Attempt,
    Beam,
    BestOfN,
    Greedy,
    Matched,
    Method,
    Player,
    Questions,
    Search,
)
from evaluation.sampling import PROBLEMS_AT_ONCE, Choice
from evaluation.tasks import TaskOptions
from models.language_model import LanguageModel
from models.paired import PairedModel
from train import checkpoints, config_json
from train.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation: `python -m evaluation CHECKPOINT`."""

    checkpoint: str
    """Run folder or checkpoint of the trained model."""
    base_checkpoint: str | None = None
    """The model before it learned from search, for the methods that compare with it."""
    tasks: tuple[str, ...] = ("game24",)
    """Names of problem sets (see data.problems) and of other tasks (see evaluation.tasks)."""
    methods: tuple[AnyMethod, ...] = (Greedy(), Search(), BestOfN())
    """What is measured, in this order (see evaluation.standard)."""
    options: TaskOptions = TaskOptions()
    """How tasks are put that are no problem sets."""
    judge: JudgeConfig = JudgeConfig()
    """Who grades the answers of mt_bench."""
    stage: str = ""
    """What the report calls this model, such as "round 2"."""
    batch_size: int = 50
    """Problems answered at once; all batches but the first one are timed (that one compiles)."""

    def __post_init__(self):
        if self.batch_size < 1 or not self.tasks or not self.methods:
            raise ConfigError(
                "an evaluation has tasks, methods and a batch size of at least 1; got "
                f"{self.tasks=}, {len(self.methods)} methods, {self.batch_size=}."
            )
        benchmarks.check([name for name in self.tasks if name in benchmarks.NAMES], self.methods)
        known: dict[tuple[str, str], Method] = {}
        for method in self.methods:
            place = (method.split, method.name)
            if place in known:
                raise ConfigError(
                    f"every method of a split has its own name; {method.name!r} is twice in split "
                    f"{method.split!r}. Set the label of one."
                )
            if isinstance(method, Matched) and method.match is not None:
                matched = known.get((method.split, method.match))
                if not isinstance(matched, Search) or matched.limit != method.limit:
                    searches = [name for _, name in known if name.startswith("search")]
                    raise ConfigError(
                        f"{method.name!r} matches an earlier search of the same split and limit; "
                        f"got match={method.match!r} after {searches}. Correct it, or add the "
                        "search."
                    )
            if method.model != "trained" and self.base_checkpoint is None:
                raise ConfigError(
                    f"{method.name!r} needs the base model; got no base_checkpoint. Give one, or "
                    "leave that method out."
                )
            known[place] = method


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of a samples file: an attempt and what the checker said of it.

    solved_by_any: the answer or a text that was passed over is right (pass@n).
    evaluations: forward passes. seconds: share of its batch; None in a batch that compiled.

    Of samples alone, else None: voted_correct: the text chosen by a vote is right.
    share_correct: of all samples. evaluations_of_one: of the prompt and one sample, on average.
    """

    id: str
    prompt: str
    completion: str
    correct: bool
    value: float
    evaluations: int
    seconds: float | None
    num_samples: int
    solved_by_any: bool
    voted_correct: bool | None = None
    share_correct: float | None = None
    evaluations_of_one: float | None = None


def run(config: EvaluationConfig, run_folder: Path, /, *, resume: bool, stop) -> Path:
    """Evaluates; returns the path of report.json.

    Raises:
      Preempted: `stop` was requested; all finished batches are saved.
      DataError: an unreadable checkpoint. ConfigError: models that do not belong together.
    """
    players = Players(config)
    rows: list[report.Row] = []
    comparisons: list[report.Comparison] = []
    for task in config.tasks:
        if task in benchmarks.NAMES:
            rows += benchmarks.run(
                task,
                config.options,
                config.judge,
                config.methods,
                players,
                run_folder,
                model_id=name_of(config.checkpoint),
                batch_size=config.batch_size,
                stage=config.stage,
                resume=resume,
                stop=stop,
            )
            continue
        answers: dict[tuple[str, str], list[Answer]] = {}
        tested: dict[tuple[str, str], list[Tested]] = {}
        for method in config.methods:
            budgets = None
            if isinstance(method, Matched) and method.match is not None:
                budgets = [a.evaluations for a in answers[method.split, method.match]]
            answers[method.split, method.name] = answer_all(
                method,
                players,
                task,
                run_folder / "samples" / f"{task}-{method.split}-{method.name}.jsonl",
                budgets=budgets,
                batch_size=config.batch_size,
                resume=resume,
                stop=stop,
            )
            new_rows = make_rows(method, answers[method.split, method.name], task, config.stage)
            for row in new_rows:
                rich.print(report.one_line(row))
            rows += new_rows
            tested[method.split, method.name] = rows_tested(
                method, answers[method.split, method.name], new_rows
            )
        comparisons += [
            paired_tests.compare(*one, *other)
            for first, second in paired_tests.compared_pairs(config.methods)
            for one, other in zip(itertools.cycle(tested[first]), tested[second])
        ]
    draw, name = plot_of(config)
    made = report.make(rows, run_folder, comparisons)
    return report.write(run_folder / "report", made, plot=draw, plot_name=name)


def plot_of(config: EvaluationConfig) -> tuple[Callable[..., None], str]:
    """The plot of an evaluation, and the name of its file."""
    if any(task in benchmarks.NAMES for task in config.tasks):
        return plots.side_by_side, "scores.png"
    return plots.accuracy, "accuracy.png"


class Players:
    """The models of the config by role, each loaded when it is first needed."""

    def __init__(self, config: EvaluationConfig):
        # Without a base checkpoint no method asks for it (EvaluationConfig sees to that).
        self._paths = {"trained": config.checkpoint, "base": config.base_checkpoint or ""}

    def load(self, checkpoint: str) -> Player:
        """Another model, such as a judge."""
        return load_player(checkpoint)

    @property
    def longest_tokens(self) -> int | None:
        """That the trained model reads at once; None where its checkpoint does not say."""
        step = checkpoints.find_step(self._paths["trained"])
        return checkpoints.read_metadata(step).longest_text_tokens

    @functools.cache  # noqa: B019 (lives as long as one evaluation)
    def __call__(self, role: str) -> Player:
        if role != "base_prior":
            return load_player(self._paths[role])
        base, trained = self("base"), self("trained")
        if base.tokenizer.fingerprint != trained.tokenizer.fingerprint:
            raise ConfigError(
                "the base model must read the tokens of the trained one; got tokenizers "
                f"{base.tokenizer_name!r} and {trained.tokenizer_name!r}. Give the base_checkpoint "
                "that the trained model started from."
            )
        return dataclasses.replace(
            base,
            model=PairedModel(base.model.config, trained.model.config),
            params={"policy": base.params, "value": trained.params},
            num_networks=2,
        )


def load_player(checkpoint: str) -> Player:
    """The model of a run folder, checkpoint or folder of transformers.

    Raises: as `checkpoints.load_params`.
    """
    model_config, name, params = checkpoints.load_params(checkpoint)
    return Player(LanguageModel(model_config), params, tokenizer.load_tokenizer(name), name)


def name_of(checkpoint: str) -> str:
    """runs/tiny -> tiny; runs/circle/stages/04-learn -> circle-04-learn."""
    skipped = ("runs", "docs", "results", "stages", "checkpoints", "..", ".", "/")
    return "-".join([part for part in Path(checkpoint).parts if part not in skipped][-3:])


def answer_all(
    method: Method,
    players,
    task: str,
    path: Path,
    *,
    budgets: Sequence[int] | None,
    batch_size: int,
    resume: bool,
    stop,
) -> list[Answer]:
    """Answers of one method to its problems, saved in `path` after every batch.

    A batch is filled up to its size, so that all have the shape that is compiled already. The first
    one of a call compiles and is not timed; if that leaves no time at all, it is played twice.
    """
    asked = problems.load_problems(task, method.split)[: method.limit]
    answers = read_answers(path) if resume else []
    refuse_other_problems(path, answers, asked)
    # Best of n fills batches with samples of one problem, several such batches at once.
    size = min(PROBLEMS_AT_ONCE if isinstance(method, BestOfN) else batch_size, len(asked))

    def play(rows: range) -> list[Answer]:
        filled = [*rows, *[rows[0]] * (size - len(rows))]
        questions = Questions(
            task=task,
            numbers=filled,
            prompts=[asked[n].prompt for n in filled],
            budgets=None if budgets is None else [budgets[n] for n in filled],
        )
        player = players(method.model)
        started = time.monotonic()
        attempts = method.play(player, questions)
        seconds = (time.monotonic() - started) / size
        return [check(asked[n], attempt, seconds) for n, attempt in zip(rows, attempts)]

    is_compiled = False
    while len(answers) < len(asked):
        if stop is not None and stop.requested:
            stop.raise_preempted(f"problem {len(answers)} of {len(asked)} of {path.stem}")
        rows = range(len(answers), min(len(answers) + size, len(asked)))
        new = play(rows)
        if not is_compiled:
            is_last = len(answers) + len(new) == len(asked)
            if is_last and all(each.seconds is None for each in answers):
                new = play(rows)
            else:
                new = [dataclasses.replace(each, seconds=None) for each in new]
        answers += new
        write_answers(path, answers)
        is_compiled = True
    return answers


def refuse_other_problems(
    path: Path, answers: Sequence[Answer], asked: Sequence[problems.Problem]
) -> None:
    """Answers of an earlier call must be to the first of the problems that are asked now.

    Raises:
      DataError: they are not.
    """
    saved = [(answer.id, answer.prompt) for answer in answers]
    wanted = [(problem.prompt.id, problem.prompt.text) for problem in asked[: len(answers)]]
    pairs = itertools.zip_longest(saved, wanted, fillvalue="no problem")
    for number, (theirs, ours) in enumerate(pairs):
        if theirs != ours:
            raise DataError(
                f"an evaluation is resumed on the problems it began with; answer {number} in "
                f"{path} is to {theirs}, where {ours} is asked now. Restore the problems, or use "
                "--overwrite to ask all again."
            )


def check(problem: problems.Problem, attempt: Attempt, seconds: float | None) -> Answer:
    """Asks the checker: the only place where an attempt meets the right answer."""
    texts = (attempt.completion, *attempt.others)
    right = [attempt.finished and problem.verify(texts[0]), *map(problem.verify, texts[1:])]
    answer = Answer(
        id=problem.prompt.id,
        prompt=problem.prompt.text,
        completion=attempt.completion,
        correct=right[0],
        value=round(attempt.value, 6),
        evaluations=attempt.evaluations,
        seconds=seconds,
        num_samples=attempt.num_samples,
        solved_by_any=any(right),
    )
    if not attempt.counts:
        return answer
    num_right = sum(itertools.compress(attempt.counts, right))
    return dataclasses.replace(
        answer,
        voted_correct=attempt.voted is not None and right[texts.index(attempt.voted)],
        share_correct=num_right / attempt.num_samples,
        evaluations_of_one=attempt.evaluations_of_one,
    )


def make_rows(method: Method, answers: Sequence[Answer], task: str, stage: str) -> list[report.Row]:
    """The rows of the report for one method: one, or of samples one for each way to choose."""
    seconds = [a.seconds for a in answers if a.seconds is not None]
    search = method.search if isinstance(method, Search) else None

    def row(right: Sequence[float], **fields) -> report.Row:
        """right: of each problem, or the share of its samples: then the interval is a wide one."""
        n, num_right = len(right), min(len(right), math.fsum(right))
        low, high = statistics.wilson_interval(num_right, n)
        whole: dict[str, Any] = {
            "method": method.title,
            "use_oracle": search is not None and search.use_oracle,
            "use_value": isinstance(method, Beam) or (search is not None and search.use_value),
            "forward_passes_per_problem": _mean([a.evaluations for a in answers]),
            "seconds_per_problem": _mean(seconds) if seconds else None,
            "num_samples": _mean([a.num_samples for a in answers]),
            "field": "correct",
        } | fields
        settings = config_json.encode(method) | {"num_samples": whole.pop("num_samples")}
        settings["samples"] = [f"{task}-{method.split}-{method.name}", whole.pop("field")]
        return report.Row(
            task=task,
            split=method.split,
            stage=stage,
            metric="accuracy",
            score=num_right / n,
            low=low,
            high=high,
            n=n,
            simulations=None if search is None else search.num_simulations,
            settings=settings,
            **whole,
        )

    if not isinstance(method, BestOfN):
        return [row([a.correct for a in answers])]
    rows = []
    for choice in method.choices:
        fields: dict[str, Any] = {"method": method.title_of(choice)}
        if choice == "chance":
            passes = _mean(_of_samples(answers, "evaluations_of_one"))
            fields |= {"forward_passes_per_problem": passes, "seconds_per_problem": None}
            fields |= {"num_samples": 1.0}
        right, fields["field"] = _of_samples(answers, RIGHT_BY[choice]), RIGHT_BY[choice]
        is_value, is_checker = choice == "value", choice == "checker"
        rows.append(row(right, use_value=is_value, use_oracle=is_checker, **fields))
    return rows


RIGHT_BY: dict[Choice, str] = {  # the field of an answer
    "value": "correct",
    "checker": "solved_by_any",
    "majority": "voted_correct",
    "chance": "share_correct",
}
Tested = tuple[report.Row, list[bool]]


def rows_tested(
    method: Method, answers: Sequence[Answer], rows: Sequence[report.Row]
) -> list[Tested]:
    """The rows that paired tests compare, and whether each problem is right there.

    Of samples those that a checker or chance chose have no test.
    """
    if not isinstance(method, BestOfN):
        return [(rows[0], [a.correct for a in answers])]
    return [
        (row, [right == 1 for right in _of_samples(answers, RIGHT_BY[choice])])
        for row, choice in zip(rows, method.choices, strict=True)
        if choice in ("value", "majority")
    ]


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


def _of_samples(answers: Sequence[Answer], field: str) -> list[float]:
    numbers = [getattr(answer, field) for answer in answers]
    assert None not in numbers, f"these answers were chosen among samples, so they have a {field}"
    return numbers


def read_answers(path: Path) -> list[Answer]:
    """The answers saved so far; none if there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Answer(**json.loads(line)) for line in lines]


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Replaces the file as a whole: a reader never finds a part of an answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
