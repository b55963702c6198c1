"""The tasks of `evaluation.tasks` inside an evaluation: which methods answer, and their rows."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich

from evaluation import asking, mt_bench, report, tasks
from evaluation.judges import JudgeConfig
from evaluation.methods import AnyMethod, Greedy, Search
from evaluation.player import Player
from evaluation.sampling import BestOfN
from train import config_json
from train.errors import ConfigError

NAMES = (*tasks.MODULES, mt_bench.NAME)
TOKENS_OF_UNKNOWN_MODEL = 2048  # that a model reads which does not say; as in lm-eval


def load(name: str, options: tasks.TaskOptions) -> None:
    """Finds out that there are questions, before anything else is done.

    Raises: as `Task.questions`.
    """
    if name == mt_bench.NAME:
        mt_bench.load_questions(options)
    else:
        tasks.find(name).questions(options)


def check(names: Sequence[str], methods: Sequence[AnyMethod]) -> None:
    """Refuses what cannot be done, before anything is loaded.

    Raises:
      ConfigError: a method that needs to know which texts are right or equal.
    """
    for name in names:
        if name != mt_bench.NAME and tasks.find(name).kind != "write":
            continue
        for method in methods:
            is_oracle = isinstance(method, Search) and method.search.use_oracle
            if isinstance(method, BestOfN) and (method.match or method.choices != ("value",)):
                chosen = "matched to a search" if method.match else f"chosen by {method.choices}"
            elif is_oracle:
                chosen = "searched with an oracle"
            else:
                continue
            raise ConfigError(
                f"texts of {name} are not right or wrong, so they have no oracle and no vote; got "
                f"texts {chosen}. Use greedy, best_of_n (by value) or search without an oracle."
            )


def run(
    name: str,
    options: tasks.TaskOptions,
    judge: JudgeConfig,
    methods: Sequence[AnyMethod],
    players: Any,
    run_folder: Path,
    *,
    model_id: str,
    batch_size: int,
    stage: str,
    resume: bool,
    stop: Any,
) -> list[report.Row]:
    """The rows of one task. `players`: `evaluation.run.Players`."""
    player_of = functools.partial(players, "trained")
    rows: list[report.Row] = []
    if name == mt_bench.NAME:
        longest = options.max_new_tokens or mt_bench.MAX_NEW_TOKENS
        for method in methods:
            rows += mt_bench.run(
                options,
                judge,
                of_length(method, longest),
                player_of,
                players.load,
                run_folder / mt_bench.NAME,
                model_id=f"{model_id}-{method.name}" if len(methods) > 1 else model_id,
                batch_size=batch_size,
                stage=stage,
                resume=resume or method is not methods[0],
                stop=stop,
            )
    else:
        asked: dict[str, Any] = {
            "longest_tokens": players.longest_tokens or TOKENS_OF_UNKNOWN_MODEL,
            "batch_size": batch_size,
            "resume": resume,
            "stop": stop,
        }
        rows = _of_task(
            tasks.find(name), options, methods, player_of, run_folder / "samples", stage, asked
        )
    for row in rows:
        rich.print(report.one_line(row))
    return rows


def _of_task(
    task: tasks.Task,
    options: tasks.TaskOptions,
    methods: Sequence[AnyMethod],
    player_of: Callable[[], Player],
    folder: Path,
    stage: str,
    asked: dict[str, Any],
) -> list[report.Row]:
    settings: dict[str, Any] = config_json.encode(options)
    if task.kind != "write":
        samples = asking.ask(task, options, player_of, folder / f"{task.name}.jsonl", **asked)
        return asking.make_rows(
            task,
            samples,
            file=task.name,
            stage=stage,
            method=asking.LIKELIHOOD,
            settings=settings,
        )
    rows: list[report.Row] = []
    longest = options.max_new_tokens or task.max_new_tokens
    for method in [of_length(method, longest) for method in methods]:
        path = folder / f"{task.name}-{method.name}.jsonl"
        samples = asking.ask(task, options, player_of, path, method=method, **asked)
        fields: dict[str, Any] = {}
        if isinstance(method, Search):
            fields["simulations"] = method.search.num_simulations
            fields["use_value"] = method.search.use_value
        rows += asking.make_rows(
            task,
            samples,
            file=path.stem,
            stage=stage,
            method=method.title,
            settings=settings | {"method": config_json.encode(method)},
            **fields,
        )
    return rows


def of_length(method: AnyMethod, longest: int) -> AnyMethod:
    """The method with texts of up to that many tokens."""
    if isinstance(method, Greedy | BestOfN):
        return dataclasses.replace(method, max_completion_tokens=longest)
    if isinstance(method, Search):
        action = dataclasses.replace(method.search.action, max_completion_tokens=longest)
        search = dataclasses.replace(method.search, action=action)
        return dataclasses.replace(method, search=search)
    return dataclasses.replace(
        method, action=dataclasses.replace(method.action, max_completion_tokens=longest)
    )
