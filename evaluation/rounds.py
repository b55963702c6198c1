"""Models of successive rounds on the same requests of the planted world: does each beat the last?

    RUN/report/   report.json, table.md, table.csv, rounds.png

Every model answers every request once, and the true reward of the answers is compared pair by pair.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import rich
from scipy import stats

from data import planted
from evaluation import alignment, plots, report
from synthesis import plant, writers
from synthesis.writers import Asked, Sampling
from train.errors import ConfigError
from train.stopping import StopFlag

GAIN = "true reward above the round before"


@dataclass(frozen=True, kw_only=True)
class RoundModel:
    """What a round has made."""

    name: str
    """What the report calls it."""
    checkpoint: str
    """Its run folder or checkpoint."""


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Models in the order of their rounds."""

    models: tuple[RoundModel, ...]
    """The first one is where the rounds began."""
    weights: str = "nemotron4_340b"
    """What makes the true reward of the attributes: a name of data.attributes.WEIGHTS."""
    num_prompts: int = 512
    """Requests that every model answers."""
    sampling: Sampling = Sampling()
    """How they answer."""
    seed: int = 0
    """Decides the requests and what is drawn."""

    def __post_init__(self):
        names = [one.name for one in self.models]
        if len(set(names)) < len(names) or len(names) < 2:
            raise ConfigError(f"rounds are two models or more of different names; got {names}.")


def run(
    config: RoundsConfig,
    run_folder: Path,
    /,
    *,
    resume: bool = False,
    stop: StopFlag | None = None,
) -> Path:
    """Asks all models; returns the path of report.json.

    Raises:
      Preempted: `stop` was requested. DataError: an unreadable checkpoint.
    """
    del resume  # takes a minute, and is done anew
    prompts = planted.requests(config.num_prompts, seed=config.seed, split="test")
    rewarded: list[np.ndarray] = []
    for one in config.models:
        if stop is not None and stop.requested:
            stop.raise_preempted(one.name)
        rewarded.append(_rewards(one, prompts, config))
    rows = make_rows([one.name for one in config.models], rewarded)
    for row in rows:
        rich.print(report.one_line(row))
    return report.write(
        run_folder / "report",
        report.make(rows, run_folder),
        plot=functools.partial(plots.scores, against=None),
        plot_name="rounds.png",
    )


def _rewards(one: RoundModel, prompts: Sequence[str], config: RoundsConfig) -> np.ndarray:
    weights = plant.weights_of(config.weights)
    writer = writers.load(one.checkpoint, config.sampling, name=one.name)
    written = writer.write([Asked(prompt) for prompt in prompts], jax.random.key(config.seed))
    return np.array(
        [
            planted.true_reward(planted.measure(prompt, answer.text), weights)
            for prompt, answer in zip(prompts, written, strict=True)
        ]
    )


def make_rows(names: Sequence[str], rewarded: Sequence[np.ndarray]) -> list[report.Row]:
    """Rewards of every model, and its gain over the one before with a paired t-test (two-sided)."""
    rows = [
        alignment.make_row(name, alignment.REWARD, alignment.mean(each), len(each))
        for name, each in zip(names, rewarded, strict=True)
    ]
    for number in range(1, len(names)):
        gain = rewarded[number] - rewarded[number - 1]
        p_value = float(stats.ttest_rel(rewarded[number], rewarded[number - 1]).pvalue)
        rows.append(
            alignment.make_row(
                names[number],
                GAIN,
                alignment.mean(gain),
                len(gain),
                settings={"p_value": p_value, "compared_with": names[number - 1]},
            )
        )
    return rows
