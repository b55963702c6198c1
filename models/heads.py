"""What is read off the last hidden layer beside the next token: values and rewards."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models import layers

Pool = Literal["last", "mean"]


class ValueHead(nn.Module):
    """Logit of P(the finished text will be correct | the tokens so far): one hidden layer."""

    width: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
        x = hidden.astype(jnp.float32)
        x = nn.silu(layers.dense((self.width,), ("embed", "mlp"), "float32", "up")(x))
        return layers.dense((1,), ("mlp", None), "float32", "out")(x)[..., 0]


class RewardHead(nn.Module):
    """Attributes of the text so far: linear with a bias, in float32 (SteerLM, arXiv:2310.05344)."""

    num_attributes: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B A"]:
        project = layers.dense(
            (self.num_attributes,), ("embed", None), "float32", "out", use_bias=True
        )
        return project(hidden.astype(jnp.float32))


def at_end(
    reward: Float[Array, "B T A"], lengths: Int[Array, "B"], pool: Pool = "last"
) -> Float[Array, "B A"]:
    """Attributes of whole texts: those at the last token, or the mean over all tokens."""
    if pool == "last":
        return reward[jnp.arange(reward.shape[0]), lengths - 1]
    is_text = (jnp.arange(reward.shape[1]) < lengths[:, None]).astype(reward.dtype)
    return jnp.einsum("bta,bt->ba", reward, is_text) / lengths[:, None]
