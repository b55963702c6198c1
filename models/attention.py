"""The attention layer: new tokens of R lanes look at a shared prefix and at their own lane."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models import cache as caches
from models import layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How scores become weights.

    kind: "softmax", or "taylor": exp replaced by its polynomial of degree `order`.
    normalize_query_key: unit-length queries and keys with a learned temperature per head.
    """

    kind: Literal["softmax", "taylor"] = "softmax"
    order: int = 2
    normalize_query_key: bool = False


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
    *_, num_heads, head_dim = query.shape
    kv_heads = own.key.shape[-2]
    grouped = query.reshape(*query.shape[:3], kv_heads, num_heads // kv_heads, head_dim)
    grouped = grouped.astype(jnp.float32) * head_dim**-0.5

    scores = jnp.einsum("brtkgh,brukh->brkgtu", grouped, own.key.astype(jnp.float32))
    scores = jnp.where(own_mask[:, :, None, None], scores, -jnp.inf)
    if prefix is not None:
        before = jnp.einsum("brtkgh,bskh->brkgts", grouped, prefix.key.astype(jnp.float32))
        before = jnp.where(prefix_mask[:, None, None, None, None], before, -jnp.inf)
        scores = jnp.concatenate([before, scores], axis=-1)
    # A query that sees nothing (padding) gets zeros instead of NaN.
    peak = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(peak))
    weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)

    split = 0 if prefix is None else prefix.key.shape[1]
    out = jnp.einsum("brkgtu,brukh->brtkgh", weights[..., split:], own.value.astype(jnp.float32))
    if prefix is not None:
        seen = prefix.value.astype(jnp.float32)
        out += jnp.einsum("brkgts,bskh->brtkgh", weights[..., :split], seen)
    return out.reshape(query.shape).astype(query.dtype)


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
    ):
        """Returns (output [B, R, T, D], own keys and values).

        Own keys and values are those of the T new tokens, or, with a `lane`, the lane's buffer with
        the new ones written at `filled`; `own_mask` is over that same axis U.
        """
        heads, kv_heads, dim = self.num_heads, self.num_kv_heads, self.head_dim
        project = lambda n, axis, name: layers.dense(  # noqa: E731
            (n, dim), ("embed", axis, "head_dim"), self.dtype, name
        )
        query = project(heads, "heads", "query")(x)
        key = project(kv_heads, "kv_heads", "key")(x)
        value = project(kv_heads, "kv_heads", "value")(x)
        if self.config.normalize_query_key:
            query = layers.RMSNorm(name="query_norm")(query)
            key = layers.RMSNorm(name="key_norm")(key)
        query = layers.rotate(query, positions, self.rope_base)
        own = caches.KeyValues(key=layers.rotate(key, positions, self.rope_base), value=value)
        if lane is not None:
            own = jax.tree.map(
                lambda buffer, new: jax.lax.dynamic_update_slice_in_dim(buffer, new, filled, 2),
                lane,
                own,
            )
        out = softmax_attention(query, own, own_mask, prefix, prefix_mask)
        project_out = layers.dense(
            (x.shape[-1],), ("heads", "head_dim", "embed"), self.dtype, "out", axis=(-2, -1)
        )
        return project_out(out), own
