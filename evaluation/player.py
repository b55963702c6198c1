"""What every way to answer has in common: questions, attempts, and the model that is asked.

A method is a small config with one function, `play`: questions in, attempts out. Questions hold
prompts and nothing of the answers; the one way to a checker is the oracle of a search that says
`use_oracle`. Whether an attempt is right is found out later, by `evaluation.run`.
"""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import numpy as np

from data.problems import Prompt
from data.tokenizer import Tokenizer, prompt_ids
from models.language_model import LanguageModel, Params
from search.token_model import ActionConfig
from train.errors import ConfigError

Tokens = tuple[int, ...]
ModelRole = Literal["trained", "base", "base_prior"]
MODEL_TITLES = {"trained": "", "base": ", base model", "base_prior": ", base prior, trained value"}
MAX_COMPLETION_TOKENS = ActionConfig.max_completion_tokens
SAMPLES_AT_ONCE = 128
TOKENS_AT_ONCE = 2**15  # of texts whose values are asked


@dataclass(frozen=True)
class Questions:
    """What a method is asked.

    numbers: the place of each prompt in its split, which only an oracle understands.
    budgets: forward passes that each prompt may cost; None sets no limit.
    """

    task: str
    numbers: Sequence[int]
    prompts: Sequence[Prompt]
    budgets: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One answer, before anyone has checked it.

    finished: it ended by itself; an unfinished text is never right. value: of the whole text.
    others: finished texts that were passed over. num_samples: texts that were drawn or kept.
    evaluations: forward passes, each of one token through one network.

    Of samples alone: counts: how many are the finished completion, and each of the others. voted:
    the text chosen by a vote; None if there is no answer to vote for. evaluations_of_one: forward
    passes of the prompt and one sample, on average.
    """

    completion: str
    finished: bool
    value: float
    others: tuple[str, ...] = ()
    num_samples: int = 1
    evaluations: int
    counts: tuple[int, ...] = ()
    voted: str | None = None
    evaluations_of_one: float | None = None


@dataclass(frozen=True)
class Player:
    """A model that is ready to answer; `num_networks` read every token of it."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    tokenizer_name: str
    num_networks: int = 1

    def prompt_ids(self, prompt: str) -> list[int]:
        """What the model reads before it answers."""
        return prompt_ids(self.tokenizer, prompt)

    def values(self, texts: Sequence[Tokens], width: int) -> list[float]:
        """What the value head says at the end of each text of up to `width` tokens."""
        values: list[float] = []
        at_once = max(1, min(SAMPLES_AT_ONCE, TOKENS_AT_ONCE // width))
        for start in range(0, len(texts), at_once):
            rows = texts[start : start + at_once]
            tokens = np.zeros((at_once, width), np.int32)
            lengths = np.ones(at_once, np.int32)
            for row, ids in enumerate(rows):
                tokens[row, : len(ids)], lengths[row] = ids, len(ids)
            at_end = _values_at_end(self.model, self.params, tokens, lengths)
            values += np.asarray(at_end)[: len(rows)].astype(float).tolist()
        return values

    def attempts(
        self,
        prompts: Sequence[list[int]],
        completions: Sequence[Tokens],
        tokens_read: Sequence[int],
        max_completion_tokens: int,
    ) -> list[Attempt]:
        """One completion per prompt as attempts; their values are for the reader only."""
        texts = [(*prompt, *ids) for prompt, ids in zip(prompts, completions, strict=True)]
        values = self.values(texts, max(map(len, prompts)) + max_completion_tokens)
        return [
            Attempt(
                completion=self.tokenizer.decode(ids),
                finished=ids[-1:] == (self.tokenizer.eos_id,),
                value=value,
                evaluations=self.num_networks * int(count),
            )
            for ids, value, count in zip(completions, values, tokens_read, strict=True)
        ]


@functools.partial(jax.jit, static_argnums=0)
def _values_at_end(model, params, tokens, lengths):
    return model.outputs(params, tokens).at(lengths - 1).value


@dataclass(frozen=True, kw_only=True)
class Method:
    """What all methods have; `play(player, questions) -> attempts` is what each one adds."""

    split: str = "test"
    """Which problems are asked."""
    limit: int | None = None
    """Only the first so many of them; None asks all."""
    model: ModelRole = "trained"
    """Who answers: the "trained" model, the "base" model, or the base model's next token with the
    trained model's value ("base_prior")."""
    label: str = ""
    """Name of the method, where the automatic one is taken (a-z, 0-9 and -)."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"an evaluation asks at least one problem; got limit={self.limit}.")
        if not re.fullmatch(r"[a-z0-9-]*", self.label):
            raise ConfigError(f"a label is made of a-z, 0-9 and -; got {self.label!r}. Rename it.")

    @property
    def name(self) -> str:
        """Names the file of its answers; unlike every other of the same split."""
        role = "" if self.model == "trained" else f"-{self.model.replace('_', '-')}"
        return self.label or self._kind + role

    @property
    def title(self) -> str:
        """What the report calls it; searches of different size share a title."""
        return self._family + MODEL_TITLES[self.model]

    @property
    def _kind(self) -> str:
        return self._family

    _family: ClassVar[str]

    def play(self, player: Player, questions: Questions) -> list[Attempt]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Matched(Method):
    """A method that can be made to cost no more than a search did, problem by problem."""

    match: str | None = None
    """Name of the search, earlier in the list and on the same split and limit, whose forward passes
    on a problem are the budget for that problem; None sets no budget."""

    def budgets(self, questions: Questions) -> Sequence[float]:
        """Forward passes that each question may cost."""
        if (questions.budgets is None) != (self.match is None):
            raise ValueError(
                "budgets are given exactly when a method matches a search; got "
                f"match={self.match!r} and {questions.budgets}."
            )
        return questions.budgets or [math.inf] * len(questions.prompts)
