"""Reward models, steering and policies on the planted world, where the truth is known.

    RUN/report/   report.json, table.md, table.csv, alignment.png

Reward models are asked in and out of distribution: Pearson correlation and mean error of every
attribute, and how often they order two answers as the true reward does, beside the rule "the longer
one". Steering: Spearman correlation of what was asked for and what came, and how much one attribute
moves the others. Policies: true reward and KL along training, gaps that they imply, likelihoods.
All on requests that nothing was trained on.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich

from data import attributes, json_rows, planted
from data.errors import DataError
from evaluation import alignment_plot, report, statistics
from evaluation.policies import Judged, Policy, Scores
from synthesis import plant, rewards
from synthesis.writers import Sampling
from train import checkpoints
from train.errors import ConfigError
from train.stopping import StopFlag

TASK = "planted world"
STYLES = {
    "in distribution": planted.IN_DISTRIBUTION,
    "out of distribution": planted.OUT_OF_DISTRIBUTION,
}
PEARSON, SPEARMAN, CROSS_TALK = "Pearson r", "Spearman rho", "cross-talk"
REWARD, KL, GAP = "true reward", "KL from the reference (nats)", "mean abs(d - g)"
RECOVERED = "share of the gap recovered"
EQUAL_KL = "true reward at equal KL"


@dataclass(frozen=True, kw_only=True)
class TrainedPolicy:
    """A policy that was trained from the reference."""

    name: str
    """What the report calls it."""
    checkpoint: str
    """Its run folder; every step that is kept there is measured."""
    seed: int = 0
    """Policies of equal seeds were trained on the same pairs, and are compared."""


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """One evaluation of what alignment has made. Parts whose checkpoint is empty are left out."""

    reward_model: str = ""
    """Run folder or checkpoint with a reward head."""
    steered: str = ""
    """responses.jsonl of `synthesis steer` with requested "uniform"."""
    reference: str = ""
    """What the policies were trained from."""
    policies: tuple[TrainedPolicy, ...] = ()
    """Policies of different names or seeds; the first name is compared with the others."""
    beta: float = 1.0
    """Of the preference losses: d = beta times the log-ratio."""
    eta: float = 1.0
    """Of RPO: g = eta times the gap of the true rewards."""
    weights: str = "nemotron4_340b"
    """What makes the true reward of the attributes: a name of data.attributes.WEIGHTS."""
    num_dialogues: int = 1_000
    """Answers that a reward model grades in each distribution."""
    num_prompts: int = 256
    """Requests that every policy answers."""
    num_pairs: int = 256
    """Held-out pairs."""
    sampling: Sampling = Sampling()
    """How policies answer."""
    seed: int = 0
    """Decides the requests and what is drawn."""

    def __post_init__(self):
        keys = [(one.name, one.seed) for one in self.policies]
        if len(set(keys)) < len(keys) or bool(self.policies) != bool(self.reference):
            raise ConfigError(
                "policies differ in name or seed, and have a reference; got "
                f"{keys} with {self.reference=}. Correct them."
            )


def run(
    config: AlignmentConfig,
    run_folder: Path,
    /,
    *,
    resume: bool = False,
    stop: StopFlag | None = None,
) -> Path:
    """Measures all parts; returns the path of report.json.

    Raises:
      Preempted: `stop` was requested. DataError: an unreadable checkpoint or file.
    """
    del resume  # takes a minute or two, and is done anew
    rows: list[report.Row] = []
    if config.reward_model:
        rows += reward_rows(config)
    if config.steered:
        rows += steering_rows(config.steered)
    if config.policies:
        rows += policy_rows(config, stop)
    for row in rows:
        rich.print(report.one_line(row))
    return report.write(
        run_folder / "report",
        report.make(rows, run_folder),
        plot=alignment_plot.draw,
        plot_name="alignment.png",
    )


def make_row(
    method: str, metric: str, values: tuple[float, float, float], n: int, **fields: Any
) -> report.Row:
    """A row of this task. values: score, and the ends of its 95% interval."""
    score, low, high = map(float, values)
    whole: dict[str, Any] = {
        "split": "test",
        "stage": "",
        "forward_passes_per_problem": 0.0,
        "settings": {},
    } | fields
    return report.Row(
        task=TASK,
        method=method,
        metric=metric,
        score=score,
        low=low,
        high=high,
        n=n,
        simulations=None,
        use_oracle=False,
        use_value=False,
        seconds_per_problem=None,
        **whole,
    )


# ----------------------------------------------------------------------------------- reward models


def reward_rows(config: AlignmentConfig) -> list[report.Row]:
    """Correlations and errors of every attribute, and accuracy on pairs, in both distributions."""
    grader = rewards.load(config.reward_model)
    weights = plant.weights_of(config.weights)
    rows = []
    for split, style in STYLES.items():
        asked = list(
            planted.dialogues(config.num_dialogues, seed=config.seed, split="test", style=style)
        )
        predicted = grader.score_answers(*texts_of(asked))[:, -5:]
        true = np.array([one.attributes.as_tuple() for one in asked], float)
        make = functools.partial(make_row, split=split, n=len(asked))
        for number, name in enumerate(attributes.FIVE):
            pair = predicted[:, number], true[:, number]
            rows.append(make(name, PEARSON, correlation(*pair)))
            rows.append(make(name, "mean error", mean(np.abs(pair[0] - pair[1]))))
        rows += _pair_rows(config, grader, weights, split, style)
    return rows


def _pair_rows(config, grader, weights, split: str, style: planted.Style) -> list[report.Row]:
    pairs = planted.pairs(
        config.num_dialogues, weights, seed=config.seed, split="test", style=style
    )
    better, worse = zip(*pairs, strict=True)
    rewarded, lengths = (
        [score(*texts_of(side)) for side in (better, worse)]
        for score in (
            lambda *texts: attributes.reward(grader.score_answers(*texts), config.weights),
            lambda _, responses: np.array([len(response) for response in responses]),
        )
    )
    rows = []
    for name, (first, second) in {"reward": rewarded, "the longer one": lengths}.items():
        right = int((first > second).sum())
        interval = statistics.wilson_interval(right, len(better))
        score = (right / len(better), *interval)
        rows.append(
            make_row(f"order of pairs: {name}", "accuracy", score, len(better), split=split)
        )
    return rows


def texts_of(dialogues: Sequence[planted.Dialogue]) -> tuple[list[str], list[str]]:
    """Prompts and responses."""
    return [one.prompt for one in dialogues], [one.response for one in dialogues]


def correlation(
    x: np.ndarray, y: np.ndarray, *, of_ranks: bool = False
) -> tuple[float, float, float]:
    """Pearson's r, or Spearman's rho, and its 95% interval."""
    r = statistics.spearman(x, y) if of_ranks else statistics.pearson(x, y)
    return r, *statistics.fisher_interval(r, len(x), of_ranks=of_ranks)


def mean(values: np.ndarray) -> tuple[float, float, float]:
    """The mean and its 95% interval."""
    return float(values.mean()), *statistics.student_interval(values.tolist())


# ---------------------------------------------------------------------------------------- steering


def steering_rows(path: str) -> list[report.Row]:
    """How well a model keeps to the attributes that were asked for, each drawn by itself."""
    asked, came = [], []
    for row in json_rows.read(path):
        label = attributes.parse_labels(row.text("requested"))
        asked.append([label[name] for name in attributes.FIVE])
        came.append(planted.measure(row.text("prompt"), row.text("response")).as_tuple())
    requested, measured = np.array(asked, float), np.array(came, float)
    effects = slopes(requested, measured)
    make = functools.partial(make_row, n=len(asked))
    rows = []
    for number, name in enumerate(attributes.FIVE):
        pair = requested[:, number], measured[:, number]
        means = [float(pair[1][pair[0] == grade].mean()) for grade in range(5)]
        rows.append(
            make(
                f"steered {name}",
                SPEARMAN,
                correlation(*pair, of_ranks=True),
                settings={"slopes": effects[number].tolist(), "means": means},
            )
        )
    off_diagonal = ~np.eye(len(effects), dtype=bool)
    generator = np.random.default_rng(0)
    draws = [generator.integers(len(asked), size=len(asked)) for _ in range(200)]
    again = [
        float(np.abs(slopes(requested[one], measured[one])[off_diagonal]).mean()) for one in draws
    ]
    score = float(np.abs(effects[off_diagonal]).mean())
    interval = min(score, np.quantile(again, 0.025)), max(score, np.quantile(again, 0.975))
    largest = float(np.abs(effects[off_diagonal]).max())
    rows.append(make("steering", CROSS_TALK, (score, *interval), settings={"largest": largest}))
    return rows


def slopes(requested: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """`[i, j]`: change of measured attribute j per unit of requested attribute i, others fixed.

    Coefficients of the least-squares fit of measured attributes on all requested ones.
    """
    design = np.column_stack([requested, np.ones(len(requested))])
    return np.linalg.lstsq(design, measured, rcond=None)[0][:-1]


# ---------------------------------------------------------------------------------------- policies

Curve = list[tuple[int, Scores]]  # by step


def policy_rows(config: AlignmentConfig, stop: StopFlag | None) -> list[report.Row]:
    """The reference and every policy; then policies of the same seed at equal KL."""
    weights = plant.weights_of(config.weights)
    reference = Policy.load(config.reference)
    judged = Judged(
        reference,
        planted.requests(config.num_prompts, seed=config.seed, split="test"),
        list(planted.pairs(config.num_pairs, weights, seed=config.seed, split="test")),
        weights,
        beta=config.beta,
        eta=config.eta,
        sampling=config.sampling,
        seed=config.seed,
    )
    before = judged.score(reference)
    rows = rows_of_scores("reference", before, before, "")
    curves: dict[tuple[str, int], Curve] = {}
    for policy in config.policies:
        curve: Curve = [(0, before)]
        for step in checkpoints.steps_of(policy.checkpoint):
            if stop is not None and stop.requested:
                stop.raise_preempted(f"{policy.name}, step {step.name}")
            if int(step.name):
                loaded = Policy.load(str(step))
                curve.append((int(step.name), judged.score(loaded)))
        curves[policy.name, policy.seed] = curve
        stage = f"seed {policy.seed}" if len({one.seed for one in config.policies}) > 1 else ""
        settings = {
            "curve": [[step, float(s.kl.mean()), float(s.rewards.mean())] for step, s in curve]
        }
        rows += rows_of_scores(policy.name, curve[-1][1], before, stage, settings)
    return rows + comparison_rows(curves)


def rows_of_scores(
    method: str, scores: Scores, before: Scores, stage: str, settings: dict[str, Any] | None = None
) -> list[report.Row]:
    """What a policy has become, against what it was."""
    if len(scores.kl) < 2:
        raise DataError(
            f"KL is measured on finished answers; of {len(scores.rewards)} of {method} "
            f"{len(scores.kl)} are. Train longer, or raise sampling.max_new_tokens."
        )
    make = functools.partial(make_row, method, stage=stage)
    finished = {"share_finished": scores.share_finished}
    answers, pairs = len(scores.rewards), len(scores.chosen)
    rows = [
        make(REWARD, mean(scores.rewards), answers, settings=finished | (settings or {})),
        make(KL, mean(scores.kl), len(scores.kl)),
        make(GAP, mean(scores.gap_errors), pairs),
        make("log p(chosen) less the reference's", mean(scores.chosen - before.chosen), pairs),
    ]
    if scores is not before:
        # Before training d = 0, so that |d - g| = |g|.
        share = 1 - scores.gap_errors.mean() / np.abs(scores.target_gaps).mean()
        rows.append(make(RECOVERED, _ratio_interval(share, scores), pairs))
    return rows


def _ratio_interval(share: float, scores: Scores) -> tuple[float, float, float]:
    """Bootstrap over the pairs."""
    generator, n = np.random.default_rng(0), len(scores.gap_errors)
    draws = generator.integers(n, size=(500, n))
    errors, targets = scores.gap_errors[draws].mean(1), np.abs(scores.target_gaps)[draws].mean(1)
    low, high = np.quantile(1 - errors / targets, (0.025, 0.975))
    return float(share), min(share, float(low)), max(share, float(high))


def comparison_rows(curves: dict[tuple[str, int], Curve]) -> list[report.Row]:
    """The first policy against each other one, seed by seed, at the largest KL that both reach."""
    names = list(dict.fromkeys(name for name, _ in curves))
    rows = []
    for first, second in itertools.product(names[:1], names[1:]):
        seeds = [seed for name, seed in curves if name == first and (second, seed) in curves]
        pairs = [at_equal_kl(curves[first, seed], curves[second, seed]) for seed in seeds]
        gains = np.array([one - other for _, one, other in pairs])
        settings = {"kl": [kl for kl, _, _ in pairs], "gains": gains.tolist()}
        for name, column in ((first, 1), (second, 2)):
            rewarded = np.array([pair[column] for pair in pairs])
            interval = mean(rewarded) if len(rewarded) > 1 else (float(rewarded[0]),) * 3
            rows.append(make_row(name, EQUAL_KL, interval, len(rewarded), settings=settings))
        if len(seeds) > 1:
            wins = int((gains > 0).sum())
            score = (wins / len(seeds), *statistics.wilson_interval(wins, len(seeds)))
            rows.append(
                make_row(f"seeds in which {first} is above {second}", "accuracy", score, len(seeds))
            )
    return rows


def at_equal_kl(first: Curve, second: Curve) -> tuple[float, float, float]:
    """The largest KL that both reach, and the true reward of each there, between two steps."""
    lines: list[Callable[[float], float]] = []
    ends = []
    for curve in (first, second):
        points = sorted((float(s.kl.mean()), float(s.rewards.mean())) for _, s in curve)
        kl, rewarded = zip(*points, strict=True)
        lines.append(functools.partial(np.interp, xp=kl, fp=rewarded))
        ends.append(kl[-1])
    common = min(ends)
    return common, *(float(line(common)) for line in lines)
