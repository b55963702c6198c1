"""Who writes: a checkpoint of ours (or a folder of transformers), or a file of recorded answers."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax

from data import chat, json_rows
from data.chat import Prompt, TemplateName
from data.errors import DataError
from data.tokenizer import Tokenizer, load_tokenizer
from models import generate
from models.language_model import LanguageModel, Params
from train import checkpoints
from train.errors import ConfigError

RECORDED = "recorded:"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float | None = None
    """The fewest tokens that together are so probable; None: all."""
    max_new_tokens: int = 128
    """An answer that is not finished by then is marked as unfinished."""
    batch_size: int = 64
    """Answers written at once."""

    def __post_init__(self):
        if self.temperature < 0 or self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError(
                "sampling has a temperature of 0 or more, and 1 or more tokens and rows; got "
                f"{self}."
            )


class Asked(NamedTuple):
    """What is put to a writer. labels: what the answer shall be like, a SteerLM label."""

    prompt: Prompt
    labels: str | None = None


class Written(NamedTuple):
    """An answer, and whether it came to its end."""

    text: str
    finished: bool


@runtime_checkable
class Writer(Protocol):
    """Anything that answers."""

    @property
    def name(self) -> str:
        """What rows call it."""

    def write(self, asked: Sequence[Asked], rng_key: jax.Array) -> list[Written]:
        """One answer each; the n-th depends on what is asked and on `fold_in(rng_key, n)` only."""


@dataclass(frozen=True)
class LocalWriter:
    """A model in this process."""

    name: str
    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    template: TemplateName
    sampling: Sampling

    def write(self, asked: Sequence[Asked], rng_key: jax.Array) -> list[Written]:
        texts = [
            chat.prompt_text(one.prompt, self.template, self.tokenizer, labels=one.labels)
            for one in asked
        ]
        completions = generate.generate_texts(
            self.model,
            self.params,
            self.tokenizer,
            texts,
            max_new_tokens=self.sampling.max_new_tokens,
            rng_key=rng_key,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            batch_size=self.sampling.batch_size,
        )
        return [
            Written(
                text=chat.answer_of(one.text, self.template),
                finished=one.tokens[-1] == self.tokenizer.eos_id,
            )
            for one in completions
        ]


@dataclass(frozen=True)
class RecordedWriter:
    """Says what a file of `prompt`, `response` says; of several answers to a prompt the next."""

    name: str
    path: str

    @functools.cached_property
    def _answers(self) -> dict[str, list[str]]:
        answers: dict[str, list[str]] = {}
        for row in json_rows.read(self.path):
            answers.setdefault(key_of(row.fields.get("prompt", "")), []).append(
                row.text("response")
            )
        return answers

    def write(self, asked: Sequence[Asked], rng_key: jax.Array) -> list[Written]:
        del rng_key  # all is decided
        seen: dict[str, int] = {}
        written = []
        for one in asked:
            key = key_of(one.prompt)
            if key not in self._answers:
                raise DataError(
                    f"a recorded writer knows every prompt; {self.path} has no answer to "
                    f"{key[:80]!r}. Record one, or use another writer."
                )
            turn = seen.get(key, 0)
            seen[key] = turn + 1
            written.append(Written(self._answers[key][turn % len(self._answers[key])], True))
        return written


def key_of(prompt: Prompt) -> str:
    """One text for a prompt in either form."""
    return repr([(one["role"], one["content"]) for one in chat.messages_of(prompt)])


def load(
    source: str, sampling: Sampling, *, template: TemplateName | None = None, name: str = ""
) -> Writer:
    """The writer that a config names.

    Args:
      source: a run folder, a checkpoint or a folder of transformers; or "recorded:FILE".
      template: how chats are written; None: as the model was trained with.
      name: what rows call it; by default the source.

    Raises:
      DataError: there is no such checkpoint. ConfigError: no template is known.
    """
    if source.startswith(RECORDED):
        return RecordedWriter(name or source, source.removeprefix(RECORDED))
    template = template or template_of(source)
    config, tokenizer_name, params = checkpoints.load_params(source)
    tokenizer = load_tokenizer(tokenizer_name)
    return LocalWriter(name or source, LanguageModel(config), params, tokenizer, template, sampling)


def template_of(checkpoint: str) -> TemplateName:
    """How the chats were written that a model was trained on.

    Raises:
      ConfigError: its checkpoint does not say.
    """
    template = checkpoints.read_metadata(checkpoints.find_step(checkpoint)).template
    if template is None:
        raise ConfigError(
            f"{checkpoint} does not say how its chats were written. Give the template: steerlm, "
            "chatml, plain, or own (that of its tokenizer's folder)."
        )
    return template  # type: ignore[return-value]  # saved as a plain text
