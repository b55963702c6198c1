"""A run so small that it compiles and trains in a second or two."""

import functools

import pytest

from configs.base import Experiment
from data.documents import LegalPlaySource
from models.transformer import TransformerConfig
from train.optimizers import OptimizerConfig, OptimizersConfig


@pytest.fixture(scope="session")
def minuscule():
    """`minuscule(train_steps=3)`: an experiment with these fields changed."""
    return functools.partial(
        Experiment,
        model=TransformerConfig(
            vocab_size=109, width=16, num_layers=1, num_heads=2, head_dim=8, value_head_width=8
        ),
        tokenizer="game24",
        sources=(LegalPlaySource(num_plays=400),),
        validation_sources=(LegalPlaySource(num_plays=40, seed=1),),
        optimizers=OptimizersConfig(
            policy=OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=2, weight_decay=0.1),
        ),
        sequence_length_tokens=32,
        batch_size=8,
        train_steps=6,
        log_every_steps=1,
        eval_every_steps=3,
        eval_batches=2,
        save_every_steps=2,
    )
