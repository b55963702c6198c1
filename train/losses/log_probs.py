"""Log-probabilities of given texts, a chunk of the sequence at a time.

The logits of a whole batch, [B, T, V], never exist: a chunk is projected to the vocabulary, its
log-probabilities are taken, and the rest is dropped; the backward pass computes it again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK_TOKENS = 256


class TokenScores(NamedTuple):
    """Of every token given those before it; 0 (or False) at the first, which has none.

    log_prob: nats. entropy: of the distribution it was taken from, in nats, without a gradient.
    is_likeliest: whether no token is likelier.
    """

    log_prob: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    is_likeliest: Float[Array, "B T"]


def token_scores(
    logits_fn: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> TokenScores:
    """Scores of all tokens but the first of each row; row t-1 of `hidden` predicts token t.

    Args:
      logits_fn: `functools.partial(model.logits, params)`; what it closes over gets gradients.
      chunk_tokens: C, positions of every row whose logits exist at the same time.
    """
    num_rows, length, _ = hidden.shape
    size = min(chunk_tokens, length - 1)
    num_chunks = -(-(length - 1) // size)
    padding = num_chunks * size - (length - 1)

    def in_chunks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(num_rows, num_chunks, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def score(chunk: tuple[Array, Array]) -> TokenScores:
        hidden_BCD, tokens_BC = chunk
        log_probs = jax.nn.log_softmax(logits_fn(hidden_BCD).astype(jnp.float32))
        log_prob = jnp.take_along_axis(log_probs, tokens_BC[..., None], axis=-1)[..., 0]
        fixed = jax.lax.stop_gradient(log_probs)
        return TokenScores(
            log_prob=log_prob,
            entropy=-jnp.sum(jnp.exp(fixed) * jnp.where(fixed > -jnp.inf, fixed, 0.0), axis=-1),
            is_likeliest=(jax.lax.stop_gradient(log_prob) >= fixed.max(axis=-1)).astype(
                jnp.float32
            ),
        )

    scores = jax.lax.map(score, (in_chunks(hidden[:, :-1]), in_chunks(tokens[:, 1:])))

    def joined(x: Array) -> Array:
        whole = jnp.moveaxis(x, 0, 1).reshape(num_rows, num_chunks * size)[:, : length - 1]
        return jnp.pad(whole, ((0, 0), (1, 0)))

    return TokenScores(*map(joined, scores))


def answer_log_probs(
    log_prob: Float[Array, "B T"], mask: Float[Array, "B T"], *, average: bool = False
) -> Float[Array, "B"]:
    """Of whole answers: the sum over the tokens whose mask is 1, or their mean."""
    total = jnp.sum(log_prob * mask, axis=-1)
    return total / jnp.maximum(jnp.sum(mask, axis=-1), 1.0) if average else total
