"""Direct preference optimisation on UltraFeedback, after supervised fine-tuning.

    python -m train dpo
    python -m train dpo --stages.dpo.lora.rank 8        the reference is the adapters off
    python -m train dpo --stages.dpo.preference.kind ipo

The SFT term keeps the chosen answers likely. Settings in the ranges that NeMo-Aligner advises
(docs/user-guide/dpo.rst), but for the learning rate: this model is small and new.
"""

from configs import ultrafeedback
from configs.base import Experiment
from train.alignment import PreferenceConfig
from train.pipeline import Pipeline, Stage


def experiment(initial_checkpoint: str, **fields) -> Experiment:
    """A run on the pairs, with these fields of `PreferenceConfig`."""
    return ultrafeedback.experiment(
        recipe="preference",
        preference=PreferenceConfig(
            sources=(ultrafeedback.PAIRS,),
            validation_sources=(ultrafeedback.HELD_OUT_PAIRS,),
            max_unusable=ultrafeedback.MAX_UNUSABLE,
            **fields,
        ),
        optimizers=ultrafeedback.optimizers(3e-5),
        initial_checkpoint=initial_checkpoint,
        batch_size=8,
        train_steps=100,
        eval_every_steps=50,
    )


def get_config() -> Pipeline:
    dpo = experiment("stage:sft", kind="dpo", beta=0.1, sft_weight=1e-3)
    return Pipeline(
        stages=(
            Stage(
                name="sft",
                command="train",
                config=ultrafeedback.fine_tuned(),
                expected_seconds=260.0,
            ),
            Stage(name="dpo", command="train", config=dpo, expected_seconds=260.0),
        )
    )
