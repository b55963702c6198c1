"""python -m train NAME [--overrides] [--run-folder R] [--resume] [--overwrite] [--show]."""

import dataclasses
from typing import Any, Literal

from configs import load
from train.slurm import SlurmConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags(load.CommonFlags):
    """Flags of training and of pipelines."""

    launcher: Literal["local", "slurm"] = "local"
    """"slurm": submit a job, or of a pipeline one job per stage, each after those that it uses."""
    slurm: SlurmConfig = SlurmConfig()
    """What the jobs ask for."""
    dry_run: bool = False
    """Print the scripts of the jobs instead of submitting them."""
    status: bool = False
    """Print what the run folder holds, stage by stage, and what Slurm says; run nothing."""


def main(argv: list[str]) -> None:
    from configs.base import Experiment
    from train.pipeline import Pipeline

    config, flags = load.parse(
        argv, program="train", expects=(Experiment, Pipeline), flags=TrainFlags
    )
    if flags.status:
        from train import pipeline_jobs

        print(pipeline_jobs.status(config, flags.run_folder), end="")
        return
    if flags.launcher == "slurm":
        submit(config, flags)
        return
    from train import show

    if flags.show:
        show.print_config(config)
        if isinstance(config, Experiment):
            show.print_experiment(config)
        return
    # After the command line is known to be good: these load JAX.
    from configs.commands import COMMANDS
    from train import loop, pipeline
    from train.stopping import StopFlag

    if isinstance(config, Pipeline):
        with StopFlag(deadline_seconds=flags.stop_after_seconds) as stop:
            pipeline.run(
                config,
                flags.run_folder,
                commands=COMMANDS,
                stop=stop,
                resume=flags.resume,
                overwrite=flags.overwrite,
                command=flags.command,
            )
        return
    with load.opened_run(config, flags) as (folder, stop):
        print(f"checkpoint: {loop.run(config, folder, resume=flags.resume, stop=stop)}")


def submit(config: Any, flags: TrainFlags) -> None:
    """Submits the jobs of a run, or prints their scripts."""
    from train import pipeline_jobs

    if flags.dry_run:
        print(pipeline_jobs.scripts(config, flags.run_folder, flags.slurm), end="")
        return
    pipeline_jobs.open_folder(
        config,
        flags.run_folder,
        resume=flags.resume,
        overwrite=flags.overwrite,
        command=flags.command,
    )
    for name, job in pipeline_jobs.submit(config, flags.run_folder, flags.slurm).items():
        print(f"job {job}: {name}")
    print(f"python -m train {flags.command.split()[3]} --run-folder {flags.run_folder} --status")


if __name__ == "__main__":
    load.main("train", main)
