"""RMSNorm, rotary positions and the MLP: the parts of a block that do not look at other tokens."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int

from models import quantized

MlpKind = Literal["swiglu", "relu_squared"]


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


def rotate(
    x: Float[Array, "*B N H"], positions: Int[Array, "*B"], base: float | None
) -> Float[Array, "*B N H"]:
    """Rotary position embedding on halves of the head dimension. RoFormer, arXiv:2104.09864.

    The score of two rotated vectors depends on their difference of positions only, so a key can be
    rotated once, when it enters the cache. base: None leaves x as it is.
    """
    if base is None:
        return x
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequencies  # [*B, 1, H/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
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
):
    """A bias-free projection whose kernel carries logical axis names (for `models.sharding`).

    model_dtype: decides the precision where a narrower model keeps a projection in float32.
    """
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # sees a flat [in, out]
    return Projection(
        features=features,
        axis=axis,
        use_bias=False,
        dtype=dtype,
        precision=precision_of(model_dtype or dtype),
        kernel_init=nn.with_logical_partitioning(init, axes),
        dot_general=_matrix_product,
        name=name,
    )


class Mlp(nn.Module):
    """SwiGLU (arXiv:2002.05202) or squared ReLU (Primer, arXiv:2109.08668), without biases."""

    mlp_width: int
    kind: MlpKind
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        width = x.shape[-1]
        up = dense((self.mlp_width,), ("embed", "mlp"), self.dtype, "up")(x)
        if self.kind == "swiglu":
            gate = dense((self.mlp_width,), ("embed", "mlp"), self.dtype, "gate")(x)
            hidden = nn.silu(gate) * up
        else:
            hidden = jnp.square(nn.relu(up))
        return dense((width,), ("mlp", "embed"), self.dtype, "down")(hidden)
