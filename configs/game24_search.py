"""Plays the validation puzzles of Game of 24 without the oracle, 50 simulations per move.

    python -m search game24_search --checkpoint docs/results/game24_system2/params
    python -m search game24_search --checkpoint runs/tiny --limit 50

The records hold every search tree. Nothing in them is checked: what the model found is its own.
"""

import dataclasses

from configs import game24_system2
from search.self_play import SelfPlayConfig


def get_config() -> SelfPlayConfig:
    return SelfPlayConfig(
        split="validation",
        search=dataclasses.replace(game24_system2.ANSWER, num_simulations=50),
    )
