"""Runs as jobs: the scripts, and that an interrupted job saves, is queued again and ends."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.train.test_pipeline import Count
from train import launch, pipeline_jobs, slurm
from train.errors import ConfigError
from train.pipeline import Pipeline, Stage
from train.slurm import SlurmConfig

CONFIG = SlurmConfig(partition="gpu", account="us", gpus=8, cpus=64, hours=2.5, memory_gb=500)
PIPELINE = Pipeline(
    stages=(
        Stage(name="base", command="train", config=Count()),
        Stage(name="reward", command="train", config=Count()),
        Stage(name="end", command="evaluation", config=Count(more_sources=("stage:base",))),
    )
)


def normalised(text, repository_root):
    return text.replace(sys.executable, "python").replace(str(repository_root), "/REPOSITORY")


def test_scripts_of_a_pipeline_and_of_an_array_are_golden(repository_root):
    pytest.importorskip("submitit", reason="needs the extra `cluster`")
    scripts = pipeline_jobs.scripts(PIPELINE, Path("/runs/p"), CONFIG)
    array = launch.sbatch_text(CONFIG, Path("/runs/s/jobs"), count=200, name="s")
    text = normalised(scripts + array, repository_root) + "\n"
    golden = repository_root / "tests" / "golden" / "launch.sbatch"
    assert text == golden.read_text()


class Slurm:
    """Stands in for sbatch and squeue: writes down what it is given."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder / "slurm"
        self.folder.mkdir()
        count = self.folder / "count"
        scripts = {
            "sbatch": f"n=$(cat {count} 2>/dev/null || echo 100); echo $((n + 1)) > {count}; "
            f"cp ${{@: -1}} {self.folder}/$n.sh; echo Submitted batch job $n",
            "squeue": f"cat {self.folder}/queue 2>/dev/null",
            "srun": "exit 1",
        }
        for name, body in scripts.items():
            (self.folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (self.folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    def queue(self, **states):
        lines = [f"{job.removeprefix('_')} {state}\n" for job, state in states.items()]
        (self.folder / "queue").write_text("".join(lines))

    def script(self, job):
        return (self.folder / f"{job}.sh").read_text()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="needs the extra `cluster`")
    return Slurm(tmp_path, monkeypatch)


def test_stages_become_jobs_after_those_that_they_use(cluster, tmp_path):
    folder = tmp_path / "p"
    pipeline_jobs.open_folder(PIPELINE, folder, resume=False, overwrite=False)
    jobs = pipeline_jobs.submit(PIPELINE, folder, CONFIG)
    assert jobs == {"base": "100", "reward": "101", "end": "102"}
    assert "--dependency" not in cluster.script(101)
    assert "--dependency=afterok:100\n" in cluster.script(102)

    cluster.queue(_100="RUNNING", _102="PENDING")  # reward has failed
    (folder / "stages" / "00-base").mkdir(parents=True)
    (folder / "stages" / "00-base" / "metrics.jsonl").write_text(
        '{"step": 4, "loss": 1.5}\n{"step": 5, "lo'
    )
    page = pipeline_jobs.status(PIPELINE, folder).splitlines()
    assert page[1].split() == [
        "base", "train", "changed", "100", "RUNNING", "step", "4,", "loss", "1.5000",
    ]  # fmt: skip
    assert page[2].split() == ["reward", "train", "waiting", "101"]
    assert page[3].split() == ["end", "evaluation", "waiting", "102", "PENDING"]
    again = pipeline_jobs.submit(PIPELINE, folder, CONFIG)
    assert again == {"base": "100", "reward": "103", "end": "102"}


def test_a_sweep_is_an_array_of_what_is_not_queued(cluster, tmp_path):
    commands = [["python", "-c", str(i)] for i in range(3)]
    jobs = launch.submit(commands, tmp_path / "jobs", CONFIG, name="s")
    assert jobs == ["100_0", "100_1", "100_2"]
    assert "#SBATCH --array=0-2%3\n" in cluster.script(100)
    cluster.queue(_100_1="RUNNING", _100_2="PENDING")
    assert launch.states(jobs) == {"100_1": "RUNNING", "100_2": "PENDING"}


def test_without_slurm_one_line_says_so(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="needs the extra `cluster`")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="works where Slurm is.*--dry-run"):
        launch.submit([["true"]], tmp_path / "jobs", CONFIG, name="x")
    with pytest.raises(ConfigError, match="needs the command sbatch"):
        slurm.submit(tmp_path / "x.sbatch")
    assert launch.states(["1"]) == {}


def test_flags_are_taken_off_a_command_line():
    argv = [
        "--a",
        "1",
        "--slurm.hours",
        "3",
        "--dry-run",
        "--b.c=2",
        "--launcher=slurm",
        "--x",
        "y",
        "z",
    ]
    assert slurm.without_flags(argv, ("slurm.", "dry-run", "launcher")) == [
        "--a", "1", "--b.c=2", "--x", "y", "z",
    ]  # fmt: skip


COUNTING = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from train.stopping import StopFlag
out = pathlib.Path({out!r})
with StopFlag() as stop:
    start = len(out.read_text()) if out.exists() else 0
    for step in range(start, 30):
        if stop.requested:
            sys.exit(75)
        time.sleep(0.05)
        with open(out, "a") as file:
            file.write(".")
"""


@pytest.mark.parametrize("by", ["submitit", "slurm"])
def test_an_interrupted_job_saves_and_runs_to_its_end(by, tmp_path, repository_root):
    """By submitit's signal, or by a SIGTERM that the run gets before its job."""
    submitit = pytest.importorskip("submitit", reason="needs the extra `cluster`")
    out = tmp_path / "out"
    script = COUNTING.format(root=str(repository_root), out=str(out))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=2, signal_delay_s=1)
    job = executor.submit(launch.Command([sys.executable, "-c", script]))
    while not out.exists():
        assert not job.done()
        time.sleep(0.02)
    at = len(out.read_text())
    task = _child(job._process.pid)
    os.kill(*((task, launch.preemption_signal()) if by == "submitit" else (_child(task), 15)))
    job.result()
    assert out.read_text() == "." * 30
    assert job.paths.stderr.read_text().count("Caught signal SIGUSR2") == 1
    assert at < 30


def _child(process_id):
    path = Path(f"/proc/{process_id}/task/{process_id}/children")
    if not path.exists():
        pytest.skip("needs Linux's /proc to find a child")
    return int(path.read_text().split()[0])
