"""accuracy.png: how accuracy grows with search, what it costs, which part of it does the work.

scores.png: models on held-out text, by order, bytes of state or length.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from evaluation.report import Row

# Okabe and Ito's colours, told apart with every kind of colour vision; each has its own marker too.
STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#7F7F7F", "v"),
    ("#E69F00", "P"), ("#56B4E9", "X"), ("#332288", "<"), ("#882255", ">"), ("#666633", "*"),
)  # fmt: skip
LABEL_HEIGHT = 0.06  # in accuracy


def accuracy(rows: Sequence["Row"], path: Path) -> None:
    """Draws the accuracies of the first task, with 95% intervals, in three panels.

    Left: searches of several sizes by simulations per move; dashed: methods that have one size.
    Middle: everything by what the model reads, a line per method; dotted: chosen by the checker.
    Right: all searches of one size, on every split:
    oracle and value switched on and off, and the controls.
    """
    first = rows[0]
    rows = [row for row in rows if (row.task, row.metric) == (first.task, first.metric)]
    on_split = [row for row in rows if row.split == first.split]
    sized = [row for row in on_split if isinstance(row.simulations, int)]
    several = {row.series for row in sized if len({r.simulations for r in _like(row, sized)}) > 1}
    if not several and sized:
        several = {sized[0].series}
    main = [row for row in sized if row.series in several]
    main += [row for row in on_split if row.simulations is None]
    compared = _compared_simulations(sized, several)
    searches = [row for row in rows if row.simulations == compared and compared is not None]

    widths = (1, 1.5, 0.9) if searches else (1, 1.5)
    figure = Figure(figsize=(4.7 * sum(widths), 5.4), layout="constrained")
    left, middle, *right = figure.subplots(1, len(widths), width_ratios=widths)
    labels = []
    for (color, marker), series in zip(_cycle(STYLES), dict.fromkeys(row.series for row in main)):
        group = [row for row in main if row.series == series]
        group.sort(key=lambda row: row.forward_passes_per_problem)
        scores = [row.score for row in group]
        look = {"color": color, "marker": marker, "markersize": 8, "capsize": 3, "linewidth": 2}
        look["elinewidth"] = 1.2
        costs = [row.forward_passes_per_problem for row in group]
        line = "dotted" if group[0].use_oracle else "solid"
        middle.errorbar(costs, scores, _errors(group), linestyle=line, clip_on=False, **look)
        labels.append((costs[-1], scores[-1], series, color))
        if series in several:
            sizes = [row.simulations for row in group]
            left.errorbar(sizes, scores, _errors(group), clip_on=False, **look)
        elif len(group) == 1:
            left.axhline(scores[-1], color=color, linestyle=(0, (4, 3)), linewidth=1.5)
    _dress_by_size(left, sorted(set(_sizes([row for row in main if row.series in several]))))
    _dress_by_cost(middle, labels)
    if right:
        _draw_searches(right[0], searches, first.split)
    figure.suptitle(
        f"{first.task}: {first.metric} on {first.n} {first.split} problems, with 95% intervals",
        x=0.01, ha="left", fontsize=15,
    )  # fmt: skip
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _like(row: "Row", rows: Sequence["Row"]) -> list["Row"]:
    return [other for other in rows if other.series == row.series]


def _compared_simulations(sized: Sequence["Row"], several: set[str]) -> int | None:
    """The size that most searches of a single size have."""
    sizes = _sizes([row for row in sized if row.series not in several])
    return max(sizes, key=sizes.count, default=None)


def _sizes(rows: Sequence["Row"]) -> list[int]:
    return [row.simulations for row in rows if isinstance(row.simulations, int)]


def _cycle(styles: Sequence[tuple[str, str]]):
    while True:
        yield from styles


def _errors(rows: Sequence["Row"]) -> list[list[float]]:
    return [[row.score - row.low for row in rows], [row.high - row.score for row in rows]]


def _dress(axes, axis: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=axis, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    scale = axes.yaxis if axis == "y" else axes.xaxis
    getattr(axes, f"set_{axis}lim")(0, 1)
    scale.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))


def _dress_by_size(axes, simulations: Sequence[int]) -> None:
    _dress(axes, "y")
    axes.set_ylabel("accuracy")
    axes.set_xlabel("simulations per move")
    axes.set_xscale("log")
    axes.set_xticks(simulations, map(str, simulations))
    axes.minorticks_off()
    if simulations:
        axes.set_xlim(simulations[0] / 1.4, simulations[-1] * 1.4)


def _dress_by_cost(axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Every series is named beside its last point, or in a column right of all, without overlap."""
    _dress(axes, "y")
    axes.set_xlabel("forward passes per problem (tokens the model reads)")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.45)  # room for the names
    column = max(x for x, *_ in labels)
    heights = spread([score for _, score, _, _ in labels])
    for (x, score, name, color), height in zip(labels, heights):
        place = column if x * 10 > column else x
        axes.annotate(
            name, (x, score), xytext=(place * 1.25, height), va="center",
            color=color, fontsize=11, annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            arrowprops={
                "arrowstyle": "-", "color": color, "linewidth": 0.8, "relpos": (0, 0.5),
                "shrinkA": 0, "shrinkB": 6,
            },
        )  # fmt: skip


def _draw_searches(axes, rows: Sequence["Row"], split: str) -> None:
    """One line per search; full markers on the first split, hollow ones beside them on others."""
    _dress(axes, "x")
    names = list(dict.fromkeys(row.series for row in rows))
    for row in rows:
        is_first = row.split == split
        axes.errorbar(
            row.score, names.index(row.series) - (0.12 if is_first else -0.16),
            xerr=[[row.score - row.low], [row.high - row.score]], color="#333333", marker="o",
            markersize=7, capsize=3, linewidth=1.6, markerfacecolor=None if is_first else "white",
            clip_on=False,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [name.replace(", ", ",\n", 1) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    others = sorted({row.split for row in rows} - {split})
    hollow = f"; hollow: {', '.join(others)}" if others else ""
    axes.set_xlabel(f"accuracy at {rows[0].simulations} simulations{hollow}")


def spread(heights: Sequence[float], gap: float = LABEL_HEIGHT) -> list[float]:
    """The heights, moved apart to `gap` or more; they stay within 0..1 if they all fit into it."""
    order = sorted(range(len(heights)), key=lambda i: -heights[i])
    placed = list(heights)
    ceiling = 1.0
    for i in order:
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    floor = 0.0
    for i in reversed(order):
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    return placed


# --------------------------------------------------------------------------- models that are scored

AXES = {
    "order": "order of the polynomial",
    "state_bytes": "bytes of state per text",
    "document_tokens": "tokens of a text",
}


def scores(rows: Sequence["Row"], path: Path, *, against: str | None) -> None:
    """Draws the scores of models on held-out text, one panel per metric and set of documents.

    against: the number of `row.settings` on the horizontal axis, a line per series; a model without
      that number is a dashed line. Sets that differ in this number share a panel. None: one bar per
      model.
    """
    panels = list(dict.fromkeys(map(functools.partial(_panel, against=against), rows)))
    figure = Figure(figsize=(1.5 + 5.0 * len(panels), 4.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        metric, title = panel
        shown = [row for row in rows if _panel(row, against) == panel]
        if against is None:
            _draw_bars(axes, shown)
        else:
            _draw_lines(axes, shown, against)
        axes.set_title(title, fontsize=11)
        scale = axes.xaxis if against is None else axes.yaxis
        if metric.endswith("accuracy"):
            scale.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        scale.set_label_text(metric)
    figure.suptitle(f"{rows[0].task}, with 95% intervals", x=0.01, ha="left", fontsize=14)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _panel(row: "Row", against: str | None) -> tuple[str, str]:
    return row.metric, "" if against == "document_tokens" else row.split


def _draw_lines(axes, rows: Sequence["Row"], against: str) -> None:
    series = list(dict.fromkeys(row.settings["series"] for row in rows))
    for (color, marker), name in zip(_cycle(STYLES), series):
        group = [row for row in rows if row.settings["series"] == name]
        if any(row.settings[against] is None for row in group):
            axes.axhline(group[0].score, color=color, linestyle=(0, (4, 3)), label=name)
            continue
        group.sort(key=lambda row: row.settings[against])
        axes.errorbar(
            [row.settings[against] for row in group], [row.score for row in group],
            _errors(group), color=color, marker=marker, markersize=7, capsize=3, label=name,
        )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_xlabel(AXES[against])
    if against == "order":
        axes.set_xticks(sorted({row.settings["order"] for row in rows} - {None}))
    else:
        axes.set_xscale("log", base=2)
    axes.legend(frameon=False, fontsize=9)


def _draw_bars(axes, rows: Sequence["Row"]) -> None:
    places = range(len(rows))
    axes.barh(
        places, [row.score for row in rows], xerr=_errors(rows), color=STYLES[0][0], capsize=3
    )
    axes.set_yticks(places, [row.method for row in rows])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


# ------------------------------------------------------------------------- several models


def side_by_side(rows: Sequence["Row"], path: Path) -> None:
    """Draws a panel per task and metric, with a point and its interval per row, named by stage."""
    panels = list(dict.fromkeys((row.task, row.metric) for row in rows))
    heights = [len(_of_panel(rows, panel)) for panel in panels]
    figure = Figure(figsize=(8.0, 0.8 * len(panels) + 0.28 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[n + 1 for n in heights])
    stages = list(dict.fromkeys(row.stage for row in rows))
    for axes, panel in zip(grid[:, 0], panels):
        shown = _of_panel(rows, panel)
        for place, row in enumerate(shown):
            color, marker = STYLES[stages.index(row.stage) % len(STYLES)]
            error = [[row.score - row.low], [row.high - row.score]]
            axes.errorbar(row.score, place, xerr=error, color=color, marker=marker, capsize=3)
        names = [
            f"{row.stage}: " * bool(row.stage)
            + row.name
            + f", {row.split}" * (row.split not in ("test", "all"))
            for row in shown
        ]
        axes.set_yticks(range(len(shown)), names, fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_title(" ".join(panel), fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _of_panel(rows: Sequence["Row"], panel: tuple[str, str]) -> list["Row"]:
    return [row for row in rows if (row.task, row.metric) == panel]


def radar(scores: Mapping[str, Mapping[str, float]], path: Path, *, highest: float = 10.0) -> None:
    """Draws a line per model around the categories, from 0 in the middle to `highest`.

    scores: model -> category -> mean grade; all have the categories of the first.
    """
    categories = list(next(iter(scores.values())))
    angles = [2 * math.pi * n / len(categories) for n in range(len(categories))]
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    for (color, marker), (name, by_category) in zip(_cycle(STYLES), scores.items()):
        around = [by_category[category] for category in categories]
        axes.plot(
            [*angles, angles[0]], [*around, around[0]], color=color, marker=marker, label=name
        )
        axes.fill(angles, around, color=color, alpha=0.08)
    axes.set_xticks(angles, categories)
    axes.set_ylim(0, highest)
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(-0.25, 1.12))
    figure.savefig(path, dpi=130, metadata={"Software": None})
