"""Runs as jobs: command lines that are interrupted, save, and are queued again until they are done.

A job is `python -m train.resume RUN_FOLDER`, given to Slurm by submitit. Nothing of a run is
pickled but that command line: the code may change until the job starts. Slurm's signal (before a
time-out or for a preemption) reaches the run, which saves; the job then goes back into the queue.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train import run_folder
from train.errors import EXIT_PREEMPTED, ConfigError
from train.run_folder import REPOSITORY_ROOT
from train.slurm import SAVE_SECONDS, SlurmConfig

JOBS = "jobs.json"  # in a run folder: name of a member or stage -> number of its job


class Command:
    """A command line as a job of submitit."""

    def __init__(self, argv: Sequence[str]):
        self.argv = tuple(argv)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Runs it. Raises: RuntimeError: it failed."""
        self._process = subprocess.Popen(self.argv, cwd=REPOSITORY_ROOT)
        code = self._wait()
        if code == EXIT_PREEMPTED:
            # Slurm's SIGTERM goes to all processes of a job: the run has saved before we were told.
            # submitit's handler of its own signal queues the job again, and ends this process.
            signal.raise_signal(preemption_signal())
        if code:
            raise RuntimeError(f"{shlex.join(self.argv)} ended with exit code {code}")

    def checkpoint(self) -> Any:
        """Called by submitit's handler: has the run save, and says what to do in the next job."""
        import submitit.helpers

        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            self._wait()
        return submitit.helpers.DelayedSubmission(Command(self.argv))

    def _wait(self) -> int:
        # Not Popen.wait, whose lock a signal handler that waits too would never get.
        assert self._process is not None
        if self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return self._process.wait()


def preemption_signal() -> signal.Signals:
    """By which submitit's jobs are told to save."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def resume_command(folder: Path, stage: str | None = None) -> list[str]:
    """Continues the run in `folder`, or one stage of the pipeline there."""
    command = [sys.executable, "-m", "train.resume", str(folder)]
    return command if stage is None else [*command, "--stage", stage]


def parameters(config: SlurmConfig, *, name: str, after: Iterable[str] = ()) -> dict[str, Any]:
    """What submitit is told of jobs. after: numbers of jobs that must have succeeded."""
    found: dict[str, Any] = {
        "job_name": name,
        "time": config.minutes,
        "nodes": config.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": config.cpus,
        "gpus_per_node": config.gpus or None,
        "mem": f"{config.memory_gb}GB" if config.memory_gb else None,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "array_parallelism": config.at_once,
        "signal_delay_s": SAVE_SECONDS,
        "stderr_to_stdout": True,
        "setup": list(config.setup) or None,
        "dependency": ":".join(["afterok", *after]) if after else None,
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
    }
    return {key: value for key, value in found.items() if value is not None}


def sbatch_text(config: SlurmConfig, folder: Path, *, count: int = 1, **options: Any) -> str:
    """What submitit gives to sbatch for so many jobs. options: of `parameters`."""
    from submitit.slurm import slurm

    command = (
        f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    )
    return slurm._make_sbatch_string(
        command, folder, map_count=count if count > 1 else None, **parameters(config, **options)
    )


def submit(
    commands: Sequence[Sequence[str]], folder: Path, config: SlurmConfig, **options: Any
) -> list[str]:
    """Queues one job per command line, as an array; returns their numbers.

    Args:
      folder: of submitit's files and the logs. options: of `parameters`.

    Raises:
      ConfigError: there is no Slurm here, or it refuses.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"jobs need the extra `cluster`; got {error}. Install it: pip install -c "
            "constraints.txt -e '.[cluster]'."
        ) from error
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=config.retries)
    except RuntimeError as error:
        raise ConfigError(
            f"--launcher slurm works where Slurm is; here: {error} Use it on a login node, or add "
            "--dry-run to see what would be submitted."
        ) from error
    executor.update_parameters(**parameters(config, **options))
    try:
        with executor.batch():
            jobs = [executor.submit(Command(command)) for command in commands]
    except FailedJobError as error:
        raise ConfigError(f"sbatch refuses the jobs: {error}") from error
    return [job.job_id for job in jobs]


def known_jobs(folder: Path) -> dict[str, str]:
    """Jobs that were submitted for the run in `folder`, by name."""
    return run_folder.read_json(folder / JOBS) if (folder / JOBS).exists() else {}


def note_jobs(folder: Path, jobs: Mapping[str, str]) -> None:
    """Adds jobs to those that are known."""
    run_folder.write_json(folder / JOBS, known_jobs(folder) | dict(jobs))


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Number -> state (PENDING, RUNNING, ...) of the jobs that Slurm has not finished."""
    numbers = sorted(set(jobs))
    if not numbers:
        return {}
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", "--format=%i %T", "--jobs", ",".join(numbers)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
