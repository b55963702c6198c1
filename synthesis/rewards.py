"""Who grades: a reward model (`train.reward_model`), or a file of recorded grades.

grader = rewards.load("runs/reward")                   a checkpoint with a reward head
grader = rewards.load("recorded:grades.jsonl")         `prompt`, `response` and attributes
grader.score_answers(prompts, answers) -> [n, A]
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from data import attributes, json_rows, preferences
from data.chat import Prompt
from data.errors import DataError
from synthesis.writers import RECORDED, key_of
from train import reward_model

Answered = tuple[Prompt, str]


@runtime_checkable
class Grader(Protocol):
    """Anything that grades answers."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the columns of its grades are."""

    def score_answers(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, batch_size: int = 32
    ) -> Float[np.ndarray, "n A"]:
        """Attributes of every answer as they are predicted: neither clipped nor rounded."""


@dataclass(frozen=True)
class RecordedGrades:
    """Grades that were given before."""

    path: str

    @functools.cached_property
    def _rows(self) -> dict[tuple[str, str], np.ndarray]:
        return {
            (key_of(row.prompt), row.response): attributes.vector(row.attributes, self.attributes)
            for row in attributes.read(self.path)
        }

    @property
    def attributes(self) -> tuple[str, ...]:
        return attributes.FIVE

    def score_answers(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, batch_size: int = 32
    ) -> Float[np.ndarray, "n A"]:
        del batch_size
        grades = []
        for prompt, answer in zip(prompts, answers, strict=True):
            found = self._rows.get((key_of(prompt), answer))
            if found is None or attributes.MASKED in found:
                raise DataError(
                    f"recorded grades know every answer, with all of {self.attributes}; "
                    f"{self.path} lacks {answer[:60]!r}. Record it, or use a reward model."
                )
            grades.append(found)
        return np.array(grades, np.float32)


def load(source: str) -> Grader:
    """The grader that a config names: a run folder or checkpoint, or "recorded:FILE".

    Raises:
      DataError: there is no such checkpoint. ConfigError: it has no reward head.
    """
    if source.startswith(RECORDED):
        return RecordedGrades(source.removeprefix(RECORDED))
    return reward_model.load(source)


def answered_in(path: str) -> list[Answered]:
    """Prompt and response of every row of a file of JSON lines."""
    return [(preferences.prompt_of(row), row.text("response")) for row in json_rows.read(path)]
