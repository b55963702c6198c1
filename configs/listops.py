"""ListOps: the value of nested lists of digits, softmax against Taylor attention.

python -m train listops

Expressions of up to 128 tokens from the file `listops/test_d20s.tsv.xz`, whose lines are divided
into our own training, validation and test parts (see `data.listops`).
"""

import functools

from configs import comparison
from configs.base import Experiment
from data.listops import ListOpsSource
from evaluation.scoring import HeldOut
from models.attention import AttentionConfig
from train.pipeline import Pipeline

TOKENS = 128


def experiment(attention: AttentionConfig, seed: int) -> Experiment:
    source = functools.partial(ListOpsSource, max_tokens=TOKENS)
    return Experiment(
        model=comparison.small_model(attention, vocab_size=20, rope_base=10_000.0),
        tokenizer="listops",
        sources=(source(),),
        validation_sources=(source(part="validation"),),
        optimizers=comparison.optimizers(2e-3, weight_decay=0.1),
        sequence_length_tokens=TOKENS,
        batch_size=8,
        train_steps=1200,
        seed=seed,
        log_every_steps=50,
        eval_every_steps=400,
    )


def get_config() -> Pipeline:
    models = {"softmax": comparison.softmax()}
    models |= {f"Taylor, order {order}": comparison.taylor(order) for order in (1, 2, 4)}
    held_out = HeldOut(source=ListOpsSource(part="test", max_tokens=TOKENS), length=TOKENS)
    return comparison.compare(
        task="ListOps",
        models=models,
        experiment=experiment,
        held_out=(held_out,),
        seconds_per_model=110.0,
    )
