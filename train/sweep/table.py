"""What the members of a sweep have reached: a table (CSV and Markdown) and a plot."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train import resume
from train.sweep import Member

Row = dict[str, Any]
RESULTS = ("steps", "seconds", "state")  # beside the fields and the metric


def rows(members: Sequence[Member], folder: Path, metric: str, *, larger: bool) -> list[Row]:
    """One row per member, the best first, those without a result last.

    Its columns: member, every field that members differ in, the metric (the last one that was
    logged), steps, seconds over all attempts, and state (done, started or waiting).
    """
    fields = list(dict.fromkeys(field for member in members for field in member.overrides))
    found = []
    for member in members:
        at = folder / "members" / member.name
        logged = _logged(at / "metrics.jsonl")
        values = [line[metric] for line in logged if metric in line]
        last = logged[-1] if logged else {}
        is_done = resume.is_done(at, member.config)
        found.append(
            {
                "member": member.name,
                **{field: member.overrides.get(field) for field in fields},
                metric: values[-1] if values else None,
                "steps": last.get("step", 0),
                "seconds": last.get("elapsed_seconds", 0.0),
                "state": "done" if is_done else "started" if logged else "waiting",
            }
        )
    sign = -1.0 if larger else 1.0
    return sorted(found, key=lambda r: math.inf if r[metric] is None else sign * r[metric])


def write(table: Sequence[Row], folder: Path, metric: str) -> None:
    """Writes table.csv, table.md and plot.png into `folder`."""
    columns = list(table[0])
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(table)
    lines = [columns, ["---"] * len(columns)]
    lines += [[_text(row[column]) for column in columns] for row in table]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (folder / "table.md").write_text(text, encoding="utf-8")
    plot(table, folder / "plot.png", metric)


def plot(table: Sequence[Row], path: Path, metric: str) -> None:
    """The metric against the numeric field of most values, a line per setting of the others; the
    field "seed" makes no lines of its own: its values are drawn as points of one line.
    """
    from matplotlib.figure import Figure

    fields = [name for name in table[0] if name not in ("member", metric, *RESULTS)]
    done = [row for row in table if row[metric] is not None]
    numeric = [name for name in fields if name != "seed" and all(map(_is_number, _of(done, name)))]
    axis = max(numeric, key=lambda name: len(set(_of(done, name))), default=None)
    others = [name for name in fields if name not in (axis, "seed")]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for setting in dict.fromkeys(tuple(map(_text, _values(row, others))) for row in done):
        group = [row for row in done if tuple(map(_text, _values(row, others))) == setting]
        group.sort(key=lambda row: row[axis] if axis else row["member"])
        label = ", ".join(f"{name}={value}" for name, value in zip(others, setting, strict=True))
        places = [row[axis] if axis else row["member"] for row in group]
        axes.plot(places, _of(group, metric), "o-", label=label or None)
    values = _of(done, axis) if axis else []
    if values and min(values) > 0 and max(values) >= 10 * min(values):
        axes.set_xscale("log")
    axes.set_xlabel(axis or "member")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    if others and len(done) > 0:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _logged(path: Path) -> list[Row]:
    """Lines of metrics.jsonl; the last may be torn by a kill."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _of(table: Sequence[Row], column: str) -> list[Any]:
    return [row[column] for row in table]


def _values(row: Row, columns: Sequence[str]) -> list[Any]:
    return [row[column] for column in columns]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
