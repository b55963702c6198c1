"""`python -m train.sweep NAME`: many training runs that differ in some fields, and a table of them.

Every argument but the flags goes into all members (`--train-steps 50`). A member is a run folder
named by a hash of its whole config:

    RUN/members/ID/     a run like any other (`python -m train.resume` continues it)
    RUN/table.csv, table.md, plot.png

Members that are done are skipped, so a sweep may grow, be stopped and go on (--resume).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from configs import load
from train import launch, resume
from train.errors import ConfigError
from train.slurm import SlurmConfig
from train.sweep import Member, Sweep, SweepRun, members_of

FOLDER = load.FOLDER / "sweeps"


@dataclass(frozen=True, kw_only=True)
class SweepFlags(load.CommonFlags):
    """Flags of a sweep."""

    launcher: Literal["local", "debug", "slurm"] = "local"
    """"local": processes of this machine. "debug": one after the other in this process. "slurm": an
    array of jobs; call the sweep again for its table."""
    num_processes: int = 1
    """Members that run at once with "local"."""
    slurm: SlurmConfig = SlurmConfig()
    """What the jobs ask for."""
    dry_run: bool = False
    """Print the members, and with "slurm" the script; run nothing."""


def find(name: str) -> Sweep:
    """The sweep of `configs/sweeps/NAME.py`.

    Raises:
      ConfigError: no such file, with the nearest name.
    """
    return load.find(name, folder=FOLDER, function="get_sweep")


def main(argv: list[str]) -> None:
    names = load.names(FOLDER, function="get_sweep")
    usage = f"usage: python -m train.sweep NAME [--overrides] [flags]; NAME: {', '.join(names)}"
    if not argv or argv[0].startswith("-"):
        if argv in (["--help"], ["-h"]):
            print(usage)
            return
        raise ConfigError(f"the first argument names a sweep. {usage}")
    sweep = find(argv[0])
    config, flags = load.override(
        load.find(sweep.config), argv[1:], program="train.sweep", name=argv[0], flags=SweepFlags
    )
    members = members_of(sweep, config)
    if flags.show or flags.dry_run:
        print_members(members, flags)
        return
    from train.sweep import run, table

    own = SweepRun(config=config, metric=sweep.metric)
    with load.opened_run(own, flags) as (folder, stop):
        run.run(
            members,
            folder,
            stop=stop,
            launcher=flags.launcher,
            num_processes=flags.num_processes,
            slurm_config=flags.slurm,
        )
        rows = table.rows(members, folder, sweep.metric, larger=sweep.is_larger_better)
        table.write(rows, folder, sweep.metric)
        print((folder / "table.md").read_text())


def print_members(members: Sequence[Member], flags: SweepFlags) -> None:
    """A line per member: its folder and its fields; then the script of the jobs."""
    for member in members:
        state = "done" if resume.is_done(
            flags.run_folder / "members" / member.name, member.config
        ) else "to do"  # fmt: skip
        fields = " ".join(f"{field}={value}" for field, value in member.overrides.items())
        print(f"{member.name}  {state}  {fields}")
    print(f"{len(members)} members")
    if flags.launcher == "slurm":
        folder = flags.run_folder
        print(
            launch.sbatch_text(flags.slurm, folder / "jobs", count=len(members), name=folder.name)
        )


if __name__ == "__main__":
    load.main("train.sweep", main)
