import dataclasses
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs import load
from train import config_json, pipeline
from train.errors import ConfigError, DataError, Preempted
from train.pipeline import Pipeline, Stage


@dataclass(frozen=True, kw_only=True)
class Adam:
    """An optimizer."""

    peak_learning_rate: float = 1e-3
    """Step size after the warm-up."""


@dataclass(frozen=True, kw_only=True)
class Text:
    path: str = "text"
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Records:
    path: str = "records"
    min_visits: int = 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """One small run."""

    optimizer: Adam = Adam()
    train_steps: int = 3
    shuffle: bool = True
    start: str | None = None
    mixture: tuple[Text | Records, ...] = (Text(), Records())

    def __post_init__(self):
        if self.train_steps < 1:
            raise ConfigError(f"train_steps is at least 1; got {self.train_steps}. Raise it.")


CIRCLE = Pipeline(
    stages=(
        Stage(name="base", command="train", config=Run()),
        Stage(name="round_1", command="train", config=Run(start="stage:base")),
    )
)


def override(config, *argv):
    return load.override(config, argv, program="train", name="tiny")


def test_defaults_come_back_unchanged():
    config, flags = override(Run())
    assert config == Run()
    assert flags.run_folder == Path("runs/tiny")
    assert not (flags.resume or flags.overwrite or flags.show or flags.stop_after_seconds)
    assert flags.command == "python -m train tiny"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--train-steps", "5"], {"train_steps": 5}),
        (["--train_steps=5"], {"train_steps": 5}),
        (["--optimizer.peak_learning-rate", "2e-4"], {"optimizer": Adam(peak_learning_rate=2e-4)}),
        (["--no-shuffle"], {"shuffle": False}),
        (["--start", "runs/a"], {"start": "runs/a"}),
        (["--mixture.1.min-visits", "9"], {"mixture": (Text(), Records(min_visits=9))}),
    ],
)
def test_overrides(argv, expected):
    config, _ = override(Run(), *argv, "--resume", "--run-folder", "x y")
    assert config == dataclasses.replace(Run(), **expected)


def test_flags_and_the_command_that_repeats_them():
    _, flags = override(
        Run(),
        "--resume",
        "--overwrite",
        "--show",
        "--stop-after-seconds",
        "9",
        "--run-folder",
        "x y",
    )
    assert flags.resume
    assert flags.overwrite
    assert flags.show
    assert flags.stop_after_seconds == 9.0
    assert flags.run_folder == Path("x y")
    assert flags.command.endswith("--stop-after-seconds 9 --run-folder 'x y'")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--train-step", "5"], "no field --train-step. Did you mean --train-steps?"),
        (["--learning-rate", "5"], "Did you mean --optimizer.peak-learning-rate?"),
        (["--peak_learning_rate", "5"], "Did you mean --optimizer.peak-learning-rate?"),
        (["--optimiser.peak-learning-rate=5"], "Did you mean --optimizer.peak-learning-rate?"),
        (["--min-visits", "1"], "Did you mean --mixture.1.min-visits?"),
        (["--optimizer.shufle", "5"], "Did you mean --shuffle?"),
        (["--resum"], "Did you mean --resume?"),
        (["--zzz"], "no field --zzz. See --help."),
        (["--train-steps", "many"], "--train-steps: invalid literal.*'many'"),
        (["--train-steps", "0"], "at least 1; got 0"),
        (["--train-steps"], "--train-steps"),
        (["extra"], "extra"),
    ],
)
def test_a_wrong_argument_is_one_line_that_helps(argv, said, capsys):
    with pytest.raises(ConfigError, match=said) as error:
        override(Run(), *argv)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        override(Run(), "--help")
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert stop.value.code == 0
    for text in ("One small run", "--optimizer.peak-learning-rate", "Step size after the warm-up",
                 "--mixture.0.weight", "--resume", "Continue in the run folder"):  # fmt: skip
        assert text in said


def test_stages_are_addressed_by_name():
    changed, _ = override(
        CIRCLE,
        "--stages.base.train-steps",
        "7",
        "--stages.round_1.optimizer.peak-learning-rate",
        "1",
    )
    assert changed.stages[0].config == Run(train_steps=7)
    adam = Adam(peak_learning_rate=1.0)
    assert changed.stages[1].config == Run(start="stage:base", optimizer=adam)
    assert override(CIRCLE)[0] == CIRCLE
    with pytest.raises(ConfigError, match=r"Did you mean --stages\.round-1\.train-steps\?"):
        override(CIRCLE, "--stages.round_1.train-step", "7")


def test_an_override_of_a_stage_reaches_the_stages_that_use_it():
    changed, _ = override(CIRCLE, "--stages.base.train-steps", "7")
    before, after = pipeline.stage_hashes(CIRCLE), pipeline.stage_hashes(changed)
    assert before["base"] != after["base"]
    assert before["round_1"] != after["round_1"]


def test_find_suggests_the_nearest_name(monkeypatch):
    monkeypatch.setattr(load, "names", lambda *_, **__: ["tiny", "game24_system2"])
    with pytest.raises(ConfigError, match=r"got 'tinny'\. Did you mean tiny\? There are: tiny, g"):
        load.find("tinny")
    with pytest.raises(ConfigError, match="There are"):
        load.find("../secrets")


def test_names_are_the_files_with_get_config(tmp_path):
    (tmp_path / "a.py").write_text("def get_config():\n    return 1\n")
    (tmp_path / "helper.py").write_text("x = 'def get_config('\n")
    assert load.names(tmp_path) == ["a"]


@pytest.mark.parametrize("argv", [[], ["--train-steps", "3"]])
def test_a_missing_name_lists_what_there_is(argv):
    with pytest.raises(ConfigError, match=r"first argument names a config.*NAME: "):
        load.parse(argv, program="train", expects=Run)


def test_a_config_of_another_command_is_refused(monkeypatch):
    monkeypatch.setattr(load, "names", lambda: ["tiny"])
    monkeypatch.setattr(load, "find", lambda name: Run())
    with pytest.raises(ConfigError, match="python -m search runs a Adam or Pipeline; .* is a Run"):
        load.parse(["tiny"], program="search", expects=(Adam, Pipeline))
    assert load.parse(["tiny"], program="train", expects=Run)[0] == Run()


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (ConfigError("two\n  lines"), 2), (DataError("x"), 3), (Preempted("x"), 75)],
)
def test_exit_codes(error, code, capsys):
    def command(argv):
        if error:
            raise error

    with pytest.raises(SystemExit) as stop:
        load.main("train", command)
    assert stop.value.code == code
    said = capsys.readouterr().err
    assert said == ("" if error is None else f"train: {' '.join(str(error).split())}\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        load.main("train", lambda argv: {}["x"])


@pytest.mark.parametrize("name", load.names())
def test_every_config_loads_and_survives_json(name):
    config = load.find(name)
    payload = json.loads(json.dumps(config_json.encode(config)))
    again = config_json.decode(payload)
    assert again == config
    assert config_json.sha256(again) == config_json.sha256(config)
    assert load.override(config, [], program="train", name=name)[0] == config


@pytest.mark.parametrize("name", load.names())
def test_help_explains_every_field_of_every_config(name, capsys):
    with pytest.raises(SystemExit):
        load.override(load.find(name), ["--help"], program="train", name=name)
    lines = [line.strip(" │|") for line in capsys.readouterr().out.splitlines()]
    described = [pair for pair in itertools.pairwise(lines) if pair[0].startswith("--")]
    assert len(described) > 10
    assert [flag for flag, text in described if text.startswith(("(default:", "(required)"))] == []


def test_an_unknown_config_exits_with_2_in_one_line(repository_root):
    done = subprocess.run(
        [sys.executable, "-m", "train", "tinny"],
        cwd=repository_root, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Did you mean tiny?" in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
