"""Sampled texts, and what can be made of them: the best by value, a vote, any, or just one."""

import collections
import concurrent.futures
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import numpy as np

from data import problems
from evaluation.player import (
    MAX_COMPLETION_TOKENS,
    MODEL_TITLES,
    SAMPLES_AT_ONCE,
    Attempt,
    Matched,
    Player,
    Questions,
    Tokens,
)
from models import generate
from train.errors import ConfigError

Choice = Literal["value", "checker", "majority", "chance"]
CHOICE_TITLES: dict[Choice, str] = {
    "value": "best-of-n, value-chosen",
    "checker": "best-of-n, checker-chosen (pass@n)",
    "majority": "majority of n",
    "chance": "one sample",
}
PROBLEMS_AT_ONCE = 2  # of which samples are drawn


@dataclass(frozen=True, kw_only=True)
class BestOfN(Matched):
    """Sampled texts, of which one is chosen: what thinking in parallel gives.

    For each problem samples are drawn as long as they fit into the budget, at least one. The prompt
    counts once, as if all samples shared its cache.
    """

    match: str | None = "search-50"
    num_samples: int | None = None
    """The most that are drawn for a problem; None: what the budget pays for."""
    choices: tuple[Choice, ...] = ("value", "checker")
    """How one is chosen; each gives a row of the report, all from the same samples. "value": of the
    highest value. "checker": a right one, if there is any (pass@n). "majority": of the most
    frequent answer (self-consistency). "chance": one at random, the mean over all."""
    temperature: float = 1.0
    """Of the sampling."""
    min_p: float | None = None
    """Tokens less likely than this share of the likeliest one are never drawn (after the
    temperature); a floor like the search's `min_probability`."""
    max_completion_tokens: int = MAX_COMPLETION_TOKENS
    """A longer text is a failure."""
    seed: int = 0
    """Decides the samples."""

    _family: ClassVar[str] = CHOICE_TITLES["value"]

    def __post_init__(self):
        super().__post_init__()
        floor = 1.0 if self.min_p is None else self.min_p
        if not 0 <= self.temperature < math.inf or not 0 < floor <= 1:
            raise ConfigError(
                "best of n samples at a temperature of 0 or more, with min_p in (0, 1] or None; "
                f"got {self.temperature=}, {self.min_p=}."
            )
        if self.match is None and self.num_samples is None:
            raise ConfigError(
                "the number of samples follows from a search or is given; got match=None and "
                "num_samples=None. Set one of them."
            )
        if self.num_samples is not None and self.num_samples < 1:
            raise ConfigError(f"best of n draws one sample or more; got {self.num_samples=}.")
        if not self.choices:
            raise ConfigError(f"one of {tuple(CHOICE_TITLES)} is chosen; got choices=().")

    @property
    def title(self) -> str:
        return self.title_of(self.choices[0])

    def title_of(self, choice: Choice) -> str:
        """What the report calls it when one is chosen in that way."""
        return CHOICE_TITLES[choice] + MODEL_TITLES[self.model] + self._drawn

    @property
    def _drawn(self) -> str:
        temperature = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        return temperature + ("" if self.min_p is None else f", min_p {self.min_p:g}")

    @property
    def _kind(self) -> str:
        size = [] if self.num_samples is None else [str(self.num_samples)]
        matched = [] if self.match is None else [self.match]
        drawn = self._drawn.translate(str.maketrans(" _.", "---", ","))
        return "-".join(["best-of", *(size or ["n"]), *matched]) + drawn

    def play(self, player: Player, questions: Questions) -> list[Attempt]:
        # Texts of other tasks are not right or wrong, and have nothing to vote for.
        is_vote = "majority" in self.choices
        answer_key = problems.answer_key(questions.task) if is_vote else lambda text: None

        def answer(prompt: problems.Prompt, number: int, budget: float) -> Attempt:
            samples = self._draw(player, prompt, number, budget)
            return self._choose(player, player.prompt_ids(prompt.text), samples, answer_key)

        # Side by side, as training games are: one batch of samples leaves a processor idle.
        with concurrent.futures.ThreadPoolExecutor(PROBLEMS_AT_ONCE) as pool:
            budgets = self.budgets(questions)
            return list(pool.map(answer, questions.prompts, questions.numbers, budgets))

    def _draw(
        self, player: Player, prompt: problems.Prompt, number: int, budget: float
    ) -> list[Tokens]:
        """Samples of one prompt, at least one, that together fit into the budget.

        The first ones are the same whatever the budget and the number of samples.
        """
        rng_key = jax.random.fold_in(jax.random.key(self.seed), number)
        left = budget / player.num_networks - len(player.prompt_ids(prompt.text))
        most = math.inf if self.num_samples is None else self.num_samples
        size = int(min(most, SAMPLES_AT_ONCE))
        samples: list[Tokens] = []
        for chunk in itertools.count():
            drawn = generate.generate_texts(
                player.model,
                player.params,
                player.tokenizer,
                [prompt.text] * size,
                max_new_tokens=self.max_completion_tokens,
                rng_key=jax.random.fold_in(rng_key, chunk),
                temperature=self.temperature,
                min_p=self.min_p,
                batch_size=size,
            )
            for completion in drawn:
                left -= len(completion.tokens)
                if left < 0 and samples:
                    return samples
                samples.append(completion.tokens)
                if len(samples) == most:
                    return samples
        raise AssertionError("unreachable")

    def _choose(
        self,
        player: Player,
        prompt: list[int],
        samples: list[Tokens],
        answer_key: Callable[[str], Hashable | None],
    ) -> Attempt:
        """The finished sample of the highest value; the first sample if none is finished.

        Finished samples vote, too.
        """
        eos_id = player.tokenizer.eos_id
        finished = [ids for ids in samples if ids[-1] == eos_id]
        counts = collections.Counter(finished)  # in the order of their first appearance
        candidates = list(counts) or samples[:1]
        width = len(prompt) + self.max_completion_tokens
        values = player.values([(*prompt, *ids) for ids in candidates], width)
        texts = {ids: player.tokenizer.decode(ids) for ids in candidates}
        best = candidates[int(np.argmax(values))]
        ranked = [best, *(ids for ids in candidates if ids != best)]
        keys = {ids: answer_key(texts[ids]) for ids in counts}
        winner = vote([keys[ids] for ids in finished])
        num_tokens = sum(map(len, samples))
        return Attempt(
            completion=texts[best],
            finished=bool(finished),
            value=max(values),
            others=tuple(texts[ids] for ids in ranked[1:]),
            num_samples=len(samples),
            evaluations=player.num_networks * (len(prompt) + num_tokens),
            counts=tuple(counts[ids] for ids in ranked),
            voted=None if winner is None else texts[finished[winner]],
            evaluations_of_one=player.num_networks * (len(prompt) + num_tokens / len(samples)),
        )


def vote(answers: Sequence[Hashable | None]) -> int | None:
    """Number of the first text that gives the most frequent answer; None without an answer.

    Of answers that are equally frequent, the one that was given first wins. Texts without an answer
    have no vote. Self-consistency (Wang et al., arXiv:2203.11171) with equal weights.
    """
    votes = collections.Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    return next(n for n, each in enumerate(answers) if each is not None and votes[each] == most)
