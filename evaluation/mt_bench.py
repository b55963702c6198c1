"""`mt_bench`: 80 dialogues of two turns, graded from 1 to 10 (Zheng et al., arXiv:2306.05685).

    RUN/mt_bench/question.jsonl                       the questions, as FastChat has them
    RUN/mt_bench/reference_answer/gpt-4.jsonl         answers that the judge sees for mathematics,
                                                      reasoning and coding
    RUN/mt_bench/model_answer/MODEL.jsonl             one answer a line
    RUN/mt_bench/model_judgment/JUDGE_single.jsonl    one grade a line

The folder is one that FastChat's `show_result.py` and `qa_browser.py` read. Answers are sampled at
the temperature of their category; judgments are made with FastChat's prompts. Both files are added
to line by line, and a run that was stopped goes on with the next one.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from data import files, prompts
from data.errors import DataError
from data.problems import Prompt
from evaluation import judges, plots, report, statistics
from evaluation.asking import Progress, put
from evaluation.judges import JudgeConfig
from evaluation.methods import AnyMethod, Greedy
from evaluation.player import Player, Questions
from evaluation.tasks import TaskOptions
from models import generate
from train import config_json

NAME = "mt_bench"
FOLDER = "eval/mt_bench"
QUESTIONS, REFERENCES = "question.jsonl", "reference_answer/gpt-4.jsonl"
JUDGE_PROMPTS = "judge_prompts.jsonl"
ALL = "all"
SCORE = "MT-bench score"
MAX_NEW_TOKENS = 1024  # as in FastChat
NEED_REFERENCE = ("math", "reasoning", "coding")
TEMPERATURES = {  # FastChat, llm_judge/common.py
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0,
    "reasoning": 0.0, "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
Row = dict[str, Any]


def load_questions(options: TaskOptions) -> list[Row]:
    """The questions, in the order of the file.

    Raises:
      DataError: the file is nowhere to be found, or of another form.
    """
    rows = files.read_json_lines(
        f"{FOLDER}/{QUESTIONS}", fields=("question_id", "category", "turns")
    )
    return rows[: options.limit]


def run(
    options: TaskOptions,
    judge_config: JudgeConfig,
    method: AnyMethod,
    player_of: Callable[[], Player],
    load_player: Callable[[str], Player],
    folder: Path,
    *,
    model_id: str,
    batch_size: int,
    stage: str,
    resume: bool,
    stop: Any,
) -> list[report.Row]:
    """Answers, judges, and returns the rows: by turn, and by category.

    Raises:
      Preempted: `stop` was requested; what is written stays.
    """
    questions = load_questions(options)
    if folder.is_dir() and not resume:
        shutil.rmtree(folder)
    for name in (QUESTIONS, REFERENCES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(files.read_text(f"{FOLDER}/{name}"), encoding="utf-8")
    answers = answer(
        questions, options, method, player_of, folder / "model_answer" / f"{model_id}.jsonl",
        model_id=model_id, batch_size=batch_size, stop=stop,
    )  # fmt: skip
    settings = {"method": config_json.encode(method), "judge": config_json.encode(judge_config)}
    settings |= {"max_new_tokens": options.max_new_tokens or MAX_NEW_TOKENS, "form": options.form}
    if judge_config.kind == "none":
        return length_rows(answers, method=method.title, stage=stage, settings=settings)
    judgments = judge_all(
        questions, answers, judge_config, load_player,
        folder / "model_judgment" / f"{judge_config.name}_single.jsonl",
        model_id=model_id, stop=stop,
    )  # fmt: skip
    rows = score_rows(
        questions, judgments, file=f"{judge_config.name}_single", method=method.title, stage=stage,
        settings=settings,
    )  # fmt: skip
    plots.radar({model_id: category_scores(rows)}, folder / "radar.png")
    return rows


# ---------------------------------------------------------------------------------- answers


def answer(
    questions: Sequence[Row],
    options: TaskOptions,
    method: AnyMethod,
    player_of: Callable[[], Player],
    path: Path,
    *,
    model_id: str,
    batch_size: int,
    stop: Any,
) -> dict[int, Row]:
    """Answers by number of their question, in FastChat's form."""
    done = {row["question_id"]: row for row in _read_lines(path)}
    progress = Progress("mt_bench", len(done), len(questions))
    temperatures = dict.fromkeys(TEMPERATURES.get(q["category"], 0.7) for q in questions)
    for temperature in temperatures:
        asked = [q for q in questions if TEMPERATURES.get(q["category"], 0.7) == temperature]
        for start in range(0, len(asked), batch_size):
            some = asked[start : start + batch_size]
            if all(question["question_id"] in done for question in some):
                continue
            if stop is not None and stop.requested:
                stop.raise_preempted(f"{len(done)} of {len(questions)} answers of mt_bench")
            turns = _dialogues(player_of(), some, options, method, temperature)
            rows = [
                {
                    "question_id": question["question_id"],
                    "answer_id": _identity(model_id, question["question_id"], said),
                    "model_id": model_id,
                    "choices": [{"index": 0, "turns": said}],
                    "tstamp": time.time(),
                }
                for question, said in zip(some, turns, strict=True)
            ]
            _append(path, [row for row in rows if row["question_id"] not in done])
            done |= {row["question_id"]: row for row in rows}
            progress(len(done))
    return done


def _dialogues(
    player: Player,
    questions: Sequence[Row],
    options: TaskOptions,
    method: AnyMethod,
    temperature: float,
) -> list[list[str]]:
    """What the model says in each turn of several dialogues of one temperature."""
    chats: list[list[prompts.Message]] = [[] for _ in questions]
    said: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question["turns"]) for question in questions)):
        rows = [n for n, question in enumerate(questions) if turn < len(question["turns"])]
        for n in rows:
            chats[n].append({"role": "user", "content": questions[n]["turns"][turn]})
        texts = [put(chats[n], options.form, player.tokenizer) for n in rows]
        if isinstance(method, Greedy):
            number = questions[0]["question_id"] * 2 + turn
            written = generate.generate_texts(
                player.model, player.params, player.tokenizer, texts,
                max_new_tokens=method.max_completion_tokens,
                rng_key=jax.random.fold_in(jax.random.key(0), number),
                temperature=temperature, batch_size=len(rows),
            )  # fmt: skip
            answers = [completion.text for completion in written]
        else:
            asked = [Prompt(id=f"mt_bench/{n}", split="test", text=text) for n, text in
                     zip(rows, texts, strict=True)]  # fmt: skip
            attempts = method.play(player, Questions("mt_bench", rows, asked))
            answers = [attempt.completion for attempt in attempts]
        for n, text in zip(rows, answers, strict=True):
            said[n].append(text.strip())
            chats[n].append({"role": "assistant", "content": text.strip()})
    return said


def _identity(*parts: Any) -> str:
    """22 letters and digits, as FastChat's; here those of the content."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:22]


# --------------------------------------------------------------------------------- judgments


def judge_prompts() -> dict[str, Row]:
    """FastChat's templates by name."""
    rows = files.read_json_lines(
        f"{FOLDER}/{JUDGE_PROMPTS}", fields=("name", "system_prompt", "prompt_template")
    )
    return {row["name"]: row for row in rows}


def request(
    question: Row, answered: Row, turn: int, templates: dict[str, Row], references: dict[int, Row]
) -> tuple[judges.Request, str]:
    """What a judge is shown of one turn (1 or 2), and the name of the template."""
    needs_reference = question["category"] in NEED_REFERENCE
    name = "single-math-v1" if needs_reference else "single-v1"
    turns = answered["choices"][0]["turns"]
    filled: dict[str, str]
    if turn == 1:
        filled = {"question": question["turns"][0], "answer": turns[0]}
    else:
        name += "-multi-turn"
        filled = {
            "question_1": question["turns"][0],
            "question_2": question["turns"][1],
            "answer_1": turns[0],
            "answer_2": turns[1],
        }
    if needs_reference:
        if question["question_id"] not in references:
            raise DataError(
                f"questions of {', '.join(NEED_REFERENCE)} are judged beside a reference; "
                f"{FOLDER}/{REFERENCES} has none for {question['question_id']}. Fetch it again."
            )
        right = references[question["question_id"]]["choices"][0]["turns"]
        filled |= {f"ref_answer_{n + 1}": text for n, text in enumerate(right[:turn])}
    template = templates[name]
    shown = judges.Request(
        system=template["system_prompt"],
        user=template["prompt_template"].format(**filled),
        question_id=question["question_id"],
        model=answered["model_id"],
        turn=turn,
    )
    return shown, name


def judge_all(
    questions: Sequence[Row],
    answers: dict[int, Row],
    config: JudgeConfig,
    load_player: Callable[[str], Player],
    path: Path,
    *,
    model_id: str,
    stop: Any,
) -> list[Row]:
    """Judgments of all turns, in FastChat's form; grades of -1 are tried again when resumed."""
    kept = [
        row for row in _read_lines(path)
        if row["score"] != judges.FAILED or config.kind != "endpoint"
    ]  # fmt: skip
    if path.is_file():
        _replace(path, kept)
    done = {(row["question_id"], row["turn"]) for row in kept if row["model"] == model_id}
    templates = judge_prompts()
    rows = files.read_json_lines(f"{FOLDER}/{REFERENCES}", fields=("question_id", "choices"))
    references = {row["question_id"]: row for row in rows}
    left = [
        request(question, answers[question["question_id"]], turn, templates, references)
        for turn in (1, 2)
        for question in questions
        if turn <= len(question["turns"]) and (question["question_id"], turn) not in done
    ]
    if not left:
        return kept
    judge = judges.make(config, load_player)
    progress = Progress(f"judge {config.name}", len(done), len(done) + len(left))
    workers = config.parallel if config.kind == "endpoint" else 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(left), workers):
            if stop is not None and stop.requested:
                stop.raise_preempted(f"{len(kept)} judgments of mt_bench")
            some = left[start : start + workers]
            found = pool.map(lambda each: judges.graded(judge, each[0], config), some)
            new = [
                {
                    "question_id": asked.question_id,
                    "model": model_id,
                    "judge": [config.name, template],
                    "user_prompt": asked.user,
                    "judgment": graded.judgment,
                    "score": graded.grade,
                    "turn": asked.turn,
                    "tstamp": time.time(),
                    "attempts": graded.attempts,
                }
                for (asked, template), graded in zip(some, found, strict=True)
            ]
            _append(path, new)
            kept += new
            progress(len(kept))
    return kept


# -------------------------------------------------------------------------------------- rows


def score_rows(
    questions: Sequence[Row],
    judgments: Sequence[Row],
    *,
    file: str,
    method: str,
    stage: str,
    settings: dict[str, Any],
) -> list[report.Row]:
    """Mean grades: of both turns, of each one, and by category. As in FastChat, a grade of -1 is
    left out of them; here it is counted in `settings`, beside what was asked more than once.
    """
    category = {question["question_id"]: question["category"] for question in questions}
    judged = [row for row in judgments if row["question_id"] in category]

    def row(split: str, metric: str, some: Sequence[Row], samples: Sequence[str]) -> report.Row:
        grades = [float(each["score"]) for each in some if each["score"] != judges.FAILED]
        score, low, high = statistics.estimate(grades) if grades else (0.0, 0.0, 0.0)
        if set(grades) <= {0.0, 1.0}:  # which are no shares here
            low, high = score, score
        return report.Row(
            task="mt_bench",
            split=split,
            stage=stage,
            method=method,
            metric=metric,
            score=score,
            low=low,
            high=high,
            n=len(grades),
            simulations=None,
            use_oracle=False,
            use_value=False,
            forward_passes_per_problem=0.0,
            seconds_per_problem=None,
            settings=settings
            | {
                "samples": list(samples),
                "failed": len(some) - len(grades),
                "asked_again": sum(each.get("attempts", 1) > 1 for each in some),
            },
        )

    rows = [row(ALL, SCORE, judged, (file, SCORE))]
    for turn in (1, 2):
        some, metric = [each for each in judged if each["turn"] == turn], fields(turn)[1]
        rows.append(row(ALL, metric, some, (file, metric)))
    for name in dict.fromkeys(category.values()):
        some = [each for each in judged if category[each["question_id"]] == name]
        rows.append(row(name, SCORE, some, ("", "")))
    return rows


def fields(turn: int) -> tuple[str, str]:
    """The metrics that a grade of a turn goes into."""
    return SCORE, f"{SCORE}, turn {turn}"


def category_scores(rows: Sequence[report.Row]) -> dict[str, float]:
    """Category -> mean grade, of the rows of one model."""
    return {row.split: row.score for row in rows if row.metric == SCORE and row.split != ALL}


def length_rows(
    answers: dict[int, Row], *, method: str, stage: str, settings: dict[str, Any]
) -> list[report.Row]:
    """Without a judge: how many words an answer has."""
    lengths = [
        float(len(turn.split()))
        for each in answers.values()
        for turn in each["choices"][0]["turns"]
    ]
    score, low, high = statistics.estimate(lengths)
    return [
        report.Row(
            task="mt_bench", split=ALL, stage=stage, method=method, metric="words", score=score,
            low=min(low, score), high=max(high, score), n=len(lengths), simulations=None,
            use_oracle=False, use_value=False, forward_passes_per_problem=0.0,
            seconds_per_problem=None, settings=settings,
        )
    ]  # fmt: skip


# ------------------------------------------------------------------------------------- lines


def _read_lines(path: Path) -> list[Row]:
    """Whole lines of a file; the last one may have been cut off."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise DataError(f"{path} is not in JSON lines ({error}). Use --overwrite.") from error


def _append(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = _read_lines(path)
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        _replace(path, whole)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, rows: Sequence[Row]) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(
        "".join([json.dumps(row, ensure_ascii=False) + "\n" for row in rows]), encoding="utf-8"
    )
    partial.replace(path)
