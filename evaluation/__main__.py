"""python -m evaluation CHECKPOINT [--tasks game24] [--simulations 16 50 200] [--baseline B] [...].

    python -m evaluation runs/NAME --tasks mmlu truthfulqa_mc perplexity
    python -m evaluation path/to/Llama-3.2-1B --tasks gsm8k_few_shot math500_few_shot ifeval
    python -m evaluation runs/NAME --tasks gsm8k --method greedy majority search --samples 16

Evaluates a run folder, a checkpoint or a folder of transformers, and prints the table and where the
report is; `--help` explains every option.
"""

import dataclasses
import functools
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from configs import load
from configs.game24_system2 import ANSWER
from data import problems
from evaluation import benchmarks, report, standard
from evaluation import run as evaluation
from evaluation.judges import JudgeConfig
from evaluation.methods import AnyMethod, BestOfN, Greedy, Search
from evaluation.tasks import TaskOptions
from search.gumbel import SearchConfig
from train import checkpoints, config_json
from train.errors import ConfigError

MethodName = Literal["greedy", "majority", "best_of_n", "search"]
USAGE = "usage: python -m evaluation CHECKPOINT [--options]"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Greedy decoding, search, and best-of-n that reads as much as the search, on one model."""

    tasks: tuple[str, ...] = ("game24",)
    """Problem sets (game24, gsm8k, math500, ...; see data.problems), and mmlu, truthfulqa_mc,
    perplexity, ifeval, readability, mt_bench, humaneval (see
    evaluation.tasks)."""
    method: tuple[MethodName, ...] = ()
    """How texts are written: "greedy", "majority" and "best_of_n" of `samples`, "search" with
    `simulations`. None: those of `table`, or greedy where a task is no problem set."""
    samples: int = 8
    """Texts drawn for a problem by the methods majority and best_of_n."""
    shots: int = 0
    """Worked examples before a question of mmlu."""
    subjects: tuple[str, ...] = ()
    """Of mmlu, such as anatomy; none: all 57."""
    text: str = TaskOptions.text
    """What perplexity reads: a path, or a name below the data folder."""
    form: Literal["auto", "plain", "chat"] = "auto"
    """How ifeval, readability and mt_bench are put: "plain" as they are, "chat" in the model's own
    template (ChatML where it has none), "auto" in its template if it has one."""
    allow_code: bool = False
    """Whether humaneval may run programs that the model wrote."""
    judge: JudgeConfig = JudgeConfig()
    """Who grades the answers of mt_bench."""
    split: str = "test"
    """Which problems are asked."""
    limit: int | None = None
    """Only the first so many of them, of every task; None asks all."""
    simulations: tuple[int, ...] = (16, 50, 200)
    """Simulations per move; each number is a search of its own."""
    compared: int = 50
    """The simulations that best-of-n, controls and ablations are compared at."""
    table: Literal["greedy", "standard", "curves"] = "standard"
    """What is measured: "greedy" decoding alone; "standard": also search, and best of n that reads
    as much; "curves": that and majority at the cost of every search, a single sample, and beam
    searches of several widths."""
    search: SearchConfig = ANSWER
    """Settings of all searches, but for simulations, oracle and value. They belong to the model:
    these are those of configs/game24_system2.py."""
    max_completion_tokens: int | None = None
    """Longest text of every method, a longer one is a failure; None: that of `search.action`, or of
    the task where it is no problem set."""
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
        Options(), rest, program="evaluation", name=f"evaluation-{evaluation.name_of(checkpoint)}"
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
        if task in benchmarks.NAMES:
            benchmarks.load(task, config.options)
        else:
            problems.load_problems(task, options.split)
    command = shlex.join(["python", "-m", "evaluation", *argv])
    with load.opened_run(config, dataclasses.replace(flags, command=command)) as (folder, stop):
        path = evaluation.run(config, folder, resume=flags.resume, stop=stop)
    report.show(report.read(path))
    print(f"report: {path}\nplot:   {path.with_name(evaluation.plot_of(config)[1])}")


def make_config(checkpoint: str, options: Options) -> evaluation.EvaluationConfig:
    """The evaluation that the options ask for."""
    search = options.search
    is_other = any(task in benchmarks.NAMES for task in options.tasks)
    names = options.method or (("greedy",) if is_other else ())
    if options.max_completion_tokens is not None and (not names or "search" in names):
        longest = options.max_completion_tokens
        action = dataclasses.replace(search.action, max_completion_tokens=longest)
        search = dataclasses.replace(search, action=action)
    if names:
        methods = named_methods(options, search, names)
    else:
        methods = table_methods(options, search)
    return evaluation.EvaluationConfig(
        checkpoint=checkpoint,
        base_checkpoint=options.baseline,
        tasks=options.tasks,
        batch_size=options.batch_size,
        methods=methods,
        options=TaskOptions(
            limit=options.limit,
            shots=options.shots,
            subjects=options.subjects,
            text=options.text,
            form=options.form,
            allow_code=options.allow_code,
            max_new_tokens=options.max_completion_tokens,
        ),
        judge=options.judge,
    )


def table_methods(options: Options, search: SearchConfig) -> tuple[AnyMethod, ...]:
    """The methods of a table, which are compared at equal cost."""
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
        return tuple(method for method in methods if isinstance(method, Greedy))
    return methods


def named_methods(
    options: Options, search: SearchConfig, names: Sequence[MethodName]
) -> tuple[AnyMethod, ...]:
    """The methods of these names, each on its own."""
    longest = options.max_completion_tokens or search.action.max_completion_tokens
    asked: dict[str, Any] = {"split": options.split, "limit": options.limit}
    sampled = functools.partial(
        BestOfN, match=None, num_samples=options.samples, max_completion_tokens=longest, **asked
    )
    made: list[AnyMethod] = []
    for name in dict.fromkeys(names):
        match name:
            case "greedy":
                made.append(Greedy(max_completion_tokens=longest, **asked))
            case "majority":
                made.append(sampled(choices=("majority",), label=f"majority-{options.samples}"))
            case "best_of_n":
                made.append(sampled(choices=("value",)))
            case "search":
                made += [
                    Search(
                        search=dataclasses.replace(
                            search, num_simulations=n, use_oracle=False, root_noise=False
                        ),
                        max_moves=options.max_moves,
                        **asked,
                    )
                    for n in options.simulations
                ]
    return tuple(made)


if __name__ == "__main__":
    load.main("evaluation", main)
