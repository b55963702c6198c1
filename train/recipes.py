"""What a run learns from: a recipe is batches and a loss. The loop is the same for all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grain
import jax
import jax.numpy as jnp

from data import documents
from data.tokenizer import Tokenizer
from models.language_model import LanguageModel
from train.losses import search
from train.losses.next_token import next_token
from train.step import Batch, LossFn


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the parts of the hybrid loss in the sum that is minimised."""

    policy: float = 1.0
    """Cross-entropy to the policy that search improved."""
    value: float = 1.0
    """Binary cross-entropy of P(correct)."""
    text: float = 1.0
    """Next-token loss on the text sources."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Batches and loss of one run."""

    batches: Callable[[], grain.DatasetIterator]
    """Starts the endless batches from the first; the iterator can be saved and restored."""
    loss_fn: LossFn
    data_hash: str
    """Hash of all data that training can see."""


def next_token_recipe(experiment: Any, model: LanguageModel, tokenizer: Tokenizer) -> Recipe:
    """Language modelling on a mixture of text sources."""
    corpus = documents.load(
        experiment.sources, tokenizer, sequence_length_tokens=experiment.sequence_length_tokens
    )
    return Recipe(
        batches=lambda: iter(text_batches(corpus, experiment.batch_size, experiment.seed)),
        loss_fn=next_token_loss(model),
        data_hash=corpus.fingerprint,
    )


RECIPES: Mapping[str, Callable[[Any, LanguageModel, Tokenizer], Recipe]] = {
    "next_token": next_token_recipe,
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

    def loss_fn(params, batch: Batch, rng_key):
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


def hybrid_loss(
    model: LanguageModel, weights: LossWeights, *, value_gradient_to_trunk: bool
) -> LossFn:
    """Policy and value from search records, and text beside them so that language is kept.

    A batch has three parts, each with rows of its own: "policy", "value" and "text" (see
    `data.hybrid`).
    """
    text_loss_fn = next_token_loss(model)

    def loss_fn(params, batch: Batch, rng_key):
        policy, value = batch["policy"], batch["value"]
        log_probs = model.score_branches(
            params,
            policy["tokens"],
            policy["lengths"],
            policy["candidates"],
            policy["candidate_lengths"],
        )
        policy_loss, divergence = search.policy_loss(
            jnp.sum(log_probs, axis=-1), policy["weights"], policy["candidate_lengths"] > 0
        )
        outputs = model.outputs(
            params, value["tokens"], stop_value_gradient=not value_gradient_to_trunk
        )
        value_loss = search.value_loss(
            outputs.value_logits, value["value_target"], value["value_mask"]
        )
        text_loss, text_metrics = text_loss_fn(params, batch["text"], rng_key)
        loss = weights.policy * policy_loss + weights.value * value_loss + weights.text * text_loss
        num_tokens = jnp.sum(policy["lengths"]) + jnp.sum(policy["candidate_lengths"])
        return loss, {
            **text_metrics,
            "policy_loss_nats_per_position": policy_loss,
            "policy_divergence_nats_per_position": divergence,
            "value_loss_nats_per_state": value_loss,
            "num_tokens": text_metrics["num_tokens"] + num_tokens.astype(jnp.float32),
        }

    return loss_fn
