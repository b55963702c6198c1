"""Frozen kernels in 4 or 8 bits, the base of QLoRA (arXiv:2305.14314), by the library qwix.

A quantised kernel is a matrix [in, out], whatever axes it had. `tile_size` inputs of one output
share a float32 scale, the largest |w| among them (int8: divided by 127.5).
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Kind = Literal["nf4", "int8"]


def require_qwix() -> Any:
    """The module qwix.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import qwix
    except ImportError as error:
        raise ValueError(
            f"a quantised base needs the package qwix ({error}). Install the extra that has it, "
            "`pip install -c constraints.txt -e '.[hf]'`, or leave lora.quantize_base out."
        ) from error
    return qwix


def is_quantized(kernel: Any) -> bool:
    """Whether this is what `quantize` makes; needs no qwix."""
    return hasattr(kernel, "qvalue")


def quantize(kernel: Float[Array, "..."], num_inputs: int, *, kind: Kind, tile_size: int) -> Any:
    """The kernel as a `qwix.QArray` [in, out]; its first `num_inputs` axes are the inputs.

    "nf4": each weight becomes the nearest of 16 levels, quantiles of a normal distribution, times
    the scale: off by at most 0.152 of it. "int8": of 255 even levels, by at most 0.004 of it.

    Raises:
      ValueError: tiles do not divide the inputs.
    """
    size = math.prod(kernel.shape[:num_inputs])
    if size % tile_size:
        raise ValueError(
            f"lora.tile_size must divide the inputs of every kernel; got {tile_size} for {size} "
            f"inputs of a kernel {list(kernel.shape)}. Take a divisor of it."
        )
    qtype = "nf4" if kind == "nf4" else jnp.int8
    return require_qwix().quantize(
        kernel.reshape(size, -1), qtype, channelwise_axes=(1,), tiled_axes={0: tile_size}
    )


def dequantize(kernel: Any) -> Float[Array, "in out"]:
    """Levels times scales, in float32."""
    return require_qwix().dequantize(kernel)


def product(
    x: Float[Array, "rows in"], kernel: Any, precision: jax.lax.Precision | None
) -> Float[Array, "rows out"]:
    """x W. The backward pass dequantises again: no wide kernel is kept between the two passes."""

    @jax.checkpoint
    def of_wide(x, kernel):
        return jnp.matmul(x, dequantize(kernel).astype(x.dtype), precision=precision)

    return of_wide(x, kernel)


def num_bytes(tree: Any) -> float:
    """Bytes of arrays or their shapes; weights of 4 bits take half a byte."""

    def bits(dtype) -> int:
        return (jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo)(dtype).bits

    return sum(leaf.size * bits(leaf.dtype) / 8 for leaf in jax.tree.leaves(tree))
