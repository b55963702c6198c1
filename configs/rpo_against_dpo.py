"""RPO against DPO at equal KL, on pairs of the planted world with their true rewards: ten seeds.

    python -m train rpo_against_dpo --resume

Both begin with one model that was fine-tuned on planted dialogues, and learn from the same pairs.
"""

import dataclasses

from configs import align
from evaluation.alignment import AlignmentConfig, TrainedPolicy
from synthesis.plant import PlantConfig
from train.losses import preference
from train.pipeline import Pipeline, Stage

NUM_SEEDS = 10
KINDS: dict[str, preference.Kind] = {"RPO": "rpo_bwd_kl", "DPO": "dpo"}
NUM_STEPS = 60


def get_config() -> Pipeline:
    stages = [
        Stage(
            name="plant",
            command="plant",
            config=PlantConfig(num_labelled=0, num_prompts=0, num_pairs=0),
        ),
        Stage(
            name="sft",
            command="train",
            config=align.chat_run(align.MODEL, "stage:plant/unlabelled.jsonl", steps=400),
        ),
    ]
    policies = []
    for seed in range(NUM_SEEDS):
        rows = dataclasses.replace(align.NO_ROWS, num_pairs=2_000, seed=seed)
        stages.append(Stage(name=f"pairs{seed}", command="plant", config=rows))
        for name, kind in KINDS.items():
            run = align.policy(
                kind,
                f"stage:pairs{seed}/pairs.jsonl",
                reference="stage:sft",
                seed=seed,
                steps=NUM_STEPS,
                num_saved=6,
            )
            stage = f"{name.lower()}{seed}"
            stages.append(Stage(name=stage, command="train", config=run))
            policies.append(TrainedPolicy(name=name, checkpoint=f"stage:{stage}", seed=seed))
    table = AlignmentConfig(
        reference="stage:sft",
        policies=tuple(policies),
        beta=align.BETA,
        num_prompts=256,
        sampling=align.SAMPLING,
    )
    stages.append(Stage(name="evaluation", command="alignment", config=table))
    return Pipeline(stages=tuple(stages))
