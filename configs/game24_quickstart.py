"""`make quickstart`: the System-2 circle of `game24_system2` with three short rounds.

python -m train game24_quickstart --resume --overwrite
"""

from configs import game24_system2
from train.pipeline import Pipeline


def get_config() -> Pipeline:
    return game24_system2.circle(
        base_steps=400,
        rounds=3,
        learn_steps=120,
        random_moves=(0, 1),
        simulations=(16, 50),
        ablation_splits=(),
        has_controls=False,
    )
