"""alignment.png: what reward models, steering and policies have learned of the planted world."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from evaluation.plots import STYLES

if TYPE_CHECKING:
    from evaluation.report import Row


def draw(rows: Sequence["Row"], path: Path) -> None:
    """One panel for each part that was measured."""
    panels = [
        (panel, found)
        for panel, found in (
            (_reward_model, [row for row in rows if row.metric == "Pearson r"]),
            (_steering, [row for row in rows if "means" in row.settings]),
            (_policies, [row for row in rows if "curve" in row.settings]),
        )
        if found
    ]
    figure = Figure(figsize=(5.4 * len(panels), 4.6), layout="constrained")
    for axes, (panel, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        panel(axes, found)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _reward_model(axes, rows: Sequence["Row"]) -> None:
    """Two bars per attribute: in and out of distribution."""
    names = list(dict.fromkeys(row.method for row in rows))
    splits = list(dict.fromkeys(row.split for row in rows))
    for number, split in enumerate(splits):
        group = [row for row in rows if row.split == split]
        places = [names.index(row.method) + 0.4 * (number - 0.5) for row in group]
        errors = [[row.score - row.low for row in group], [row.high - row.score for row in group]]
        scores = [row.score for row in group]
        axes.bar(places, scores, 0.38, yerr=errors, label=split, color=STYLES[number][0], capsize=2)
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set_ylim(0, 1.19)
    axes.grid(axis="y", color="#DDDDDD")
    axes.set_ylabel("Pearson r")
    axes.set_title("reward model: predicted and true attributes", fontsize=11)


def _steering(axes, rows: Sequence["Row"]) -> None:
    """A line per attribute; a model that keeps to what is asked lies on the diagonal."""
    axes.plot([0, 4], [0, 4], color="#BBBBBB", linestyle="dashed")
    for (color, marker), row in zip(STYLES, rows):
        name = f"{row.method.removeprefix('steered ')} ({row.score:.2f})"
        axes.plot(range(5), row.settings["means"], color=color, marker=marker, label=name)
    axes.set_xticks(range(5))
    axes.set_xlabel("requested")
    axes.set_ylabel("measured, mean")
    axes.grid(color="#DDDDDD")
    axes.set_title("steering: what was asked and what came (rho)", fontsize=11)


def _policies(axes, rows: Sequence["Row"]) -> None:
    """True reward against KL along training, a line per policy and seed."""
    names = list(dict.fromkeys(row.method for row in rows))
    for number, row in enumerate(rows):
        color, marker = STYLES[names.index(row.method)]
        is_first = row.method not in [other.method for other in rows[:number]]
        _, kl, rewards = zip(*row.settings["curve"])
        label = row.method if is_first else None
        axes.plot(kl, rewards, color=color, marker=marker, markersize=5, alpha=0.8, label=label)
    axes.set_xlabel("KL(policy || reference), nats per answer")
    axes.set_ylabel("true reward")
    axes.grid(color="#DDDDDD")
    axes.set_title("policies along training", fontsize=11)
