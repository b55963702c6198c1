"""The actions of a node: k distinct continuations, from the model itself, with exact probabilities.

At the root they are drawn without replacement (stochastic beam search), elsewhere they are k
likely ones (beam search). The two are one algorithm: the noise is either Gumbel or zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from models import cache as caches
from models import generate, language_model
from models.cache import Leaf


@struct.dataclass
class Candidates:
    """k continuations per row, best first.

    tokens: `[B, k, s]`, right-padded. lengths: `[B, k]`. log_probs: `[B, k]`, log p(tokens |
    text), not renormalised over the k (what is missing to 1 is the rest), -inf where absent.
    gumbel: `[B, k]`, the noise g that ranked them by g + log p; zero without noise.
    """

    tokens: Leaf
    lengths: Leaf
    log_probs: Leaf
    gumbel: Leaf

    @property
    def is_present(self) -> Bool[Array, "*B k"]:
        return self.log_probs > -jnp.inf

    def without_unlikely(self, min_probability: float) -> "Candidates":
        """Gives log p = -inf to candidates below a probability, except to the likeliest one."""
        best = jnp.max(self.log_probs, axis=-1, keepdims=True)
        likely = self.log_probs >= jnp.minimum(best, jnp.log(min_probability))
        return dataclasses.replace(self, log_probs=jnp.where(likely, self.log_probs, -jnp.inf))


def propose(
    model: language_model.LanguageModel,
    params: language_model.Params,
    cache: language_model.AnyCache,
    logits: Float[Array, "B V"],
    *,
    num_candidates: int,
    num_tokens: int,
    stop_tokens: tuple[int, ...],
    forbidden_tokens: tuple[int, ...] = (),
    rng_key: Array | None = None,
) -> tuple[Candidates, Int[Array, "B"]]:
    """k distinct continuations of up to `num_tokens` tokens, each ending early at a stop token.

    With `rng_key`, a sample without replacement from the model's distribution over continuations,
    ranked by g + log p with g ~ Gumbel(0, 1) per continuation, as Gumbel MuZero asks of root
    actions. Stochastic beam search: Kool, van Hoof and Welling, arXiv:1903.06059, algorithm 1.
    Without it, plain beam search.

    Args:
      cache, logits: the text so far and the model's next-token logits after it.
      forbidden_tokens: in no continuation, as if the vocabulary did not have them.

    Returns:
      The continuations, and how many tokens the model read to find them (in lanes that go on).
    """
    batch, vocab = logits.shape
    k = num_candidates
    keys = None if rng_key is None else jax.random.split(rng_key, num_tokens + 1)
    # The empty continuation: one beam of probability 1 (and the largest noise of all that follow).
    log_probs = jnp.zeros((batch, 1))
    perturbed = jnp.zeros((batch, 1))
    if keys is not None:
        perturbed = jax.random.gumbel(keys[-1], (batch, 1))
    tokens = jnp.zeros((batch, 1, num_tokens), jnp.int32)
    lengths = jnp.zeros((batch, 1), jnp.int32)
    stopped = jnp.zeros((batch, 1), bool)
    next_log_probs = jax.nn.log_softmax(generate.forbid(logits, forbidden_tokens))[:, None]
    lanes = None
    tokens_read = jnp.zeros((batch,), jnp.int32)

    for i in range(num_tokens):
        beams = tokens.shape[1]
        # A stopped beam has one child, itself, kept in the column of token 0.
        only_self = jnp.where(jnp.arange(vocab) == 0, 0.0, -jnp.inf)
        children = jnp.where(stopped[..., None], only_self, next_log_probs)
        children = children + log_probs[..., None]
        ranked = children
        if keys is not None:
            ranked = children + jax.random.gumbel(keys[i], children.shape)
            ranked = _condition_on_maximum(ranked, perturbed)
            # A stopped beam keeps the noise it has.
            ranked = jnp.where(stopped[..., None], only_self + perturbed[..., None], ranked)
            # Of an absent beam, and of no beam by a forbidden token, there is no child.
            ranked = jnp.where(children > -jnp.inf, ranked, -jnp.inf)
        width = min(k, beams * vocab)
        perturbed, index = jax.lax.top_k(ranked.reshape(batch, -1), width)
        parent, token = index // vocab, index % vocab

        def of(x, parent=parent):
            return jnp.take_along_axis(x, parent, axis=1)

        log_probs = jnp.take_along_axis(children.reshape(batch, -1), index, axis=1)
        was_stopped, lengths = of(stopped), of(lengths)
        tokens = jnp.take_along_axis(tokens, parent[..., None], axis=1)
        tokens = tokens.at[:, :, i].set(jnp.where(was_stopped, 0, token))
        lengths = jnp.where(was_stopped, lengths, i + 1)
        stopped = was_stopped | jnp.isin(token, jnp.asarray(stop_tokens))
        if i + 1 < num_tokens:
            if lanes is None:
                lanes = model.empty_lanes(batch, width, num_tokens - 1)
            else:
                lanes = caches.reorder(lanes, parent)
            out, lanes = model.branch(params, cache, lanes, tokens[:, :, i])
            next_log_probs = jax.nn.log_softmax(generate.forbid(out.logits, forbidden_tokens))
            tokens_read += jnp.sum(~stopped & (log_probs > -jnp.inf), axis=1)

    gumbel = jnp.zeros_like(log_probs)
    if keys is not None:  # where fewer than k continuations exist, the others are absent
        gumbel = jnp.where(log_probs > -jnp.inf, perturbed - log_probs, 0.0)
    found = Candidates(tokens=tokens, lengths=lengths, log_probs=log_probs, gumbel=gumbel)
    return found, tokens_read


def _condition_on_maximum(
    perturbed: Float[Array, "B R V"], maximum: Float[Array, "B R"]
) -> Float[Array, "B R V"]:
    """Shifts Gumbels so that the largest of each row becomes `maximum`, the others below it.

    Source: arXiv:1903.06059, appendix B.3 (the numerically stable form):
    v = T - g + log1mexp(g - Z), result = T - max(0, v) - log1p(exp(-|v|)).
    """
    top = jnp.max(perturbed, axis=-1, keepdims=True)
    maximum = maximum[..., None]
    gap = jnp.minimum(perturbed - top, 0.0)
    v = maximum - perturbed + jnp.log1p(-jnp.exp(gap))
    return maximum - jnp.maximum(0.0, v) - jnp.log1p(jnp.exp(-jnp.abs(v)))
