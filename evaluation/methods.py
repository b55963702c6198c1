"""Ways to answer a problem: greedy, sampled texts, beam search, tree search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np

from evaluation.player import (
    MAX_COMPLETION_TOKENS,
    MODEL_TITLES,
    Attempt,
    Matched,
    Method,
    ModelRole,
    Player,
    Questions,
)
from evaluation.sampling import BestOfN
from models import generate
from search import beam, gumbel, oracle, self_play, token_model
from train.errors import ConfigError

__all__ = [
    "AnyMethod",
    "Attempt",
    "Beam",
    "BestOfN",
    "Greedy",
    "Matched",
    "Method",
    "ModelRole",
    "Player",
    "Questions",
    "Search",
]

TOKENS_AT_ONCE = 2**16  # that the texts of a beam search have room for


@dataclass(frozen=True, kw_only=True)
class Greedy(Method):
    """The likeliest token, again and again: what the model says without thinking."""

    max_completion_tokens: int = MAX_COMPLETION_TOKENS
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
        prompts = [player.prompt_ids(prompt.text) for prompt in questions.prompts]
        completions = [completion.tokens for completion in written]
        read = [len(prompt) + len(ids) for prompt, ids in zip(prompts, completions, strict=True)]
        return player.attempts(prompts, completions, read, self.max_completion_tokens)


@dataclass(frozen=True, kw_only=True)
class Beam(Matched):
    """Beam search over actions, which keeps the texts of the highest value (`search.beam`).

    With a budget, the widest beam that fits into it, problem by problem: widths 1, 2, 3, 4, 6, 8,
    12, ... up to `width` are tried until one does not fit or costs no more than the one before,
    which then had left nothing out. The last one that fits is the answer and its cost, or else the
    first one. (Time is measured of all of them, several times what the last one takes.)
    """

    action: token_model.ActionConfig = token_model.ActionConfig()
    """What one action is; every text is followed by all of its candidates."""
    width: int = 4
    """b, texts that are kept after every move (with a budget: at most)."""
    max_moves: int = 3
    """Moves after which a game is over, finished or not."""

    _family: ClassVar[str] = "beam, value-chosen"

    def __post_init__(self):
        super().__post_init__()
        if min(self.width, self.max_moves) < 1:
            raise ConfigError(
                "a beam keeps at least one text for at least one move; got "
                f"{self.width=}, {self.max_moves=}."
            )

    @property
    def _kind(self) -> str:
        return f"beam-{self.width}" + ("" if self.match is None else f"-{self.match}")

    @property
    def _widths(self) -> Sequence[int]:
        if self.match is None:
            return (self.width,)
        steps = (start << n for n in range(self.width.bit_length()) for start in (2, 3))
        return sorted({1, self.width, *(width for width in steps if width < self.width)})

    def play(self, player: Player, questions: Questions) -> list[Attempt]:
        model = token_model.for_tokenizer(player.model, self.action, player.tokenizer)
        prompts = [player.prompt_ids(prompt.text) for prompt in questions.prompts]
        budgets = self.budgets(questions)
        attempts: dict[int, Attempt] = {}
        rows = list(range(len(prompts)))  # for which a wider beam may fit
        for width in self._widths:
            asked = [prompts[row] for row in rows]
            tried = self._answer(player, model, asked, width, at_once=len(prompts))
            for row, attempt in zip(tuple(rows), tried, strict=True):
                narrower, cost = attempts.get(row), attempt.evaluations
                if narrower is None or cost <= budgets[row]:
                    attempts[row] = attempt
                if cost > budgets[row] or (narrower and cost <= narrower.evaluations):
                    rows.remove(row)
            if not rows:
                break
        return [attempts[row] for row in range(len(prompts))]

    def _answer(
        self,
        player: Player,
        model: token_model.TokenModel,
        prompts: Sequence[list[int]],
        width: int,
        *,
        at_once: int,
    ) -> list[Attempt]:
        """One beam per prompt, several at once: the same number for any number of prompts."""
        capacity = 1 << (width - 1).bit_length()  # widths in between share a program
        num_texts = capacity * self.action.num_candidates
        size = max(1, TOKENS_AT_ONCE // (num_texts * self.action.max_completion_tokens))
        size = min(size, at_once)
        attempts: list[Attempt] = []
        for start in range(0, len(prompts), size):
            some = prompts[start : start + size]
            filled = [*some, *[some[0]] * (size - len(some))]
            tokens, lengths = generate.right_padded(filled)
            found = beam.search(
                model,
                player.params,
                tokens,
                lengths,
                np.full(size, width, np.int32),
                capacity=capacity,
                max_moves=self.max_moves,
            )
            found = jax.device_get(found)
            attempts += [_best_of_beam(player, found, row) for row in range(len(some))]
        return attempts


def _best_of_beam(player: Player, found: beam.Beam, row: int) -> Attempt:
    """The ended text of the highest value, which is the first one; the others are passed over."""
    num_texts = int(np.isfinite(found.value[row]).sum())
    texts = [
        player.tokenizer.decode(found.tokens[row, n, : found.lengths[row, n]].tolist())
        for n in range(num_texts)
    ]
    ended = found.ended[row].tolist()
    return Attempt(
        completion=texts[0],
        finished=ended[0],
        value=float(found.value[row, 0]),
        others=tuple(text for text, has_ended in zip(texts[1:], ended[1:]) if has_ended),
        num_samples=num_texts,
        evaluations=player.num_networks * int(found.evaluations[row]),
    )


@dataclass(frozen=True, kw_only=True)
class Search(Method):
    """A game searched move by move, or planned at once. The candidates are the likeliest ones."""

    search: gumbel.SearchConfig = gumbel.SearchConfig()
    """How each move is searched, or the whole text."""
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
    def _variant(self) -> list[str]:
        """In what the search differs from Gumbel MuZero, one leaf and one move after the other."""
        search = self.search
        return [
            *(["plan"] if search.mode == "plan" else []),
            *(["puct"] if search.algorithm == "puct" else []),
            *([search.leaf_value] if search.leaf_value != "head" else []),
            *(["reuse"] if search.reuse_tree else []),
            *([f"{search.parallel_leaves}-leaves"] if search.parallel_leaves > 1 else []),
            *([] if search.stop_at is None else [f"stop-{search.stop_at:g}".replace(".", "-")]),
        ]

    @property
    def title(self) -> str:
        kind = {"step": [], "token": ["tokens"], "forced_run": ["forced runs"]}
        parts = [self._family, *kind[self.search.action.kind], *self._variant]
        return ", ".join(parts) + MODEL_TITLES[self.model]

    @property
    def _kind(self) -> str:
        flags = ["oracle"] * self.search.use_oracle + ["no-value"] * (not self.search.use_value)
        return "-".join(["search", *map(str, self._simulations), *self._variant, *flags])

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


AnyMethod = Greedy | BestOfN | Beam | Search
