"""Supervised fine-tuning in two stages: calculations first, then chats with a share of the first.

    python -m train sft
    python -m train sft --stages.chats.train-steps 1000

The two stages are those of Nemotron-4 340B (arXiv:2406.11704), which begins with code: a narrow
skill alone, then everything with 2% of it. Only answers count in the loss.
"""

from configs import ultrafeedback
from data.grade_school import GradeSchoolSource
from train.pipeline import Pipeline, Stage


def get_config() -> Pipeline:
    narrow = ultrafeedback.experiment(
        sources=(GradeSchoolSource(num_problems=20_000),),
        validation_sources=(GradeSchoolSource(split="validation", num_problems=200),),
        optimizers=ultrafeedback.optimizers(3e-3),
        train_steps=150,
    )
    general = ultrafeedback.experiment(
        sources=(
            ultrafeedback.chats(weight=0.98),
            GradeSchoolSource(num_problems=20_000, weight=0.02),
        ),
        validation_sources=(ultrafeedback.chats(ultrafeedback.HELD_OUT),),
        optimizers=ultrafeedback.optimizers(2e-3),
        train_steps=200,
        initial_checkpoint="stage:narrow",
    )
    return Pipeline(
        stages=(
            Stage(name="narrow", command="train", config=narrow, expected_seconds=200.0),
            Stage(name="chats", command="train", config=general, expected_seconds=260.0),
        )
    )
