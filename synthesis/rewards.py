"""Who grades: a reward model, or a file of recorded grades.

grader = rewards.load("runs/reward")                   a checkpoint with a reward head
grader = rewards.load("recorded:grades.jsonl")         `prompt`, `response` and attributes
grader.grade([(prompt, response), ...]) -> [n, A]
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data import attributes, chat, json_rows, preferences
from data.chat import Prompt, TemplateName
from data.errors import DataError
from data.tokenizer import Tokenizer, load_tokenizer
from models import generate, heads
from models.language_model import LanguageModel, Params
from synthesis.writers import RECORDED, key_of
from train import checkpoints
from train.errors import ConfigError

Answered = tuple[Prompt, str]


class Grader(Protocol):
    """Anything that grades answers."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the columns of its grades are."""

    def grade(self, answered: Sequence[Answered]) -> Float[np.ndarray, "n A"]:
        """Predicted attributes of every answer, as they are: neither clipped nor rounded."""


@dataclass(frozen=True)
class RewardModel:
    """A model with a reward head; texts of like length share a batch."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    template: TemplateName = "steerlm"
    pool: heads.Pool = "last"
    batch_size: int = 64

    @property
    def attributes(self) -> tuple[str, ...]:
        return attributes.names(self.model.config.num_attributes)

    def grade(self, answered: Sequence[Answered]) -> Float[np.ndarray, "n A"]:
        ids = [
            chat.encode_scored(chat.with_answer(*one), self.tokenizer, self.template)[0]
            for one in answered
        ]
        grades = np.zeros((len(ids), len(self.attributes)), np.float32)
        by_length = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        for start in range(0, len(ids), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            filled = rows + [rows[-1]] * (self.batch_size - len(rows))  # one shape per width
            tokens, lengths = generate.right_padded([ids[n] for n in filled])
            predicted = _predict(
                self.model, self.params, jnp.asarray(tokens), jnp.asarray(lengths), self.pool
            )
            grades[rows] = np.asarray(predicted)[: len(rows)]
        return grades


@functools.partial(jax.jit, static_argnames=("model", "pool"))
def _predict(
    model: LanguageModel,
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    pool: heads.Pool,
) -> Float[Array, "B A"]:
    reward = model.outputs(params, tokens).reward
    assert reward is not None, "`load` has refused models without a reward head"
    return heads.at_end(reward, lengths, pool)


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

    def grade(self, answered: Sequence[Answered]) -> Float[np.ndarray, "n A"]:
        grades = []
        for prompt, response in answered:
            found = self._rows.get((key_of(prompt), response))
            if found is None or attributes.MASKED in found:
                raise DataError(
                    f"recorded grades know every answer, with all of {self.attributes}; "
                    f"{self.path} lacks {response[:60]!r}. Record it, or use a reward model."
                )
            grades.append(found)
        return np.array(grades, np.float32)


def load(source: str, *, batch_size: int = 64) -> Grader:
    """The grader that a config names: a run folder or checkpoint, or "recorded:FILE".

    Raises:
      DataError: there is no such checkpoint. ConfigError: it has no reward head.
    """
    if source.startswith(RECORDED):
        return RecordedGrades(source.removeprefix(RECORDED))
    metadata = checkpoints.read_metadata(checkpoints.find_step(source))
    config, tokenizer_name, params = checkpoints.load_params(source)
    if not config.num_attributes or metadata.template is None:
        raise ConfigError(
            f"grades come from a model with a reward head; {source} has none. Train one "
            '(recipe "reward").'
        )
    return RewardModel(
        LanguageModel(config),
        params,
        load_tokenizer(tokenizer_name),
        template=metadata.template,
        pool=metadata.reward_pool or "last",
        batch_size=batch_size,
    )


def answered_in(path: str) -> list[Answered]:
    """Prompt and response of every row of a file of JSON lines."""
    return [(preferences.prompt_of(row), row.text("response")) for row in json_rows.read(path)]
