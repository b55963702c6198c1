"""`python -m evaluation.view RUN... [--out FILE.html]`: one page of all questions and answers.

Filter by text, task, category and verdict; see what every run said to a question, its scores, and
what a judge wrote. The page is made as that of searches (`search.view`): one file, no server.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import load
from data.errors import DataError
from evaluation import compare, mt_bench
from search import view
from train.errors import ConfigError

PAGE = Path(__file__).resolve().parent / "page"
QUESTIONS_PER_CHUNK = 100
WORDS = 400  # characters of a question that are searched for text


def page(runs: Sequence[tuple[str, Path]], *, title: str) -> str:
    """The page of some run folders, each with its name.

    Raises:
      DataError: a folder without samples.
    """
    answers: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    about: dict[tuple[str, str], tuple[str, str]] = {}
    for number, (_, folder) in enumerate(runs):
        for task, row in _rows(folder):
            key = (task, row["id"])
            about.setdefault(key, (row["category"], row["shown"]))
            answers.setdefault(key, [None] * len(runs))[number] = row
    order = sorted(answers, key=lambda key: key[0])  # stable: questions stay in their order
    index = {
        "runs": [name for name, _ in runs],
        "questions_per_chunk": QUESTIONS_PER_CHUNK,
        "questions": [
            [task, name, about[task, name][0], about[task, name][1][:WORDS],
             [None if one is None else one["verdict"] for one in answers[task, name]]]
            for task, name in order
        ],
    }  # fmt: skip
    details = [{"shown": about[key][1], "answers": answers[key]} for key in order]
    starts = range(0, len(details), QUESTIONS_PER_CHUNK)
    chunks = [details[start : start + QUESTIONS_PER_CHUNK] for start in starts]
    parts = [view.part("index", index)]
    parts += [view.part(f"chunk-{n}", chunk) for n, chunk in enumerate(chunks)]
    return view.filled(PAGE / "view.html", title, [view.PAGE / "data.js", PAGE / "main.js"], parts)


def _rows(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(task, what the page shows of a question) for all samples of a run."""
    files = sorted((folder / "samples").glob("*.jsonl"))
    judged = sorted((folder / mt_bench.NAME / "model_judgment").glob("*_single.jsonl"))
    if not files and not judged:
        raise DataError(
            f"a page is of finished evaluations; {folder} has no samples. Give run folders of "
            "`python -m evaluation`."
        )
    rows = [(file.stem, _of_sample(row)) for file in files for row in compare.read_rows(file)]
    for file in judged:
        said = _answers(folder / mt_bench.NAME / "model_answer")
        questions = {
            row["question_id"]: row
            for row in compare.read_rows(folder / mt_bench.NAME / mt_bench.QUESTIONS)
        }
        rows += [
            (mt_bench.NAME, _of_judgment(row, questions[row["question_id"]], said))
            for row in compare.read_rows(file)
        ]
    return rows


def _of_sample(row: dict[str, Any]) -> dict[str, Any]:
    scores = compare.scores_of(row)
    response: Any = row.get("completion", row.get("response"))
    if not isinstance(response, str):  # likelihoods
        response = "\n".join(map(str, response))
    first = next(iter(scores.values()))
    return {
        "id": row["id"],
        "category": row.get("category", ""),
        "shown": row.get("shown", row.get("prompt", "")),
        "response": response,
        "scores": scores,
        "verdict": int(first) if first in (0.0, 1.0) else None,
    }


def _of_judgment(
    row: dict[str, Any], question: dict[str, Any], said: dict[tuple[str, int], list[str]]
) -> dict[str, Any]:
    turn = row["turn"]
    return {
        "id": f"{row['question_id']}, turn {turn}",
        "category": question["category"],
        "shown": "\n\n".join(question["turns"][:turn]),
        "response": said.get((row["model"], row["question_id"]), [""] * turn)[turn - 1],
        "scores": {mt_bench.SCORE: float(row["score"])},
        "verdict": None,
        "judgment": row["judgment"],
    }


def _answers(folder: Path) -> dict[tuple[str, int], list[str]]:
    """(model, question) -> its turns."""
    return {
        (row["model_id"], row["question_id"]): row["choices"][0]["turns"]
        for file in sorted(folder.glob("*.jsonl"))
        for row in compare.read_rows(file)
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m evaluation.view", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of evaluations")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation.html"), metavar="FILE")
    parser.add_argument("--title", help="heading of the page (the names of the runs)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")
    arguments = parser.parse_args(argv)
    if arguments.out.exists() and not arguments.overwrite:
        raise ConfigError(
            f"nothing is overwritten unasked; {arguments.out} exists. Use --overwrite or another "
            "--out."
        )
    runs = [(Path(run).name, Path(run)) for run in arguments.runs]
    title = arguments.title or ", ".join(name for name, _ in runs)
    view.write(arguments.out, page(runs, title=title))
    print(f"page: {arguments.out}; open it in a browser")


if __name__ == "__main__":
    load.main("evaluation.view", main)
