"""Preference losses: DPO, IPO and the reward-aware RPO in three distances.

With logp(y) the summed log-probability of an answer under the policy or the reference, and r its
reward:

    D = (logp_policy - logp_reference)(chosen) - (logp_policy - logp_reference)(rejected)
    d = beta D        the gap in reward that the policy implies
    g = eta (r(chosen) - r(rejected))        the gap that it should have

    kind         loss of a pair                                  gradient with respect to d
    dpo          -log s(d)                                       s(d) - 1
    ipo          (D - 1 / (2 beta))^2                            2 (D - 1 / (2 beta)) / beta
    rpo_bwd_kl   KL(Bern(s(g)) || Bern(s(d)))                    s(d) - s(g)
    rpo_fwd_kl   KL(Bern(s(d)) || Bern(s(g)))                    s(d) s(-d) (d - g)
    rpo_sq       (d - g)^2                                       2 (d - g)

s is the logistic sigmoid. Sources: DPO arXiv:2305.18290 eq. 7; IPO arXiv:2310.12036 eq. 17 (of
summed log-probabilities; TRL divides them by the length first); RPO, "rpo_bwd_kl", Nemotron-4 340B,
arXiv:2406.11704, and the other distances arXiv:2502.00203; NeMo-Aligner's `gpt_dpo` has all five.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

Kind = Literal["dpo", "ipo", "rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq"]


def preference_loss(
    kind: str,
    policy_chosen: Float[Array, "B"],
    policy_rejected: Float[Array, "B"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B"],
    *,
    beta: float | Float[Array, ""],
    eta: float | Float[Array, ""] = 1.0,
    reward_chosen: Float[ArrayLike, "*B"] | float = 1.0,
    reward_rejected: Float[ArrayLike, "*B"] | float = 0.0,
) -> Float[Array, "B"]:
    """Loss of every pair, in float32 or wider; finite with its gradient for |d|, |g| <= 1e4.

    Args:
      policy_chosen, ...: log-probabilities of whole answers in nats, or their means per token.
      beta: how strongly the policy is held to the reference. eta: units of d per unit of reward.
      reward_chosen, reward_rejected: of every pair, or of all; "dpo" and "ipo" do not use them.

    Raises:
      ValueError: there is no such kind.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"a preference loss is one of {', '.join(get_args(Kind))}; got {kind!r}.")
    policy_gap, target_gap = gaps(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        beta=beta,
        eta=eta,
        reward_chosen=reward_chosen,
        reward_rejected=reward_rejected,
    )
    match kind:
        case "dpo":
            return jax.nn.softplus(-policy_gap)
        case "ipo":
            return jnp.square(policy_gap / beta - 1 / (2 * beta))
        case "rpo_bwd_kl":
            return bernoulli_kl(target_gap, policy_gap)
        case "rpo_fwd_kl":
            return bernoulli_kl(policy_gap, target_gap)
    return jnp.square(policy_gap - target_gap)


def gaps(
    policy_chosen: Float[Array, "B"],
    policy_rejected: Float[Array, "B"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B"],
    *,
    beta: float | Float[Array, ""],
    eta: float | Float[Array, ""] = 1.0,
    reward_chosen: Float[ArrayLike, "*B"] | float = 1.0,
    reward_rejected: Float[ArrayLike, "*B"] | float = 0.0,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """d and g of every pair; arguments as in `preference_loss`."""
    chosen = _wide(policy_chosen) - _wide(reference_chosen)
    rejected = _wide(policy_rejected) - _wide(reference_rejected)
    policy_gap = beta * (chosen - rejected)
    target_gap = eta * (_wide(reward_chosen) - _wide(reward_rejected))
    return policy_gap, jnp.broadcast_to(target_gap.astype(policy_gap.dtype), policy_gap.shape)


def bernoulli_kl(p_logit: Float[Array, "*B"], q_logit: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """KL(Bern(s(p)) || Bern(s(q))) of two logits.

        s(p) (log s(p) - log s(q)) + s(-p) (log s(-p) - log s(-q))

    For near logits the same as log(1 + s(p) (e^(q-p) - 1)) - s(p) (q - p), which cancels less.
    """
    step = q_logit - p_logit
    p, softplus = jax.nn.sigmoid(p_logit), jax.nn.softplus
    near = jnp.log1p(p * jnp.expm1(jnp.clip(step, -1.0, 1.0))) - p * jnp.clip(step, -1.0, 1.0)
    far = p * (softplus(-q_logit) - softplus(-p_logit))
    far += jax.nn.sigmoid(-p_logit) * (softplus(q_logit) - softplus(p_logit))
    return jnp.where(jnp.abs(step) < 1, near, far)


def _wide(x: Float[ArrayLike, "*B"] | float) -> Float[Array, "*B"]:
    """In float32, or float64 where the values are."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
