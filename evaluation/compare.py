"""`python -m evaluation.compare RUN RUN... --out FOLDER`: several models side by side.

    FOLDER/side_by_side.md   a line per task and metric, a column per run, and how sure it is that
                             a run differs from the first one
    FOLDER/report.json       all rows, with the name of their run as stage, and the paired tests
    FOLDER/scores.png        the scores with their intervals
    FOLDER/radar.png         of mt_bench, by category
    FOLDER/texts.csv         what the runs wrote, question by question: for human raters

Tests are paired: both runs answered the same questions. Where a question is right or wrong it is
the exact McNemar test, elsewhere a bootstrap over the questions (`evaluation.statistics`).
"""

import argparse
import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import load
from evaluation import judges, mt_bench, plots, report, statistics
from evaluation.tasks import Score
from train import run_folder
from train.errors import ConfigError, DataError

# Of the answers to problems (`evaluation.run.Answer`), in the order of interest.
ANSWER_FIELDS = ("correct", "voted_correct", "share_correct", "solved_by_any")
Key = tuple[str, str]  # name of a file of samples, and what it says of a question
ById = dict[str, Score]


@dataclass(frozen=True)
class Run:
    """An evaluation: its report, the scores of every question, and the texts that were written.

    texts: name of a file of samples -> question -> (prompt, text).
    """

    name: str
    report: report.Report
    scores: dict[Key, ById]
    texts: dict[str, dict[str, tuple[str, str]]]


def read(folder: Path, name: str) -> Run:
    """The evaluation in a run folder.

    Raises:
      DataError: there is none, or its samples are not those of this code.
    """
    path = folder / "report" / "report.json"
    if not path.is_file():
        raise DataError(
            f"a comparison is of finished evaluations; {folder} has no report. Give run folders of "
            "`python -m evaluation`."
        )
    scores: dict[Key, ById] = {}
    texts: dict[str, dict[str, tuple[str, str]]] = {}
    for file in sorted((folder / "samples").glob("*.jsonl")):
        for row in read_rows(file):
            for field, score in scores_of(row).items():
                scores.setdefault((file.stem, field), {})[row["id"]] = score
            text = row.get("completion", row.get("response"))
            if isinstance(text, str):
                shown = row.get("shown", row.get("prompt", ""))
                texts.setdefault(file.stem, {})[row["id"]] = (shown, text)
    for file in sorted((folder / mt_bench.NAME / "model_judgment").glob("*_single.jsonl")):
        for row in read_rows(file):
            if row["score"] != judges.FAILED:
                number = f"{row['question_id']}/{row['turn']}"
                for field in mt_bench.fields(row["turn"]):
                    scores.setdefault((file.stem, field), {})[number] = float(row["score"])
    return Run(name, report.read(path), scores, texts)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
      DataError: a line is none.
    """
    try:
        return [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
    except ValueError as error:
        raise DataError(f"{file} is not in JSON lines ({error}). Evaluate again.") from error


def scores_of(row: dict[str, Any]) -> dict[str, Score]:
    """What one sample says, of a task (`evaluation.asking`) or a problem (`evaluation.run`)."""
    if "scores" not in row:
        return {field: float(row[field]) for field in ANSWER_FIELDS if row.get(field) is not None}
    return {
        name: tuple(score) if isinstance(score, list) else score
        for name, score in row["scores"].items()
    }


def compare(first: Run, second: Run, row: report.Row) -> report.Comparison | None:
    """The paired test of a row of the first run; None where the second one has no such row.

    Raises:
      DataError: they were asked different questions.
    """
    key = _key(row)
    if key not in first.scores or key not in second.scores:
        return None
    ours, theirs = first.scores[key], second.scores[key]
    ids = [number for number in ours if number in theirs]
    is_judged = row.task == mt_bench.NAME  # where a judge may have failed on some
    if not ids or (len(ids) < max(len(ours), len(theirs)) and not is_judged):
        raise DataError(
            f"runs are compared on the same questions; {first.name} has {len(ours)} of {key[0]} "
            f"and {second.name} {len(theirs)}, {len(ids)} of them in common. Evaluate both with "
            "one config."
        )
    pairs = [(ours[number], theirs[number]) for number in ids]
    counts: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if report.is_share(row.metric) and all(score in (0.0, 1.0) for pair in pairs for score in pair):
        right = [[score == 1.0 for score in side] for side in zip(*pairs, strict=True)]
        both = list(zip(*right, strict=True))
        counts = (both.count((True, False)),), (both.count((False, True)),)
        p_value = statistics.mcnemar_p_value(*right)
    else:
        p_value = statistics.bootstrap_p_value(*map(list, zip(*pairs, strict=True)))
    return report.Comparison(
        task=row.task,
        split=row.split,
        stage=f"{row.name}: {row.metric}",
        first=first.name,
        second=second.name,
        n=len(ids),
        only_first=counts[0],
        only_second=counts[1],
        p_values=(p_value,),
    )


def _key(row: report.Row) -> Key:
    """Where the scores are that a row is the mean of."""
    stem, field = row.settings.get("samples", ("", ""))
    return stem, field


Tests = dict[tuple[str, tuple], report.Comparison]  # by name of the run, and place of the row


def compare_all(runs: Sequence[Run]) -> Tests:
    """The first run against each other one, in all that both were asked."""
    first, *others = runs
    return {
        (other.name, _place(row)): found
        for other in others
        for row in first.report.rows
        if (found := compare(first, other, row)) is not None
    }


# -------------------------------------------------------------------------------------- table


def table(runs: Sequence[Run], tests: Tests) -> str:
    """A line per measurement of the first run."""
    by_place = [{_place(row): row for row in run.report.rows} for run in runs]
    titles = ["task", "metric", "split", "method", "n", *(run.name for run in runs)]
    lines = [titles, ["---"] * 4 + ["---:"] * (1 + len(runs))]
    for place, row in by_place[0].items():
        cells = [row.task, row.metric, row.split, row.name, str(row.n)]
        for run, rows in zip(runs, by_place, strict=True):
            found, test = rows.get(place), tests.get((run.name, place))
            cell = ""
            if found is not None:
                cell = f"{report.score_text(found)} ({report.interval_text(found)})"
            cells.append(cell if test is None else f"{cell}, p {report.p_text(test.p_values[0])}")
        lines.append(cells)
    text = [f"| {' | '.join(cells)} |" for cells in lines]
    text += [
        "",
        f"95% intervals. p: paired test against {runs[0].name} on the same questions, exact "
        "McNemar where a question is right or wrong, else a bootstrap over the questions.",
        "",
    ]
    text += [
        f"- {run.name}: `{run.report.command}`, commit {run.report.commit}, {run.report.hardware}"
        for run in runs
    ]
    return "\n".join(text) + "\n"


def _place(row: report.Row) -> tuple:
    return row.task, row.split, row.method, row.metric, row.simulations, row.stage


def texts_csv(runs: Sequence[Run]) -> str:
    """What all runs wrote to the same questions, with the winner by score and the lengths."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [run.name for run in runs]
    words = [f"words of {name}" for name in names]
    writer.writerow(["task", "question", "prompt", *names, *words, "verdict", "rating"])
    for name in runs[0].texts:
        if not all(name in run.texts for run in runs):
            continue
        for number, (prompt, _) in runs[0].texts[name].items():
            if not all(number in run.texts[name] for run in runs):
                continue
            written = [run.texts[name][number][1] for run in runs]
            verdict = _verdict(runs, name, number)
            lengths = [len(each.split()) for each in written]
            writer.writerow([name, number, prompt, *written, *lengths, verdict, ""])
    return text.getvalue()


def _verdict(runs: Sequence[Run], name: str, number: str) -> str:
    """Of the first run against the second, by the first score that is a number."""
    for (stem, field), by_id in runs[0].scores.items():
        ours, theirs = by_id.get(number), runs[1].scores.get((stem, field), {}).get(number)
        if stem == name and isinstance(ours, float) and isinstance(theirs, float):
            return "win" if ours > theirs else "loss" if ours < theirs else "tie"
    return ""


# ------------------------------------------------------------------------------------ command


def write(runs: Sequence[Run], out: Path) -> None:
    """Writes everything into a folder."""
    tests = compare_all(runs)
    out.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.replace(row, stage=run.name) for run in runs for row in run.report.rows]
    made = report.Report(
        command="; ".join(dict.fromkeys(run.report.command for run in runs)),
        commit="; ".join(dict.fromkeys(run.report.commit for run in runs)),
        hardware="; ".join(dict.fromkeys(run.report.hardware for run in runs)),
        rows=tuple(rows),
        comparisons=tuple(tests.values()),
    )
    (out / "side_by_side.md").write_text(table(runs, tests), encoding="utf-8")
    (out / "texts.csv").write_text(texts_csv(runs), encoding="utf-8")
    plots.side_by_side(rows, out / "scores.png")
    by_model = {run.name: mt_bench.category_scores(run.report.rows) for run in runs}
    if all(by_model.values()):
        plots.radar(by_model, out / "radar.png")
    run_folder.write_json(out / "report.json", dataclasses.asdict(made))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of evaluations")
    parser.add_argument("--names", nargs="+", help="of the runs (their folders')")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--overwrite", action="store_true", help="replace another comparison")
    arguments = parser.parse_args(argv)
    names = arguments.names or [Path(run).name for run in arguments.runs]
    if len(arguments.runs) < 2 or len(set(names)) != len(arguments.runs):
        raise ConfigError(
            "two runs or more are compared, each with a name of its own; got "
            f"{arguments.runs} named {names}. Give --names."
        )
    if (arguments.out / "report.json").exists() and not arguments.overwrite:
        raise ConfigError(
            f"nothing is overwritten unasked; {arguments.out} has a report. Use --overwrite or "
            "another --out."
        )
    runs = [read(Path(run), name) for run, name in zip(arguments.runs, names, strict=True)]
    write(runs, arguments.out)
    print((arguments.out / "side_by_side.md").read_text(encoding="utf-8"))
    print(f"report: {arguments.out / 'report.json'}")


if __name__ == "__main__":
    load.main("evaluation.compare", main)
