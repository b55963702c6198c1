"""Several seeds -> one table: `python -m evaluation.collect RUN... --out docs/results/NAME`.

Takes run folders of evaluations, or of pipelines (then their last evaluation), and writes the
report of the means beside the report of each seed.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from configs import load
from evaluation import report, statistics
from train import config_json
from train.errors import ConfigError, DataError

# What a row does not share with the same row of another seed.
MEASURED = (
    "score", "low", "high", "forward_passes_per_problem", "seconds_per_problem", "num_samples",
    "scores", "seed",
)  # fmt: skip
TESTED = ("only_first", "only_second", "p_values")


def collect(run_folders: Sequence[Path]) -> report.Report:
    """The mean of every row over the runs; `settings` gains the score of each one ("scores").

    Raises:
      DataError: a folder without a report, or reports of different methods or problems.
    """
    reports = [report.read(find_report(folder)) for folder in run_folders]
    first, *others = ({_key(row): row for row in each.rows} for each in reports)
    for folder, rows in zip(run_folders[1:], others):
        if rows.keys() != first.keys():
            raise DataError(
                f"runs are averaged over equal rows; {folder} and {run_folders[0]} differ: "
                f"{_difference(first, rows)}. Evaluate them with one config."
            )
    tests = [{_key(each, TESTED): each for each in found.comparisons} for found in reports]
    return report.Report(
        command="; ".join(dict.fromkeys(each.command for each in reports)),
        commit="; ".join(dict.fromkeys(each.commit for each in reports)),
        hardware="; ".join(dict.fromkeys(each.hardware for each in reports)),
        rows=tuple(mean_row([rows[key] for rows in (first, *others)]) for key in first),
        comparisons=tuple(
            _joined([found[key] for found in tests])
            for key in tests[0]
            if all(key in found for found in tests)  # older reports have none
        ),
    )


def mean_row(rows: Sequence[report.Row]) -> report.Row:
    """One row for the same measurement of several seeds."""
    scores = [row.score for row in rows]
    seconds = [row.seconds_per_problem for row in rows if row.seconds_per_problem is not None]
    low, high = statistics.interval_over_seeds(scores, rows[0].n)
    return dataclasses.replace(
        rows[0],
        score=_mean(scores),
        low=low,
        high=high,
        forward_passes_per_problem=_mean([row.forward_passes_per_problem for row in rows]),
        seconds_per_problem=_mean(seconds) if seconds else None,
        settings={**rows[0].settings, "scores": scores},
    )


def _joined(comparisons: Sequence[report.Comparison]) -> report.Comparison:
    """The same test of several seeds: the results of all, one after another."""

    def of_all(name: str) -> tuple:
        return tuple(itertools.chain.from_iterable(getattr(each, name) for each in comparisons))

    return dataclasses.replace(
        comparisons[0],
        only_first=of_all("only_first"),
        only_second=of_all("only_second"),
        p_values=of_all("p_values"),
    )


def find_report(folder: Path) -> Path:
    """report.json of a run folder, or of the last evaluation among the stages of a pipeline.

    Raises:
      DataError: there is none.
    """
    found = [folder / "report" / "report.json", *sorted(folder.glob("stages/*/report/report.json"))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise DataError(
            f"an evaluation leaves report/report.json in its run folder; {folder} has none. "
            "Give folders of finished evaluations or pipelines."
        )
    return found[-1]


def _key(row: report.Row | report.Comparison, left_out: Sequence[str] = MEASURED) -> str:
    """All that identifies a row, as JSON: everything but what was measured, and the seeds."""
    return json.dumps(_without(dataclasses.asdict(row), left_out), sort_keys=True)


def _without(value: Any, names: Sequence[str]) -> Any:
    match value:
        case dict():
            return {key: _without(each, names) for key, each in value.items() if key not in names}
        case list() | tuple():
            return [_without(each, names) for each in value]
    return value


def _difference(first: Collection[str], second: Collection[str]) -> str:
    """In what a row of one run differs from the nearest one of the other."""
    missing, added = (
        [key for key in a if key not in b] for a, b in ((first, second), (second, first))
    )
    if not missing or not added:
        return f"one has {len(first)} rows, the other {len(second)}"
    row = json.loads(added[0])
    nearest = min((config_json.differences(json.loads(key), row) for key in missing), key=len)
    return f"{row['method']} on {row['split']}, {'; '.join(nearest[:3])}"


def _refuse_another(folder: Path, combined: report.Report) -> None:
    """A report that is not this one must not be lost."""
    path = folder / "report.json"
    if not path.is_file():
        return
    old, new = (
        json.loads(json.dumps(dataclasses.asdict(each))) for each in (report.read(path), combined)
    )
    if changes := config_json.differences(old, new):
        raise ConfigError(
            f"{folder} holds the report of other runs ({'; '.join(changes[:3])}). Add --overwrite "
            "to replace it, or choose another --out."
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. {' '.join(self.format_usage().split())}")


def main(argv: list[str]) -> None:
    parser = _Parser(prog="python -m evaluation.collect", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, one per seed")
    parser.add_argument("--out", type=Path, required=True, help="folder of the combined report")
    parser.add_argument("--overwrite", action="store_true", help="replace another report there")
    options = parser.parse_args(argv)
    combined = collect(options.folders)
    if not options.overwrite:
        _refuse_another(options.out, combined)
    path = report.write(options.out, combined)
    for left_over in options.out.glob("run-*.json"):
        left_over.unlink()
    for seed, folder in enumerate(options.folders):
        shutil.copyfile(find_report(folder), options.out / f"run-{seed}.json")
    print(f"{report.to_markdown(combined)}\nreport: {path}")


if __name__ == "__main__":
    load.main("evaluation.collect", main)
