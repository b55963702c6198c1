"""Runs the members of a sweep: as processes, one after the other, or as jobs."""

import concurrent.futures
import subprocess
from collections.abc import Sequence
from pathlib import Path

from train import launch, resume, run_folder, slurm
from train.errors import EXIT_PREEMPTED, DataError
from train.stopping import StopFlag
from train.sweep import Member


def run(
    members: Sequence[Member],
    folder: Path,
    *,
    stop: StopFlag,
    launcher: str = "local",
    num_processes: int = 1,
    slurm_config: slurm.SlurmConfig | None = None,
) -> None:
    """Runs, or submits, all members that are not done; `folder` is that of the sweep.

    Raises:
      Preempted: stopped; all are saved. DataError: members have failed, the others are done.
    """
    at = {member.name: folder / "members" / member.name for member in members}
    for member in members:
        run_folder.prepare(at[member.name], member.config, resume=True)
    left = [member for member in members if not resume.is_done(at[member.name], member.config)]
    if launcher == "slurm":
        known = launch.known_jobs(folder)
        queued = launch.states(known[m.name] for m in left if m.name in known)
        left = [member for member in left if known.get(member.name) not in queued]
        if left:
            commands = [launch.resume_command(at[member.name]) for member in left]
            config = slurm_config or slurm.SlurmConfig()
            jobs = launch.submit(commands, folder / "jobs", config, name=folder.name)
            launch.note_jobs(folder, dict(zip([m.name for m in left], jobs, strict=True)))
        print(f"submitted {len(left)} jobs; {len(queued)} were queued already", flush=True)
        return
    if launcher == "debug":
        for member in left:
            resume.resume(at[member.name], stop=stop)
        return
    failed = _run_processes(
        [(member.name, at[member.name]) for member in left], num_processes, stop
    )
    if stop.requested:
        stop.raise_preempted(f"{sum(map(_is_left, at.values()))} of {len(members)} members left")
    if failed:
        name, code = next(iter(failed.items()))
        raise DataError(
            f"{len(failed)} of {len(members)} members failed, such as {name} (exit code {code}). "
            f"See {at[name] / 'log.txt'}; the same command with --resume runs them again."
        )


def _is_left(folder: Path) -> bool:
    return not (folder / resume.DONE).exists()


def _run_processes(
    runs: Sequence[tuple[str, Path]], num_processes: int, stop: StopFlag
) -> dict[str, int]:
    """Runs all folders, so many at once; returns the exit codes of those that failed."""
    failed = {}

    def one(name: str, folder: Path) -> None:
        if stop.requested:
            return
        with open(folder / "log.txt", "ab") as log:
            process = subprocess.Popen(launch.resume_command(folder), stdout=log, stderr=log)
        is_told = False
        while process.poll() is None:
            if stop.requested and not is_told:
                process.terminate()
                is_told = True
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        state = "done" if process.returncode == 0 else f"exit code {process.returncode}"
        print(f"member {name}: {state}", flush=True)
        if process.returncode not in (0, EXIT_PREEMPTED):
            failed[name] = process.returncode

    with concurrent.futures.ThreadPoolExecutor(max(1, num_processes)) as pool:
        list(pool.map(lambda arguments: one(*arguments), runs))
    return failed
