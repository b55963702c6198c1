"""The attention layer: new tokens of R lanes look at a shared prefix and at their own lane."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kernels import taylor_attention as taylor
from models import cache as caches
from models import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How scores become weights."""

    kind: Literal["softmax", "taylor"] = "softmax"
    """Weights by "softmax", or by "taylor": exp replaced by a polynomial of degree `order`."""
    order: int = 2
    """Degree of the polynomial, 0 to 8."""
    coefficients: Literal["taylor", "minimax"] = "taylor"
    """The polynomial: "taylor", or "minimax", the best fit to exp for scores up to |radius|."""
    normalize_query_key: bool = False
    """Unit-length queries and keys with a learned temperature per head."""
    radius: float | None = None
    """Upper bound of the temperature, and so of |score|, with normalize_query_key. Odd orders need
    one below the root of their polynomial, where weights turn negative."""

    def __post_init__(self):
        if self.radius is not None and not (self.normalize_query_key and self.radius > 0):
            raise ValueError(
                "a radius bounds the temperature of normalised queries and must be positive; got "
                f"radius={self.radius}, normalize_query_key={self.normalize_query_key}. "
                "Set normalize_query_key=True or leave radius out."
            )
        if self.kind == "softmax":
            return
        if self.coefficients == "minimax" and self.radius is None:
            raise ValueError(
                "minimax coefficients fit exp on a bounded range of scores; got radius=None. "
                "Set normalize_query_key=True and a radius, such as 2.0."
            )
        # 2%: queries and keys rounded to bfloat16 may be that much longer than 1.
        largest = 0.98 * taylor.positive_radius(self.polynomial)
        if largest < (math.inf if self.radius is None else self.radius):
            raise ValueError(
                f"order {self.order} gives negative weights to scores below {-largest:.3f}; got "
                f"normalize_query_key={self.normalize_query_key}, radius={self.radius}. Use an "
                f"even order, or normalize_query_key=True with a radius up to {largest:.3f}."
            )

    @property
    def polynomial(self) -> np.ndarray:
        """[order+1] coefficients of the weight w(score), lowest degree first."""
        if self.coefficients == "minimax":
            assert self.radius is not None
            return taylor.minimax_coefficients(self.order, self.radius)
        return taylor.taylor_coefficients(self.order)


def softmax_attention(
    query: Float[Array, "B R T N H"],
    own: caches.KeyValues,
    own_mask: Bool[Array, "#B #R T U"],
    prefix: caches.KeyValues | None = None,
    prefix_mask: Bool[Array, "B S"] | None = None,
) -> Float[Array, "B R T N H"]:
    """Scaled dot-product attention over `[prefix, own lane]` with one softmax.

    `own`: `[B, R, U, K, H]`, `prefix`: `[B, S, K, H]` seen by all R lanes; masks are True where a
    query may look. K key/value heads serve N = K * G query heads. Scores and sums run in float32.
    """
    scores = _scores(query, own.key, own_mask)
    if prefix is not None:
        assert prefix_mask is not None
        seen = _scores(query, prefix.key, prefix_mask[:, None, None])
        scores = jnp.concatenate([seen, scores], axis=-1)
    # A query that sees nothing (padding) gets zeros instead of NaN.
    peak = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(peak))
    weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)

    split = 0 if prefix is None else prefix.key.shape[1]
    out = _mix(weights[..., split:], own.value)
    if prefix is not None:
        out += _mix(weights[..., :split], prefix.value)
    return _join_heads(out).astype(query.dtype)


def polynomial_attention(
    query: Float[Array, "B R T N H"],
    own: caches.KeyValues,
    own_mask: Bool[Array, "#B #R T U"],
    prefix: caches.KeyValues | taylor.TaylorState | None = None,
    prefix_mask: Bool[Array, "B S"] | None = None,
    *,
    coefficients: np.ndarray,
) -> Float[Array, "B R T N H"]:
    """As `softmax_attention` with a polynomial for exp; the prefix may also be a Taylor state.

    The parts are added before the division: one normaliser for prefix and own lane.
    """
    weights = _polynomial_weights(_scores(query, own.key, own_mask), coefficients)
    out, total = _mix(weights, own.value), jnp.sum(weights, axis=-1)
    if isinstance(prefix, taylor.TaylorState):
        batch, lanes, length, num_heads, head_dim = query.shape
        flat = query.reshape(batch, lanes * length, num_heads, head_dim)
        past, past_total = taylor.query_state(flat, prefix, coefficients=coefficients)
        out += _split_heads(past.reshape(query.shape), out.shape[2])
        past_total = past_total.reshape(*query.shape[:-1], 1)
        total += _split_heads(past_total, out.shape[2])[..., 0]
    elif prefix is not None:
        assert prefix_mask is not None
        seen = _scores(query, prefix.key, prefix_mask[:, None, None])
        weights = _polynomial_weights(seen, coefficients)
        out, total = out + _mix(weights, prefix.value), total + jnp.sum(weights, axis=-1)
    return _join_heads(out / total[..., None]).astype(query.dtype)


# Heads first, [B, R, K, G, T, ...]: the G * T queries of a key/value head are rows of one matrix
# product, so grouped queries cost no copies of keys and values.


def _split_heads(x: Float[Array, "B R T N H"], kv_heads: int) -> Float[Array, "B R K G T H"]:
    batch, lanes, length, num_heads, dim = x.shape
    grouped = x.reshape(batch, lanes, length, kv_heads, num_heads // kv_heads, dim)
    return grouped.transpose(0, 1, 3, 4, 2, 5)


def _join_heads(x: Float[Array, "B R K G T H"]) -> Float[Array, "B R T N H"]:
    batch, lanes, kv_heads, group, length, dim = x.shape
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, lanes, length, kv_heads * group, dim)


def _scores(query, key, mask) -> Float[Array, "B R K G T S"]:
    """q . k / sqrt(H) in float32, -inf where the mask is False. Keys: `[B, R, U, K, H]` of each
    lane with a mask `[B, R, T, U]`, or `[B, S, K, H]` shared by all with a mask `[B, 1, 1, S]`.
    """
    kv_heads, head_dim = key.shape[-2:]
    grouped = _split_heads(query.astype(jnp.float32) * head_dim**-0.5, kv_heads)
    batch, lanes, _, group, length, _ = grouped.shape
    rows = grouped.reshape(batch, lanes, kv_heads, group * length, head_dim)
    keys = "brukh" if key.ndim == 5 else "bukh"
    scores = jnp.einsum(f"brkqh,{keys}->brkqu", rows, key.astype(jnp.float32))
    scores = scores.reshape(batch, lanes, kv_heads, group, length, -1)
    return jnp.where(mask[:, :, None, None], scores, -jnp.inf)


def _mix(weights: Float[Array, "B R K G T S"], value) -> Float[Array, "B R K G T H"]:
    """Sums of values, `[B, R, U, K, H]` of each lane or `[B, S, K, H]` shared by all."""
    batch, lanes, kv_heads, group, length, _ = weights.shape
    rows = weights.reshape(batch, lanes, kv_heads, group * length, -1)
    values = "brukh" if value.ndim == 5 else "bukh"
    out = jnp.einsum(f"brkqu,{values}->brkqh", rows, value.astype(jnp.float32))
    return out.reshape(batch, lanes, kv_heads, group, length, -1)


def _polynomial_weights(scores: Float[Array, "*B S"], coefficients) -> Float[Array, "*B S"]:
    visible = scores > -jnp.inf
    return jnp.where(visible, taylor.polynomial(jnp.where(visible, scores, 0.0), coefficients), 0.0)


def unit_length(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """x / |x| along the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    squared = jnp.sum(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(squared + 1e-12)).astype(x.dtype)


class Attention(nn.Module):
    """Projections, rotary positions and one of the two kinds of weights; no biases."""

    config: AttentionConfig
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_base: float
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B R T D"],
        positions: Int[Array, "B R T"],
        own_mask: Bool[Array, "#B #R T U"],
        prefix=None,
        prefix_mask: Bool[Array, "B S"] | None = None,
        lane: caches.KeyValues | None = None,
        filled: Int[Array, ""] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
    ):
        """Returns (output [B, R, T, D], own keys and values).

        Own keys and values are those of the T new tokens, or, with a `lane`, the lane's buffer with
        the new ones written at `filled`; `own_mask` is over that same axis U. Without a lane the
        mask is causal, within segments where `segment_ids` are given.
        """
        heads, kv_heads, dim = self.num_heads, self.num_kv_heads, self.head_dim
        project = lambda n, axis, name: layers.dense(  # noqa: E731
            (n, dim), ("embed", axis, "head_dim"), self.dtype, name
        )
        query = project(heads, "heads", "query")(x)
        key = project(kv_heads, "kv_heads", "key")(x)
        value = project(kv_heads, "kv_heads", "value")(x)
        if self.config.normalize_query_key:
            query, key = self._normalize(query), unit_length(key)
        query = layers.rotate(query, positions, self.rope_base)
        own = caches.KeyValues(key=layers.rotate(key, positions, self.rope_base), value=value)
        if lane is not None:
            assert filled is not None
            own = jax.tree.map(
                lambda buffer, new: jax.lax.dynamic_update_slice_in_dim(buffer, new, filled, 2),
                lane,
                own,
            )
        if self.config.kind == "softmax":
            out = softmax_attention(query, own, own_mask, prefix, prefix_mask)
        elif lane is None and x.shape[1] == 1 and not isinstance(prefix, caches.KeyValues):
            out = taylor.taylor_attention(  # one lane after nothing or a state: linear in T
                *(z[:, 0] for z in (query, own.key, own.value)),
                coefficients=self.config.polynomial,
                segment_ids=segment_ids,
                initial_state=prefix,
            )[:, None]
        else:
            out = polynomial_attention(
                query, own, own_mask, prefix, prefix_mask, coefficients=self.config.polynomial
            )
        project_out = layers.dense(
            (x.shape[-1],), ("heads", "head_dim", "embed"), self.dtype, "out", axis=(-2, -1)
        )
        return project_out(out), own

    def _normalize(self, query: Float[Array, "*B N H"]) -> Float[Array, "*B N H"]:
        """Unit length times the temperature: score = temperature * cosine."""
        per_head = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads",))
        raw_N = self.param("temperature", per_head, (self.num_heads,))
        root = math.sqrt(self.head_dim)
        if self.config.radius is None:
            temperature_N = root * jnp.exp(raw_N)
        else:
            temperature_N = self.config.radius * jax.nn.sigmoid(raw_N + 2.0)  # starts at 88%
        # Attention divides the score by the root of the head's width.
        scale = (root * temperature_N)[:, None]
        return (unit_length(query.astype(jnp.float32)) * scale).astype(query.dtype)
