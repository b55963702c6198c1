"""Several seeds -> one table: `python -m evaluation.collect RUN... --out docs/results/NAME`.

Takes run folders of evaluations, or of pipelines (then their last evaluation), and writes the
report of the means beside the report of each seed.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from configs import load
from evaluation import report, statistics
from train.errors import ConfigError, DataError


def collect(run_folders: Sequence[Path]) -> report.Report:
    """The mean of every row over the runs; `settings` gains the score of each one ("scores").

    Raises:
      DataError: a folder without a report, or reports of different methods or problems.
    """
    reports = [report.read(find_report(folder)) for folder in run_folders]
    first, *others = ({_identity(row): row for row in each.rows} for each in reports)
    for folder, rows in zip(run_folders[1:], others):
        if rows.keys() != first.keys():
            differing = sorted(map(str, rows.keys() ^ first.keys()))
            raise DataError(
                f"runs are averaged over equal rows; {folder} and {run_folders[0]} differ in "
                f"{len(differing)}, such as {differing[0]}. Evaluate them with one config."
            )
    return report.Report(
        command="; ".join(dict.fromkeys(each.command for each in reports)),
        commit="; ".join(dict.fromkeys(each.commit for each in reports)),
        hardware="; ".join(dict.fromkeys(each.hardware for each in reports)),
        rows=tuple(mean_row([rows[key] for rows in (first, *others)]) for key in first),
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


def _identity(row: report.Row) -> tuple:
    flags = (row.simulations, row.use_oracle, row.use_value)
    # The label of a method tells apart what these fields do not.
    return (row.task, row.split, row.stage, row.method, row.metric, row.n, *flags,
            row.settings.get("label", ""))  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. {' '.join(self.format_usage().split())}")


def main(argv: list[str]) -> None:
    parser = _Parser(prog="python -m evaluation.collect", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, one per seed")
    parser.add_argument("--out", type=Path, required=True, help="folder of the combined report")
    options = parser.parse_args(argv)
    combined = collect(options.folders)
    path = report.write(options.out, combined)
    for seed, folder in enumerate(options.folders):
        shutil.copyfile(find_report(folder), options.out / f"run-{seed}.json")
    print(f"{report.to_markdown(combined)}\nreport: {path}")


if __name__ == "__main__":
    load.main("evaluation.collect", main)
