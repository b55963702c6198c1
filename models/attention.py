"""The attention layer: new tokens of R lanes look at a shared prefix and at their own lane."""

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels import taylor_attention as taylor
from models import attention_sums as sums
from models import cache as caches
from models import layers
from models.short_convolution import ShortConvolution
from models.view import View


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
    short_conv_width: int = 0
    """Tokens that a short causal convolution on queries, keys and values mixes (4 is usual); 0:
    none. Induction and recall want it."""
    normalize_output: bool = False
    """RMSNorm of every head's output (RetNet, arXiv:2307.08621). Weights that are never near 0, as
    those of low orders, spread over a long text, and what was sought becomes a small part of the
    sum; this makes its direction count and not its size."""

    def __post_init__(self):
        if self.radius is not None and not (self.normalize_query_key and self.radius > 0):
            raise ValueError(
                "a radius bounds the temperature of normalised queries and must be positive; got "
                f"radius={self.radius}, normalize_query_key={self.normalize_query_key}. "
                "Set normalize_query_key=True or leave radius out."
            )
        if self.short_conv_width == 1 or self.short_conv_width < 0:
            raise ValueError(
                "a short convolution mixes at least 2 tokens, 0 means none; got "
                f"short_conv_width={self.short_conv_width}. The usual width is 4."
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
    rope_base: float | None
    dtype: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B R T D"],
        view: View,
        prefix: caches.PrefixLayer | None = None,
        lane: caches.LaneLayer | None = None,
    ) -> tuple[Float[Array, "B R T D"], caches.LaneLayer]:
        """Returns the output and what to keep of the lanes: of the T new tokens, or, with a `lane`,
        its buffers with the new tokens written at `view.filled`.
        """
        query, key, value, inputs = self._projections(x, view, prefix, lane)
        if self.config.normalize_query_key:
            query, key = self._normalize(query), unit_length(key)
        query = layers.rotate(query, view.positions, self.rope_base)
        key = layers.rotate(key, view.positions, self.rope_base)
        own = caches.KeyValues(key=key, value=value)
        if lane is not None:
            own = caches.write_lanes(lane.key_values, own, view.filled)
        out = self._attend(query, own, view, prefix, begins=lane is None)
        if self.config.normalize_output:
            out = layers.RMSNorm(epsilon=1e-12, name="output_norm")(out)  # of any size
        project_out = layers.dense(
            (x.shape[-1],), ("heads", "head_dim", "embed"), self.dtype, "out", axis=(-2, -1)
        )
        return project_out(out), caches.LaneLayer(key_values=own, inputs=inputs)

    def _projections(self, x, view, prefix, lane):
        """Query, key and value, and the inputs of the short convolution to keep."""
        width = self.config.short_conv_width
        sizes = {"query": self.num_heads, "key": self.num_kv_heads, "value": self.num_kv_heads}
        projected, inputs = [], []
        for i, (name, size) in enumerate(sizes.items()):
            axis = "heads" if name == "query" else "kv_heads"
            project = layers.dense(
                (size, self.head_dim), ("embed", axis, "head_dim"), self.dtype, name
            )
            y = project(x)
            if width:
                mix = ShortConvolution(width, axis, name=f"{name}_convolution")
                before = None if prefix is None else prefix.inputs[i]
                y, kept = mix(y, view, before, None if lane is None else lane.inputs[i])
                inputs.append(kept)
            projected.append(y)
        return *projected, tuple(inputs)

    def _attend(self, query, own, view, prefix, begins) -> Float[Array, "B R T N H"]:
        """Attention by the form that suits: keys of a prefix, of a lane, or sums in linear time."""
        parts = [(own, view.age)]
        state = None if prefix is None else prefix.past
        if isinstance(state, caches.KeyValues):
            slots = jnp.arange(state.key.shape[1])[None]
            parts, state = [(state, view.age_in_prefix(slots)), *parts], None
        if self.config.kind == "softmax":
            return sums.softmax_attention(query, parts)
        if begins and len(parts) == 1 and query.shape[1] == 1:
            return taylor.taylor_attention(  # one lane after nothing or a state: linear in T
                *(z[:, 0] for z in (query, own.key, own.value)),
                coefficients=self.config.polynomial,
                segment_ids=view.segment_ids,
                initial_state=state,
            )[:, None]
        numerator, denominator = sums.weighted_sums(query, parts, self._weights)
        if state is not None:
            past, past_total = self._read_state(query, state)
            numerator, denominator = numerator + past, denominator + past_total
        return sums.join_heads(numerator / denominator[..., None]).astype(query.dtype)

    def _weights(self, scores, age):
        """The weight of a score, 0 for a hidden key."""
        return jnp.where(age < 0, 0.0, taylor.polynomial(scores, self.config.polynomial))

    def _read_state(self, query, state: taylor.TaylorState) -> sums.Sums:
        """The sums over a prefix that is a state."""
        batch, lanes, length, num_heads, head_dim = query.shape
        flat = query.reshape(batch, lanes * length, num_heads, head_dim)
        past, past_total = taylor.query_state(flat, state, coefficients=self.config.polynomial)
        past_total = past_total.reshape(*query.shape[:-1], 1)
        kv_heads = self.num_kv_heads
        return (
            sums.split_heads(past.reshape(query.shape), kv_heads),
            sums.split_heads(past_total, kv_heads)[..., 0],
        )

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
