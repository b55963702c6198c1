"""SteerLM: supervised fine-tuning on answers that follow their own grades.

    python -m train steerlm

Real rows: UltraFeedback's scores as helpfulness, and the eight rows of NeMo-Aligner with five
grades. Afterwards a prompt asks for grades (`data.chat.prompt_text(..., labels=...)`).
Source: SteerLM, arXiv:2310.05344.
"""

from typing import Any

from configs import ultrafeedback
from configs.base import Experiment
from data.chat_sources import ChatSource

SAMPLE = "steerlm/regression_rm_sample.jsonl"


def get_config() -> Experiment:
    labelled: dict[str, Any] = {"template": "steerlm", "with_labels": True}
    return ultrafeedback.experiment(
        sources=(
            ultrafeedback.chats(weight=0.95, **labelled),
            ChatSource(path=SAMPLE, weight=0.05, **labelled),
        ),
        validation_sources=(ultrafeedback.chats(ultrafeedback.HELD_OUT, **labelled),),
        optimizers=ultrafeedback.optimizers(3e-3),
        sequence_length_tokens=640,  # of which the template takes 250
        batch_size=8,
        train_steps=200,
    )
