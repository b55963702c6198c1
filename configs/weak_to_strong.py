"""Weak-to-strong rounds on the planted world: every one trains a stronger base.

    python -m train weak_to_strong --resume

A round (Nemotron-4 340B, arXiv:2406.11704, section 3.3): the model of the round before answers
requests; a reward model keeps the best answers and makes pairs; a stronger base learns from the
kept answers (SFT), answers too, and learns from the pairs of all answers by DPO and then by three
rounds of RPO, each of which begins with the last. The first answers come from the weakest base.
"""

import dataclasses

from configs import align
from evaluation.rounds import RoundModel, RoundsConfig
from models.transformer import TransformerConfig
from synthesis.judge import JudgeConfig
from synthesis.plant import PlantConfig
from synthesis.steer import SteerConfig
from train.losses import preference
from train.pipeline import Pipeline, Stage

WIDTHS = (32, 48, 64, 80)
"""Of the base of every round; that of round 0 gives the first answers."""
DIALOGUES = "stage:plant/unlabelled.jsonl"
BASE_STEPS, SFT_STEPS, PREFERENCE_STEPS = 150, 30, 20
NUM_REQUESTS = 400


def model(width: int) -> TransformerConfig:
    return dataclasses.replace(align.MODEL, width=width, num_heads=width // 16)


def stages_of_round(n: int, teacher: str) -> tuple[list[Stage], str]:
    """The stages of round n >= 1, and the name of the model that it ends with."""
    shape = model(WIDTHS[n])
    stages: list[Stage] = []

    def add(name: str, command: str, config, seconds: float = 15.0) -> str:
        stages.append(
            Stage(name=f"{name}{n}", command=command, config=config, expected_seconds=seconds)
        )
        return f"stage:{name}{n}"

    def answers(name: str, writer: str, seed: int) -> str:
        config = SteerConfig(
            checkpoint=writer,
            prompts=f"stage:requests{n}/prompts.jsonl",
            requested="none",
            num_responses=4,
            name=name,
            sampling=align.SAMPLING,
            prompts_per_slice=128,
            seed=seed,
        )
        return f"{add(name, 'steer', config)}/responses.jsonl"

    def judged(name: str, *responses: str) -> str:
        config = JudgeConfig(
            responses=responses, reward_model="stage:reward", pairing="all", batch_size=256
        )
        return add(name, "judge", config)

    add("requests", "plant", dataclasses.replace(align.NO_ROWS, num_prompts=NUM_REQUESTS, seed=n))
    base = add("base", "train", align.chat_run(shape, DIALOGUES, steps=BASE_STEPS))
    of_teacher = answers("teacher", teacher, seed=2 * n)
    kept = judged("judge_teacher", of_teacher)
    sft = align.chat_run(shape, f"{kept}/kept.jsonl", steps=SFT_STEPS, learning_rate=2e-3)
    student = add("sft", "train", dataclasses.replace(sft, initial_checkpoint=base))
    of_student = answers("student", student, seed=2 * n + 1)
    pairs = f"{judged('judge', of_teacher, of_student)}/preferences.jsonl"
    kinds: dict[str, preference.Kind] = {"dpo": "dpo"}
    kinds |= {f"rpo_{part}_": "rpo_bwd_kl" for part in "abc"}
    for name, kind in kinds.items():
        part = align.policy(
            kind,
            pairs,
            reference=student,
            shape=shape,
            seed=n,
            steps=PREFERENCE_STEPS,
            sft_weight=align.SFT_WEIGHT,
        )
        student = add(name, "train", dataclasses.replace(part, keep_checkpoints=1))
    return stages, student


def get_config() -> Pipeline:
    weakest = align.chat_run(model(WIDTHS[0]), DIALOGUES, steps=BASE_STEPS)
    labels = align.chat_run(
        align.MODEL, "stage:plant/labelled.jsonl", steps=align.BASE_STEPS, with_labels=True
    )
    judge = align.reward_run("stage:labels")
    stages = [
        Stage(name="plant", command="plant", config=PlantConfig(num_prompts=0, num_pairs=0)),
        Stage(name="labels", command="train", config=labels, expected_seconds=100.0),
        Stage(name="reward", command="train", config=judge, expected_seconds=40.0),
        Stage(name="base0", command="train", config=weakest, expected_seconds=30.0),
    ]
    models, teacher = [RoundModel(name="round 0", checkpoint="stage:base0")], "stage:base0"
    for n in range(1, len(WIDTHS)):
        new, teacher = stages_of_round(n, teacher)
        stages += new
        models.append(RoundModel(name=f"round {n}", checkpoint=teacher))
    table = RoundsConfig(models=tuple(models), sampling=align.SAMPLING)
    stages.append(Stage(name="evaluation", command="rounds", config=table))
    return Pipeline(stages=tuple(stages))
