"""Selective copying with Taylor attention of order 1: 16 of 256 tokens, in their order.

python -m train selective_copying

Mamba's task (arXiv:2312.00752, table 1). The model has to find the data among the noise, number it,
and look it up by number.
"""

from configs import comparison
from configs.base import Experiment
from data.synthetic import SelectiveCopyingSource
from evaluation.scoring import HeldOut
from models.attention import AttentionConfig
from train.pipeline import Pipeline

TOKENS = 1 + 256 + 1 + 16


def experiment(attention: AttentionConfig, seed: int) -> Experiment:
    # Short texts with few data tokens teach the task first; several of them share a row.
    sources = tuple(
        SelectiveCopyingSource(
            num_documents=12_000 * share,
            context_tokens=tokens,
            num_data_tokens=data,
            seed=seed,
            weight=share,
        )
        for tokens, data, share in ((16, 4, 1), (32, 8, 1), (64, 16, 1), (112, 16, 2), (256, 16, 3))
    )
    validation = SelectiveCopyingSource(num_documents=256, seed=100 + seed)
    return Experiment(
        model=comparison.small_model(attention, vocab_size=18),
        tokenizer="symbols-16",
        sources=sources,
        validation_sources=(validation,),
        optimizers=comparison.optimizers(3e-3),
        sequence_length_tokens=TOKENS,
        batch_size=16,
        train_steps=3000,
        seed=seed,
        log_every_steps=50,
        eval_every_steps=250,
    )


def get_config() -> Pipeline:
    held_out = HeldOut(source=SelectiveCopyingSource(num_documents=1000, seed=200), length=TOKENS)
    return comparison.compare(
        task="selective copying",
        models={"Taylor, order 1": comparison.taylor(1, short_conv_width=4, normalize_output=True)},
        experiment=experiment,
        held_out=(held_out,),
        seconds_per_model=800.0,
    )
