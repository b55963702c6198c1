"""Recipes that align: preference losses (DPO, IPO, RPO) and reward models.

Supervised fine-tuning and SteerLM are the recipe "next_token" on a `data.chat_sources.ChatSource`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import grain
import jax
import jax.numpy as jnp
from jaxtyping import Array

from data import answer_rows, attributes, mixture
from data.answer_rows import TooLong
from data.attributes import AttributeSource
from data.chat import TemplateName
from data.errors import DataError
from data.mixture import Arrays, Rows
from data.preferences import PreferenceSource
from data.tokenizer import Tokenizer
from models import heads
from models.heads import Pool
from models.language_model import LanguageModel
from train import reference
from train.errors import ConfigError
from train.losses import log_probs, preference, reward
from train.optimizers import Params
from train.recipe import Recipe
from train.step import Batch, LossFn, Metrics

PAIR_KINDS = get_args(reward.PairKind)


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Pairs of answers and the loss of the recipe "preference"."""

    sources: tuple[PreferenceSource, ...]
    """Pairs to learn from; the weights are shares of the rows."""
    validation_sources: tuple[PreferenceSource, ...] = ()
    """Held-out pairs; none: no evaluation while training."""
    template: TemplateName = "chatml"
    """How a chat becomes text (`data.chat`)."""
    kind: preference.Kind = "dpo"
    """The loss: "dpo" -log s(d); "ipo" (D - 1/(2 beta))^2; "rpo_bwd_kl" KL(Bern(s(g)) ||
    Bern(s(d))); "rpo_fwd_kl", the same the other way round; "rpo_sq" (d - g)^2. d = beta D, where D
    is the gap between the log-probability ratios of the two answers, policy over reference;
    g = eta (chosen reward - rejected reward)."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    eta: float = 1.0
    """Units of d per unit of reward; the RPO kinds alone use it."""
    preference_weight: float = 1.0
    """Weight of the preference loss."""
    sft_weight: float = 0.0
    """Weight of -log p(chosen answer), which keeps the chosen answers likely."""
    average_log_probs: bool = False
    """Mean log-probability of an answer's tokens in place of their sum, in the preference loss."""
    sft_average_log_probs: bool | None = None
    """The same in the SFT term; None: as in the preference loss."""
    too_long: TooLong = "cut"
    """Rows longer than sequence_length_tokens: "cut" them, or "drop" the pair."""
    max_unusable: float = answer_rows.MAX_UNUSABLE
    """Share of pairs that may teach nothing (equal or empty answers); they are left out."""

    def __post_init__(self):
        if not self.beta > 0:
            raise ConfigError(f"beta is more than 0; got {self.beta}.")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Graded answers or pairs, and the loss of the recipe "reward"."""

    kind: Literal["regression", "bradley_terry", "margin_bt", "scaled_bt"] = "regression"
    """The loss: "regression", the squared error of all graded attributes; or of pairs, with x the
    gap in one attribute and m = |chosen reward - rejected reward|: "bradley_terry" -log s(x),
    "margin_bt" -log s(x - m), "scaled_bt" -m log s(x)."""
    sources: tuple[AttributeSource, ...] = ()
    """Graded answers, of "regression"."""
    pair_sources: tuple[PreferenceSource, ...] = ()
    """Pairs, of the other kinds."""
    validation_sources: tuple[AttributeSource, ...] = ()
    """Held-out graded answers, of "regression"."""
    validation_pair_sources: tuple[PreferenceSource, ...] = ()
    """Held-out pairs, of the other kinds."""
    template: TemplateName = "steerlm"
    """How a chat becomes text (`data.chat`)."""
    pool: Pool = "last"
    """Attributes are read off the "last" token, or are the "mean" over all tokens."""
    scalar: str = "helpfulness"
    """The attribute that pairs are compared by."""
    centring_weight: float = 0.0
    """Weight of the mean of (r(chosen) + r(rejected))^2 beside a loss of pairs."""
    micro_batch_size: int | None = None
    """Mean of the regression losses of parts of this size, as in NeMo-Aligner; None: one mean over
    all grades of the batch."""
    too_long: TooLong = "cut"
    """Rows longer than sequence_length_tokens: "cut" them, or "drop" them."""
    max_unusable: float = answer_rows.MAX_UNUSABLE
    """Share of rows that may teach nothing; they are left out."""
    min_spread: float = 1e-6
    """A run stops once the rewards of a batch differ less (standard deviation)."""

    def __post_init__(self):
        is_regression = self.kind == "regression"
        if bool(self.sources) != is_regression or bool(self.pair_sources) == is_regression:
            raise ConfigError(
                'the kind "regression" learns from sources, the others from pair_sources; got '
                f"kind={self.kind!r} with {len(self.sources)} sources and "
                f"{len(self.pair_sources)} pair_sources. Set the ones of this kind alone."
            )


# ----------------------------------------------------------------------------------- recipes


def preference_recipe(experiment: Any, model: LanguageModel, tokenizer: Tokenizer) -> Recipe:
    """The policy learns which of two answers is better, beside a frozen reference."""
    config: PreferenceConfig = experiment.preference
    load = functools.partial(_pair_rows, experiment, config, tokenizer, scored=False)
    rows = load(config.sources)
    targets = rows.arrays["rewards"]
    if config.kind.startswith("rpo") and (targets[:, 0] == targets[:, 1]).all():
        raise DataError(
            f"{config.kind} learns gaps in reward; all {len(targets)} pairs of "
            f"{', '.join(source.path for source in config.sources)} have equal rewards. Give other "
            'rewards, or take kind "dpo".'
        )
    return Recipe(
        batches=lambda: iter(_batches(rows, experiment, experiment.seed)),
        loss_fn=preference_loss(model, config),
        data_hash=rows.fingerprint,
        held_out=_held_out(load, config.validation_sources, experiment),
        needs_reference=True,
        template=config.template,
    )


def reward_recipe(experiment: Any, model: LanguageModel, tokenizer: Tokenizer) -> Recipe:
    """A reward head on the trunk learns grades, or which of two answers is better."""
    config: RewardConfig = experiment.reward
    order = attributes.names(model.config.num_attributes)
    if config.scalar not in order:
        raise ConfigError(
            f"scalar is an attribute of the head, one of {', '.join(order)}; got {config.scalar!r}."
        )
    if config.kind == "regression":
        load = functools.partial(_graded_rows, experiment, config, tokenizer, order)
        sources: Sequence[Any] = config.sources
        held_out: Sequence[Any] = config.validation_sources
    else:
        load = functools.partial(_pair_rows, experiment, config, tokenizer, scored=True)
        sources, held_out = config.pair_sources, config.validation_pair_sources
    rows = load(sources)
    is_pairs = config.kind != "regression"
    return Recipe(
        batches=lambda: iter(_batches(rows, experiment, experiment.seed)),
        loss_fn=reward_loss(model, config),
        data_hash=rows.fingerprint,
        held_out=_held_out(load, held_out, experiment),
        floors={"reward_spread": config.min_spread} if experiment.batch_size + is_pairs > 1 else {},
        template=config.template,
        reward_pool=config.pool,
    )


def _pair_rows(experiment, config, tokenizer, sources: Sequence[PreferenceSource], *, scored: bool):
    arrays = [
        answer_rows.pairs(
            source.pairs(),
            tokenizer,
            config.template,
            experiment.sequence_length_tokens,
            scored=scored,
            too_long=config.too_long,
            max_unusable=config.max_unusable,
        )
        for source in sources
    ]
    return mixture.join(arrays, [source.weight for source in sources])


def _graded_rows(experiment, config, tokenizer, order, sources: Sequence[AttributeSource]):
    arrays = [
        answer_rows.graded(
            source.rows(),
            tokenizer,
            config.template,
            experiment.sequence_length_tokens,
            order=order,
            too_long=config.too_long,
            max_unusable=config.max_unusable,
        )
        for source in sources
    ]
    return mixture.join(arrays, [source.weight for source in sources])


def _batches(rows: Rows, experiment: Any, seed: int) -> grain.IterDataset[Arrays]:
    """Batches of the rows that belong to this host."""
    dataset = rows.batches(
        batch_size=experiment.batch_size // jax.process_count(),
        seed=seed,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    return mixture.iterate(dataset)


def _held_out(load, sources: Sequence[Any], experiment: Any) -> grain.IterDataset[Arrays] | None:
    return _batches(load(sources), experiment, 0) if sources else None


# ------------------------------------------------------------------------------------ losses


def preference_loss(model: LanguageModel, config: PreferenceConfig) -> LossFn:
    """Preference loss and SFT term of a batch of pairs.

    Metrics have the names of TRL: "rewards/..." are beta times the log-probability ratios, "logps"
    log-probabilities of answers; "reward_gap/..." are d, g and the mean of |d - g|.
    """
    sft_average = config.sft_average_log_probs
    sft_average = config.average_log_probs if sft_average is None else sft_average

    def loss_fn(params: Params, batch: Batch, rng_key: Array) -> tuple[Array, Metrics]:
        del rng_key  # nothing here is random
        num_pairs, _, length = batch["tokens"].shape
        tokens = batch["tokens"].reshape(2 * num_pairs, length)
        mask = batch["answer_mask"].reshape(2 * num_pairs, length)

        def scores(params: Params) -> log_probs.TokenScores:
            hidden = model.outputs(params, tokens).hidden
            return log_probs.token_scores(functools.partial(model.logits, params), hidden, tokens)

        def answers(log_prob: Array, average: bool) -> tuple[Array, Array]:
            whole = log_probs.answer_log_probs(log_prob, mask, average=average)
            chosen, rejected = whole.reshape(num_pairs, 2).T
            return chosen, rejected

        policy_params, reference_params = reference.policy_and_reference(params)
        policy = scores(policy_params)
        fixed = jax.lax.stop_gradient(scores(reference_params).log_prob)
        average = config.average_log_probs
        arguments = (*answers(policy.log_prob, average), *answers(fixed, average))
        rewards = {
            "beta": config.beta,
            "eta": config.eta,
            "reward_chosen": batch["rewards"][:, 0],
            "reward_rejected": batch["rewards"][:, 1],
        }
        per_pair = preference.preference_loss(config.kind, *arguments, **rewards)
        sft = -jnp.mean(answers(policy.log_prob, sft_average)[0])
        loss = config.preference_weight * jnp.mean(per_pair) + config.sft_weight * sft

        chosen, rejected, reference_chosen, reference_rejected = arguments
        policy_gap, target_gap = preference.gaps(*arguments, **rewards)
        num_answer_tokens = jnp.maximum(jnp.sum(mask), 1.0)
        return loss, {
            "preference_loss": jnp.mean(per_pair),
            "sft_loss": sft,
            "rewards/chosen": config.beta * jnp.mean(chosen - reference_chosen),
            "rewards/rejected": config.beta * jnp.mean(rejected - reference_rejected),
            "rewards/margins": jnp.mean(policy_gap),
            "rewards/accuracies": jnp.mean((policy_gap > 0).astype(jnp.float32)),
            "logps/chosen": jnp.mean(chosen),
            "logps/rejected": jnp.mean(rejected),
            "reward_gap/target": jnp.mean(target_gap),
            "reward_gap/abs_err": jnp.mean(jnp.abs(policy_gap - target_gap)),
            "entropy": jnp.sum(policy.entropy * mask) / num_answer_tokens,
            "mean_token_accuracy": jnp.sum(policy.is_likeliest * mask) / num_answer_tokens,
            "num_tokens": jnp.sum(batch["lengths"]).astype(jnp.float32),
        }

    return loss_fn


def reward_loss(model: LanguageModel, config: RewardConfig) -> LossFn:
    """Regression to grades, or a loss of pairs, at the end of every answer."""
    order = attributes.names(model.config.num_attributes)
    scalar = order.index(config.scalar)

    def predict(params: Params, tokens: Array, lengths: Array) -> Array:
        predictions = model.outputs(params, tokens).reward
        assert predictions is not None, "the model has a reward head"
        return heads.at_end(predictions, lengths, config.pool)

    def regression_fn(params: Params, batch: Batch, rng_key: Array) -> tuple[Array, Metrics]:
        del rng_key
        predictions = predict(params, batch["tokens"], batch["lengths"])
        labels = batch["labels"]
        loss = reward.regression(predictions, labels, micro_batch_size=config.micro_batch_size)
        is_given = labels != attributes.MASKED
        error = jnp.sum(jnp.where(is_given, jnp.abs(predictions - labels), 0.0))
        return loss, {
            "regression_loss": loss,
            "absolute_error": error / jnp.maximum(jnp.sum(is_given), 1),
            "reward_spread": jnp.std(predictions[:, scalar]),
            "num_tokens": jnp.sum(batch["lengths"]).astype(jnp.float32),
        }

    def pairs_fn(params: Params, batch: Batch, rng_key: Array) -> tuple[Array, Metrics]:
        del rng_key
        num_pairs, _, length = batch["tokens"].shape
        tokens = batch["tokens"].reshape(2 * num_pairs, length)
        predictions = predict(params, tokens, batch["lengths"].reshape(-1))[:, scalar]
        chosen, rejected = predictions.reshape(num_pairs, 2).T
        strength = jnp.abs(batch["rewards"][:, 0] - batch["rewards"][:, 1])
        loss = jnp.mean(reward.pair_loss(config.kind, chosen, rejected, strength))
        centre = jnp.mean(reward.centring(chosen, rejected))
        return loss + config.centring_weight * centre, {
            "pair_loss": loss,
            "rewards/chosen": jnp.mean(chosen),
            "rewards/rejected": jnp.mean(rejected),
            "rewards/margins": jnp.mean(chosen - rejected),
            "rewards/accuracies": jnp.mean((chosen > rejected).astype(jnp.float32)),
            "reward_spread": jnp.std(predictions),
            "num_tokens": jnp.sum(batch["lengths"]).astype(jnp.float32),
        }

    return regression_fn if config.kind == "regression" else pairs_fn
