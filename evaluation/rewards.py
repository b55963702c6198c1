"""How well reward models judge: which of two answers is better, and how answers are graded.

    RUN/report/    report.json, table.md, table.csv, scores.png

A pair is right if the chosen answer has the higher reward (a tie is wrong), as in RewardBench
(arXiv:2403.13787). Beside every model stands the rule "the longer answer wins", by characters:
much of what reward models learn from few pairs is length (arXiv:2310.03716). Grades: Pearson's
correlation and the mean absolute error of every attribute, beside the mean grade as a rule.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rich
from jaxtyping import Float

from data import attributes, chat
from data.attributes import AttributeSource
from data.errors import DataError
from data.preferences import Preference, PreferenceSource
from evaluation import plots, report, statistics
from train import config_json, reward_model
from train.errors import ConfigError

LENGTH_RULE = "the longer answer"
MEAN_RULE = "the mean grade"
PEARSON, ERROR = "Pearson", "mean absolute error"


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pairs that no model was trained on."""

    name: str
    """What the report calls them."""
    source: PreferenceSource
    """Where they come from."""


@dataclass(frozen=True, kw_only=True)
class GradedSet:
    """Graded answers that no model was trained on."""

    name: str
    """What the report calls them."""
    source: AttributeSource
    """Where they come from."""


@dataclass(frozen=True, kw_only=True)
class RewardModelRuns:
    """One reward model, trained once or several times."""

    name: str
    """What the report calls it."""
    checkpoints: tuple[str, ...]
    """Run folders or checkpoints that differ in their seed only."""
    weights: str = "helpfulness"
    """How its attributes become one reward (`data.attributes.WEIGHTS`)."""


@dataclass(frozen=True, kw_only=True)
class RewardEvaluation:
    """Reward models on the same held-out answers."""

    task: str
    """Name of the task in the report."""
    models: tuple[RewardModelRuns, ...]
    """What is compared."""
    pairs: tuple[PairSet, ...] = ()
    """Pairs of answers."""
    graded: tuple[GradedSet, ...] = ()
    """Graded answers."""

    def __post_init__(self):
        names = [model.name for model in self.models]
        sets = [each.name for each in self.pairs] + [each.name for each in self.graded]
        if not names or not sets or len({*names, LENGTH_RULE, MEAN_RULE}) < len(names) + 2:
            raise ConfigError(
                "an evaluation of rewards has models of different names and held-out answers; got "
                f"{names} on {sets}. Name them apart."
            )


def run(config: RewardEvaluation, run_folder: Path, /, *, resume: bool, stop) -> Path:
    """Scores all models; returns the path of report.json.

    Raises:
      Preempted: `stop` was requested. DataError: an unreadable checkpoint or source.
    """
    del resume  # short, and done anew
    rows: list[report.Row] = []
    comparisons: list[report.Comparison] = []
    for pair_set in config.pairs:
        pairs = _usable(pair_set.source.pairs())
        right_by_length = [len(pair.chosen) > len(pair.rejected) for pair in pairs]
        rule = _accuracy_row(config, pair_set, LENGTH_RULE, [right_by_length], 0.0, None, {})
        rows.append(rule)
        for runs in config.models:
            scored = [_score_pairs(path, runs, pairs, stop) for path in runs.checkpoints]
            right = [each.right for each in scored]
            settings = config_json.encode(runs) | {"rewards_by_seed": [s.summary for s in scored]}
            row = _accuracy_row(
                config, pair_set, runs.name, right, scored[0].tokens, scored[0].seconds, settings
            )
            rows.append(row)
            comparisons.append(_against_rule(row, rule, right, right_by_length))
    for graded_set in config.graded:
        graded = graded_set.source.rows()
        for runs in config.models:
            predictions = [_grade(path, graded, stop) for path in runs.checkpoints]
            rows += _graded_rows(config, graded_set, runs, graded, predictions)
        rows += _mean_rows(config, graded_set, graded)
    for row in rows:
        rich.print(report.one_line(row))
    draw = functools.partial(plots.scores, against=None)
    whole = report.make(rows, run_folder, comparisons)
    return report.write(run_folder / "report", whole, plot=draw, plot_name="scores.png")


# ------------------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class ScoredPairs:
    """What one run makes of pairs. tokens, seconds: per pair. summary: of its rewards."""

    right: list[bool]
    tokens: float
    seconds: float
    summary: dict[str, float]


def _usable(pairs: Sequence[Preference]) -> list[Preference]:
    return [pair for pair in pairs if pair.chosen != pair.rejected]


def _score_pairs(
    path: str, runs: RewardModelRuns, pairs: Sequence[Preference], stop
) -> ScoredPairs:
    judge = reward_model.load(path)
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    if stop is not None and stop.requested:
        stop.raise_preempted(f"{runs.name} on {len(pairs)} pairs")
    started = time.monotonic()
    predictions = judge.score_answers(prompts, answers)
    seconds = (time.monotonic() - started) / len(pairs)
    rewards = attributes.reward(predictions, runs.weights).reshape(-1, 2)
    lengths = np.array([len(answer) for answer in answers]).reshape(-1, 2)
    chats = [chat.with_answer(*each) for each in zip(prompts, answers, strict=True)]
    encoded = [chat.encode_scored(one, judge.tokenizer, judge.template)[0] for one in chats]
    read = [min(len(tokens), judge.length) for tokens in encoded]
    return ScoredPairs(
        right=(rewards[:, 0] > rewards[:, 1]).tolist(),
        tokens=2 * sum(read) / len(read),
        seconds=seconds,
        summary={
            "correlation_with_length": statistics.pearson(
                rewards.ravel(), np.log1p(lengths.ravel())
            ),
            "share_cut": sum(len(tokens) > judge.length for tokens in encoded) / len(encoded),
        },
    )


def _accuracy_row(
    config: RewardEvaluation,
    pair_set: PairSet,
    method: str,
    right: Sequence[Sequence[bool]],
    tokens: float,
    seconds: float | None,
    settings: dict,
) -> report.Row:
    """Mean accuracy of the seeds."""
    n = len(right[0])
    scores = [sum(each) / n for each in right]
    low, high = statistics.interval_over_seeds(scores, n)
    return report.Row(
        **_common(config, pair_set.name, method),
        metric="accuracy",
        score=sum(scores) / len(scores),
        low=low,
        high=high,
        n=n,
        forward_passes_per_problem=tokens,
        seconds_per_problem=seconds,
        settings=settings | {"source": config_json.encode(pair_set.source), "scores": scores},
    )


def _against_rule(
    row: report.Row,
    rule: report.Row,
    right: Sequence[Sequence[bool]],
    right_by_rule: Sequence[bool],
) -> report.Comparison:
    """Exact McNemar tests of every seed against the rule of length."""
    both = [list(zip(each, right_by_rule, strict=True)) for each in right]
    return report.Comparison(
        task=row.task,
        split=row.split,
        stage=row.stage,
        first=row.name,
        second=rule.name,
        n=len(right_by_rule),
        only_first=tuple(each.count((True, False)) for each in both),
        only_second=tuple(each.count((False, True)) for each in both),
        p_values=tuple(statistics.mcnemar_p_value(each, right_by_rule) for each in right),
    )


# ------------------------------------------------------------------------------------ grades


def _grade(
    path: str, graded: Sequence[attributes.AttributeRow], stop
) -> tuple[tuple[str, ...], Float[np.ndarray, "n A"]]:
    judge = reward_model.load(path)
    if stop is not None and stop.requested:
        stop.raise_preempted(f"{path} on {len(graded)} grades")
    scores = judge.score_answers([row.prompt for row in graded], [row.response for row in graded])
    return judge.attributes, scores


def _graded_rows(
    config: RewardEvaluation,
    graded_set: GradedSet,
    runs: RewardModelRuns,
    graded: Sequence[attributes.AttributeRow],
    predictions: Sequence[tuple[tuple[str, ...], Float[np.ndarray, "n A"]]],
) -> list[report.Row]:
    """Pearson and mean absolute error of every attribute that has grades."""
    rows = []
    order = predictions[0][0]
    labels = np.stack([attributes.vector(row.attributes, order) for row in graded])
    for column, name in enumerate(order):
        is_given = labels[:, column] != attributes.MASKED
        if is_given.sum() < 3:
            continue
        wanted = labels[is_given, column]
        got = [scores[is_given, column] for _, scores in predictions]
        correlations = [statistics.pearson(each, wanted) for each in got]
        errors = [np.abs(each - wanted) for each in got]
        fields = _common(config, f"{graded_set.name}, {name}", runs.name) | {
            "n": len(wanted),
            "forward_passes_per_problem": 0.0,
            "seconds_per_problem": None,
        }
        settings = config_json.encode(runs) | {"source": config_json.encode(graded_set.source)}
        mean = sum(correlations) / len(correlations)
        low, high = statistics.fisher_interval(mean, len(wanted))
        rows.append(
            report.Row(
                **fields,
                metric=PEARSON,
                score=mean,
                low=low,
                high=high,
                settings=settings | {"scores": correlations},
            )
        )
        rows.append(_error_row(fields, np.mean(errors, axis=0), settings))
    if not rows:
        raise DataError(
            f"{graded_set.name} has no attribute of {', '.join(order)} with three grades or more. "
            "Give another set."
        )
    return rows


def _mean_rows(
    config: RewardEvaluation, graded_set: GradedSet, graded: Sequence[attributes.AttributeRow]
) -> list[report.Row]:
    """The error of always giving the mean grade of these very answers: what is to be beaten."""
    rows = []
    for name in attributes.NINE:
        given = np.array([row.attributes[name] for row in graded if name in row.attributes])
        if len(given) < 3:
            continue
        fields = _common(config, f"{graded_set.name}, {name}", MEAN_RULE) | {
            "n": len(given),
            "forward_passes_per_problem": 0.0,
            "seconds_per_problem": None,
        }
        rows.append(_error_row(fields, np.abs(given - given.mean()), {}))
    return rows


def _error_row(fields: dict, errors: Float[np.ndarray, " n"], settings: dict) -> report.Row:
    low, high = statistics.student_interval(errors.tolist())
    mean = float(errors.mean())
    return report.Row(**fields, metric=ERROR, score=mean, low=low, high=high, settings=settings)


def _common(config: RewardEvaluation, split: str, method: str) -> dict:
    return {
        "task": config.task,
        "split": split,
        "stage": "",
        "method": method,
        "simulations": None,
        "use_oracle": False,
        "use_value": False,
    }
