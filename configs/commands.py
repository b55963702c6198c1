"""The commands a pipeline may run, by name, and the function behind each one."""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from train.errors import ConfigError
from train.pipeline import RunFn

# Imported when first called: a pipeline that only trains never loads the search.
FUNCTIONS = {
    "tokenizer": "data.train_tokenizer:run",
    "train": "train.loop:run",
    "search": "search.self_play:run",
    "evaluation": "evaluation.run:run",
    "scoring": "evaluation.scoring:run",
    "rewards": "evaluation.rewards:run",
    "alignment": "evaluation.alignment:run",
    "rounds": "evaluation.rounds:run",
    "annotate": "synthesis.annotate:run",
    "judge": "synthesis.judge:run",
    "plant": "synthesis.plant:run",
    "steer": "synthesis.steer:run",
    "synthesize": "synthesis.synthesize:run",
}
CONFIGS = {
    "train": "configs.base:Experiment",
    "search": "search.self_play:SelfPlayConfig",
    "evaluation": "evaluation.run:EvaluationConfig",
    "scoring": "evaluation.scoring:ScoringConfig",
}


def _call(target: str, *arguments: Any, **options: Any) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)(*arguments, **options)


COMMANDS: Mapping[str, RunFn] = {
    name: functools.partial(_call, target) for name, target in FUNCTIONS.items()
}


def command_of(config: Any) -> str:
    """The command that runs this config.

    Raises:
      ConfigError: none does.
    """
    cls = f"{type(config).__module__}:{type(config).__qualname__}"
    for name, known in CONFIGS.items():
        if cls == known:
            return name
    raise ConfigError(f"a run has the config of {', '.join(COMMANDS)}; got a {cls}.")
