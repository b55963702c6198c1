"""Associative recall by bytes of state: orders 1, 2 and 4 at two widths of heads, and softmax.

    python -m train mqar             a version for a CPU: fewer symbols, pairs and tokens
    python -m train mqar_zoology     the splits of Zoology

Multi-query associative recall (arXiv:2312.04927). A Taylor state has a fixed size, so recall is
bought with bytes: by wider heads, or by a higher order; softmax keeps every key and value.
"""

from dataclasses import dataclass

from configs import comparison
from configs.base import Experiment
from data.synthetic import RecallSource
from evaluation.scoring import HeldOut
from models.transformer import TransformerConfig
from train.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Sizes of the task; documents are (tokens, pairs, how many of them)."""

    num_symbols: int
    train: tuple[tuple[int, int, int], ...]
    test: tuple[tuple[int, int, int], ...]
    batch_size: int
    train_steps: int


CPU = Splits(
    num_symbols=256,
    train=((64, 4, 20_000), (64, 8, 20_000), (64, 16, 20_000)),
    test=((64, 4, 500), (64, 8, 500), (64, 16, 500), (128, 32, 500)),
    batch_size=16,
    train_steps=900,
)
# Source: experiments/paper_configs/arxiv24_based_figure2 in the code of arXiv:2402.18668, which
# trains 32 epochs of all documents.
ZOOLOGY = Splits(
    num_symbols=8192,
    train=((64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000),
           (256, 64, 20_000)),
    test=((64, 4, 1000), (64, 8, 1000), (64, 16, 1000), (128, 32, 1000), (256, 64, 1000),
          (512, 128, 1000), (1024, 256, 1000)),
    batch_size=256,
    train_steps=22_500,
)  # fmt: skip


def recall(splits: Splits) -> Pipeline:
    """The comparison on splits of any size."""
    longest = max(tokens for tokens, _, _ in splits.train) + 1
    total = sum(documents for _, _, documents in splits.train)

    def source(tokens: int, pairs: int, documents: int, seed: int) -> RecallSource:
        return RecallSource(
            num_documents=documents,
            context_tokens=tokens,
            num_pairs=pairs,
            num_symbols=splits.num_symbols,
            seed=seed,
            weight=documents / total,
        )

    def experiment(model: TransformerConfig, seed: int) -> Experiment:
        tokens, pairs, _ = splits.train[-1]
        return Experiment(
            model=model,
            tokenizer=f"symbols-{splits.num_symbols}",
            sources=tuple(source(*split, seed) for split in splits.train),
            validation_sources=(source(tokens, pairs, 256, 100 + seed),),
            optimizers=comparison.optimizers(3e-3),
            sequence_length_tokens=longest,
            batch_size=splits.batch_size,
            train_steps=splits.train_steps,
            seed=seed,
            log_every_steps=50,
            eval_every_steps=300,
        )

    models, series = {}, {}
    vocab_size = splits.num_symbols + 2
    for head_dim in (8, 16):
        shape = {"vocab_size": vocab_size, "num_heads": 64 // head_dim, "head_dim": head_dim}
        for order in (1, 2, 4):
            name = f"Taylor, order {order}, heads of {head_dim}"
            attention = comparison.taylor(order, short_conv_width=4)
            models[name], series[name] = (
                comparison.small_model(attention, **shape),
                f"order {order}",
            )
    models["softmax"] = comparison.small_model(
        comparison.softmax(short_conv_width=4), vocab_size=vocab_size
    )
    return comparison.compare(
        task="associative recall",
        models=models,
        series=series,
        experiment=experiment,
        held_out=tuple(
            HeldOut(
                source=source(tokens, pairs, documents, seed=200),
                length=tokens + 1,
                name=f"{pairs} pairs, {tokens:,} tokens",
            )
            for tokens, pairs, documents in splits.test
        ),
        seconds_per_model=100.0,
        plot_against="state_bytes",
    )


def get_config() -> Pipeline:
    return recall(CPU)
