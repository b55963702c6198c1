"""Selective copying with Taylor attention of order 1: 16 of 256 tokens, in their order.

python -m train selective_copying

Mamba's task (arXiv:2312.00752, table 1). The model has to find the data among the noise, number it,
and look it up by number. The number shows in the direction of a head's normalised output, (weight
of the marker, data tokens so far); a third layer makes numbers from directions more sharply
(docs/experiments.md).
"""

from configs import comparison
from configs.base import Experiment
from data.synthetic import SelectiveCopyingSource
from evaluation.scoring import HeldOut
from models.attention import AttentionConfig
from train.pipeline import Pipeline

TOKENS = 1 + 256 + 1 + 16
MIXTURE = ((16, 8, 1), (24, 16, 2), (40, 16, 2), (64, 16, 1), (117, 16, 2), (256, 16, 4))


def experiment(attention: AttentionConfig, seed: int) -> Experiment:
    # Short texts teach the task first: several share a row, so most answers of a batch are theirs.
    sources = tuple(
        SelectiveCopyingSource(
            num_documents=12_000 * share,
            context_tokens=tokens,
            num_data_tokens=data,
            seed=seed,
            weight=share,
        )
        for tokens, data, share in MIXTURE
    )
    validation = SelectiveCopyingSource(num_documents=256, seed=100 + seed)
    return Experiment(
        model=comparison.small_model(
            attention, vocab_size=18, num_layers=3, num_heads=2, head_dim=32
        ),
        tokenizer="symbols-16",
        sources=sources,
        validation_sources=(validation,),
        optimizers=comparison.optimizers(4e-3),
        sequence_length_tokens=TOKENS,
        batch_size=3,
        train_steps=8000,
        seed=seed,
        log_every_steps=100,
        eval_every_steps=500,
    )


def get_config() -> Pipeline:
    held_out = HeldOut(source=SelectiveCopyingSource(num_documents=1000, seed=200), length=TOKENS)
    return comparison.compare(
        task="selective copying",
        models={
            "Taylor, order 1": comparison.taylor(
                1, short_conv_width=4, normalize_output=True, learn_temperature=False
            )
        },
        experiment=experiment,
        held_out=(held_out,),
        seconds_per_model=800.0,
    )
