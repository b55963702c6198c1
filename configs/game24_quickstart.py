"""`make quickstart`: the System-2 circle of `game24_system2` with three short rounds.

    python -m train game24_quickstart --resume --overwrite

Minutes instead of half an hour: Muon and smaller batches learn the same from less than half of the
tokens (docs/experiments.md, 2026-11-27).
"""

import functools

from configs import game24_system2
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.pipeline import Pipeline

_muon = functools.partial(OptimizerConfig, kind="muon", b2=0.98)


def get_config() -> Pipeline:
    return game24_system2.circle(
        base_steps=500,
        base_rows=128,
        base_optimizer=_muon(peak_learning_rate=2e-2, warmup_steps=20, weight_decay=0.01),
        learn_steps=(70, 80, 240),
        learn_rows=(48, 128, 24),
        learn_optimizers=OptimizersConfig(
            policy=_muon(peak_learning_rate=4e-3, warmup_steps=10, weight_decay=0.05),
            value=_muon(peak_learning_rate=5e-3, warmup_steps=10, weight_decay=0.05),
        ),
        random_moves=(0, 1),
        play_simulations=(48, 32, 6),
        simulations=(16, 50),
        ablation_splits=(),
        has_controls=False,
    )
