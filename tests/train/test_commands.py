"""`python -m train` as a user meets it: what it prints, how it exits, and what it leaves alone."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from configs import load
from train import __main__ as command
from train import metrics
from train.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_PREEMPTED

MINUSCULE = [
    "tiny", "--model.width", "16", "--model.num-layers", "1", "--model.num-heads", "1",
    "--sources.0.num-plays", "400", "--validation-sources.0.num-plays", "40",
    "--batch-size", "8", "--log-every-steps", "1",
]  # fmt: skip


@pytest.fixture
def train(monkeypatch, capsys):
    """`train(*arguments)` -> (exit code, what it printed, its last line of errors)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            load.main("train", command.main)
        out, err = capsys.readouterr()
        return stopped.value.code, out, (err.splitlines() or [""])[-1]

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], "got 'tinny'. Did you mean tiny?"),
        ([], "the first argument names a config"),
        (["tiny", "--train-step", "3"], "Did you mean --train-steps?"),
        (["tiny", "--model.widht", "3"], "Did you mean --model.width?"),
        (["tiny", "--optimizers.policy.peak-lerning-rate", "3"], "policy.peak-learning-rate?"),
        (["tiny", "--train-steps", "many"], "train-steps"),
        (["tiny", "--train-steps", "0"], "train_steps must be 1 or more; got 0"),
        (["tiny", "--optimizers.policy.schedule", "cosinus"], "schedule"),
        (["tiny", "--recipe", "hybrid"], 'recipe "hybrid" and the field hybrid belong together'),
        (["tiny", "--mesh.tensor", "3"], "mesh axes must multiply to the number of devices"),
        (["tiny", "--model.vocab-size", "50"], "Raise model.vocab_size"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(train, tmp_path, arguments, message):
    code, _, error = train(*arguments, "--run-folder", tmp_path / "run")
    assert code == EXIT_CONFIG
    assert message in error
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_missing_checkpoint_is_one_line_and_exit_code_3(train, tmp_path):
    code, _, error = train(
        *MINUSCULE, "--initial-checkpoint", tmp_path / "nowhere", "--run-folder", tmp_path / "run"
    )
    assert code == EXIT_DATA
    assert "nowhere, which does not exist. Give the folder of a finished" in error


def test_an_existing_run_folder_is_left_alone(train, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for flag in ([], ["--overwrite"], ["--resume"]):
        code, _, error = train(*MINUSCULE, "--run-folder", tmp_path, *flag)
        assert code == EXIT_CONFIG
        assert "left alone" in error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_show_tells_size_memory_mesh_and_text_and_trains_nothing(train, tmp_path):
    code, out, _ = train(*MINUSCULE, "--show", "--run-folder", tmp_path / "run")
    assert code == EXIT_OK
    assert '"train_steps": 200' in out
    assert "parameters: " in out
    assert "MiB" in out
    assert "mesh: {'data': 1, 'fsdp': 1, 'tensor': 1} on cpu" in out
    assert " left " in out  # a line of Game of 24
    assert not (tmp_path / "run").exists()


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in metrics.TIME_FIELDS} for line in lines]


@pytest.mark.slow
def test_a_signalled_process_saves_exits_with_75_and_continues_to_the_same_end(
    train, tmp_path, repository_root
):
    arguments = [*MINUSCULE, "--train-steps", "600", "--run-folder"]
    file = tmp_path / "cut" / "metrics.jsonl"
    num_logged = 0
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *arguments, str(tmp_path / "cut"), "--resume"],
            cwd=repository_root, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE,
        )  # fmt: skip
        enough = num_logged + 5
        while process.poll() is None and not (
            file.exists() and file.read_text().count("\n") > enough
        ):
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert process.returncode == EXIT_PREEMPTED, err
        assert f"stopped by {number.name} at step".encode() in err
        assert num_logged < len(logged(tmp_path / "cut")) < 600
        num_logged = len(logged(tmp_path / "cut"))

    assert train(*arguments, tmp_path / "cut", "--resume")[0] == EXIT_OK
    assert train(*arguments, tmp_path / "whole")[0] == EXIT_OK
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
