"""A small model learns generated grade-school problems; then it answers held-out ones greedily.

    python -m train grade_school
    python -m train grade_school --stages.base.train-steps 4000

Stories of two and three steps (`data.grade_school`); the checker compares the number after `####`.
Only the solution is counted in the loss. The model is the base of a later circle of search.

Measured on two busy cores of an AMD EPYC (2026-11-27) with 300 steps, 6 processor minutes: held-out
loss 7.06 -> .284 nats per token, greedy accuracy 2.8% (2-5) of 500. By then it writes solutions in
the right form, and wrong arithmetic (docs/experiments.md). 2,000 steps: not measured yet.
"""

from configs.base import Experiment
from data.grade_school import SHORT_STEPS, GradeSchoolSource
from evaluation.methods import Greedy
from evaluation.run import EvaluationConfig
from models.transformer import TransformerConfig
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.pipeline import Pipeline, Stage

MODEL = TransformerConfig(
    vocab_size=387, width=96, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=16
)
MAX_COMPLETION_TOKENS = 128  # of the longest solution in three steps; it has 100


def base(steps: int, seed: int = 0) -> Experiment:
    """Problems and their solutions, as text."""
    return Experiment(
        model=MODEL,
        tokenizer="grade_school",
        sources=(GradeSchoolSource(num_problems=30_000, seed=seed, max_steps=SHORT_STEPS),),
        validation_sources=(
            GradeSchoolSource(
                split="validation", num_problems=500, seed=seed, max_steps=SHORT_STEPS
            ),
        ),
        optimizers=OptimizersConfig(
            policy=OptimizerConfig(
                peak_learning_rate=3e-3, warmup_steps=50, weight_decay=0.01, b2=0.98
            )
        ),
        sequence_length_tokens=224,
        batch_size=32,
        train_steps=steps,
        seed=seed,
        log_every_steps=25,
        eval_every_steps=200,
    )


def get_config() -> Pipeline:
    greedy = Greedy(split="validation", max_completion_tokens=MAX_COMPLETION_TOKENS)
    return Pipeline(
        stages=(
            Stage(name="base", command="train", config=base(2000), expected_seconds=600.0),
            Stage(
                name="evaluation",
                command="evaluation",
                config=EvaluationConfig(
                    checkpoint="stage:base", tasks=("grade_school_short",), methods=(greedy,)
                ),
                expected_seconds=60.0,
            ),
        )
    )
