"""Policies against their reference on the planted world: true reward, KL, gaps, likelihoods."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from data import chat, planted
from data.chat import TemplateName
from data.tokenizer import Tokenizer, load_tokenizer
from models import generate
from models.language_model import LanguageModel, Params
from synthesis import writers
from synthesis.rewards import Answered
from synthesis.writers import Asked, LocalWriter, Sampling
from train import checkpoints
from train.losses import log_probs, preference

Pair = tuple[planted.Dialogue, planted.Dialogue]  # the better one first


@dataclass(frozen=True)
class Scores:
    """What one policy does.

    rewards: true reward of each answer. kl: log p(answer) less that under the reference, in nats
    (the mean is KL(policy || reference)); of finished answers only. gap_errors: |d - g| of each
    held-out pair. chosen, rejected: log-probabilities of its answers.
    """

    rewards: Float[np.ndarray, " n"]
    attributes: Float[np.ndarray, "n 5"]
    kl: Float[np.ndarray, " n"]
    gap_errors: Float[np.ndarray, " pairs"]
    target_gaps: Float[np.ndarray, " pairs"]
    chosen: Float[np.ndarray, " pairs"]
    rejected: Float[np.ndarray, " pairs"]
    share_finished: float


@dataclass(frozen=True)
class Policy:
    """A model that answers and says how likely answers are."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    template: TemplateName

    @classmethod
    def load(cls, checkpoint: str) -> "Policy":
        config, name, params = checkpoints.load_params(checkpoint)
        tokenizer, template = load_tokenizer(name), writers.template_of(checkpoint)
        return cls(LanguageModel(config), params, tokenizer, template)

    def log_probs(
        self, answered: Sequence[Answered], *, batch_size: int = 64
    ) -> Float[np.ndarray, " n"]:
        """log p(answer and its end | prompt) in nats."""
        rows = [
            chat.encode(
                chat.with_answer(*one), self.tokenizer, self.template, last_answer_only=True
            )
            for one in answered
        ]
        found = np.zeros(len(rows))
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            filled = part + [part[-1]] * (batch_size - len(part))
            tokens, _ = generate.right_padded([ids for ids, _ in filled])
            mask = np.zeros(tokens.shape, np.float32)
            for row, (_, is_answer) in enumerate(filled):
                mask[row, : len(is_answer)] = is_answer
            totals = _answer_log_probs(self.model, self.params, jnp.asarray(tokens), mask)
            found[start : start + len(part)] = np.asarray(totals)[: len(part)]
        return found


@functools.partial(jax.jit, static_argnums=0)
def _answer_log_probs(
    model: LanguageModel, params: Params, tokens: Int[Array, "B T"], mask: Float[Array, "B T"]
) -> Float[Array, "B"]:
    hidden = model.outputs(params, tokens).hidden
    scores = log_probs.token_scores(functools.partial(model.logits, params), hidden, tokens)
    return log_probs.answer_log_probs(scores.log_prob, mask)


class Judged:
    """What all policies of one reference are measured on."""

    def __init__(
        self,
        reference: Policy,
        prompts: Sequence[str],
        pairs: Sequence[Pair],
        weights: Sequence[float],
        *,
        beta: float,
        eta: float,
        sampling: Sampling,
        seed: int,
    ):
        self.reference, self.prompts, self.weights = reference, prompts, weights
        self.beta, self.eta, self.sampling, self.seed = beta, eta, sampling, seed
        self.pairs = [[(one.prompt, one.response) for one in side] for side in zip(*pairs)]
        self.pair_rewards = [
            np.array([planted.true_reward(one.attributes, weights) for one in side])
            for side in zip(*pairs)
        ]
        self.reference_log_probs = [reference.log_probs(side) for side in self.pairs]

    def score(self, policy: Policy) -> Scores:
        """One answer to every prompt, and both answers of every pair."""
        writer = LocalWriter(
            "policy", policy.model, policy.params, policy.tokenizer, policy.template, self.sampling
        )
        asked = [Asked(prompt) for prompt in self.prompts]
        written = writer.write(asked, jax.random.key(self.seed))
        found = [planted.measure(prompt, one.text) for prompt, one in zip(self.prompts, written)]
        finished = [(p, one.text) for p, one in zip(self.prompts, written) if one.finished]
        chosen, rejected = (policy.log_probs(side) for side in self.pairs)
        policy_gap, target_gap = preference.gaps(
            *map(jnp.asarray, (chosen, rejected, *self.reference_log_probs)),
            beta=self.beta,
            eta=self.eta,
            reward_chosen=jnp.asarray(self.pair_rewards[0]),
            reward_rejected=jnp.asarray(self.pair_rewards[1]),
        )
        return Scores(
            rewards=np.array([planted.true_reward(one, self.weights) for one in found]),
            attributes=np.array([one.as_tuple() for one in found], float),
            kl=policy.log_probs(finished) - self.reference.log_probs(finished),
            gap_errors=np.abs(np.asarray(policy_gap - target_gap)),
            target_gaps=np.asarray(target_gap),
            chosen=chosen,
            rejected=rejected,
            share_finished=len(finished) / len(written),
        )
