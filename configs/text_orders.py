"""How far Taylor attention is from softmax on text, by the order of its polynomial.

python -m train text_orders

Small byte-level models of the file `text/tinyshakespeare_input.txt`, three seeds each.
Softmax and polynomials see scores of the same range, |score| <= 4, but for order 1, which has to
stay below 1. Seed by seed, models begin at the same parameters and read the same batches. Beside
them stand the softmax models read with a polynomial in place of exp.
"""

import functools

from configs import comparison
from configs.base import Experiment
from data.documents import TextFileSource
from evaluation.scoring import HeldOut
from models.attention import AttentionConfig
from train.pipeline import Pipeline

RADIUS = 4.0
TEXT = functools.partial(TextFileSource, path="text/tinyshakespeare_input.txt")


def experiment(attention: AttentionConfig, seed: int) -> Experiment:
    return Experiment(
        model=comparison.small_model(
            attention, vocab_size=258, num_heads=8, head_dim=8, rope_base=10_000.0
        ),
        tokenizer="bytes",
        sources=(TEXT(end=0.9),),
        validation_sources=(TEXT(begin=0.9, end=0.95),),
        optimizers=comparison.optimizers(3e-3, weight_decay=0.1),
        sequence_length_tokens=128,
        batch_size=4,
        train_steps=800,
        seed=seed,
        log_every_steps=50,
        eval_every_steps=800,
        save_every_steps=800,
    )


def get_config() -> Pipeline:
    bounded = functools.partial(comparison.taylor, radius=RADIUS)
    minimax = functools.partial(bounded, coefficients="minimax")
    models = {"softmax": comparison.softmax(radius=RADIUS)}
    models |= {f"Taylor, order {order}": bounded(order) for order in (1, 2, 4, 6, 8)}
    models["minimax, order 4"] = minimax(4)
    replaced = {
        f"{kind} in place of exp, order {order}": ("softmax", make(order))
        for kind, make in (("Taylor", bounded), ("minimax", minimax))
        for order in (2, 4, 6, 8)
    }
    return comparison.compare(
        task="bytes of Shakespeare",
        models=models,
        replaced=replaced,
        series={name: name.partition(", order")[0] for name in (*models, *replaced)},
        experiment=experiment,
        num_seeds=3,
        held_out=(HeldOut(source=TEXT(begin=0.95), length=128),),
        seconds_per_model=40.0,
        metric="loss",
        relative_to_first=True,
        plot_against="order",
    )
