"""Ways to answer a problem: greedy, the best of n samples, search.

Each is a small config with one function, `play`: questions in, attempts out. Questions hold prompts
and nothing of the answers; the one way to a checker is the oracle of a search that says
`use_oracle`. Whether an attempt is right is found out later, by `evaluation.run`.
"""

import concurrent.futures
import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import numpy as np

from data.problems import Prompt
from data.tokenizer import Tokenizer
from models import generate
from models.language_model import LanguageModel, Params
from search import gumbel, oracle, self_play, token_model
from train.errors import ConfigError

Tokens = tuple[int, ...]
ModelRole = Literal["trained", "base", "base_prior"]
MODEL_TITLES = {"trained": "", "base": ", base model", "base_prior": ", base prior, trained value"}
SAMPLES_AT_ONCE = 128
PROBLEMS_AT_ONCE = 2  # of which samples are drawn


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
    others: finished texts that were passed over. evaluations: forward passes, each of one token
    through one network.
    """

    completion: str
    finished: bool
    value: float
    others: tuple[str, ...] = ()
    num_samples: int = 1
    evaluations: int


@dataclass(frozen=True)
class Player:
    """A model that is ready to answer; `num_networks` read every token of it."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    tokenizer_name: str
    num_networks: int = 1

    def values(self, texts: Sequence[Tokens], width: int) -> list[float]:
        """What the value head says at the end of each text of up to `width` tokens."""
        values: list[float] = []
        for start in range(0, len(texts), SAMPLES_AT_ONCE):
            rows = texts[start : start + SAMPLES_AT_ONCE]
            tokens = np.zeros((SAMPLES_AT_ONCE, width), np.int32)
            lengths = np.ones(SAMPLES_AT_ONCE, np.int32)
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
class Greedy(Method):
    """The likeliest token, again and again: what the model says without thinking."""

    max_completion_tokens: int = 32
    """A longer text is a failure."""

    _family: ClassVar[str] = "greedy"

    def play(self, player: Player, questions: Questions) -> list[Attempt]:
        written = generate.generate_texts(
            player.model,
            player.params,
            player.tokenizer,
            [prompt.text for prompt in questions.prompts],
            max_new_tokens=self.max_completion_tokens,
            rng_key=jax.random.key(0),
            temperature=0.0,
            batch_size=len(questions.prompts),
        )
        prompts = [player.tokenizer.encode(prompt.text) for prompt in questions.prompts]
        completions = [completion.tokens for completion in written]
        read = [len(prompt) + len(ids) for prompt, ids in zip(prompts, completions, strict=True)]
        return player.attempts(prompts, completions, read, self.max_completion_tokens)


@dataclass(frozen=True, kw_only=True)
class BestOfN(Method):
    """Sampled texts, of which the value head chooses one: what thinking in parallel gives.

    For each problem samples are drawn as long as they cost no more forward passes than the search
    `match` spent on that very problem. The prompt counts once, as if all samples shared its cache.
    """

    match: str = "search-50"
    """Name of the search, earlier in the list and on the same split, whose cost is its budget."""
    temperature: float = 1.0
    """Of the sampling."""
    min_p: float | None = None
    """Tokens less likely than this share of the likeliest one are never drawn (after the
    temperature); a floor like the search's `min_probability`."""
    max_completion_tokens: int = 32
    """A longer text is a failure."""
    seed: int = 0
    """Decides the samples."""

    _family: ClassVar[str] = "best-of-n, value-chosen"

    def __post_init__(self):
        super().__post_init__()
        floor = 1.0 if self.min_p is None else self.min_p
        if not 0 <= self.temperature < math.inf or not 0 < floor <= 1:
            raise ConfigError(
                "best of n samples at a temperature of 0 or more, with min_p in (0, 1] or None; "
                f"got {self.temperature=}, {self.min_p=}."
            )

    @property
    def title(self) -> str:
        return super().title + self._floor

    @property
    def title_of_any(self) -> str:
        """What the report calls it when the checker chooses among the samples."""
        return "best-of-n, checker-chosen (pass@n)" + MODEL_TITLES[self.model] + self._floor

    @property
    def _floor(self) -> str:
        return "" if self.min_p is None else f", min_p {self.min_p:g}"

    @property
    def _kind(self) -> str:
        return f"best-of-n-{self.match}" + self._floor.translate(str.maketrans(" _.", "---", ","))

    def play(self, player: Player, questions: Questions) -> list[Attempt]:
        if questions.budgets is None:
            raise ValueError(
                "best of n needs to know how many tokens it may spend; got no budgets."
            )

        def answer(prompt: Prompt, number: int, budget: int) -> Attempt:
            samples = self._draw(player, prompt, number, budget)
            return self._choose(player, player.tokenizer.encode(prompt.text), samples)

        # Side by side, as training games are: one batch of samples leaves a processor idle.
        with concurrent.futures.ThreadPoolExecutor(PROBLEMS_AT_ONCE) as pool:
            return list(pool.map(answer, questions.prompts, questions.numbers, questions.budgets))

    def _draw(self, player: Player, prompt: Prompt, number: int, budget: int) -> list[Tokens]:
        """Samples of one prompt, at least one, that together fit into the budget."""
        rng_key = jax.random.fold_in(jax.random.key(self.seed), number)
        left = budget // player.num_networks - len(player.tokenizer.encode(prompt.text))
        samples: list[Tokens] = []
        for chunk in itertools.count():
            drawn = generate.generate_texts(
                player.model,
                player.params,
                player.tokenizer,
                [prompt.text] * SAMPLES_AT_ONCE,
                max_new_tokens=self.max_completion_tokens,
                rng_key=jax.random.fold_in(rng_key, chunk),
                temperature=self.temperature,
                min_p=self.min_p,
                batch_size=SAMPLES_AT_ONCE,
            )
            for completion in drawn:
                left -= len(completion.tokens)
                if left < 0 and samples:
                    return samples
                samples.append(completion.tokens)
        raise AssertionError("unreachable")

    def _choose(self, player: Player, prompt: list[int], samples: list[Tokens]) -> Attempt:
        """The finished sample of the highest value; the first sample if none is finished."""
        eos_id = player.tokenizer.eos_id
        finished = list(dict.fromkeys(ids for ids in samples if ids[-1] == eos_id))
        candidates = finished or samples[:1]
        width = len(prompt) + self.max_completion_tokens
        values = player.values([(*prompt, *ids) for ids in candidates], width)
        best = int(np.argmax(values))
        others = (ids for n, ids in enumerate(candidates) if n != best)
        return Attempt(
            completion=player.tokenizer.decode(candidates[best]),
            finished=bool(finished),
            value=values[best],
            others=tuple(map(player.tokenizer.decode, others)),
            num_samples=len(samples),
            evaluations=player.num_networks * (len(prompt) + sum(map(len, samples))),
        )


@dataclass(frozen=True, kw_only=True)
class Search(Method):
    """A game searched move by move. Without noise: the candidates are the likeliest ones."""

    search: gumbel.SearchConfig = gumbel.SearchConfig()
    """How each move is searched."""
    max_moves: int = 3
    """Moves after which a game is over, finished or not."""

    _family: ClassVar[str] = "search"

    def __post_init__(self):
        super().__post_init__()
        if self.search.root_noise:
            raise ConfigError(
                "an evaluation searches the likeliest candidates; got root_noise=True. "
                "Set it to False (it is for training games)."
            )
        if min(self._simulations, default=0) < 1:
            raise ConfigError(
                f"a search has at least one simulation per move; got {self._simulations}."
            )

    @property
    def _simulations(self) -> tuple[int, ...]:
        simulations = self.search.num_simulations
        return (simulations,) if isinstance(simulations, int) else simulations

    @property
    def _kind(self) -> str:
        flags = "-oracle" * self.search.use_oracle + "-no-value" * (not self.search.use_value)
        return "-".join(["search", *map(str, self._simulations)]) + flags

    def play(self, player: Player, questions: Questions) -> list[Attempt]:
        action = self.search.action
        verify = None
        if self.search.use_oracle:
            verify = oracle.Oracle(questions.task, self.split, player.tokenizer_name)
        games = self_play.play(
            token_model.for_tokenizer(player.model, action, player.tokenizer),
            player.params,
            questions.prompts,
            questions.numbers,
            player.tokenizer,
            self_play.SelfPlayConfig(search=self.search, max_moves=self.max_moves),
            jax.random.key(0),
            verify,
        )
        return player.attempts(
            [list(game.record.prompt_tokens) for game in games],
            [game.record.completion_tokens for game in games],
            [game.evaluations for game in games],
            action.max_completion_tokens,
        )


AnyMethod = Greedy | BestOfN | Search
