"""Jobs for Slurm: what they ask for, and their scripts."""

import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.errors import ConfigError

SAVE_SECONDS = 180  # between the signal and the end of a job


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What every job asks Slurm for."""

    partition: str | None = None
    """Of the cluster; None: its default."""
    account: str | None = None
    """Who pays; None: your default."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    hours: float = 4.0
    """Longest time of a job; it is saved and queued again at its end, until it is done."""
    nodes: int = 1
    """Nodes of a job."""
    cpus: int = 8
    """Cores of a process."""
    gpus: int = 0
    """GPUs of a process."""
    memory_gb: int | None = None
    """Memory of a node; None: the default."""
    at_once: int = 64
    """Jobs of a sweep that run at the same time."""
    retries: int = 50
    """How often a job that ran out of time is queued again."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command, such as "module load cuda"."""

    def __post_init__(self):
        counts = (self.nodes, self.cpus, self.at_once)
        if min(counts) < 1 or self.gpus < 0 or self.hours <= SAVE_SECONDS / 3600:
            raise ConfigError(
                "nodes, cpus and at_once are 1 or more, gpus 0 or more, and hours leave "
                f"{SAVE_SECONDS} s to save; got {self}. Change --slurm.FIELD."
            )

    @property
    def minutes(self) -> int:
        return max(1, round(60 * self.hours))


def header(config: SlurmConfig, *, name: str, log: Path, tasks: int = 1) -> list[str]:
    """The first lines of a script. log: file of all output; tasks: processes of the job."""
    options = {
        "job-name": name,
        "output": log,
        "open-mode": "append",
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "nodes": config.nodes,
        "ntasks": tasks,
        "cpus-per-task": config.cpus,
        "gpus-per-task": config.gpus or None,
        "mem": f"{config.memory_gb}G" if config.memory_gb else None,
        "time": config.minutes,
        "signal": f"B:USR1@{SAVE_SECONDS}",
    }
    lines = [
        f"#SBATCH --{option}={shlex.quote(str(value))}"
        for option, value in options.items()
        if value is not None
    ]
    return ["#!/bin/bash", *lines, "#SBATCH --requeue"]


def submit(script: Path) -> str:
    """Gives a script to `sbatch`; returns the number of the job.

    Raises:
      ConfigError: there is no Slurm here, or it refuses the job.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "--launcher slurm needs the command sbatch, which is not here. Use it on a login node, "
            "or add --dry-run to see the script."
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"sbatch refuses {script}: {error.stderr.strip()}") from error
    return done.stdout.strip().partition(";")[0]


def without_flags(argv: Sequence[str], flags: Iterable[str]) -> list[str]:
    """A command line without some flags and their values; "slurm." stands for all that begin so.

    A flag takes the words up to the next one that begins with "--".
    """
    flags = tuple(flags)

    def is_dropped(word: str) -> bool:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        return any(name.startswith(flag) if flag.endswith(".") else name == flag for flag in flags)

    kept, is_kept = [], True
    for word in argv:
        if word.startswith("--"):
            is_kept = not is_dropped(word)
        if is_kept:
            kept.append(word)
    return kept
