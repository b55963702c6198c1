"""Norms, rotary positions and the MLP: the parts of a block that do not look at other tokens."""

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int

from models import quantized

MlpKind = Literal["swiglu", "relu_squared", "gelu", "gelu_tanh"]
NormKind = Literal["rms", "layer", "layer_plus_one"]


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32. Source: Zhang and Sennrich, arXiv:1910.07467."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (None,))
        scale_D = self.param("scale", ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * scale_D).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * scale + bias, computed in float32. Source: Ba et al., arXiv:1607.06450.

    plus_one: the parameter is scale - 1 (LayerNorm1p of Nemotron-4, arXiv:2402.16819).
    """

    epsilon: float = 1e-5
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        zeros, ones = (
            nn.with_logical_partitioning(init(), (None,))
            for init in (nn.initializers.zeros_init, nn.initializers.ones_init)
        )
        scale_D = self.param("scale", zeros if self.plus_one else ones, (x.shape[-1],))
        bias_D = self.param("bias", zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale_D = scale_D + 1.0 if self.plus_one else scale_D
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale_D + bias_D).astype(x.dtype)


def norm(kind: NormKind, epsilon: float, name: str) -> nn.Module:
    """The norm of that kind over the last axis."""
    if kind == "rms":
        return RMSNorm(epsilon, name=name)
    return LayerNorm(epsilon, plus_one=kind == "layer_plus_one", name=name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Slower rotary positions, for texts longer than those of the first training."""

    kind: Literal["linear", "llama3", "yarn"]
    """"linear": all slower by the factor; "llama3" and "yarn": the slow ones alone."""
    factor: float
    """How many times slower."""
    original_positions: int = 8192
    """Tokens of the first training; unused by "linear"."""
    low: float = 1.0
    """Frequencies of fewer turns than this in the original positions are slowed in full."""
    high: float = 4.0
    """Frequencies of more turns than this stay as they are."""
    attention_factor: float = 1.0
    """Rotated vectors become longer by this."""

    def __post_init__(self):
        if self.factor <= 0 or self.original_positions < 1 or not 0 < self.low < self.high:
            raise ValueError(
                "rope scaling has a positive factor, 1 or more original positions and "
                f"0 < low < high; got {self}. Correct the field."
            )

    def apply(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        """[half] radians per token, fastest first, to those of longer texts.

        Sources: linear: Chen et al., arXiv:2306.15595; llama3: arXiv:2407.21783; yarn:
        arXiv:2309.00071, whose ramp goes by the index of a frequency, rounded outwards.
        """
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "llama3":
            turns = self.original_positions * frequencies / (2 * math.pi)
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        else:
            half = len(frequencies)

            def index(turns: float) -> float:
                """Of the frequency that makes so many turns."""
                wavelength = self.original_positions / (turns * 2 * math.pi)
                return half * math.log(wavelength) / math.log(base)

            first = max(math.floor(index(self.high)), 0)
            last = min(math.ceil(index(self.low)), 2 * half - 1)
            kept = 1 - np.clip((np.arange(half) - first) / max(last - first, 1e-3), 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


def rotate(
    x: Float[Array, "*B N H"],
    positions: Int[Array, "*B"],
    base: float | None,
    *,
    fraction: float = 1.0,
    scaling: RopeScaling | None = None,
) -> Float[Array, "*B N H"]:
    """Rotary position embedding on halves of the head dimension. RoFormer, arXiv:2104.09864.

    The score of two rotated vectors depends on their difference of positions only, so a key can be
    rotated once, when it enters the cache. base: None leaves x as it is. fraction: of the head's
    channels, the first ones, that turn.
    """
    if base is None:
        return x
    size = int(x.shape[-1] * fraction)
    if size < x.shape[-1]:
        turning, still = x[..., :size], x[..., size:]
        turned = rotate(turning, positions, base, scaling=scaling)
        return jnp.concatenate([turned, still], axis=-1)
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        plain = base ** (-np.arange(half) / half)
        frequencies = jnp.asarray(scaling.apply(plain, base), jnp.float32)
    angle = positions[..., None, None].astype(jnp.float32) * frequencies  # [*B, 1, H/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    if scaling is not None:
        sin, cos = sin * scaling.attention_factor, cos * scaling.attention_factor
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return rotated.astype(x.dtype)


def precision_of(dtype) -> jax.lax.Precision | None:
    """Of the matrix products of a model with activations of this dtype: exact in float32 (never
    TF32 or bfloat16 passes), what the hardware does fastest in bfloat16.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def _matrix_product(x, kernel, dimension_numbers, precision=None, **kwargs):
    """`lax.dot_general` of the last axes of x with the first ones of the kernel, as one product of
    two matrices: XLA's CPU backend finds its fast kernels for that, forward and backward
    (docs/experiments.md, 2026-11-27).
    """
    (axes, _), _ = dimension_numbers
    batch, contracted = x.shape[: -len(axes)], x.shape[-len(axes) :]
    features = kernel.shape[len(axes) :]
    size = math.prod(contracted)
    out = jax.lax.dot_general(
        x.reshape(-1, size),
        kernel.reshape(size, -1),
        (((1,), (0,)), ((), ())),
        precision=precision,
        **kwargs,
    )
    return out.reshape(*batch, *features)


def num_input_axes(layer: str, ndim: int) -> int:
    """How many axes of a kernel, the first ones, are inputs; "out" is [heads, head_dim, width]."""
    return ndim - 1 if layer == "out" else 1


class Projection(nn.DenseGeneral):
    """A dense layer whose kernel may be quantised, and may have a low-rank adapter beside it.

    y = x W + (x A) B, with A `lora_a` [in, rank] and B `lora_b` [rank, out] among its parameters
    (`models.lora.join`); without them, what `nn.DenseGeneral` does.
    """

    promote_dtype: Any = promote_dtype  # flax's annotation of it cannot be checked at run time

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel, lora_a = self._variable("kernel"), self._variable("lora_a")
        is_quantized = quantized.is_quantized(kernel)
        if lora_a is None and not is_quantized:
            return super().__call__(x)
        num_inputs = len(self.axis) if isinstance(self.axis, tuple) else 1
        shape = (*x.shape[: x.ndim - num_inputs], *self.features)
        x_flat = x.astype(self.dtype).reshape(-1, math.prod(x.shape[x.ndim - num_inputs :]))
        if is_quantized:
            y = quantized.product(x_flat, kernel, self.precision).reshape(shape)
            if self.use_bias:
                y += self._variable("bias").astype(self.dtype)
        else:
            y = super().__call__(x)
        if lora_a is None:
            return y
        low = jnp.matmul(x_flat, lora_a.astype(self.dtype), precision=self.precision)
        lora_b = self._variable("lora_b").astype(self.dtype)
        return y + jnp.matmul(low, lora_b, precision=self.precision).reshape(shape)

    def _variable(self, name: str):
        return self.get_variable("params", name)  # None where there is none


def dense(
    features: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: str,
    name: str,
    axis: int | tuple[int, ...] = -1,
    model_dtype: str | None = None,
    use_bias: bool = False,
):
    """A projection whose parameters carry logical axis names (for `models.sharding`).

    model_dtype: decides the precision where a narrower model keeps a projection in float32.
    """
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # sees a flat [in, out]
    return Projection(
        features=features,
        axis=axis,
        use_bias=use_bias,
        dtype=dtype,
        precision=precision_of(model_dtype or dtype),
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(
            nn.initializers.zeros_init(), axes[-len(features) :]
        ),
        dot_general=_matrix_product,
        name=name,
    )


class Mlp(nn.Module):
    """SwiGLU (arXiv:2002.05202), squared ReLU (Primer, arXiv:2109.08668), or GELU
    (arXiv:1606.08415), exact or by its approximation with tanh.
    """

    mlp_width: int
    kind: MlpKind
    dtype: str
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        def project(name, size, axes):
            return dense((size,), axes, self.dtype, name, use_bias=self.use_bias)

        up = project("up", self.mlp_width, ("embed", "mlp"))(x)
        if self.kind == "swiglu":
            gate = project("gate", self.mlp_width, ("embed", "mlp"))(x)
            hidden = nn.silu(gate) * up
        elif self.kind == "relu_squared":
            hidden = jnp.square(nn.relu(up))
        else:
            hidden = nn.gelu(up, approximate=self.kind == "gelu_tanh")
        return project("down", x.shape[-1], ("mlp", "embed"))(hidden)
