r"""Plays MATH-500 with any checkpoint, without the oracle: a line of a solution a move.

    python -m search math_search --checkpoint runs/NAME --limit 50
    python -m search.inspect runs/math_search --check math500

As configs/gsm8k_search.py, whose docstring says what else there is; the prompt forms are
`math500_few_shot` (with `--search.action.empty-line-ends`) and `math500_chat`. An answer stands in
the last `\boxed{}`, and math-verify (extra `eval`) compares it. Training games need MATH's other
12,000 problems, `--split train`: docs/data.md says which file that is.
"""

import dataclasses

from configs import gsm8k_search
from search.self_play import SelfPlayConfig


def get_config() -> SelfPlayConfig:
    gsm8k = gsm8k_search.get_config()
    action = dataclasses.replace(gsm8k.search.action, max_completion_tokens=1024)
    return dataclasses.replace(
        gsm8k,
        problem_set="math500",
        search=dataclasses.replace(gsm8k.search, action=action),
        max_moves=16,
    )
