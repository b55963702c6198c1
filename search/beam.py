"""Beam search over actions, guided by the value head: the plain search that a tree is compared to.

Every move follows each of the b best texts with all of its k candidates, and keeps the b results of
the highest value. Source: step-level beam search of AlphaMath (arXiv:2405.03553); its
candidates are sampled, here they are those of the tree search without noise: the k likeliest.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from models.cache import Leaf, PathCache
from search.state import State
from search.token_model import TokenModel


@struct.dataclass
class Beam:
    """The texts that are left at the end, best first: ended ones by value, then the others.

    tokens: `[B, b, M]` completions, right-padded. lengths, ended, value: `[B, b]`; a place without
    a text has value -inf. evaluations: `[B]` tokens that the model read, the prompt once.
    """

    tokens: Leaf
    lengths: Leaf
    ended: Leaf
    value: Leaf
    evaluations: Leaf


@functools.partial(jax.jit, static_argnames=("model", "capacity", "max_moves"))
def search(
    model: TokenModel,
    params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    width: Int[Array, "B"],
    *,
    capacity: int,
    max_moves: int,
) -> Beam:
    """Answers B right-padded prompts at once; a row ends when all of its texts have.

    A text that has ended keeps its place. One that ran out of room is worth 0.

    Args:
      model: its `config.num_candidates` is k.
      width: texts that each row keeps, at most `capacity` (which is what is compiled for).
    """
    batch, k = lengths.shape[0], model.config.num_candidates
    root = model.start(params, tokens, lengths, jnp.zeros_like(lengths), max_moves=1)
    paths = model.model.empty_paths(root.cache, 1, model.config.max_completion_tokens)
    root = dataclasses.replace(root, cache=paths)
    state = _take(root, jnp.repeat(jnp.arange(batch), capacity))
    is_text = jnp.broadcast_to(jnp.arange(capacity) == 0, (batch, capacity))

    def is_open(carry):
        move, state, *_ = carry
        return (move < max_moves) & ~jnp.all(state.finished)

    def one_move(carry):
        move, state, is_text, evaluations = carry
        state = model.propose(params, _reading_no_more_of(~is_text, state))
        evaluations += _by_row(state.evaluations, batch).sum(axis=1)
        # A finished text is its own only child.
        is_finished = state.finished[:, None]
        is_child = jnp.where(is_finished, jnp.arange(k) == 0, state.candidates.is_present)
        is_child = _by_row(is_child, batch) & is_text[..., None]
        children = _take(state, jnp.repeat(jnp.arange(batch * capacity), k))
        had_ended = children.ended
        children = _reading_no_more_of(~is_child, children)
        children = model.act(params, children, jnp.tile(jnp.arange(k), batch * capacity))
        evaluations += _by_row(children.evaluations, batch).sum(axis=1)
        score = jnp.where(is_child.reshape(-1), had_ended + worth(children), -jnp.inf)
        best, place = jax.lax.top_k(_by_row(score, batch), capacity)
        is_text = (best > -jnp.inf) & (jnp.arange(capacity) < width[:, None])
        first_child = jnp.arange(batch)[:, None] * capacity * k
        state = _take(children, (first_child + place).reshape(-1))
        return move + 1, _reading_no_more_of(~is_text, state), is_text, evaluations

    start = (jnp.zeros((), jnp.int32), _reading_no_more_of(~is_text, state), is_text, lengths)
    _, state, is_text, evaluations = jax.lax.while_loop(is_open, one_move, start)

    value = jnp.where(is_text, _by_row(worth(state), batch), -jnp.inf)
    ended = _by_row(state.ended, batch) & is_text
    order = jnp.argsort(-(ended + value), axis=1)
    return Beam(
        tokens=_by_row(state.tokens, batch)[jnp.arange(batch)[:, None], order],
        lengths=jnp.take_along_axis(_by_row(state.length, batch), order, axis=1),
        ended=jnp.take_along_axis(ended, order, axis=1),
        value=jnp.take_along_axis(value, order, axis=1),
        evaluations=evaluations,
    )


def worth(state: State) -> Float[Array, "*B"]:
    """The value head's estimate; 0 for a text that ran out of room."""
    return jnp.where(state.finished & ~state.ended, 0.0, state.value)


def _reading_no_more_of(places: Bool[Array, "*W"], state: State) -> State:
    """Marks texts as finished, so that they cost nothing; all are counted anew."""
    return dataclasses.replace(
        state,
        finished=state.finished | places.reshape(-1),
        evaluations=jnp.zeros_like(state.evaluations),
    )


def _take(state: State, index: Int[Array, "W"]) -> State:
    """Texts by number. They are paths after the prompts, which stay where they are: those of one
    prompt must go on following one another.
    """
    paths: PathCache = state.cache
    moving = dataclasses.replace(state, cache=(paths.layers, paths.length))
    taken = jax.tree.map(lambda x: x[index], moving)
    layers, length = taken.cache
    return dataclasses.replace(
        taken, cache=dataclasses.replace(paths, layers=layers, length=length)
    )


def _by_row(x: Array, batch: int) -> Array:
    """`[B * b, ...]` -> `[B, b, ...]`."""
    return x.reshape(batch, -1, *x.shape[1:])
