"""Reward-aware preference optimisation: DPO, then three rounds of RPO, each from the last.

    python -m train rpo
    python -m train rpo --stages.rpo1.preference.kind rpo_sq

The order is that of Nemotron-4 340B (arXiv:2406.11704, section 3.3.2). RPO learns how much better
an answer is: the rewards are UltraFeedback's scores, 1 to 10, and eta makes one point of them one
quarter of d.
"""

from configs import dpo
from train.pipeline import Pipeline, Stage


def get_config() -> Pipeline:
    first, *_ = dpo.get_config().stages
    names = ("dpo", "rpo1", "rpo2", "rpo3")
    stages = [first]
    for name, before in zip(names, ("sft", *names), strict=False):
        kind = "dpo" if name == "dpo" else "rpo_bwd_kl"
        config = dpo.experiment(f"stage:{before}", kind=kind, beta=0.1, eta=0.25, sft_weight=1e-3)
        stages.append(Stage(name=name, command="train", config=config, expected_seconds=260.0))
    return Pipeline(stages=tuple(stages))
