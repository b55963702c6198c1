"""python -m search NAME --checkpoint P [--overrides] [--run-folder R] [--resume] [--show]: plays
the problems of a config and writes their records, here or by workers (`--workers celery`).
"""

import dataclasses
import os
import sys
from typing import Literal

from configs import load
from search import checks, self_play
from train import checkpoints, show, slurm
from train.errors import ConfigError
from train.slurm import SlurmConfig

LAUNCHER_FLAGS = ("launcher", "dry-run", "slurm.", "num-workers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchFlags(load.CommonFlags):
    """Flags of a search: who plays. The records are the same, whoever does."""

    workers: Literal["none", "celery"] = "none"
    """"celery": other processes, `python -m search.worker RUN_FOLDER`, on any machine that sees the
    run folder. "none": this process."""
    broker: str | None = None
    """Queue between them: redis://HOST:PORT/0, or "files" in the run folder, which needs no server.
    None: what TAYLORZERO_BROKER says, else "files"."""
    num_workers: int = 0
    """Workers to start: on this machine, or in the Slurm job. More may come by themselves."""
    lease_seconds: float = 60.0
    """A worker that is silent for so long is lost, and its batch is played by another."""
    launcher: Literal["local", "slurm"] = "local"
    """"slurm": submit one job with a Redis server, the driver and num_workers workers."""
    slurm: SlurmConfig = SlurmConfig()
    """What that job asks for."""
    dry_run: bool = False
    """Print the script of the job instead of submitting it."""


def main(argv: list[str]) -> None:
    config, flags = load.parse(
        argv, program="search", expects=self_play.SelfPlayConfig, flags=SearchFlags
    )
    if flags.show:
        print_search(config)
        return
    if not config.checkpoint:
        raise ConfigError(
            "a search needs a model that plays; got no checkpoint. Give --checkpoint, the folder "
            "of a `python -m train` run."
        )
    # A misspelt name leaves no run folder behind, and a run that trains on in the meantime does not
    # change who plays after --resume.
    config = dataclasses.replace(config, checkpoint=checkpoints.name_step(config.checkpoint))
    for warning in checks.check(config):
        print(f"search: warning: {warning}", file=sys.stderr)
    if flags.launcher == "slurm":
        submit(argv[0], argv[1:], flags)
        return
    with load.opened_run(config, flags) as (folder, stop):
        if flags.workers == "none":
            done = self_play.run(config, folder, resume=flags.resume, stop=stop)
        else:
            from search import broker, distributed

            done = distributed.run(
                config,
                folder,
                resume=flags.resume,
                stop=stop,
                broker_url=flags.broker or os.environ.get("TAYLORZERO_BROKER") or broker.FILES,
                local_workers=flags.num_workers,
                lease_seconds=flags.lease_seconds,
            )
        print(f"records: {done}")


def submit(name: str, argv: list[str], flags: SearchFlags) -> None:
    """Submits the job of a distributed search, or prints its script."""
    from search import slurm_job

    if flags.num_workers < 1:
        raise ConfigError(
            f"a job has 1 or more workers; got --num-workers {flags.num_workers}. Set it."
        )
    text = slurm_job.script(
        name,
        slurm.without_flags(argv, LAUNCHER_FLAGS),
        flags.run_folder,
        flags.slurm,
        workers=flags.num_workers,
    )
    if flags.dry_run:
        print(text, end="")
        return
    script = flags.run_folder.with_name(f"{flags.run_folder.name}.sbatch")
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    print(f"job {slurm.submit(script)}: {script}")


def print_search(config: self_play.SelfPlayConfig) -> None:
    """Resolved config, size of the model if one is given, and the first prompt."""
    show.print_config(config)
    if config.checkpoint:
        _, _, params = checkpoints.load_params(config.checkpoint)
        show.print_parameters(params)
    problems, numbers = self_play.load_problems(config)
    num_games = len(numbers) * len(config.random_moves)
    print(f"{num_games} games of {len(numbers)} problems; the first prompt:")
    print(problems[numbers[0]].prompt.text, end="")


if __name__ == "__main__":
    load.main("search", main)
