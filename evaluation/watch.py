"""`python -m evaluation.watch RUN`: evaluates new checkpoints of a run, and keeps the best one.

    python -m evaluation.watch runs/NAME --tasks perplexity --metric "nats per token" \
        --lower-is-better

    FOLDER/steps/STEP/     the evaluation of one checkpoint, as `python -m evaluation` makes it
    FOLDER/scores.jsonl    a line per checkpoint: step, score and interval
    FOLDER/best/           the parameters of the best one so far, a checkpoint for every command

Takes all options of `python -m evaluation`. Runs beside the training, until `--last-step` is
evaluated or it is stopped; `--resume` goes on.
"""

import dataclasses
import json
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich

from configs import load
from evaluation import __main__ as command
from evaluation import report, run
from train import checkpoints
from train.errors import ConfigError, DataError

POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Options(command.Options):
    """What is measured of every new checkpoint, and which number decides."""

    metric: str = "accuracy"
    """Decides which checkpoint is the best; of the first row of the report that has it."""
    lower_is_better: bool = False
    """Whether a lower number is better, as it is with a loss."""
    every_seconds: float = 60.0
    """Time between two looks at the run."""
    last_step: int | None = None
    """Ends when a checkpoint of this step or a later one is evaluated; None: when stopped."""


def watch(training: Path, options: Options, folder: Path, *, stop: Any) -> Path | None:
    """Evaluates what is there and what comes; returns the best checkpoint, if there is one.

    Raises:
      Preempted: `stop` was requested. ConfigError: no row has the metric.
    """
    scores = _read(folder / "scores.jsonl")
    while True:
        for step in _steps(training):
            if stop.requested:
                stop.raise_preempted(f"{len(scores)} checkpoints")
            if step not in {each["step"] for each in scores}:
                scores.append(_evaluate(training, step, options, folder, stop))
                _write(folder / "scores.jsonl", scores)
                if _best(scores, options)["step"] == step:
                    keep(training / "checkpoints" / str(step), folder / "best")
                rich.print(f"step {step}: {scores[-1]['score']:.4f} {options.metric}")
        done = max((each["step"] for each in scores), default=-1)
        if options.last_step is not None and done >= options.last_step:
            return folder / "best" if scores else None
        until = time.monotonic() + options.every_seconds
        while time.monotonic() < until:
            if stop.requested:
                stop.raise_preempted(f"{len(scores)} checkpoints")
            time.sleep(min(POLL_SECONDS, options.every_seconds))


def _steps(training: Path) -> list[int]:
    """Complete checkpoints, oldest first."""
    folder = training / "checkpoints"
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if (path / "params").is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def _evaluate(
    training: Path, step: int, options: Options, folder: Path, stop: Any
) -> dict[str, Any]:
    path = training / "checkpoints" / str(step)
    config = command.make_config(str(path), options)
    place = folder / "steps" / str(step)
    found = report.read(run.run(config, place, resume=True, stop=stop))
    rows = [row for row in found.rows if row.metric == options.metric]
    if not rows:
        known = ", ".join(dict.fromkeys(row.metric for row in found.rows))
        raise ConfigError(
            f"a metric decides that the tasks have; got {options.metric!r}, there are {known}. Set "
            "--metric to one of these."
        )
    row = rows[0]
    return {
        "step": step, "task": row.task, "metric": row.metric, "score": row.score, "low": row.low,
        "high": row.high, "n": row.n,
    }  # fmt: skip


def _best(scores: list[dict[str, Any]], options: Options) -> dict[str, Any]:
    """Of equal ones the first."""
    sign = -1 if options.lower_is_better else 1
    return max(scores, key=lambda each: (sign * each["score"], -each["step"]))


def keep(step_path: Path, place: Path) -> None:
    """Copies a checkpoint without what training needs; adapters are merged into their base."""
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    metadata = checkpoints.read_metadata(step_path)
    if metadata.lora is None:
        skipped = shutil.ignore_patterns("train_state", "batches")
        shutil.copytree(step_path, partial, ignore=skipped)
    else:
        whole = dataclasses.replace(metadata, lora=None, base_path=None, base_fingerprint=None)
        _, _, params = checkpoints.load_params(step_path)
        checkpoints.save_params(partial, params, whole, dtype="float32")
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.replace(old)
    partial.replace(place)
    shutil.rmtree(old, ignore_errors=True)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(path: Path, scores: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text("".join([json.dumps(each) + "\n" for each in scores]), "utf-8")
    partial.replace(path)


def main(argv: list[str]) -> None:
    if list(argv) in (["--help"], ["-h"]):
        load.override(Options(), ["--help"], program="evaluation.watch RUN")
    if not argv or argv[0].startswith("-"):
        raise ConfigError(
            "the first argument is the run folder of a training. usage: python -m "
            "evaluation.watch RUN [--options]"
        )
    training, *rest = argv
    options, flags = load.override(
        Options(), rest, program="evaluation.watch", name=f"watch-{run.name_of(training)}"
    )
    try:
        command.make_config(training, options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not Path(training).is_dir():
        raise DataError(f"a training has a run folder; {training} does not exist. Start it first.")
    line = shlex.join(["python", "-m", "evaluation.watch", *argv])
    with load.opened_run(options, dataclasses.replace(flags, command=line)) as (folder, stop):
        best = watch(Path(training), options, folder, stop=stop)
    print(f"best: {best}", file=sys.stdout)


if __name__ == "__main__":
    load.main("evaluation.watch", main)
