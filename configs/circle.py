"""The System-2 circle as a pipeline: a base model, then search and learning in turn, then a table.

What it is played on is an argument: the base model and its text, how games are played, what is
learned from them, and how the result is measured.
"""

import dataclasses
from collections.abc import Callable, Sequence

from configs.base import Experiment
from data.hybrid import HybridConfig, RecordSource
from data.sources import TextSource
from evaluation.methods import AnyMethod
from evaluation.run import EvaluationConfig
from search.self_play import SelfPlayConfig
from train.optimizers import OptimizersConfig
from train.pipeline import Pipeline, Stage
from train.recipes import LossWeights

OLDER_ROUND = 0.7  # weight of a round's records against those of the next, whose player was better


def circle(
    *,
    base: Experiment,
    play: SelfPlayConfig,
    text: Callable[[int, Sequence[str]], tuple[TextSource, ...]],
    lessons: HybridConfig,
    learn_steps: Sequence[int],
    learn_optimizers: OptimizersConfig,
    loss_weights: LossWeights | None = None,
    methods: Sequence[AnyMethod],
    new_problems: bool = False,
    base_seconds: float = 0.0,
    play_seconds: float = 0.0,
    learn_seconds_per_step: float = 0.0,
    evaluation_seconds: float = 0.0,
    seed: int = 0,
) -> Pipeline:
    """The stages of a run: base, (search, learn) per round, evaluation.

    Args:
      base: trains the model that all else begins with.
      play: the training games of every round; who plays, its value and its seed are set here.
      text: sources that are read beside the records, by seed and the folders of these.
      lessons: what is taken from records, and batch sizes; which records is set here.
      learn_steps: of every round, and so how many rounds there are.
      methods: what is measured at the end, on `play.problem_set`.
      new_problems: every round plays the `play.limit` problems after those of the round before,
        and not the same ones again.
      base_seconds: expected, as the next three are, for the time left that is shown.
    """
    stages = [Stage(name="base", command="train", config=base, expected_seconds=base_seconds)]
    model = "stage:base"
    for n, steps in enumerate(learn_steps, start=1):
        games = dataclasses.replace(
            play,
            checkpoint=model,
            first=play.first + (n - 1) * (play.limit or 0) * new_problems,
            # The value head has learned nothing before the first round.
            search=dataclasses.replace(play.search, use_value=n > 1),
            seed=seed + n,
        )
        stages.append(
            Stage(name=f"search{n}", command="search", config=games, expected_seconds=play_seconds)
        )
        records = tuple(
            RecordSource(path=f"stage:search{m}/records", weight=OLDER_ROUND ** (n - m))
            for m in range(1, n + 1)
        )
        learn = dataclasses.replace(
            base,
            recipe="hybrid",
            sources=text(seed + n, [source.path for source in records]),
            hybrid=dataclasses.replace(lessons, records=records),
            loss_weights=loss_weights or base.loss_weights,
            optimizers=learn_optimizers,
            batch_size=lessons.text_batch,
            train_steps=steps,
            seed=seed + n,
            initial_checkpoint=model,
            log_every_steps=25,
        )
        stages.append(
            Stage(
                name=f"learn{n}",
                command="train",
                config=learn,
                expected_seconds=15.0 + learn_seconds_per_step * steps,
            )
        )
        model = f"stage:learn{n}"
    table = EvaluationConfig(
        checkpoint=model,
        base_checkpoint="stage:base",
        tasks=(play.problem_set,),
        methods=tuple(methods),
        stage=f"after {len(learn_steps)} rounds",
        batch_size=50,
    )
    stages.append(
        Stage(
            name="evaluation",
            command="evaluation",
            config=table,
            expected_seconds=evaluation_seconds,
        )
    )
    return Pipeline(stages=tuple(stages))
