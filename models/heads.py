"""What is read off the last hidden layer beside the next token: the value of a state."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import layers


class ValueHead(nn.Module):
    """Logit of P(the finished text will be correct | the tokens so far): one hidden layer."""

    width: int

    @nn.compact
    def __call__(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
        x = hidden.astype(jnp.float32)
        x = nn.silu(layers.dense((self.width,), ("embed", "mlp"), "float32", "up")(x))
        return layers.dense((1,), ("mlp", None), "float32", "out")(x)[..., 0]
