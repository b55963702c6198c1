"""Text as a search sees it: a node is a text, an action one more token or one more line.

An action has an *opening* (what the search chooses among: k proposals of the model) and a
*completion* that the model writes greedily: the rest of the line for step actions, the tokens that
it is sure of for forced runs. Nothing here knows arithmetic or rules; a finished text is judged by
the oracle or by the model's own value.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from data.tokenizer import Tokenizer
from models import generate, language_model
from search import proposals, tree_cache
from search.state import State
from train.errors import ConfigError

# (problem numbers [B], completions [B, M], lengths [B], asked [B]) as numpy -> outcomes [B].
Verify = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionConfig:
    """What one action is."""

    kind: Literal["token", "step", "forced_run"] = "step"
    """One "token"; one "step": a whole line; or a "forced_run": one token and those after it that
    the model is sure of, so that no simulation is spent on a choice that is none."""
    num_candidates: int = 16
    """k, actions per node."""
    opening_tokens: int | None = None
    """How many tokens of a line the search chooses; the model writes the rest greedily. None: the
    whole line. (Of a token or a forced run it is one token.)"""
    forced_probability: float = 0.99
    """A forced run goes on while the likeliest token is more probable than this."""
    min_probability: float = 0.0
    """Less likely candidates are left out (but never the likeliest one). The value of a text is
    only learned where play goes, so a search must not be lured to nonsense."""
    max_step_tokens: int = 12
    """A longer line is a failure; a forced run is cut there."""
    max_completion_tokens: int = 32
    """A longer text is a failure."""
    empty_line_ends: bool = False
    """A text also ends with an empty line, as an answer after few-shot examples does."""

    def __post_init__(self):
        if self.num_candidates < 2:
            raise ConfigError(
                f"a search needs at least two candidates per node; got {self.num_candidates}."
            )
        line = self.max_action_tokens
        if not 1 <= self.num_opening_tokens <= line <= self.max_completion_tokens:
            raise ConfigError(
                "an opening has at least one token, a line is no shorter than its opening and a "
                f"text no shorter than a line; got {self.opening_tokens=}, "
                f"{self.max_step_tokens=}, {self.max_completion_tokens=}."
            )
        if not 0 <= self.min_probability < 1:
            raise ConfigError(f"min_probability is in [0, 1); got {self.min_probability}.")
        if not 0 < self.forced_probability <= 1:
            raise ConfigError(f"forced_probability is in (0, 1]; got {self.forced_probability}.")

    @property
    def num_opening_tokens(self) -> int:
        if self.kind != "step":
            return 1
        return self.max_step_tokens if self.opening_tokens is None else self.opening_tokens

    @property
    def max_action_tokens(self) -> int:
        """The most that one action adds to a text."""
        return 1 if self.kind == "token" else self.max_step_tokens


@runtime_checkable
class Dynamics(Protocol):
    """All that a search asks of what it searches over."""

    @property
    def memory(self) -> tree_cache.Memory:
        """Where the nodes of a tree keep what the model remembers."""
        ...

    def propose(self, params, state: State, rng_key: Array | None = None) -> State:
        """Fills in the candidates of each state; with a key, drawn with their Gumbel noise."""
        ...

    def act(self, params, state: State, action: Int[Array, "B"]) -> State:
        """The states after the chosen candidates; finished ones stay."""
        ...

    def finish(self, params, state: State) -> State:
        """The states at the ends of greedy rollouts."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenModel:
    """The dynamics of texts under a language model (all methods are pure and jittable)."""

    model: language_model.LanguageModel
    config: ActionConfig
    eos_id: int
    newline_id: int
    forbidden_tokens: tuple[int, ...] = ()
    """Ids that are never written, as if the model's vocabulary did not have them."""
    node_caches: bool = False
    """Whether every node of a tree holds a cache of its own: plain and large."""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return (self.eos_id, self.newline_id) if self.config.kind == "step" else (self.eos_id,)

    @property
    def memory(self) -> tree_cache.Memory:
        if self.node_caches:
            return tree_cache.NodeCaches()
        return tree_cache.TreeCache(self.model, self.config.max_action_tokens)

    def start(
        self,
        params,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        problem: Int[Array, "B"],
        *,
        max_moves: int | None = None,
    ) -> State:
        """The state of prompts: right-padded tokens. Candidates are still empty.

        max_moves: searches to come, after the last of which nothing is read; None: any number. So
            many moves but one need room behind the prompts.
        """
        c = self.config
        batch, prompt_width = tokens.shape
        room = c.max_completion_tokens
        if max_moves is not None and not self.node_caches:
            room = min(room, (max_moves - 1) * c.max_action_tokens)
        capacity = prompt_width + room
        out, cache = self.model.prefill(params, tokens, lengths=lengths, capacity=capacity)
        last = out.at(lengths - 1)
        k, s = c.num_candidates, c.num_opening_tokens
        empty = proposals.Candidates(
            tokens=jnp.zeros((batch, k, s), jnp.int32),
            lengths=jnp.zeros((batch, k), jnp.int32),
            log_probs=jnp.zeros((batch, k)),
            gumbel=jnp.zeros((batch, k)),
        )
        no = jnp.zeros((batch,), bool)
        return State(
            problem=problem,
            tokens=jnp.zeros((batch, c.max_completion_tokens), jnp.int32),
            length=jnp.zeros((batch,), jnp.int32),
            finished=no,
            ended=no,
            outcome=jnp.zeros((batch,)),
            value=last.value,
            hidden=last.hidden,
            logits=last.logits,
            cache=cache,
            candidates=empty,
            evaluations=lengths,
        )

    def propose(self, params, state: State, rng_key: Array | None = None) -> State:
        """Fills in the candidates; with `rng_key` they are a Gumbel sample without replacement."""
        c = self.config
        candidates, tokens_read = proposals.propose(
            self.model,
            params,
            state.cache,
            state.logits,
            num_candidates=c.num_candidates,
            num_tokens=c.num_opening_tokens,
            stop_tokens=self.stop_tokens,
            forbidden_tokens=self.forbidden_tokens,
            rng_key=rng_key,
        )
        candidates = candidates.without_unlikely(c.min_probability)
        cost = jnp.where(state.finished, 0, tokens_read)
        return dataclasses.replace(
            state, candidates=candidates, evaluations=state.evaluations + cost
        )

    def act(self, params, state: State, action: Int[Array, "B"]) -> State:
        """Appends the chosen opening and the model's greedy completion.

        Finished rows stay as they are. `evaluations` restarts: it counts this action alone.
        """
        c = self.config
        rows = jnp.arange(action.shape[0])
        opening = state.candidates.tokens[rows, action]
        num_opening = state.candidates.lengths[rows, action]
        num_opening = jnp.minimum(num_opening, c.max_completion_tokens - state.length)
        num_opening = jnp.where(state.finished, 0, num_opening)
        start = state.length
        state = dataclasses.replace(state, evaluations=jnp.zeros_like(start))
        state = self._read(params, state, opening, num_opening)
        if c.kind != "token":
            state = self._complete(params, state, start)
        last = state.tokens[rows, jnp.maximum(state.length - 1, 0)]
        moved = state.length > start
        ended = state.ended | (moved & self._is_complete(state))
        out_of_room = state.length >= c.max_completion_tokens
        if c.kind == "step":
            out_of_room |= moved & ~jnp.isin(last, jnp.asarray(self.stop_tokens))
        return dataclasses.replace(
            state, ended=ended, finished=state.finished | ended | out_of_room
        )

    def finish(self, params, state: State) -> State:
        """Texts written on greedily to their ends, or until there is no room (a rollout).

        `evaluations` goes on counting; candidates stay those of the beginning.
        """
        c = self.config
        limit = c.max_completion_tokens

        def write(state):
            logits = generate.forbid(state.logits, self.forbidden_tokens)
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            state = self._read(params, state, token[:, None], (~state.finished).astype(jnp.int32))
            ended = state.ended | (~state.finished & self._is_complete(state))
            finished = state.finished | ended | (state.length >= limit)
            return dataclasses.replace(state, ended=ended, finished=finished)

        return jax.lax.while_loop(lambda s: ~jnp.all(s.finished), write, state)

    def _is_complete(self, state: State) -> Bool[Array, "B"]:
        """Whether the last token that was written ends the text."""
        rows = jnp.arange(state.length.shape[0])
        last = state.tokens[rows, jnp.maximum(state.length - 1, 0)]
        is_complete = (state.length > 0) & (last == self.eos_id)
        if self.config.empty_line_ends:
            before = state.tokens[rows, jnp.maximum(state.length - 2, 0)]
            is_complete |= (
                (state.length > 1) & (last == self.newline_id) & (before == self.newline_id)
            )
        return is_complete

    def _complete(self, params, state: State, start: Int[Array, "B"]) -> State:
        """Greedy tokens until every line is closed, or its run not forced any more, or too long."""
        c = self.config
        stops = jnp.asarray(self.stop_tokens)
        rows = jnp.arange(start.shape[0])

        def is_open(state):
            last = state.tokens[rows, jnp.maximum(state.length - 1, 0)]
            limit = jnp.minimum(start + c.max_step_tokens, c.max_completion_tokens)
            is_open = (state.length > start) & ~jnp.isin(last, stops) & (state.length < limit)
            is_open &= ~self._is_complete(state)
            if c.kind == "forced_run":
                log_probs = jax.nn.log_softmax(written(state))
                is_open &= jnp.exp(jnp.max(log_probs, axis=-1)) > c.forced_probability
            return is_open

        def written(state):
            return generate.forbid(state.logits, self.forbidden_tokens)

        def write(state):
            logits = written(state)
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return self._read(params, state, token[:, None], is_open(state).astype(jnp.int32))

        return jax.lax.while_loop(lambda s: jnp.any(is_open(s)), write, state)

    def _read(self, params, state: State, tokens: Int[Array, "B T"], count: Int[Array, "B"]):
        """The model reads `count[b]` more tokens; rows with none keep their logits and value."""
        out, cache = self.model.extend(params, state.cache, tokens, count)
        last = out.at(jnp.maximum(count - 1, 0))
        width = tokens.shape[1]

        def write(text, new, length, n):
            slots = jnp.where(jnp.arange(width) < n, length + jnp.arange(width), text.shape[0])
            return text.at[slots].set(new, mode="drop")

        moved = count > 0
        return dataclasses.replace(
            state,
            tokens=jax.vmap(write)(state.tokens, tokens, state.length, count),
            length=state.length + count,
            cache=cache,
            hidden=jnp.where(moved[:, None], last.hidden, state.hidden),
            logits=jnp.where(moved[:, None], last.logits, state.logits),
            value=jnp.where(moved, last.value, state.value),
            evaluations=state.evaluations + count,
        )


def for_tokenizer(
    model: language_model.LanguageModel, config: ActionConfig, tokenizer: Tokenizer
) -> TokenModel:
    """The dynamics of texts that `tokenizer` can read.

    Raises:
      ConfigError: lines are wanted of a tokenizer that has none.
    """
    if tokenizer.newline_id is None and (config.kind == "step" or config.empty_line_ends):
        raise ConfigError(
            "step actions, and texts that an empty line ends, need a newline token; got a "
            f"tokenizer of {tokenizer.vocab_size} tokens without one. Use actions of kind "
            '"forced_run" or "token", without empty_line_ends.'
        )
    return TokenModel(
        model=model,
        config=config,
        eos_id=tokenizer.eos_id,
        newline_id=tokenizer.eos_id if tokenizer.newline_id is None else tokenizer.newline_id,
        forbidden_tokens=generate.unwritable_tokens(tokenizer, model.config.vocab_size),
    )


def judge(state: State, verify: Verify, *, asked: Bool[Array, "B"]) -> State:
    """Asks the oracle about texts (through the host: the checker is plain Python).

    asked: the ended texts it has not judged before; the outcome of others stays.
    """
    shape = jax.ShapeDtypeStruct(state.length.shape, jnp.float32)

    def on_host(*arrays):
        return np.asarray(verify(*map(np.asarray, arrays)), np.float32)

    outcome = jax.pure_callback(on_host, shape, state.problem, state.tokens, state.length, asked)
    return dataclasses.replace(state, outcome=jnp.where(asked, outcome, state.outcome))
