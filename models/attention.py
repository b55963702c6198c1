"""The attention layer: new tokens of R lanes look at a prefix, a path and their own lane."""

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

MAX_WINDOW_RADIUS = 16.0  # the sums of a window hold exp(score), and gradients its square


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
    learn_temperature: bool = True
    """Whether the temperature is learned, from 88% of the radius on; False: it is the radius, which
    gives a low order the largest contrast that it can have."""
    short_conv_width: int = 0
    """Tokens that a short causal convolution on queries, keys and values mixes (4 is usual); 0:
    none. Induction and recall want it."""
    normalize_output: bool = False
    """RMSNorm of every head's output (RetNet, arXiv:2307.08621). Weights that are never near 0, as
    those of low orders, spread over a long text, and what was sought becomes a small part of the
    sum; this makes its direction count and not its size."""
    window_tokens: int = 0
    """Keys fewer tokens old than this get the weights of softmax; 0: no window. Older ones: none
    with "softmax", those of the polynomial with "taylor", under one normaliser; this needs
    normalize_query_key and a radius."""
    decay: bool = False
    """Weights of "taylor" shrink by the factor 1 - 2^(-5 - h) per token in key/value head h."""

    def __post_init__(self):
        if self.radius is not None and not (self.normalize_query_key and self.radius > 0):
            raise ValueError(
                "a radius bounds the temperature of normalised queries and must be positive; got "
                f"radius={self.radius}, normalize_query_key={self.normalize_query_key}. "
                "Set normalize_query_key=True or leave radius out."
            )
        if not self.learn_temperature and self.radius is None:
            raise ValueError(
                "a temperature that is not learned is the radius; got learn_temperature=False, "
                "radius=None. Set a radius with normalize_query_key=True."
            )
        if self.short_conv_width == 1 or self.short_conv_width < 0:
            raise ValueError(
                "a short convolution mixes at least 2 tokens, 0 means none; got "
                f"short_conv_width={self.short_conv_width}. The usual width is 4."
            )
        if self.window_tokens < 0:
            raise ValueError(
                f"a window has a number of tokens, 0 means none; got {self.window_tokens=}."
            )
        if self.kind == "softmax":
            if self.decay:
                raise ValueError(
                    'decay belongs to kind="taylor"; got kind="softmax", decay=True. '
                    "Leave decay out."
                )
            return
        if self.window_tokens and not (self.radius or math.inf) <= MAX_WINDOW_RADIUS:
            raise ValueError(
                "a window beside a polynomial takes exp of scores without shifting them, so they "
                f"must be bounded; got normalize_query_key={self.normalize_query_key}, "
                f"radius={self.radius}. Set normalize_query_key=True and a radius of at most "
                f"{MAX_WINDOW_RADIUS}, such as 2.0."
            )
        if self.coefficients == "minimax" and self.radius is None:
            raise ValueError(
                "minimax coefficients fit exp on a bounded range of scores; got radius=None. "
                "Set normalize_query_key=True and a radius, such as 2.0."
            )
        self.check_weights_are_positive("float32")

    def check_weights_are_positive(self, dtype: str) -> None:
        """Refuses scores of negative weight, where queries and keys are rounded to `dtype`."""
        if self.kind == "softmax":
            return
        # Rounded to bfloat16, queries and keys may be 2% longer than 1.
        margin = 1e-3 if dtype == "float32" else 0.02
        largest = (1 - margin) * taylor.positive_radius(self.polynomial)
        if largest < (math.inf if self.radius is None else self.radius):
            raise ValueError(
                f"order {self.order} gives negative weights to scores below {-largest:.3f} in "
                f"{dtype}; got normalize_query_key={self.normalize_query_key}, "
                f"radius={self.radius}. Use an even order, or normalize_query_key=True with a "
                f"radius up to {largest:.3f}."
            )

    def log_decay(self, num_kv_heads: int) -> np.ndarray | None:
        """[K] logarithm of the decay per token; None without. RetNet, arXiv:2307.08621, eq. 8."""
        if not self.decay:
            return None
        return np.log1p(-(2.0 ** (-5.0 - np.arange(num_kv_heads))))

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


def _of_all_lanes(shared: caches.KeyValues) -> caches.KeyValues:
    """[B, S, K, H] -> [B, 1, S, K, H]."""
    return jax.tree.map(lambda x: x[:, None], shared)


class Attention(nn.Module):
    """Projections, rotary positions and one of the two kinds of weights."""

    config: AttentionConfig
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_base: float | None
    dtype: str
    rotary_fraction: float = 1.0
    rope_scaling: layers.RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm_epsilon: float | None = None  # None: queries and keys are not normalised

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
        if (epsilon := self.qk_norm_epsilon) is not None:
            query = layers.RMSNorm(epsilon, name="query_norm")(query)
            key = layers.RMSNorm(epsilon, name="key_norm")(key)
        if self.config.normalize_query_key:
            query, key = self._normalize(query), unit_length(key)
        query, key = (
            layers.rotate(
                x,
                view.positions,
                self.rope_base,
                fraction=self.rotary_fraction,
                scaling=self.rope_scaling,
            )
            for x in (query, key)
        )
        own = caches.KeyValues(key=key, value=value)
        if lane is not None:
            own = caches.write_lanes(lane.key_values, own, view.filled)
        out = self._attend(query, own, view, prefix, begins=lane is None)
        if self.config.normalize_output:
            out = layers.RMSNorm(epsilon=1e-12, name="output_norm")(out)  # of any size
        project_out = layers.dense(
            (x.shape[-1],),
            ("heads", "head_dim", "embed"),
            self.dtype,
            "out",
            axis=(-2, -1),
            use_bias=self.out_bias,
        )
        return project_out(out), caches.LaneLayer(key_values=own, inputs=inputs)

    def _projections(self, x, view, prefix, lane):
        """Query, key and value, and the inputs of the short convolution to keep."""
        width = self.config.short_conv_width
        sizes = {"query": self.num_heads, "key": self.num_kv_heads, "value": self.num_kv_heads}
        before = () if prefix is None else prefix.inputs_before_lanes(view.path_length)
        projected, inputs = [], []
        for i, (name, size) in enumerate(sizes.items()):
            axis = "heads" if name == "query" else "kv_heads"
            project = layers.dense(
                (size, self.head_dim),
                ("embed", axis, "head_dim"),
                self.dtype,
                name,
                use_bias=self.qkv_bias,
            )
            y = project(x)
            if width:
                mix = ShortConvolution(width, axis, name=f"{name}_convolution")
                earlier = before[i] if before else None
                y, kept = mix(y, view, earlier, None if lane is None else lane.inputs[i])
                inputs.append(kept)
            projected.append(y)
        return *projected, tuple(inputs)

    def _attend(self, query, own, view, prefix, begins) -> Float[Array, "B R T N H"]:
        """Attention over own lane, path and prefix, in the form that suits what they hold."""
        parts = [(own, view.age)]
        if prefix is not None and prefix.path is not None:
            path = prefix.path.key_values
            parts = [(path, view.age_in_path(path.key.shape[2])), *parts]
        state = None if prefix is None else prefix.past
        if isinstance(state, caches.KeyValues):
            slots = jnp.arange(state.key.shape[1])[None]
            parts, state = [(_of_all_lanes(state), view.age_in_prefix(slots)), *parts], None
        if self.config.kind == "softmax":
            if window := self.config.window_tokens:
                parts = [(kv, jnp.where(age < window, age, -1)) for kv, age in parts]
            return sums.softmax_attention(query, parts)
        recent = None if prefix is None else prefix.window
        if begins and len(parts) == 1 and query.shape[1] == 1:
            terms = self._linear_sums(query, own, view, state, recent)
        else:
            terms = self._explicit_sums(query, parts, view, state, recent)
        return sums.divide(terms).astype(query.dtype)

    def _linear_sums(self, query, own, view, state, recent) -> list[sums.Sums]:
        """One lane after nothing or a state, in time linear in T."""
        numerator, denominator = taylor.taylor_attention_sums(
            *(z[:, 0] for z in (query, own.key, own.value)),
            coefficients=self.config.polynomial,
            log_decay=self.config.log_decay(self.num_kv_heads),
            segment_ids=view.segment_ids,
            initial_state=state,
        )
        terms = [(numerator[:, None], denominator[:, None])]
        if self.config.window_tokens:
            blocks, part = sums.blocks_of_window(
                query, own, recent, view, self.config.window_tokens
            )
            excess = sums.weighted_sums(blocks, part, self._excess)
            terms.append(sums.join_blocks(excess, query.shape[2]))
        return terms

    def _explicit_sums(self, query, parts, view, state, recent) -> list[sums.Sums]:
        """Key by key over the parts; a prefix that is a state adds its sums."""
        terms = [sums.weighted_sums(query, part, self._weights) for part in parts]
        if state is None:
            return terms
        batch, lanes, length, num_heads, head_dim = query.shape
        log_decay = self.config.log_decay(self.num_kv_heads)
        since_prefix = view.positions - view.prefix_length[:, None, None] + 1
        numerator, denominator = taylor.query_state(
            query.reshape(batch, lanes * length, num_heads, head_dim),
            state,
            coefficients=self.config.polynomial,
            log_decay=log_decay,
            distance=None if log_decay is None else since_prefix.reshape(batch, -1),
        )
        terms.append((numerator.reshape(query.shape), denominator.reshape(query.shape[:-1])))
        if recent is not None:
            part = (_of_all_lanes(recent), view.age_of_latest(self.config.window_tokens))
            terms.append(sums.weighted_sums(query, part, self._excess))
        return terms

    def _weights(self, scores, age):
        """The polynomial's weights, in the window those of softmax."""
        weights = taylor.polynomial(scores, self.config.polynomial)
        if window := self.config.window_tokens:
            weights = jnp.where(age < window, jnp.exp(scores), weights)
        return self._aged(weights, age)

    def _excess(self, scores, age):
        """What softmax gives the keys in the window beyond the polynomial's weight."""
        excess = jnp.exp(scores) - taylor.polynomial(scores, self.config.polynomial)
        return self._aged(jnp.where(age < self.config.window_tokens, excess, 0.0), age)

    def _aged(self, weights, age):
        log_decay_K = self.config.log_decay(self.num_kv_heads)
        if log_decay_K is not None:
            per_token = jnp.asarray(log_decay_K, weights.dtype)[:, None, None, None]
            weights = weights * jnp.exp(per_token * jnp.maximum(age, 0))
        return jnp.where(age < 0, 0.0, weights)

    def _normalize(self, query: Float[Array, "*B N H"]) -> Float[Array, "*B N H"]:
        """Unit length times the temperature: score = temperature * cosine."""
        root = math.sqrt(self.head_dim)
        if not self.config.learn_temperature:
            assert self.config.radius is not None
            largest = root * self.config.radius
            return (unit_length(query.astype(jnp.float32)) * largest).astype(query.dtype)
        per_head = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("heads",))
        raw_N = self.param("temperature", per_head, (self.num_heads,))
        if self.config.radius is None:
            temperature_N = root * jnp.exp(raw_N)
        else:
            temperature_N = self.config.radius * jax.nn.sigmoid(raw_N + 2.0)  # starts at 88%
        # Attention divides the score by the root of the head's width.
        scale = (root * temperature_N)[:, None]
        return (unit_length(query.astype(jnp.float32)) * scale).astype(query.dtype)
