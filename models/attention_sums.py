"""Attention over explicit keys: scores, weights, sums of values. The linear form is in `kernels`.

Keys come in parts, each with the ages of its keys (`models.view`): those of the own lane, of the
path before it, and what the prefix holds as keys. One normaliser serves all parts.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import layers
from models.cache import KeyValues
from models.view import View

# Keys and values [B, W, U, K, H], each of the W for R / W lanes that follow one another (W = 1: for
# all). Ages [#B, #R, T, U].
Part = tuple[KeyValues, Array]
# (scores [B, R, K, G, T, S], ages [#B, #R, 1, 1, T, S]) -> weights, 0 where the age is negative.
WeightFn = Callable[[Array, Array], Array]
# (sum of w v [B, R, T, N, E], sum of w [B, R, T, N]) in float32: they add up over parts, and their
# ratio is attention.
Sums = tuple[Array, Array]


def softmax_attention(
    query: Float[Array, "B R T N H"], parts: Sequence[Part]
) -> Float[Array, "B R T N H"]:
    """Scaled dot-product attention over all parts with one softmax, in float32."""
    scores = [
        jnp.where(_over_heads(age) < 0, -jnp.inf, _scores(query, kv.key)) for kv, age in parts
    ]
    # A query that sees nothing (padding) gets zeros instead of NaN.
    peaks = [jnp.max(x, axis=-1, keepdims=True, initial=-1e30) for x in scores]
    peak = jax.lax.stop_gradient(jnp.max(jnp.stack(peaks), axis=0))
    weights = [jnp.exp(x - peak) for x in scores]
    total = _add([jnp.sum(w, axis=-1, keepdims=True) for w in weights])
    total = jnp.maximum(total, 1e-30)
    out = [
        _mix(w / total, kv.value, query.dtype) for w, (kv, _) in zip(weights, parts, strict=True)
    ]
    return _join_heads(_add(out)).astype(query.dtype)


def weighted_sums(query: Float[Array, "B R T N H"], part: Part, weight_fn: WeightFn) -> Sums:
    """The sums over one part."""
    key_values, age = part
    weights = weight_fn(_scores(query, key_values.key), _over_heads(age))
    numerator = _mix(weights, key_values.value, query.dtype)
    denominator = jnp.sum(weights, axis=-1, keepdims=True)
    return _join_heads(numerator), _join_heads(denominator)[..., 0]


def divide(terms: Sequence[Sums]) -> Float[Array, "B R T N E"]:
    """Attention from the sums of all parts: added up first, so they share one normaliser."""
    numerators, denominators = zip(*terms, strict=True)
    return _add(numerators) / _add(denominators)[..., None]


def blocks_of_window(
    query: Float[Array, "B 1 T N H"],
    own: KeyValues,
    recent: KeyValues | None,
    view: View,
    window_tokens: int,
) -> tuple[Float[Array, "B M C N H"], Part]:
    """Cuts a lane into M blocks of C queries, each with the keys of itself and of the window before
    it. Blocks stand where lanes do; together they cost O(T).

    recent: keys and values of the last `window_tokens` tokens of the prefix, if there is one.
    """
    length = query.shape[2]
    window = min(window_tokens, length) if recent is None else window_tokens
    block = min(window, length)
    num_blocks = -(-length // block)

    def cut(x, earlier=None):
        """[B, T, ...] -> [B, M, C, ...] and, with those before them, [B, M, window + C, ...]."""
        x = jnp.pad(x, [(0, 0), (0, num_blocks * block - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
        if earlier is None:
            earlier = jnp.zeros((x.shape[0], window, *x.shape[2:]), x.dtype)
        earlier = jnp.concatenate([earlier, x], axis=1)[:, : num_blocks * window]
        earlier = earlier.reshape(x.shape[0], num_blocks, window, *x.shape[2:])
        x = x.reshape(x.shape[0], num_blocks, block, *x.shape[2:])
        return x, jnp.concatenate([earlier, x], axis=2)

    token, key_token = cut(jnp.arange(num_blocks * block)[None], jnp.arange(-window, 0)[None])
    first = 0 if view.prefix_length is None else -view.prefix_length[:, None, None, None]
    age = token[..., None] - key_token[..., None, :]
    visible = key_token[..., None, :] >= first
    if view.segment_ids is not None:
        segment, key_segment = cut(view.segment_ids)
        visible = visible & (segment[..., None] == key_segment[..., None, :])
    keys = KeyValues(
        key=cut(own.key[:, 0], None if recent is None else recent.key)[1],
        value=cut(own.value[:, 0], None if recent is None else recent.value)[1],
    )
    return cut(query[:, 0])[0], (keys, jnp.where(visible, age, -1))


def join_blocks(sums: Sums, length: int) -> Sums:
    """The sums of blocks as those of the lane of `length` tokens they were cut from."""
    numerator, denominator = (
        x.reshape(x.shape[0], 1, -1, *x.shape[3:])[:, :, :length] for x in sums
    )
    return numerator, denominator


# Heads first, [B, R, K, G, T, ...]: the G * T queries of a key/value head are rows of one matrix
# product, so grouped queries cost no copies of keys and values.


def _split_heads(x: Float[Array, "B R T N H"], kv_heads: int) -> Float[Array, "B R K G T H"]:
    """N = K * G query heads as K groups, one per key/value head."""
    batch, lanes, length, num_heads, dim = x.shape
    grouped = x.reshape(batch, lanes, length, kv_heads, num_heads // kv_heads, dim)
    return grouped.transpose(0, 1, 3, 4, 2, 5)


def _join_heads(x: Float[Array, "B R K G T H"]) -> Float[Array, "B R T N H"]:
    """The inverse of `_split_heads`."""
    batch, lanes, kv_heads, group, length, dim = x.shape
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, lanes, length, kv_heads * group, dim)


def _add(terms: Sequence[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _over_heads(age):
    return age[:, :, None, None]


def _scores(query: Float[Array, "B R T N H"], key) -> Float[Array, "B R K G T S"]:
    """q . k / sqrt(H) in float32."""
    sharing, (kv_heads, head_dim) = key.shape[1], key.shape[-2:]
    grouped = _split_heads(query.astype(jnp.float32) * head_dim**-0.5, kv_heads)
    batch, lanes, _, group, length, _ = grouped.shape
    rows = grouped.reshape(batch, sharing, -1, kv_heads, group * length, head_dim)
    scores = jnp.einsum(
        "bwrkqh,bwukh->bwrkqu",
        rows,
        key.astype(jnp.float32),
        precision=layers.precision_of(query.dtype),
    )
    return scores.reshape(batch, lanes, kv_heads, group, length, -1)


def _mix(weights: Float[Array, "B R K G T S"], value, dtype) -> Float[Array, "B R K G T H"]:
    """Sums of values in float32; `dtype`, that of the layer, decides the precision."""
    batch, lanes, kv_heads, group, length, num_keys = weights.shape
    rows = weights.reshape(batch, value.shape[1], -1, kv_heads, group * length, num_keys)
    out = jnp.einsum(
        "bwrkqu,bwukh->bwrkqh",
        rows,
        value.astype(jnp.float32),
        precision=layers.precision_of(dtype),
    )
    return out.reshape(batch, lanes, kv_heads, group, length, -1)
