"""A run on a cluster: one job, or of a pipeline one job per stage, each after those that it uses.

Jobs are `python -m train.resume` (see `train.launch`): a stage that is interrupted is queued again
and goes on where it was; the stages that use it wait. One that fails cancels those after it; the
same command with --resume submits what is left.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train import launch, pipeline, run_folder
from train.pipeline import Pipeline
from train.pipeline_status import duration
from train.slurm import SlurmConfig

ONLY_JOB = "run"  # name of the job of a run that has no stages


def open_folder(
    config: Any, folder: Path, *, resume: bool, overwrite: bool, command: str = ""
) -> None:
    """As `pipeline.open_folder` and `run_folder.prepare`."""
    if isinstance(config, Pipeline):
        pipeline.open_folder(config, folder, resume=resume, overwrite=overwrite, command=command)
    else:
        run_folder.prepare(folder, config, resume=resume, overwrite=overwrite, command=command)


def submit(config: Any, folder: Path, slurm: SlurmConfig) -> dict[str, str]:
    """Queues what is neither done nor queued; returns the numbers of all jobs that are not over.

    Raises:
      ConfigError: there is no Slurm here, or it refuses.
    """
    known = launch.known_jobs(folder)
    queued = launch.states(known.values())
    jobs: dict[str, str] = {}
    for name, command, uses in _plan(config, folder):
        if known.get(name) in queued:
            jobs[name] = known[name]
            continue
        after = [jobs[used] for used in uses if used in jobs]
        (jobs[name],) = launch.submit(
            [command], folder / "jobs", slurm, name=f"{folder.name}-{name}", after=after
        )
        launch.note_jobs(folder, {name: jobs[name]})
    return jobs


def scripts(config: Any, folder: Path, slurm: SlurmConfig) -> str:
    """What would be submitted, with $NAME for the number of the job of stage NAME."""
    found, planned = [], set()
    for name, command, uses in _plan(config, folder):
        after = [f"${used}" for used in uses if used in planned]
        text = launch.sbatch_text(slurm, folder / "jobs", name=f"{folder.name}-{name}", after=after)
        found.append(f"# --- {name}: {' '.join(command[1:])}\n{text}")
        planned.add(name)
    return "\n".join(found)


def status(config: Any, folder: Path) -> str:
    """One page: what every stage has reached, its time, its job and what Slurm says of that."""
    known = launch.known_jobs(folder)
    running = launch.states(known.values())
    lines = [("stage", "command", "state", "time", "job", "reached")]
    for name, command, state, seconds, at in _reached(config, folder):
        job = known.get(name, "")
        said = f"{job} {running[job]}" if job in running else job
        time = duration(seconds) if seconds else ""
        lines.append((name, command, state, time, said, _latest(at)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def _plan(config: Any, folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, command line and used stages of every job that is not done."""
    if not isinstance(config, Pipeline):
        yield ONLY_JOB, launch.resume_command(folder), []
        return
    stages = pipeline.Stages(config, folder)
    for stage in config.stages:
        if stages.state(stage.name) != "done":
            uses = sorted(pipeline.references(stage.config))
            yield stage.name, launch.resume_command(folder, stage.name), uses


def _reached(config: Any, folder: Path) -> Iterator[tuple[str, str, str, float, Path]]:
    """Name, command, state, seconds and folder of every stage."""
    if not isinstance(config, Pipeline):
        seconds = float(_last_line(folder / "metrics.jsonl").get("elapsed_seconds", 0.0))
        state = "done" if (folder / "done.json").exists() else "started" if seconds else "waiting"
        yield ONLY_JOB, type(config).__name__, state, seconds, folder
        return
    stages = pipeline.Stages(config, folder)
    for stage in config.stages:
        at, state = stages.folders[stage.name], stages.state(stage.name)
        state = "waiting" if state == "absent" else state
        yield stage.name, stage.command, state, stages.seconds(stage.name), at


def _latest(folder: Path) -> str:
    """How far the run in a folder is: its step and loss, its shards, or its report."""
    if (folder / "report" / "report.json").exists():
        return str(folder / "report")
    shards = len(list(folder.glob("records/*.arrayrecord.json")))
    if shards:
        return f"{shards} batches"
    line = _last_line(folder / "metrics.jsonl")
    loss = f", loss {line['loss']:.4f}" if "loss" in line else ""
    return f"step {line['step']}{loss}" if line else ""


def _last_line(path: Path) -> dict[str, Any]:
    """Of a file of JSON lines, whose end may be torn."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return json.loads(lines[-1]) if lines else {}
