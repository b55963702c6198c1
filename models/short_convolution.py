"""A short causal convolution on queries, keys or values: each token mixes with the few before it.

It lets one layer compare pairs of neighbours, which induction and recall want. Sources: the shift
of H3, arXiv:2212.14052; beside linear attention, Based, arXiv:2402.18668.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import cache as caches
from models.view import View


class ShortConvolution(nn.Module):
    """y_t = sum_{j < width} taps_j * x_{t-j}, with taps of its own for every channel of a head.

    Tokens before the start of a text, or of another document, count as zeros.
    """

    width: int
    axis: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B R T N H"],
        view: View,
        before: Float[Array, "B W V N H"] | None = None,
        lane: Float[Array, "B R U N H"] | None = None,
    ) -> tuple[Float[Array, "B R T N H"], Float[Array, "B R _ N H"]]:
        """Returns y and the inputs to keep: x, or the lane's buffer with x written in it.

        before: the V = width - 1 inputs before the lanes, oldest first, of prefix and path; the
            same for R / W lanes that follow one another.
        """
        num_before, lanes, heads = self.width - 1, x.shape[:2], x.shape[3:]
        keep_variance = nn.initializers.normal(self.width**-0.5)
        init = nn.with_logical_partitioning(keep_variance, (None, self.axis, "head_dim"))
        taps_WNH = self.param("taps", init, (self.width, *heads))
        if before is None:
            before = jnp.zeros((*lanes, num_before, *heads), x.dtype)
        else:
            before = jnp.repeat(before, lanes[1] // before.shape[1], axis=1)
        kept = x if lane is None else caches.write_lanes(lane, x, view.filled)
        inputs = jnp.concatenate([before, kept], axis=2).astype(jnp.float32)
        earlier = _earlier_in_sequence if lane is None else _earlier_in_lane
        y = sum(taps_WNH[j] * earlier(inputs, view, num_before, j) for j in range(self.width))
        return y.astype(x.dtype), kept


def _earlier_in_sequence(inputs, view: View, num_before: int, j: int) -> Float[Array, "B R T N H"]:
    """The input j tokens before each new one; the new ones follow one another."""
    x = inputs[:, :, num_before - j : inputs.shape[2] - j]
    if view.segment_ids is None or j == 0:
        return x
    same_document = view.segment_ids[:, j:] == view.segment_ids[:, :-j]
    same_document = jnp.pad(same_document, ((0, 0), (x.shape[2] - same_document.shape[1], 0)))
    return x * same_document[:, None, :, None, None]


def _earlier_in_lane(inputs, view: View, num_before: int, j: int) -> Float[Array, "B R T N H"]:
    """The input of age j, wherever it lies in the lane or before it."""
    age = view.age_before_lanes(num_before)
    own_age = jnp.broadcast_to(view.age, (*age.shape[:-1], view.age.shape[-1]))
    found = jnp.concatenate([age, own_age], axis=-1) == j
    slot = jnp.argmax(found, axis=-1)[..., None, None]
    exists = jnp.any(found, axis=-1)[..., None, None]
    return jnp.where(exists, jnp.take_along_axis(inputs, slot, axis=2), 0.0)
