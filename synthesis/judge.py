"""Ranks answers, makes pairs: `python -m synthesis judge --responses F --reward-model P`.

    RUN/judged.jsonl        every answer with its grades and its reward
    RUN/preferences.jsonl   prompt, chosen, rejected, chosen_reward, rejected_reward
    RUN/kept.jsonl          the best answer to each prompt, if it is good enough: rows for SFT

Where a row says how it is checked (field `check`, see `synthesis.verifiers`) the truth decides:
reward 1 for a right answer and 0 for a wrong one. Elsewhere it is the weighted sum of the
attributes that the reward model predicts. Answers that did not come to their end are never chosen.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data import attributes, json_rows, preferences
from data.preferences import Preference
from synthesis import rewards, slices, verifiers
from synthesis.writers import key_of
from train import run_folder as run_folders
from train.errors import ConfigError, DataError
from train.stopping import StopFlag

Pairing = Literal["extremes", "neighbours", "all"]


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """One run of `python -m synthesis judge`."""

    responses: tuple[str, ...] = ()
    """Files of answers (`prompt`, `response`), of one model or of several."""
    reward_model: str = ""
    """Who grades: a run folder or checkpoint with a reward head, or "recorded:FILE". May be empty
    where all rows are checked."""
    weights: str = "nemotron4_340b"
    """How attributes become one reward: a name of data.attributes.WEIGHTS."""
    pairing: Pairing = "extremes"
    """Which answers to a prompt become pairs: the best and the worst ("extremes"), each and the
    next worse one ("neighbours"), or "all"."""
    min_gap: float = 0.0
    """A pair's rewards differ by more than this."""
    min_reward: float | None = None
    """What an answer needs to be kept, or chosen, where a reward model decides; None: nothing."""
    batch_size: int = 64
    """Answers graded at once."""
    rows_per_slice: int = 512
    """Work that a kill can undo."""

    def __post_init__(self):
        if self.batch_size < 1 or self.rows_per_slice < 1 or self.min_gap < 0:
            raise ConfigError(
                "a batch and a slice have one row or more, and min_gap is 0 or more; got "
                f"{self.batch_size=}, {self.rows_per_slice=}, {self.min_gap=}."
            )
        if self.weights not in attributes.WEIGHTS:
            raise ConfigError(
                f"weights are one of {', '.join(attributes.WEIGHTS)}; got {self.weights!r}."
            )


def run(
    config: JudgeConfig, run_folder: Path, /, *, resume: bool = False, stop: StopFlag | None = None
) -> Path:
    """Judges all answers; returns the path of preferences.jsonl.

    Raises:
      DataError: unreadable rows or checkpoint, or nothing to choose between. Preempted: `stop` was
        requested.
    """
    answers = [
        {**row.fields, "prompt": preferences.prompt_of(row), "response": row.text("response")}
        for path in config.responses
        for row in json_rows.read(path)
    ]
    grader = rewards.load(config.reward_model) if config.reward_model else None

    def judge(part: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
        del number
        return judge_rows(part, grader, config)

    judged = slices.run(
        answers,
        judge,
        run_folder / "judged.jsonl",
        slice_size=config.rows_per_slice,
        resume=resume,
        stop=stop,
    )
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in judged:
        groups.setdefault(key_of(row["prompt"]), []).append(row)
    pairs = [pair for group in groups.values() for pair in pairs_of(group, config)]
    kept = [row for group in groups.values() for row in best_of(group, config)]
    if not pairs:
        raise DataError(
            f"no two answers to a prompt differ by more than min_gap={config.min_gap} in their "
            f"reward; {len(judged)} answers to {len(groups)} prompts. Draw more answers to each "
            "(num_responses), or lower min_gap and min_reward."
        )
    json_rows.write(run_folder / "kept.jsonl", kept)
    preferences.write(run_folder / "preferences.jsonl", pairs)
    summary = {"answers": len(judged), "prompts": len(groups)}
    summary |= {"pairs": len(pairs), "kept": len(kept)}
    run_folders.write_json(run_folder / "summary.json", summary)
    return run_folder / "preferences.jsonl"


def judge_rows(
    rows: Sequence[dict[str, Any]], grader: rewards.Grader | None, config: JudgeConfig
) -> list[dict[str, Any]]:
    """The rows with `judge` ("verifier" or "reward model") and `reward`, and grades where there
    are some.
    """
    verdicts = [verifiers.verdict(row) for row in rows]
    open_rows = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict is None]
    if open_rows and grader is None:
        raise DataError(
            f"rows without a `check` are judged by a reward model; {len(open_rows)} of {len(rows)} "
            "have none. Give --reward-model."
        )
    grades: Iterator[dict[str, Any]] = iter(())
    if open_rows and grader is not None:
        predicted = grader.score_answers(
            [row["prompt"] for row in open_rows],
            [row["response"] for row in open_rows],
            batch_size=config.batch_size,
        )
        scores = attributes.reward(predicted, config.weights)
        grades = iter(
            {"judge": "reward model", "reward": round(float(score), 4)}
            | {"predictions": [round(float(value), 4) for value in each]}
            for score, each in zip(scores, predicted, strict=True)
        )
    return [
        {**row, **(next(grades) if right is None else _verified(right))}
        for row, right in zip(rows, verdicts, strict=True)
    ]


def _verified(right: bool) -> dict[str, Any]:
    return {"judge": "verifier", "reward": float(right)}


def pairs_of(group: Sequence[dict[str, Any]], config: JudgeConfig) -> list[Preference]:
    """Pairs among different answers to one prompt."""
    ranked = ranking(group)
    match config.pairing:
        case "extremes":
            chosen = [one for one in ranked if _may_be_chosen(one, config)][:1]
            both = [(one, ranked[-1]) for one in chosen]
        case "neighbours":
            both = list(itertools.pairwise(ranked))
        case "all":
            both = list(itertools.combinations(ranked, 2))
    return [
        Preference(
            prompt=better["prompt"],
            chosen=better["response"],
            rejected=worse["response"],
            chosen_reward=better["reward"],
            rejected_reward=worse["reward"],
        )
        for better, worse in both
        if better["reward"] - worse["reward"] > config.min_gap
        and _may_be_chosen(better, config)
        and worse["response"]
    ]


def best_of(group: Sequence[dict[str, Any]], config: JudgeConfig) -> list[dict[str, Any]]:
    """The best answer to a prompt, or none."""
    return [row for row in ranking(group) if _may_be_chosen(row, config)][:1]


def ranking(group: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Different answers, the best first; of equal ones that which was given first."""
    different: dict[str, dict[str, Any]] = {}
    for row in group:
        different.setdefault(row["response"], row)
    return sorted(different.values(), key=lambda row: -row["reward"])


def _may_be_chosen(row: dict[str, Any], config: JudgeConfig) -> bool:
    if not row.get("finished", True) or not row["response"]:
        return False
    if row["judge"] == "verifier":
        return row["reward"] == 1
    return config.min_reward is None or row["reward"] >= config.min_reward
