"""`python -m search` as a user meets it: what it prints, how it exits, and what it leaves alone."""

import shutil
import sys

import pytest

from configs import load
from search import __main__ as command
from train.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK, EXIT_PREEMPTED

MINUSCULE = [
    "--limit", "1", "--batch-size", "1", "--max-moves", "1", "--search.num-simulations", "2",
    "--search.action.num-candidates", "2", "--search.action.opening-tokens", "1",
    "--search.action.max-step-tokens", "2", "--search.action.max-completion-tokens", "2",
]  # fmt: skip


@pytest.fixture
def search(monkeypatch, capsys):
    """`search(*arguments)` -> (exit code, what it printed, its errors)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["search", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            load.main("search", command.main)
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def checkpoint(save_model):
    return save_model()


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["game24_serach"], "Did you mean game24_search?"),
        ([], "the first argument names a config"),
        (["tiny"], "python -m search runs a SelfPlayConfig; configs/tiny.py is a Experiment"),
        (["game24_search", "--checkpont", "x"], "Did you mean --checkpoint?"),
        (["game24_search", "--search.action.kind", "word"], "kind"),
        (["game24_search"], "got no checkpoint. Give --checkpoint"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(search, tmp_path, arguments, message):
    code, out, error = search(*arguments, "--run-folder", tmp_path / "run")
    assert (code, out, error.count("\n")) == (EXIT_CONFIG, "", 1)
    assert message in error
    assert not (tmp_path / "run").exists()


def test_an_unusable_checkpoint_is_one_line_and_leaves_no_run_folder(search, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign" / "params").mkdir(parents=True)
    (tmp_path / "foreign" / "params" / "weights.bin").write_bytes(b"not ours")
    before = files(tmp_path)
    for name, message in (
        ("nowhere", "nowhere, which does not exist. Give the folder of a finished"),
        ("empty", "empty, which holds none. Give the folder of a finished"),
        ("foreign", "foreign cannot be read"),
    ):
        code, out, error = search(
            "game24_search", "--checkpoint", tmp_path / name, "--run-folder", tmp_path / "run"
        )
        assert (code, out, error.count("\n")) == (EXIT_DATA, "", 1)
        assert message in error
        assert not (tmp_path / "run").exists()
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--first", "9999"], EXIT_CONFIG, "at least one problem; game24 validation has 631"),
        (["--split", "tset"], EXIT_DATA, "tset"),
        (["--problem-set", "gsm8k"], EXIT_DATA, "gsm8k"),
        (["--problem-set", "game42"], EXIT_DATA, "Did you mean 'game24'?"),
    ],
)
def test_nothing_to_play_leaves_no_run_folder(
    search, tmp_path, checkpoint, arguments, code, message
):
    folder = tmp_path / "run"
    arguments = ["--checkpoint", checkpoint, "--run-folder", folder, *arguments]
    found, _, error = search("game24_search", *arguments)
    assert (found, error.count("\n")) == (code, 1)
    assert message in error
    assert not folder.exists()


def test_a_folder_that_is_no_run_is_left_alone(search, tmp_path, checkpoint):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    arguments = ["game24_search", "--checkpoint", checkpoint, "--run-folder", folder]
    for flags in ([], ["--overwrite"], ["--resume"]):
        code, _, error = search(*arguments, *flags)
        assert (code, error.count("\n")) == (EXIT_CONFIG, 1)
        assert "left alone" in error
    assert files(folder) == {folder / "notes.txt": b"mine"}


def test_show_tells_config_size_and_first_prompt_and_plays_nothing(search, tmp_path, checkpoint):
    arguments = ["game24_search", "--show", "--first", "1", "--run-folder", tmp_path / "run"]
    code, out, _ = search(*arguments, "--checkpoint", checkpoint)
    assert code == EXIT_OK
    assert '"num_simulations": 50' in out
    assert "\nparameters: " in out
    assert "trunk" in out and "value_head" in out
    assert "630 games of 630 problems; the first prompt:" in out
    assert all(int(number) <= 13 for number in out.splitlines()[-1].split())
    code, out, _ = search(*arguments)
    assert (code, "parameters" in out) == (EXIT_OK, False)
    assert not (tmp_path / "run").exists()


def test_a_search_stops_resumes_and_is_not_repeated(search, tmp_path, checkpoint):
    folder = tmp_path / "run"
    arguments = ["game24_search", *MINUSCULE, "--checkpoint", checkpoint, "--run-folder", folder]
    code, _, error = search(*arguments, "--stop-after-seconds", "0")
    assert (code, error.count("\n")) == (EXIT_PREEMPTED, 1)
    assert "batch 0 of 1" in error
    code, out, _ = search(*arguments, "--resume")
    assert code == EXIT_OK
    assert "not checked" in out  # without the oracle nobody knows what is solved
    assert out.endswith(f"records: {folder / 'records'}\n")

    played = files(folder)
    assert len(list((folder / "records").iterdir())) == 2  # a shard and its sidecar
    code, out, error = search(*arguments)
    assert (code, out) == (EXIT_CONFIG, "")
    assert "already holds a run of this config. Use --resume" in error
    code, _, error = search(*arguments, "--resume", "--seed", "1")
    assert code == EXIT_CONFIG
    assert "run of another config (seed" in error
    assert files(folder) == played


def test_a_model_that_trained_on_is_not_mixed_in_on_resume(search, tmp_path, checkpoint):
    steps = tmp_path / "run" / "checkpoints"
    steps.mkdir(parents=True)
    checkpoint.rename(steps / "5")
    arguments = ["game24_search", *MINUSCULE, "--checkpoint", tmp_path / "run"]
    arguments += ["--run-folder", tmp_path / "searched", "--resume"]
    assert search(*arguments)[0] == EXIT_OK
    before = files(tmp_path / "searched" / "records")
    shutil.copytree(steps / "5", steps / "10")
    code, _, error = search(*arguments)
    assert code == EXIT_CONFIG and "another config" in error
    assert files(tmp_path / "searched" / "records") == before
