"""Next-token prediction: the loss of plain language modelling."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def next_token(
    logits: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
    loss_mask: Float[Array, "B T"],
) -> Float[Array, ""]:
    """Mean cross-entropy in nats per counted token, in float32.

        loss = - sum_{b,t} mask_bt log softmax(logits_{b,t-1})[tokens_bt] / sum_{b,t} mask_bt

    Row t-1 of the logits predicts token t, so the first token of a text is never counted.

    Args:
      loss_mask: 1 where a token is predicted and counted; 0 at the first token of every packed
        document, because the row before it belongs to another one (`data.packing` sees to it).

    A batch with nothing to count has loss 0 and gradient 0.
    """
    mask = loss_mask[:, 1:].astype(jnp.float32)
    log_probs = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    return -jnp.sum(mask * chosen) / jnp.maximum(jnp.sum(mask), 1.0)
