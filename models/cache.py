"""What a model remembers: a prefix that many lanes may share, and the short lanes themselves.

    prefix  one per batch row   keys and values [B, S, K, H] (softmax), or a Taylor state
    lanes   R per batch row     keys and values [B, R, U, K, H] of the tokens after the prefix

A whole sequence is one lane without a prefix; decoding a token appends to the prefix; a search
that weighs R continuations of one text opens R lanes over one prefix. Every leaf has the batch
axis first, so a cache can be indexed, gathered and stored per tree node like any other array.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from kernels import taylor_attention as taylor

# A field of a state: an array, or what stands for one inside JAX's transformations. Shapes are in
# the docstring of each state.
Leaf = Any


@struct.dataclass
class KeyValues:
    """Rotated keys and values, `[B, S, K, H]` in a prefix, `[B, R, U, K, H]` in lanes."""

    key: Leaf
    value: Leaf


@struct.dataclass
class Cache:
    """Prefix of a ragged batch. `layers`: one `KeyValues` or Taylor state per layer; `length`: [B]
    tokens seen. Slots at or beyond `length` hold rubbish that no query may see.
    """

    layers: tuple
    length: Leaf


@struct.dataclass
class Lanes:
    """R continuations per row. `layers`: `KeyValues` `[B, R, U, K, H]` per layer; `filled`: tokens
    written so far in every lane (a scalar: lanes advance in lock-step).
    """

    layers: tuple
    filled: Leaf


def append(
    past: KeyValues | taylor.TaylorState,
    new: KeyValues,
    length: Int[Array, "B"],
    num_new: Int[Array, "B"],
) -> KeyValues | taylor.TaylorState:
    """Adds new `[B, T, K, H]` to a prefix, of which `num_new` per row are text and not padding.

    Keys and values are written at slots `length .. length + T` of each row (padding is hidden by
    the length); slots beyond the capacity are dropped, never clamped onto older ones.
    """
    if isinstance(past, taylor.TaylorState):
        is_text = jnp.arange(new.key.shape[1]) < num_new[:, None]
        return taylor.fold(past, new.key, new.value, is_text)

    def write(buffer, update, start):
        slots = start + jnp.arange(update.shape[0])
        return buffer.at[slots].set(update, mode="drop")

    return jax.tree.map(lambda b, u: jax.vmap(write)(b, u, length), past, new)


def reorder(lanes: Lanes, parents: Int[Array, "B R"]) -> Lanes:
    """Lane r continues what lane `parents[:, r]` held: the gather of a beam search."""
    pick = jax.vmap(lambda buffer, parent: buffer[parent])
    return dataclasses.replace(lanes, layers=jax.tree.map(lambda x: pick(x, parents), lanes.layers))
