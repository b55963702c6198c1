"""python -m evaluation CHECKPOINT [--tasks game24] [--simulations 16 50 200] [--baseline B] [...].

Evaluates a run folder or checkpoint and prints the table and where the report is; `--help` explains
every option.
"""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs import load
from configs.game24_system2 import ANSWER
from data import problems
from evaluation import report, standard
from evaluation import run as evaluation
from evaluation.methods import Greedy
from search.gumbel import SearchConfig
from train import checkpoints, config_json
from train.errors import ConfigError

USAGE = "usage: python -m evaluation CHECKPOINT [--options]"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Greedy decoding, search, and best-of-n that reads as much as the search, on one model."""

    tasks: tuple[str, ...] = ("game24",)
    """Names of the problem sets (see data.problems)."""
    split: str = "test"
    """Which problems are asked."""
    limit: int | None = None
    """Only the first so many of them; None asks all."""
    simulations: tuple[int, ...] = (16, 50, 200)
    """Simulations per move; each number is a search of its own."""
    compared: int = 50
    """The simulations that best-of-n, controls and ablations are compared at."""
    table: Literal["greedy", "standard", "curves"] = "standard"
    """What is measured: "greedy" decoding alone; "standard": also search, and best of n that reads
    as much; "curves": also majority and beam search, each at the cost of every search, a single
    sample and the narrowest beam."""
    search: SearchConfig = ANSWER
    """Settings of all searches, but for simulations, oracle and value. They belong to the model:
    these are those of configs/game24_system2.py."""
    max_completion_tokens: int | None = None
    """Longest text of every method, a longer one is a failure; None: that of `search.action`."""
    max_moves: int = 3
    """Moves (lines) after which a game is over."""
    baseline: str | None = None
    """The model before it learned from search; adds the controls."""
    ablation: bool = False
    """Also search with oracle and value switched on and off, on the training split too."""
    batch_size: int = 50
    """Problems answered at once."""


def main(argv: list[str]) -> None:
    if list(argv) in (["--help"], ["-h"]):
        load.override(Options(), ["--help"], program="evaluation CHECKPOINT")
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"the first argument is a run folder or a checkpoint. {USAGE}")
    checkpoint, *rest = argv
    options, flags = load.override(
        Options(), rest, program="evaluation", name=f"evaluation-{_name_of(checkpoint)}"
    )
    try:
        config = make_config(checkpoint, options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if flags.show:
        print(json.dumps(config_json.encode(config), indent=2))
        return
    # A misspelt name leaves no run folder behind, and a run that trains on in the meantime does not
    # change who answers after --resume.
    base = config.base_checkpoint
    config = dataclasses.replace(
        config,
        checkpoint=checkpoints.name_step(config.checkpoint),
        base_checkpoint=None if base is None else checkpoints.name_step(base),
    )
    for task in config.tasks:
        problems.load_problems(task, options.split)
    command = shlex.join(["python", "-m", "evaluation", *argv])
    with load.opened_run(config, dataclasses.replace(flags, command=command)) as (folder, stop):
        path = evaluation.run(config, folder, resume=flags.resume, stop=stop)
    report.show(report.read(path))
    print(f"report: {path}\nplot:   {path.with_name('accuracy.png')}")


def make_config(checkpoint: str, options: Options) -> evaluation.EvaluationConfig:
    """The evaluation that the options ask for."""
    search = options.search
    if options.max_completion_tokens is not None:
        longest = options.max_completion_tokens
        action = dataclasses.replace(search.action, max_completion_tokens=longest)
        search = dataclasses.replace(search, action=action)
    methods = standard.standard_methods(
        search=search,
        simulations=options.simulations,
        compared=options.compared,
        max_moves=options.max_moves,
        split=options.split,
        limit=options.limit,
        has_base=options.baseline is not None,
        has_curves=options.table == "curves",
        ablation_splits=(options.split, "train") if options.ablation else (),
    )
    if options.table == "greedy":
        methods = tuple(method for method in methods if isinstance(method, Greedy))
    return evaluation.EvaluationConfig(
        checkpoint=checkpoint,
        base_checkpoint=options.baseline,
        tasks=options.tasks,
        batch_size=options.batch_size,
        methods=methods,
    )


def _name_of(checkpoint: str) -> str:
    """runs/tiny -> tiny; runs/circle/stages/04-learn -> circle-04-learn."""
    skipped = ("runs", "docs", "results", "stages", "checkpoints", "..", ".", "/")
    return "-".join([part for part in Path(checkpoint).parts if part not in skipped][-3:])


if __name__ == "__main__":
    load.main("evaluation", main)
