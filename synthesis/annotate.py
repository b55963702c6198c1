"""Labels data with a reward model: `python -m synthesis annotate --rows FILE --reward-model P`.

    RUN/rows.jsonl   prompt, response, a grade per attribute (0 to 4), predictions

A grade is the prediction clipped to 0..4 and rounded, halves to even: what NeMo-Aligner's
`attribute_annotate.py` does, and what a SteerLM label can say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import attributes
from synthesis import rewards, slices
from train.errors import ConfigError
from train.stopping import StopFlag


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """One run of `python -m synthesis annotate`."""

    rows: str = ""
    """JSON lines with `prompt` (a text or chat messages) and `response`."""
    reward_model: str = ""
    """Who grades: a run folder or checkpoint with a reward head, or "recorded:FILE"."""
    limit: int | None = None
    """The first so many rows; None: all."""
    batch_size: int = 64
    """Answers graded at once."""
    rows_per_slice: int = 512
    """Work that a kill can undo."""

    def __post_init__(self):
        if self.batch_size < 1 or self.rows_per_slice < 1:
            raise ConfigError(
                "a batch and a slice have one row or more; got "
                f"{self.batch_size=}, {self.rows_per_slice=}."
            )


def run(
    config: AnnotateConfig,
    run_folder: Path,
    /,
    *,
    resume: bool = False,
    stop: StopFlag | None = None,
) -> Path:
    """Grades all rows; returns the path of rows.jsonl.

    Raises:
      DataError: unreadable rows or checkpoint. Preempted: `stop` was requested.
    """
    answered = rewards.answered_in(config.rows)[: config.limit]
    grader = rewards.load(config.reward_model)

    def annotate(part: Sequence[rewards.Answered], number: int) -> list[dict[str, Any]]:
        del number
        predictions = grader.score_answers(*zip(*part, strict=True), batch_size=config.batch_size)
        grades = attributes.quantize(predictions)
        return [
            {
                "prompt": prompt,
                "response": response,
                **dict(zip(grader.attributes, whole.tolist(), strict=True)),
                "predictions": [round(float(value), 4) for value in predicted],
            }
            for (prompt, response), whole, predicted in zip(part, grades, predictions, strict=True)
        ]

    path = run_folder / "rows.jsonl"
    slices.run(answered, annotate, path, slice_size=config.rows_per_slice, resume=resume, stop=stop)
    return path
