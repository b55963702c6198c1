"""Learning from search: the policy imitates what the search preferred, the value who won.

Sources: AlphaZero (Silver et al., Science 2018), loss l = (z - v)^2 - pi . log p + c |theta|^2;
Gumbel MuZero (Danihelka et al., ICLR 2022, eq. 11-12), where pi is the improved policy over all
actions and not the visit counts. Here an action is a text of one or more tokens, only k of all
possible texts were considered, the value is a probability (so cross-entropy replaces the square)
and weight decay belongs to the optimizer.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# log(1 - sum p) is never taken closer to its pole than this: log-probabilities that are sums of
# float32 numbers do not say anything finer.
SMALLEST_REST = 1e-6
_ABSENT = -1e30  # exp() of it is 0, and unlike -inf it has a gradient


def log1mexp(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """log(1 - exp(x)) for x < 0 without cancellation; x is held at -SMALLEST_REST or below.

    log(-expm1(x)) is exact near 0, log1p(-exp(x)) far from it (Maechler 2012, "Accurately
    computing log(1 - exp(-|a|))"). Beyond the limit the gradient stays that of the limit, so that
    a policy that has lost its last bit of rest mass is still pushed back.
    """
    x = x + jax.lax.stop_gradient(jnp.minimum(x, -SMALLEST_REST) - x)
    is_near_zero = x > -jnp.log(2.0)
    near = jnp.where(is_near_zero, x, -1.0)
    far = jnp.where(is_near_zero, -1.0, x)
    return jnp.where(is_near_zero, jnp.log(-jnp.expm1(near)), jnp.log1p(-jnp.exp(far)))


def policy_loss(
    candidate_log_probs: Float[Array, "B k"],
    weights: Float[Array, "B k_plus_1"],
    is_present: Bool[Array, "B k"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy over k candidate texts and one bucket for all that was not considered.

        loss = - sum_i w_i log p_i - w_rest log(1 - sum_i p_i),   log p_i = sum_t log p(token_it)

    The rest bucket keeps the model from giving its whole mass to the candidates when the search
    did not look at everything. Minimal, and equal to the entropy of w, when p = w.

    Args:
      candidate_log_probs: log p_i of whole candidates, given the text before them.
      weights: improved policy of the search, the rest last; a row sums to 1, or is all 0 (padding:
        a position that is not counted).
      is_present: False for candidates that only fill the row; their weights do not count.

    Returns:
      Mean over positions, in nats: the loss, and the part of it that the model can still lose (the
      divergence KL(w || p), 0 when it has learned all).
    """
    weights = weights.astype(jnp.float32)
    candidate_weights = jnp.where(is_present, weights[:, :-1], 0.0)
    rest_weights = weights[:, -1]
    log_probs = jnp.where(is_present, candidate_log_probs.astype(jnp.float32), _ABSENT)
    log_rest = log1mexp(jax.nn.logsumexp(log_probs, axis=-1))

    wanted = jnp.where(candidate_weights > 0, log_probs, 0.0)
    cross_entropy = -jnp.sum(candidate_weights * wanted, axis=-1)
    cross_entropy -= rest_weights * jnp.where(rest_weights > 0, log_rest, 0.0)

    buckets = jnp.concatenate([candidate_weights, rest_weights[:, None]], axis=-1)
    entropy = -jnp.sum(jax.scipy.special.xlogy(buckets, buckets), axis=-1)
    positions = jnp.maximum(jnp.sum(jnp.sum(buckets, axis=-1) > 0), 1)
    loss = jnp.sum(cross_entropy) / positions
    return loss, jax.lax.stop_gradient(loss - jnp.sum(entropy) / positions)


def value_loss(
    value_logits: Float[Array, "B T"],
    target: Float[Array, "B T"],
    mask: Float[Array, "B T"],
) -> Float[Array, ""]:
    """Mean binary cross-entropy of P(correct) over labelled states, in nats per state.

        loss = - sum_bt mask (z log v + (1 - z) log(1 - v)) / sum_bt mask,    v = sigmoid(logit)

    Written as softplus(x) - z x, which has no logarithm of a rounded 0.

    Args:
      target: z in [0, 1], 1 = the finished text was correct. mask: 1 = a labelled state.
    """
    logits = value_logits.astype(jnp.float32)
    per_state = jax.nn.softplus(logits) - target * logits
    return jnp.sum(mask * per_state) / jnp.maximum(jnp.sum(mask), 1.0)
