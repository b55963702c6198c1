"""Attention over explicit keys: scores, weights, sums of values. The linear form is in `kernels`.

Keys come in parts, each with the ages of its keys (`models.view`): those of the own lane, and what
the prefix holds as keys. One normaliser serves all parts.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import layers
from models.cache import KeyValues

# Keys and values of each lane [B, R, U, K, H] or shared by all [B, S, K, H]; ages [#B, #R, T, U].
Part = tuple[KeyValues, Array]
# (scores [B, R, K, G, T, S], ages [#B, #R, 1, 1, T, S]) -> weights, 0 where the age is negative.
WeightFn = Callable[[Array, Array], Array]
# (sum of w v [B, R, K, G, T, E], sum of w [B, R, K, G, T]); numbers add up over parts.
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
    total = jnp.maximum(sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights), 1e-30)
    out = sum(
        _mix(w / total, kv.value, query.dtype) for w, (kv, _) in zip(weights, parts, strict=True)
    )
    return join_heads(out).astype(query.dtype)


def weighted_sums(
    query: Float[Array, "B R T N H"], parts: Sequence[Part], weight_fn: WeightFn
) -> Sums:
    """The two sums over all parts that a division turns into attention, in float32."""
    numerator, denominator = 0.0, 0.0
    for key_values, age in parts:
        weights = weight_fn(_scores(query, key_values.key), _over_heads(age))
        numerator += _mix(weights, key_values.value, query.dtype)
        denominator += jnp.sum(weights, axis=-1)
    return numerator, denominator


# Heads first, [B, R, K, G, T, ...]: the G * T queries of a key/value head are rows of one matrix
# product, so grouped queries cost no copies of keys and values.


def split_heads(x: Float[Array, "B R T N H"], kv_heads: int) -> Float[Array, "B R K G T H"]:
    """N = K * G query heads as K groups, one per key/value head."""
    batch, lanes, length, num_heads, dim = x.shape
    grouped = x.reshape(batch, lanes, length, kv_heads, num_heads // kv_heads, dim)
    return grouped.transpose(0, 1, 3, 4, 2, 5)


def join_heads(x: Float[Array, "B R K G T H"]) -> Float[Array, "B R T N H"]:
    """The inverse of `split_heads`."""
    batch, lanes, kv_heads, group, length, dim = x.shape
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, lanes, length, kv_heads * group, dim)


def _over_heads(age):
    return age[:, :, None, None]


def _scores(query: Float[Array, "B R T N H"], key) -> Float[Array, "B R K G T S"]:
    """q . k / sqrt(H) in float32."""
    kv_heads, head_dim = key.shape[-2:]
    grouped = split_heads(query.astype(jnp.float32) * head_dim**-0.5, kv_heads)
    batch, lanes, _, group, length, _ = grouped.shape
    rows = grouped.reshape(batch, lanes, kv_heads, group * length, head_dim)
    scores = jnp.einsum(
        f"brkqh,{_axes(key)}->brkqu",
        rows,
        key.astype(jnp.float32),
        precision=layers.precision_of(query.dtype),
    )
    return scores.reshape(batch, lanes, kv_heads, group, length, -1)


def _mix(weights: Float[Array, "B R K G T S"], value, dtype) -> Float[Array, "B R K G T H"]:
    """Sums of values in float32; `dtype`, that of the layer, decides the precision."""
    batch, lanes, kv_heads, group, length, _ = weights.shape
    rows = weights.reshape(batch, lanes, kv_heads, group * length, -1)
    out = jnp.einsum(
        f"brkqu,{_axes(value)}->brkqh",
        rows,
        value.astype(jnp.float32),
        precision=layers.precision_of(dtype),
    )
    return out.reshape(batch, lanes, kv_heads, group, length, -1)


def _axes(keys) -> str:
    return "brukh" if keys.ndim == 5 else "bukh"
