"""What the configs on UltraFeedback share: a small byte-level model and its data.

1,000 pairs to learn from and 200 that are held out, of binarised UltraFeedback (arXiv:2310.01377);
`docs/data.md` says where the files come from. `sft`, `dpo`, `rpo`, `steerlm` and `reward_real` use
them.
"""

from typing import Any

from configs.base import Experiment
from data.chat_sources import ChatSource
from data.preferences import PreferenceSource
from models.transformer import TransformerConfig
from train.optimizers import OptimizerConfig, OptimizersConfig

TRAIN = "preferences/ultrafeedback_binarized_train_1000.jsonl"
HELD_OUT = "preferences/ultrafeedback_binarized_eval_200.jsonl"
MODEL = TransformerConfig(vocab_size=258, width=96, num_layers=3, num_heads=6, head_dim=16)
LENGTH = 384  # bytes of a prompt and its answer; longer ones are cut
MAX_UNUSABLE = 0.03  # some answers are equal up to there


def optimizers(learning_rate: float, **fields: Any) -> OptimizersConfig:
    """AdamW as NeMo-Aligner's recipes set it, for the policy network."""
    fields = {"warmup_steps": 10, "weight_decay": 0.01, "b2": 0.98} | fields
    return OptimizersConfig(policy=OptimizerConfig(peak_learning_rate=learning_rate, **fields))


def chats(path: str = TRAIN, **fields: Any) -> ChatSource:
    """Prompts with their chosen answers."""
    return ChatSource(path=path, max_unusable=MAX_UNUSABLE, **fields)


def experiment(**fields: Any) -> Experiment:
    """A run of this model, with these fields."""
    shared: dict[str, Any] = {
        "model": MODEL,
        "tokenizer": "bytes",
        "sequence_length_tokens": LENGTH,
        "batch_size": 16,
        "eval_every_steps": 100,
        "eval_batches": 4,
    }
    return Experiment(**(shared | fields))


def fine_tuned(train_steps: int = 200) -> Experiment:
    """Supervised fine-tuning on the chosen answers: what preference losses begin with."""
    return experiment(
        sources=(chats(),),
        validation_sources=(chats(HELD_OUT),),
        optimizers=optimizers(3e-3),
        train_steps=train_steps,
    )


PAIRS = PreferenceSource(path=TRAIN, min_reward_gap=0.5)
HELD_OUT_PAIRS = PreferenceSource(path=HELD_OUT, min_reward_gap=0.5)
