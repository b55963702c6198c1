"""What a run learns from: a recipe is batches and a loss. The loop is the same for all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jaxtyping import Array

from data import documents, hybrid
from data.chat import TemplateName
from data.chat_sources import ChatSource
from data.tokenizer import Tokenizer
from models.language_model import LanguageModel
from train import alignment
from train.losses import search
from train.losses.next_token import next_token
from train.optimizers import Params
from train.recipe import Recipe
from train.step import Batch, LossFn, Metrics


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the parts of the hybrid loss in the sum that is minimised."""

    policy: float = 1.0
    """Cross-entropy to the policy that search improved."""
    value: float = 1.0
    """Binary cross-entropy of P(correct)."""
    text: float = 1.0
    """Next-token loss on the text sources."""


def next_token_recipe(experiment: Any, model: LanguageModel, tokenizer: Tokenizer) -> Recipe:
    """Language modelling on a mixture of text sources."""
    corpus = documents.load(
        experiment.sources, tokenizer, sequence_length_tokens=experiment.sequence_length_tokens
    )
    return Recipe(
        batches=lambda: iter(text_batches(corpus, experiment.batch_size, experiment.seed)),
        loss_fn=next_token_loss(model),
        data_hash=corpus.fingerprint,
        template=_template(experiment.sources),
    )


def _template(sources: Sequence[Any]) -> TemplateName | None:
    """The template of all chats among the sources; None without chats, or with several."""
    templates = {source.template for source in sources if isinstance(source, ChatSource)}
    return templates.pop() if len(templates) == 1 else None


def hybrid_recipe(experiment: Any, model: LanguageModel, tokenizer: Tokenizer) -> Recipe:
    """Policy and value from search records beside language modelling."""
    corpus = hybrid.load(
        experiment.hybrid,
        experiment.sources,
        tokenizer,
        sequence_length_tokens=experiment.sequence_length_tokens,
    )
    on_this_host = dataclasses.replace(
        experiment.hybrid,
        **{
            name: getattr(experiment.hybrid, name) // jax.process_count()
            for name in ("policy_batch", "value_batch", "text_batch")
        },
    )
    dataset = hybrid.batches(
        corpus,
        on_this_host,
        seed=experiment.seed,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    return Recipe(
        batches=lambda: iter(dataset),
        loss_fn=hybrid_loss(
            model,
            experiment.loss_weights,
            value_gradient_to_trunk=experiment.optimizers.value_gradient_to_trunk,
        ),
        data_hash=corpus.fingerprint,
    )


RECIPES: Mapping[str, Callable[[Any, LanguageModel, Tokenizer], Recipe]] = {
    "next_token": next_token_recipe,
    "hybrid": hybrid_recipe,
    "preference": alignment.preference_recipe,
    "reward": alignment.reward_recipe,
}


def text_batches(corpus: documents.Corpus, batch_size: int, seed: int) -> grain.IterDataset:
    """Batches of the rows that belong to this host."""
    return documents.batches(
        corpus,
        batch_size=batch_size // jax.process_count(),
        seed=seed,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )


def next_token_loss(model: LanguageModel) -> LossFn:
    """Next-token loss of a batch of packed documents."""

    def loss_fn(params: Params, batch: Batch, rng_key: Array) -> tuple[Array, Metrics]:
        del rng_key  # nothing here is random
        outputs = model.outputs(
            params,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
        )
        loss = next_token(outputs.logits, batch["tokens"], batch["loss_mask"])
        num_tokens = jnp.sum(batch["segment_ids"] > 0).astype(jnp.float32)
        return loss, {"text_loss_nats_per_token": loss, "num_tokens": num_tokens}

    return loss_fn


def policy_loss(model: LanguageModel) -> LossFn:
    """The policy imitates the improved policy of the search, one position per row."""

    def loss_fn(params: Params, batch: Batch, rng_key: Array) -> tuple[Array, Metrics]:
        del rng_key
        lengths, candidate_lengths = batch["lengths"], batch["candidate_lengths"]
        log_probs = model.score_branches(
            params, batch["tokens"], lengths, batch["candidates"], candidate_lengths
        )
        loss, divergence = search.policy_loss(
            jnp.sum(log_probs, axis=-1), batch["weights"], candidate_lengths > 0
        )
        num_tokens = jnp.sum(lengths) + jnp.sum(candidate_lengths)
        return loss, {
            "policy_loss_nats_per_position": loss,
            "policy_divergence_nats_per_position": divergence,
            "num_tokens": num_tokens.astype(jnp.float32),
        }

    return loss_fn


def value_loss(model: LanguageModel, *, gradient_to_trunk: bool) -> LossFn:
    """The value of every labelled state along a text learns how the text ended."""

    def loss_fn(params: Params, batch: Batch, rng_key: Array) -> tuple[Array, Metrics]:
        del rng_key
        mask = batch["value_mask"]
        outputs = model.outputs(params, batch["tokens"], stop_value_gradient=not gradient_to_trunk)
        loss = search.value_loss(outputs.value_logits, batch["value_target"], mask)
        tokens_to_last_label = jnp.max((mask > 0) * (1 + jnp.arange(mask.shape[1])), axis=1)
        return loss, {
            "value_loss_nats_per_state": loss,
            "num_tokens": jnp.sum(tokens_to_last_label).astype(jnp.float32),
        }

    return loss_fn


def hybrid_loss(
    model: LanguageModel, weights: LossWeights, *, value_gradient_to_trunk: bool
) -> LossFn:
    """Policy and value from search records, and text beside them so that language is kept.

    Sums over the parts of the batch, "policy", "value" and "text" (see `data.hybrid`), each with
    rows of its own; a part that the batch does not have is left out.
    """
    parts = {
        "policy": policy_loss(model),
        "value": value_loss(model, gradient_to_trunk=value_gradient_to_trunk),
        "text": next_token_loss(model),
    }

    def loss_fn(params: Params, batch: Batch, rng_key: Array) -> tuple[Array, Metrics]:
        total, num_tokens = jnp.zeros(()), jnp.zeros(())
        all_metrics: Metrics = {}
        for name, part_batch in batch.items():
            loss, metrics = parts[name](params, part_batch, rng_key)
            total += getattr(weights, name) * loss
            num_tokens += metrics.pop("num_tokens")
            all_metrics |= metrics
        return total, {**all_metrics, "num_tokens": num_tokens}

    return loss_fn
