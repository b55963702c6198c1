"""Losses of reward models: regression to graded attributes, and Bradley-Terry on pairs.

Sources: SteerLM (arXiv:2310.05344) and HelpSteer2 (arXiv:2406.08673) for the regression;
HelpSteer2-Preference (arXiv:2410.01257, section 3) for the three pair losses; centring:
"Helping or Herding?" (arXiv:2312.09244, section 2). s is the logistic sigmoid.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from data.attributes import MASKED

PairKind = Literal["bradley_terry", "margin_bt", "scaled_bt"]


def regression(
    predictions: Float[Array, "B A"],
    labels: Float[Array, "B A"],
    *,
    count: Num[Array, ""] | int | None = None,
    micro_batch_size: int | None = None,
) -> Float[Array, ""]:
    """Mean squared error over the labels that are not MASKED.

        loss = sum_ba [label_ba given] (prediction_ba - label_ba)^2 / sum_ba [label_ba given]

    Args:
      count: given labels of the whole batch where this is a part of it: the losses of the parts
        then add up to that of the whole, however it is split.
      micro_batch_size: mean of the losses of consecutive parts of this size, as NeMo-Aligner
        computes it; it depends on the split where the masks differ.

    A batch without labels has loss 0.
    """
    is_given = labels != MASKED
    # The difference is 0 where no label is: neither loss nor gradient sees the placeholder.
    error = jnp.where(is_given, predictions - jnp.where(is_given, labels, 0.0), 0.0)
    squares, given = jnp.square(error), is_given.astype(error.dtype)
    if micro_batch_size is not None:
        parts = [x.reshape(-1, micro_batch_size * labels.shape[1]) for x in (squares, given)]
        sums, counts = (jnp.sum(part, axis=1) for part in parts)
        return jnp.mean(sums / jnp.maximum(counts, 1.0))
    return jnp.sum(squares) / jnp.maximum(jnp.sum(given) if count is None else count, 1.0)


def pair_loss(
    kind: str,
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B"],
    strength: Float[Array, "B"] | float = 1.0,
) -> Float[Array, "B"]:
    """Loss of every pair, with x = chosen - rejected and the strength m >= 0 of the preference.

        bradley_terry   -log s(x)
        margin_bt       -log s(x - m)
        scaled_bt       -m log s(x)

    Raises:
      ValueError: there is no such kind.
    """
    if kind not in get_args(PairKind):
        raise ValueError(f"a pair loss is one of {', '.join(get_args(PairKind))}; got {kind!r}.")
    gap = (chosen - rejected).astype(jnp.promote_types(chosen.dtype, jnp.float32))
    match kind:
        case "bradley_terry":
            return jax.nn.softplus(-gap)
        case "margin_bt":
            return jax.nn.softplus(strength - gap)
    return strength * jax.nn.softplus(-gap)


def centring(chosen: Float[Array, "B"], rejected: Float[Array, "B"]) -> Float[Array, "B"]:
    """(r(chosen) + r(rejected))^2: pair losses leave the level of rewards open; this sets it."""
    return jnp.square(chosen + rejected)
