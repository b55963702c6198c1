"""Plays the validation problems of `grade_school_small` without the oracle, 50 simulations a move.

    python -m search grade_school_search --checkpoint runs/grade_school_system2/stages/04-learn2
    python -m search.inspect runs/grade_school_search --check grade_school_small

A move is one token that the model is not sure of, and those after it that it is. Nothing in the
records is checked: what the model found is its own.
"""

import dataclasses

from configs import grade_school_system2
from search.self_play import SelfPlayConfig


def get_config() -> SelfPlayConfig:
    return SelfPlayConfig(
        problem_set="grade_school_small",
        split="validation",
        search=dataclasses.replace(grade_school_system2.ANSWER, num_simulations=50),
        max_moves=grade_school_system2.MAX_MOVES,
    )
