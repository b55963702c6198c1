"""Answers at requested attributes: `python -m synthesis steer --checkpoint P --prompts FILE`.

    RUN/responses.jsonl   the row of the prompt, and response, requested (a SteerLM label or null),
                          model, sample (its number) and finished

A model that was trained with attributes before its answers (recipe "steerlm") is asked with the
attributes in that place. With `requested` "none" any chat model answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from data import attributes, json_rows, preferences
from data.chat import TemplateName
from synthesis import slices, writers
from synthesis.writers import Asked, Sampling
from train.errors import ConfigError
from train.stopping import StopFlag

Requested = Literal["best", "uniform", "none"]
BEST = dict.fromkeys(attributes.FIVE, attributes.HIGHEST)


@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """One run of `python -m synthesis steer`."""

    checkpoint: str = ""
    """Who answers: a run folder, a checkpoint, a folder of transformers, or "recorded:FILE"."""
    prompts: str = ""
    """JSON lines with the field `prompt`, a text or chat messages; other fields are passed on."""
    limit: int | None = None
    """The first so many prompts; None: all."""
    requested: Requested = "best"
    """"best" asks for 4 of every attribute, "uniform" for random grades (each prompt and sample its
    own), "none" for nothing: the answer of a model that knows no attributes."""
    labels: str = ""
    """A SteerLM label, such as "helpfulness:4,verbosity:1", in place of that of "best"."""
    num_responses: int = 1
    """Answers to each prompt."""
    name: str = ""
    """What rows call the model; by default its path."""
    template: TemplateName | None = None
    """How a chat is written for this model; None: as it was trained."""
    sampling: Sampling = Sampling()
    """How tokens are drawn."""
    prompts_per_slice: int = 64
    """Work that a kill can undo."""
    seed: int = 0
    """Decides what is drawn."""

    def __post_init__(self):
        if self.num_responses < 1 or self.prompts_per_slice < 1:
            raise ConfigError(
                "there is at least one response and one prompt in a slice; got "
                f"{self.num_responses=}, {self.prompts_per_slice=}."
            )
        if self.labels and self.requested != "best":
            raise ConfigError(
                f'labels replace those of requested "best"; got {self.requested=} with '
                f"{self.labels=}. Leave one out."
            )


def run(
    config: SteerConfig, run_folder: Path, /, *, resume: bool = False, stop: StopFlag | None = None
) -> Path:
    """Answers all prompts; returns the path of responses.jsonl.

    Raises:
      DataError: unreadable prompts or checkpoint. Preempted: `stop` was requested.
    """
    label = attributes.label_text(attributes.parse_labels(config.labels) if config.labels else BEST)
    rows = json_rows.read(config.prompts)[: config.limit]
    asked = [{**row.fields, "prompt": preferences.prompt_of(row)} for row in rows]
    writer = writers.load(
        config.checkpoint, config.sampling, template=config.template, name=config.name
    )

    def answer(part: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
        each = [(row, sample) for row in part for sample in range(config.num_responses)]
        generator = np.random.default_rng((config.seed, number))
        labels = [
            _uniform(generator)
            if config.requested == "uniform"
            else (label if config.requested == "best" else None)
            for _ in each
        ]
        questions = [Asked(row["prompt"], one) for (row, _), one in zip(each, labels, strict=True)]
        rng_key = jax.random.fold_in(jax.random.key(config.seed), number)
        return [
            {
                **row,
                "response": text,
                "requested": one,
                "model": writer.name,
                "sample": sample,
                "finished": finished,
            }
            for (row, sample), one, (text, finished) in zip(
                each, labels, writer.write(questions, rng_key), strict=True
            )
        ]

    path = run_folder / "responses.jsonl"
    slices.run(asked, answer, path, slice_size=config.prompts_per_slice, resume=resume, stop=stop)
    return path


def _uniform(generator: np.random.Generator) -> str:
    grades = generator.integers(attributes.LOWEST, attributes.HIGHEST + 1, len(attributes.FIVE))
    return attributes.label_text(dict(zip(attributes.FIVE, grades.tolist(), strict=True)))
