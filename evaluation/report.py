"""The report of an evaluation: report.json, and the same rows as markdown and CSV.

    {"schema_version": 1, "command", "commit", "hardware", "rows": [Row, ...],
     "comparisons": [Comparison, ...]}

A forward pass is one token read by one network: `forward_passes_per_problem` counts every token of
prompt, candidate lines and texts that a method made it read, and twice where two networks read it.
"""

import csv
import dataclasses
import io
import json
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import rich
import rich.box
import rich.markup
import rich.table

from evaluation import plots
from train import run_folder
from train.errors import DataError

SCHEMA_VERSION = 1
LOSS = "nats per token"
TOKEN_ACCURACY = "token accuracy"
DOCUMENT_ACCURACY = "document accuracy"


def is_share(metric: str) -> bool:
    """Whether a metric is a share of what is asked, 0 to 1 and written in percent."""
    return metric.endswith("accuracy")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number and how it came about.

    score, low, high: the metric and its 95% interval. n: problems. simulations: per move, one
    number or one for each move. seconds_per_problem: without compilation; None if not measured.
    """

    task: str
    split: str
    stage: str
    method: str
    metric: str
    score: float
    low: float
    high: float
    n: int
    simulations: int | tuple[int, ...] | None
    use_oracle: bool
    use_value: bool
    forward_passes_per_problem: float
    seconds_per_problem: float | None
    settings: dict[str, Any]

    def __post_init__(self):
        _check_types(self)
        if not 0 <= self.low <= self.score <= self.high <= 1 and is_share(self.metric):
            raise DataError(
                "an accuracy lies inside its interval, and that in 0..1; got "
                f"{self.low} <= {self.score} <= {self.high}. Correct the row."
            )

    @property
    def series(self) -> str:
        """What rows have in common that differ in their size only: a line of the plot."""
        if self.simulations is None:
            return self.method
        return self.method + " + oracle" * self.use_oracle + ", no value" * (not self.use_value)

    @property
    def name(self) -> str:
        """What the row measures, apart from task and split."""
        simulations = "" if self.simulations is None else f", {_simulations(self)} simulations"
        return self.series + simulations


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two methods on the same n problems, in one run or in several of different seeds.

    only_first, only_second: for each run, problems that only one of the two got right. p_values:
    for each run, the two-sided exact McNemar test (`evaluation.statistics.mcnemar_p_value`).
    """

    task: str
    split: str
    stage: str
    first: str
    second: str
    n: int
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    p_values: tuple[float, ...]

    def __post_init__(self):
        _check_types(self)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rows, tests between them, and their origin: command line, git commit, processor."""

    command: str
    commit: str
    hardware: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    schema_version: int = SCHEMA_VERSION


def make(rows: Sequence[Row], folder: Path, comparisons: Sequence[Comparison] = ()) -> Report:
    """A report of `rows` from the run in `folder` (or a stage of a pipeline there)."""
    environment = run_folder.environment()
    hardware = f"{environment['cpu_model']}, {environment['cpu_cores']} cores"
    device = jax.devices()[0]
    if device.platform != "cpu":
        hardware += f", {jax.device_count()} x {device.device_kind}"
    changed = " with uncommitted changes" if environment["git_uncommitted_changes"] else ""
    return Report(
        command=_command(folder),
        commit=(environment["git_commit"] or "unknown") + changed,
        hardware=hardware,
        rows=tuple(rows),
        comparisons=tuple(comparisons),
    )


def write(
    folder: Path,
    report: Report,
    *,
    plot: Callable[[Sequence[Row], Path], None] = plots.accuracy,
    plot_name: str = "accuracy.png",
) -> Path:
    """Writes report.json, table.md, table.csv and the plot; returns the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(to_markdown(report), encoding="utf-8")
    (folder / "table.csv").write_text(to_csv(report), encoding="utf-8")
    plot(report.rows, folder / plot_name)
    run_folder.write_json(folder / "report.json", dataclasses.asdict(report))
    return folder / "report.json"


def read(path: Path) -> Report:
    """The report in a file, checked.

    Raises:
      DataError: missing, not JSON, or not of this schema.
    """
    raw = run_folder.read_json(path)
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"this code reads reports of schema version {SCHEMA_VERSION}; got {version} in {path}. "
            "Use the code that wrote it, or evaluate again."
        )
    try:
        rows = tuple(Row(**_with_tuples(row, "simulations")) for row in raw["rows"])
        comparisons = tuple(
            Comparison(**_with_tuples(each, "only_first", "only_second", "p_values"))
            for each in raw.get("comparisons", ())
        )
        return Report(**{**raw, "rows": rows, "comparisons": comparisons})
    except (TypeError, KeyError, DataError) as error:
        raise DataError(f"{path} is not a report ({error}). Evaluate again.") from error


Columns = dict[str, Callable[[Row], str]]
COLUMNS: Columns = {  # title -> cell; also the order
    "method": lambda row: row.method,
    "split": lambda row: row.split,
    "simulations": lambda row: _simulations(row),
    "texts": lambda row: _num_texts(row),
    "oracle": lambda row: "yes" if row.use_oracle else "",
    "value": lambda row: "yes" if row.use_value else "",
    "score": lambda row: score_text(row),
    "95% interval": lambda row: interval_text(row),
    "n": lambda row: str(row.n),
    "forward passes": lambda row: f"{row.forward_passes_per_problem:,.0f}",
    "seconds": lambda row: _seconds(row),
}
TERMINAL_COLUMNS: Columns = {
    "method": lambda row: row.series,
    "split": lambda row: row.split,
    "sims": lambda row: _simulations(row),
    "texts": lambda row: _num_texts(row),
    "score": lambda row: f"{score_text(row)} ({interval_text(row)})",
    "n": lambda row: str(row.n),
    "passes": lambda row: f"{row.forward_passes_per_problem:,.0f}",
    "seconds": lambda row: _seconds(row),
}
SHOWN_IF_THEY_DIFFER: Columns = {
    "task": lambda row: row.task,
    "stage": lambda row: row.stage,
    "metric": lambda row: row.metric,
    "state bytes": lambda row: f"{row.settings.get('state_bytes', 0):,}",
}
OF_SEARCH = ("simulations", "sims", "oracle", "value")  # left out where nothing was searched
COMPARISON_COLUMNS: dict[str, Callable[[Comparison], str]] = {
    "method": lambda each: each.first,
    "against": lambda each: each.second,
    "split": lambda each: each.split,
    "only the first": lambda each: _numbers(each.only_first),
    "only the second": lambda each: _numbers(each.only_second),
    "n": lambda each: str(each.n),
    "p": lambda each: _p_values(each),
}
LEFT_ALIGNED = ("task", "stage", "metric", "method", "against", "split", "oracle", "value")


def to_markdown(report: Report) -> str:
    """The table that people read, with its origin below."""
    columns, cells = _table(report, COLUMNS)
    per_move = "Simulations are per move; f" if "simulations" in columns else "F"
    lines = [
        *_markdown_table(columns, cells),
        "",
        f"{per_move}orward passes (tokens read by the model) and seconds per problem, without "
        "compilation."
        + " Texts: samples, or what a beam keeps, on average."
        * ("texts" in columns),
    ]
    if report.comparisons:
        cells = [
            [cell(each) for cell in COMPARISON_COLUMNS.values()] for each in report.comparisons
        ]
        lines += [
            "",
            *_markdown_table(list(COMPARISON_COLUMNS), cells),
            "",
            "Pairs of methods on the same problems: how many only one of them gets right, and p of "
            "the exact two-sided McNemar test"
            + (" (for each seed)." if len(report.comparisons[0].p_values) > 1 else "."),
        ]
    lines += [
        "",
        f"`{report.command}`, commit {report.commit}, {report.hardware}.",
    ]
    return "\n".join(lines) + "\n"


def to_csv(report: Report) -> str:
    """All fields of all rows; settings as JSON."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        cells = dataclasses.asdict(row)
        cells["simulations"] = _simulations(row)
        cells["settings"] = json.dumps(cells["settings"], sort_keys=True)
        writer.writerow(cells)
    return text.getvalue()


def one_line(row: Row) -> str:
    """A row for the terminal."""
    return (
        f"{row.task} {row.split}: {row.name}: {score_text(row)} "
        f"({interval_text(row)}) of {row.n}" + f" {row.metric}" * (row.metric != "accuracy")
    )


def show(report: Report) -> None:
    """Prints the table to the terminal, narrower than the file."""
    columns, cells = _table(report, TERMINAL_COLUMNS)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in columns:
        is_left = name in LEFT_ALIGNED
        table.add_column(name, justify="left" if is_left else "right", no_wrap=name != "method")
    for line in cells:
        table.add_row(*map(rich.markup.escape, line))
    rich.print(table)
    for each in report.comparisons:
        rich.print(
            rich.markup.escape(
                f"{each.first} against {each.second} ({each.split}): only one is right on "
                f"{_numbers(each.only_first)} and {_numbers(each.only_second)} of {each.n}, "
                f"p {_p_values(each)}"
            )
        )


def _markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---" if name in LEFT_ALIGNED else "---:" for name in columns]
    return [f"| {' | '.join(line)} |" for line in (columns, rule, *cells)]


def _table(report: Report, columns: Columns) -> tuple[list[str], list[list[str]]]:
    """Column titles, and the cells of every row."""
    extra = {
        name: cell
        for name, cell in SHOWN_IF_THEY_DIFFER.items()
        if len(set(map(cell, report.rows))) > 1
    }
    if all(row.simulations is None for row in report.rows):
        columns = {name: cell for name, cell in columns.items() if name not in OF_SEARCH}
    columns = extra | columns
    named = {(row.task, row.stage, row.metric, row.split, row.name) for row in report.rows}
    if len(named) == len(report.rows):  # the number of texts is needed to tell rows apart
        columns = {name: cell for name, cell in columns.items() if name != "texts"}
    names = [_metric_title(report) if name == "score" else name for name in columns]
    return names, [[cell(row) for cell in columns.values()] for row in report.rows]


def _metric_title(report: Report) -> str:
    metrics = {row.metric for row in report.rows}
    return metrics.pop() if len(metrics) == 1 else "score"


def score_text(row: Row) -> str:
    """Shares in percent, other numbers with four digits."""
    return f"{row.score:.1%}" if is_share(row.metric) else f"{row.score:.4f}"


def interval_text(row: Row) -> str:
    """The interval of a row, in its form."""
    if is_share(row.metric):
        return f"{100 * row.low:.0f}–{100 * row.high:.0f}"
    return f"{row.low:.4f} to {row.high:.4f}"


def _simulations(row: Row) -> str:
    if isinstance(row.simulations, tuple):
        return ", ".join(map(str, row.simulations))
    return "" if row.simulations is None else str(row.simulations)


def _num_texts(row: Row) -> str:
    number = row.settings.get("num_samples", 1)
    return "" if number == 1 else f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def p_text(p_value: float) -> str:
    """A p-value with three digits."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _p_values(comparison: Comparison) -> str:
    return ", ".join(map(p_text, comparison.p_values))


def _seconds(row: Row) -> str:
    seconds = row.seconds_per_problem
    if seconds is None:
        return ""
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.3f}"


def _check_types(row: Row | Comparison) -> None:
    for name, kind in typing.get_type_hints(type(row)).items():
        value = getattr(row, name)
        if not _is_a(value, kind):
            raise DataError(f"a report row has {name}: {kind}; got {value!r}. Correct the row.")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a type hint of a row (a bool is no number here)."""
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, each) for each in typing.get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(kind) or kind)


def _with_tuples(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """The row of a JSON file, in which tuples are lists."""
    lists = {name: row[name] for name in names if isinstance(row.get(name), list)}
    return row | {name: tuple(values) for name, values in lists.items()}


def _command(folder: Path) -> str:
    """The newest command line of the run folder, or of the pipeline whose stage it is."""
    for each in (folder, folder.parent.parent):
        if (each / "command.txt").is_file():
            return (each / "command.txt").read_text(encoding="utf-8").splitlines()[-1]
    return "unknown"
