"""What a model remembers: a prefix that many lanes may share, and the short lanes themselves.

    prefix  one per batch row   keys and values [B, S, K, H] (softmax), or a Taylor state
    paths   W per batch row     keys and values [B * W, U, K, H] of the tokens after the prefix
    lanes   R per batch row     keys and values [B, R, U, K, H] of the tokens after those

A whole sequence is one lane without a prefix; decoding a token appends to the prefix; a search
that weighs R continuations of one text opens R lanes over one prefix. Texts that have a prefix in
common, as the nodes of a tree, are paths after it. Every leaf has the batch axis first, so a cache
can be indexed and gathered like any other array.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Int

from kernels import taylor_attention as taylor

# A field of a state: an array, or what stands for one inside JAX's transformations. Shapes are in
# the docstring of each state.
Leaf = Any


@struct.dataclass
class KeyValues:
    """Rotated keys and values, `[B, S, K, H]` in a prefix, `[B, R, U, K, H]` in lanes and paths."""

    key: Leaf
    value: Leaf


@struct.dataclass
class LaneLayer:
    """What a layer keeps of the tokens of R lanes, and returns of the tokens it reads.

    inputs: query, key and value before the short convolution, `[B, R, U, N or K, H]` each; empty in
    a layer without one.
    """

    key_values: KeyValues
    inputs: tuple = ()


@struct.dataclass
class PrefixLayer:
    """What a layer keeps of a prefix.

    past: keys and values of all tokens, or the Taylor state after the last one.
    window: beside a state, keys and values of the last tokens, `[B, window_tokens, K, H]`.
    inputs: of the last tokens, `[B, short_conv_width - 1, N or K, H]` each. Like the window they
    end with the last token of each row, and begin with zeros in rows that have fewer.
    path: of the tokens between the prefix and the lanes, `[B, W, U, ...]`, the same for R / W lanes
    that follow one another; None without paths.
    """

    past: KeyValues | taylor.TaylorState
    window: KeyValues | None = None
    inputs: tuple = ()
    path: LaneLayer | None = None

    def inputs_before_lanes(self, path_length: Int[Array, "B W"] | None) -> tuple:
        """Those of the last tokens of prefix and path, `[B, W or 1, short_conv_width - 1, ...]`."""
        if self.path is None or path_length is None:
            return jax.tree.map(lambda x: x[:, None], self.inputs)
        after = jax.vmap(latest, in_axes=(None, 1, 1), out_axes=1)
        return after(self.inputs, self.path.inputs, path_length)


@struct.dataclass
class Cache:
    """Prefix of a ragged batch. `layers`: one `PrefixLayer` per layer; `length`: [B] tokens seen.
    Slots at or beyond `length` hold rubbish that no query may see.
    """

    layers: tuple
    length: Leaf

    @property
    def layers_before_lanes(self) -> tuple:
        return self.layers


@struct.dataclass
class PathCache:
    """W texts after each row of a prefix, B * W in all: those of one prefix follow one another.

    prefix: of B rows. layers: one `LaneLayer` per layer with `[B * W, U, ...]`, the n-th token
    after the prefix at n. length: `[B * W]` tokens after the prefix; the slots beyond hold rubbish.
    """

    prefix: Cache
    layers: tuple
    length: Leaf

    @property
    def length_of_prefix(self) -> Int[Array, "B W"]:
        return self.length.reshape(self.prefix.length.shape[0], -1)

    @property
    def layers_of_prefix(self) -> tuple:
        """`[B, W, U, ...]` per layer."""
        shape = self.length_of_prefix.shape
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), self.layers)

    @property
    def layers_before_lanes(self) -> tuple:
        """What each layer sees before lanes that go on from the paths."""
        both = zip(self.prefix.layers, self.layers_of_prefix, strict=True)
        return tuple(dataclasses.replace(prefix, path=path) for prefix, path in both)


@struct.dataclass
class Lanes:
    """R continuations per row. `layers`: one `LaneLayer` per layer; `filled`: tokens written so far
    in every lane (a scalar: lanes advance in lock-step).
    """

    layers: tuple
    filled: Leaf


def append(
    layer: PrefixLayer,
    new: LaneLayer,
    length: Int[Array, "B"],
    num_new: Int[Array, "B"],
    log_decay: np.ndarray | None = None,
) -> PrefixLayer:
    """Adds the tokens of one lane, [B, 1, T, ...], of which `num_new` per row are text, no padding.

    Keys and values are written at slots `length .. length + T` of each row (padding is hidden by
    the length); slots beyond the capacity are dropped, never clamped onto older ones.

    log_decay: [K], of a state.
    """
    new = jax.tree.map(lambda x: x[:, 0], new)
    key_values = new.key_values
    past: KeyValues | taylor.TaylorState
    if isinstance(layer.past, taylor.TaylorState):
        is_text = jnp.arange(key_values.key.shape[1]) < num_new[:, None]
        past = taylor.fold(
            layer.past, key_values.key, key_values.value, is_text, log_decay=log_decay
        )
    else:
        past = jax.tree.map(
            lambda buffer, update: jax.vmap(_write)(buffer, update, length), layer.past, key_values
        )
    return PrefixLayer(
        past=past,
        window=layer.window and latest(layer.window, key_values, num_new),
        inputs=latest(layer.inputs, new.inputs, num_new),
    )


def latest(kept, new, num_new: Int[Array, "B"]):
    """The last W tokens of each row: of `kept` [B, W, ...], then `num_new` of `new` [B, T, ...]."""

    def one(kept, new):
        index = num_new[:, None] + jnp.arange(kept.shape[1])
        every = jnp.concatenate([kept, new], axis=1)
        return jnp.take_along_axis(every, index.reshape(*index.shape, *[1] * (new.ndim - 2)), 1)

    return jax.tree.map(one, kept, new)


def write_lanes(lane, new, filled: Int[Array, ""] | Int[Array, "B R"]):
    """Puts the new tokens `[B, R, T, ...]` at slots `filled ..` of all lanes, or of each lane; then
    what does not fit is dropped.
    """
    write = _write_lanes if filled.ndim == 0 else jax.vmap(jax.vmap(_write))
    return jax.tree.map(lambda buffer, update: write(buffer, update, filled), lane, new)


def reorder(lanes: Lanes, parents: Int[Array, "B R"]) -> Lanes:
    """Lane r continues what lane `parents[:, r]` held: the gather of a beam search."""
    pick = jax.vmap(lambda buffer, parent: buffer[parent])
    return dataclasses.replace(lanes, layers=jax.tree.map(lambda x: pick(x, parents), lanes.layers))


def _write(buffer, update, start):
    slots = start + jnp.arange(update.shape[0])
    return buffer.at[slots].set(update, mode="drop")


def _write_lanes(buffer, update, start):
    return jax.lax.dynamic_update_slice_in_dim(buffer, update, start, 2)
