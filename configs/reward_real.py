"""A reward model on real rows: UltraFeedback's scores and SteerLM's grades.

    python -m train reward_real
    python -m train reward_real --seed 1

A tokenizer is learned from the chosen answers; then a small model learns grades (regression to the
scores of both answers of every pair, and to the rows of NeMo-Aligner), and then which of two
answers is better, with the head of the regression, as in HelpSteer2-Preference (arXiv:2410.01257).
What comes out is compared with the rule that the longer answer is better, on held-out pairs of
UltraFeedback and on LLMBar, whose adversarial sets are made to look better than they are.
"""

from configs import ultrafeedback
from configs.base import Experiment
from configs.steerlm import SAMPLE
from data.attributes import AttributeSource
from data.preferences import PreferenceSource
from data.train_tokenizer import TokenizerConfig
from evaluation.rewards import GradedSet, PairSet, RewardEvaluation, RewardModelRuns
from models.transformer import TransformerConfig
from train.alignment import RewardConfig
from train.pipeline import Pipeline, Stage

MODEL = TransformerConfig(
    vocab_size=2048, width=64, num_layers=2, num_heads=4, head_dim=16, num_attributes=5
)
LENGTH = 384  # tokens of 3 to 4 bytes
LLMBAR = {
    "LLMBar natural": "natural",
    "LLMBar neighbor": "adversarial_neighbor",
    "LLMBar gptinst": "adversarial_gptinst",
    "LLMBar gptout": "adversarial_gptout",
    "LLMBar manual": "adversarial_manual",
    "MT-Bench": "processed_mt_bench",
}
"""`preferences/llmbar/NAME.json`: the first five are of RewardBench's Chat Hard."""


def reward(learning_rate: float, initial_checkpoint: str | None = None, **fields) -> Experiment:
    """A reward model of five attributes; fields of `RewardConfig`."""
    return ultrafeedback.experiment(
        recipe="reward",
        model=MODEL,
        tokenizer="stage:tokenizer",
        reward=RewardConfig(template="chatml", max_unusable=ultrafeedback.MAX_UNUSABLE, **fields),
        optimizers=ultrafeedback.optimizers(learning_rate, weight_decay=0.1),
        initial_checkpoint=initial_checkpoint,
        sequence_length_tokens=LENGTH,
        train_steps=125,  # batches of 16: once through the answers, and twice through the pairs
        eval_every_steps=125,
        eval_batches=12,
    )


def get_config() -> Pipeline:
    regression = reward(
        3e-3,
        sources=(
            AttributeSource(path=ultrafeedback.TRAIN, weight=0.99),
            AttributeSource(path=SAMPLE, weight=0.01, end=0.5),
        ),
        validation_sources=(AttributeSource(path=ultrafeedback.HELD_OUT),),
    )
    pairs = reward(
        5e-4,
        "stage:regression",
        kind="scaled_bt",
        pair_sources=(ultrafeedback.PAIRS,),
        validation_pair_sources=(ultrafeedback.HELD_OUT_PAIRS,),
    )
    pair_sets = [PairSet(name="UltraFeedback", source=ultrafeedback.HELD_OUT_PAIRS)]
    for name, file in LLMBAR.items():
        source = PreferenceSource(path=f"preferences/llmbar/{file}.json")
        pair_sets.append(PairSet(name=name, source=source))
    evaluation = RewardEvaluation(
        task="reward models on real rows",
        models=(
            RewardModelRuns(name="regression", checkpoints=("stage:regression",)),
            RewardModelRuns(name="regression, then pairs", checkpoints=("stage:pairs",)),
        ),
        pairs=tuple(pair_sets),
        graded=(
            GradedSet(name="UltraFeedback", source=AttributeSource(path=ultrafeedback.HELD_OUT)),
            GradedSet(name="SteerLM", source=AttributeSource(path=SAMPLE, begin=0.5)),
        ),
    )
    tokenizer = TokenizerConfig(sources=(ultrafeedback.chats(),), vocab_size=MODEL.vocab_size)
    return Pipeline(
        stages=(
            Stage(name="tokenizer", command="tokenizer", config=tokenizer, expected_seconds=10.0),
            Stage(name="regression", command="train", config=regression, expected_seconds=120.0),
            Stage(name="pairs", command="train", config=pairs, expected_seconds=200.0),
            Stage(name="rewards", command="rewards", config=evaluation, expected_seconds=60.0),
        )
    )
