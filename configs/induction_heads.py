"""Induction heads with Taylor attention of order 1, a state of fixed size; read far beyond 256.

python -m train induction_heads

Mamba's task (arXiv:2312.00752, table 2): sixteen symbols, trained on 256 tokens at most. Without
positions nothing in the model depends on the length; the convolution joins a token with the one
before it, which is all the order that the task needs.
"""

from configs import comparison
from configs.base import Experiment
from data.synthetic import InductionHeadsSource
from evaluation.scoring import HeldOut
from models.attention import AttentionConfig
from train.pipeline import Pipeline

# A temperature that is always at its bound, .999: a learned one settles below it, where each of
# many tokens that are not sought keeps more of its weight (docs/experiments.md).
ATTENTION = comparison.taylor(1, short_conv_width=4, normalize_output=True, learn_temperature=False)
TOKENS = 2 * 129  # room for two texts of 128 tokens and their answers
HELD_OUT = {256: 1000, 1024: 500, 4096: 100, 16384: 40}  # tokens: documents


def experiment(attention: AttentionConfig, seed: int) -> Experiment:
    # Short texts share a row, so a batch asks more questions than it has rows.
    sources = tuple(
        InductionHeadsSource(
            num_documents=5_000 * 256 // tokens * share,
            context_tokens=tokens,
            seed=seed,
            weight=share,
        )
        for tokens, share in ((16, 1), (32, 1), (64, 1), (128, 2), (256, 3))
    )
    validation = InductionHeadsSource(num_documents=256, seed=100 + seed)
    return Experiment(
        model=comparison.small_model(attention, vocab_size=18, width=32, num_heads=2),
        tokenizer="symbols-16",
        sources=sources,
        validation_sources=(validation,),
        optimizers=comparison.optimizers(3e-3),
        sequence_length_tokens=TOKENS,
        batch_size=16,
        train_steps=1200,
        seed=seed,
        log_every_steps=50,
        eval_every_steps=250,
    )


def get_config() -> Pipeline:
    held_out = tuple(
        HeldOut(
            source=InductionHeadsSource(num_documents=documents, context_tokens=tokens, seed=200),
            length=tokens + 1,
            name=f"{tokens:,} tokens",
        )
        for tokens, documents in HELD_OUT.items()
    )
    return comparison.compare(
        task="induction heads",
        models={"Taylor, order 1": ATTENTION},
        experiment=experiment,
        held_out=held_out,
        seconds_per_model=600.0,
        plot_against="document_tokens",
    )
