"""A reward model on real rows, three seeds: UltraFeedback's scores and SteerLM's grades.

    python -m train reward_real

First the texts are learned as language, then their grades, then which of two answers is better,
with the head of the regression (HelpSteer2-Preference, arXiv:2410.01257, has that order). What
comes out is compared with the rule that the longer answer is better, on held-out pairs of
UltraFeedback and on LLMBar, whose adversarial sets are made to look better than they are.
"""

from configs import ultrafeedback
from configs.base import Experiment
from configs.steerlm import SAMPLE
from data.attributes import AttributeSource
from data.preferences import PreferenceSource
from evaluation.rewards import GradedSet, PairSet, RewardEvaluation, RewardModelRuns
from train.alignment import RewardConfig
from train.pipeline import Pipeline, Stage

NUM_SEEDS = 3
LLMBAR = {
    "LLMBar natural": "natural",
    "LLMBar neighbor": "adversarial_neighbor",
    "LLMBar gptinst": "adversarial_gptinst",
    "LLMBar gptout": "adversarial_gptout",
    "LLMBar manual": "adversarial_manual",
    "MT-Bench": "processed_mt_bench",
}
"""`DATA/preferences/llmbar/NAME.json`: the first five are of RewardBench's Chat Hard."""


def experiment(seed: int, **fields) -> Experiment:
    """A run whose batches are answers."""
    return ultrafeedback.experiment(seed=seed, eval_batches=12, **fields)


def language(seed: int) -> Experiment:
    """The texts themselves, cut as those of rewards are."""
    config = ultrafeedback.fine_tuned(train_steps=200)
    return experiment(
        seed,
        sources=config.sources,
        optimizers=config.optimizers,
        train_steps=config.train_steps,
    )


def reward(seed: int, initial_checkpoint: str, learning_rate: float, **fields) -> Experiment:
    """A reward model of five attributes."""
    return experiment(
        seed,
        recipe="reward",
        model=ultrafeedback.REWARD_MODEL,
        reward=RewardConfig(template="chatml", max_unusable=ultrafeedback.MAX_UNUSABLE, **fields),
        optimizers=ultrafeedback.optimizers(learning_rate, weight_decay=0.1),
        initial_checkpoint=initial_checkpoint,
        train_steps=120,
        eval_every_steps=60,
    )


def get_config() -> Pipeline:
    graded = (
        AttributeSource(path=ultrafeedback.TRAIN, weight=0.98),
        AttributeSource(path=SAMPLE, weight=0.02, end=0.5),
    )
    stages = []
    for seed in range(NUM_SEEDS):
        regression = reward(
            seed,
            f"stage:language{seed}",
            1e-3,
            sources=graded,
            validation_sources=(AttributeSource(path=ultrafeedback.HELD_OUT),),
        )
        pairs = reward(
            seed,
            f"stage:regression{seed}",
            3e-4,
            kind="scaled_bt",
            pair_sources=(ultrafeedback.PAIRS,),
            validation_pair_sources=(ultrafeedback.HELD_OUT_PAIRS,),
        )
        for name, config in (
            (f"language{seed}", language(seed)),
            (f"regression{seed}", regression),
            (f"pairs{seed}", pairs),
        ):
            stages.append(Stage(name=name, command="train", config=config, expected_seconds=200.0))
    pair_sets = [PairSet(name="UltraFeedback", source=ultrafeedback.HELD_OUT_PAIRS)]
    for name, file in LLMBAR.items():
        source = PreferenceSource(path=f"preferences/llmbar/{file}.json")
        pair_sets.append(PairSet(name=name, source=source))
    evaluation = RewardEvaluation(
        task="reward models on real rows",
        models=tuple(
            RewardModelRuns(
                name=name,
                checkpoints=tuple(f"stage:{stage}{seed}" for seed in range(NUM_SEEDS)),
            )
            for name, stage in (("regression", "regression"), ("regression, then pairs", "pairs"))
        ),
        pairs=tuple(pair_sets),
        graded=(
            GradedSet(name="UltraFeedback", source=AttributeSource(path=ultrafeedback.HELD_OUT)),
            GradedSet(name="SteerLM", source=AttributeSource(path=SAMPLE, begin=0.5)),
        ),
    )
    stages.append(
        Stage(name="rewards", command="rewards", config=evaluation, expected_seconds=60.0)
    )
    return Pipeline(stages=tuple(stages))
