"""What the configs that compare kinds of attention share: train every model, then score them all.

`selective_copying`, `induction_heads`, `mqar`, `listops` and `text_orders` are such comparisons.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from configs.base import Experiment
from evaluation.scoring import HeldOut, ScoredModel, ScoringConfig
from models.attention import AttentionConfig
from models.transformer import TransformerConfig
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.pipeline import Pipeline, Stage

# Order 1 is positive for scores above -1 only, and what is not sought keeps at least the share
# (1 - radius) / (1 + radius) of the weight of what is: .0005 here, .01 at .98.
LARGEST_RADIUS_OF_ORDER_1 = 0.999


def taylor(order: int, **fields: Any) -> AttentionConfig:
    """Taylor attention on normalised queries and keys, which an odd order needs."""
    radius = LARGEST_RADIUS_OF_ORDER_1 if order == 1 else fields.pop("radius", None)
    fields = fields | {"kind": "taylor", "order": order, "radius": radius}
    return AttentionConfig(normalize_query_key=True, **fields)


def softmax(**fields: Any) -> AttentionConfig:
    """The ceiling: softmax on queries and keys normalised in the same way."""
    return AttentionConfig(kind="softmax", normalize_query_key=True, **fields)


def small_model(attention: AttentionConfig, **fields: Any) -> TransformerConfig:
    """Two layers of width 64 without positions: the order of tokens comes from the convolution."""
    shape: dict[str, Any] = {"width": 64, "num_layers": 2, "num_heads": 4, "head_dim": 16}
    shape |= {"rope_base": None, "value_head_width": 8}
    return TransformerConfig(attention=attention, **(shape | fields))


def optimizers(learning_rate: float, **fields: Any) -> OptimizersConfig:
    """AdamW for the policy network; the value head is not used."""
    fields = {"warmup_steps": 50, "weight_decay": 0.01, "b2": 0.98} | fields
    return OptimizersConfig(policy=OptimizerConfig(peak_learning_rate=learning_rate, **fields))


def compare(
    *,
    task: str,
    models: Mapping[str, AttentionConfig | TransformerConfig],
    experiment: Callable[..., Experiment],
    held_out: tuple[HeldOut, ...],
    num_seeds: int = 1,
    seconds_per_model: float,
    replaced: Mapping[str, tuple[str, AttentionConfig]] | None = None,
    series: Mapping[str, str] | None = None,
    **scoring: Any,
) -> Pipeline:
    """Stages "train" of every model and seed, and at the end "scores".

    Args:
      models: name -> what `experiment` makes a run of.
      experiment: `experiment(model, seed)`.
      replaced: name -> (name of a model, attention that it is read with instead).
      series: name -> line of the plot, where it is not the name itself.
      scoring: further fields of `ScoringConfig`.
    """
    stages, scored, line = [], [], series or {}
    for name, model in models.items():
        slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        names = [f"{slug}_seed{seed}" if num_seeds > 1 else slug for seed in range(num_seeds)]
        for seed, stage in enumerate(names):
            config = experiment(model, seed)
            stages.append(
                Stage(
                    name=stage, command="train", config=config, expected_seconds=seconds_per_model
                )
            )
        paths = tuple(f"stage:{stage}" for stage in names)
        scored.append(ScoredModel(name=name, checkpoints=paths, series=line.get(name, "")))
    trained = {one.name: one for one in scored}
    for name, (original, attention) in (replaced or {}).items():
        scored.append(
            ScoredModel(
                name=name,
                checkpoints=trained[original].checkpoints,
                series=line.get(name, ""),
                attention=attention,
            )
        )
    table = ScoringConfig(task=task, models=tuple(scored), held_out=held_out, **scoring)
    stages.append(Stage(name="scores", command="scoring", config=table, expected_seconds=30.0))
    return Pipeline(stages=tuple(stages))
