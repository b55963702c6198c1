"""Sweeps: which members there are, what they are called, and that each is run once."""

import csv
import dataclasses
import json
import math
import sys
import time

import pytest

from configs import load
from train import resume, run_folder, sweep
from train.errors import EXIT_CONFIG, EXIT_OK, ConfigError, DataError, Preempted
from train.stopping import StopFlag
from train.sweep import __main__ as command
from train.sweep import run, table

RATE = "optimizers.policy.peak_learning_rate"


def test_grids_zips_draws_and_products_are_lists_of_overrides():
    assert sweep.grid({"a": (1, 2), "b": ("x", "y")}) == (
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    )  # fmt: skip
    zipped = sweep.zipped({"a": (1, 2), "b": ("x", "y")})
    assert zipped == ({"a": 1, "b": "x"}, {"a": 2, "b": "y"})
    with pytest.raises(ConfigError, match="equally many values; got {'a': 1, 'b': 2}"):
        sweep.zipped({"a": (1,), "b": (1, 2)})
    both = sweep.product(zipped, sweep.grid({"seed": (0, 1)}))
    assert len(both) == 4 and both[1] == {"a": 1, "b": "x", "seed": 1}


def test_draws_lie_in_their_range_and_more_of_them_keep_the_first():
    fields = {"rate": sweep.log_uniform(1e-4, 1e-2), "x": sweep.uniform(2.0, 3.0), "kind": "ab"}
    draws = sweep.random(fields, count=200)
    assert draws[:20] == sweep.random(fields, count=20) != sweep.random(fields, count=20, seed=1)
    rates = [draw["rate"] for draw in draws]
    assert min(rates) >= 1e-4 and max(rates) <= 1e-2
    assert 60 < sum(rate < 1e-3 for rate in rates) < 140  # half of them in each decade
    assert all(2 <= draw["x"] <= 3 for draw in draws)
    assert {draw["kind"] for draw in draws} == {"a", "b"}
    without = sweep.random({"rate": fields["rate"]}, count=200)
    assert [draw["rate"] for draw in without] == rates  # a field more changes no other


def test_names_are_those_of_the_whole_config_and_equal_members_are_one(minuscule):
    base = minuscule()
    one = sweep.Sweep(config="tiny", members=({"seed": 1, "train_steps": 5}, {"seed": 2}))
    other = sweep.Sweep(config="tiny", members=({"train-steps": 5, "seed": 1}, {"seed": 1}))
    names = [[member.name for member in sweep.members_of(s, base)] for s in (one, other)]
    assert names[0][0] == names[1][0]
    assert len({name for row in names for name in row}) == 3
    rest = sweep.members_of(other, minuscule(train_steps=5))
    assert len(rest) == 1  # both have 5 steps now
    assert [m.name for m in rest] == [names[0][0]]


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        (RATE, 3e-4, lambda c: c.optimizers.policy.peak_learning_rate == 3e-4),
        (RATE, 1, lambda c: isinstance(c.optimizers.policy.peak_learning_rate, float)),
        ("sources.0.num-plays", 7, lambda c: c.sources[0].num_plays == 7),
        ("lora.rank", 4, lambda c: c.lora.rank == 4 and c.lora.alpha == 16.0),
        ("keep_checkpoints", None, lambda c: c.keep_checkpoints is None),
    ],
)
def test_a_field_is_set_as_a_command_line_does(minuscule, field, value, found):
    changed = sweep.set_field(minuscule(), field, value)
    assert found(changed)
    if value is not None:
        flags = [f"--{field}", str(value), "--run-folder", "x"]
        assert load.override(minuscule(), flags, program="train")[0] == changed


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.widht", 3, "got 'widht'. There are: vocab_size, width"),
        ("model.width.x", 3, "none in a int"),
        ("model.width", 3.5, "is a <class 'int'>; got 3.5"),
        ("optimizers.policy.kind", "sgd", "got 'sgd'"),
        ("sources.5.num_plays", 3, "the places of a tuple of 1"),
        ("train_steps", 0, "train_steps=0: train_steps must be 1 or more"),
    ],
)
def test_a_wrong_field_is_refused(minuscule, field, value, message):
    with pytest.raises(ConfigError, match=message):
        sweep.set_field(minuscule(), field, value)


def test_two_hundred_members_expand_in_a_second(minuscule):
    members = sweep.random({RATE: sweep.log_uniform(1e-4, 1e-2), "seed": range(99)}, count=200)
    start = time.process_time()
    found = sweep.members_of(sweep.Sweep(config="tiny", members=members), minuscule())
    assert len({member.name for member in found}) == 200
    assert time.process_time() - start < 1


@pytest.fixture
def members(minuscule):
    fields = {RATE: (1e-3, 1e-2), "seed": (0, 1)}
    made = sweep.Sweep(config="tiny", members=sweep.grid(fields))
    return sweep.members_of(made, minuscule(train_steps=3))


@pytest.fixture
def fake_runs(monkeypatch):
    """Members that run in no time; returns the folders that ran."""
    ran = []

    def one(config, folder, /, *, resume, stop):
        ran.append(folder.name)
        if config.seed == 1 and config.optimizers.policy.peak_learning_rate == 1e-2:
            stop.request("test")
            stop.raise_preempted()
        lines = [{"step": 3, "validation_x": config.seed + 1.0, "elapsed_seconds": 2.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr("configs.commands.COMMANDS", {"train": one})
    return ran


def test_members_that_are_done_are_skipped(members, fake_runs, tmp_path):
    names = [member.name for member in members]
    run.run(members[:1], tmp_path, stop=StopFlag(), launcher="debug")
    with pytest.raises(Preempted):
        run.run(members, tmp_path, stop=StopFlag(), launcher="debug")
    assert fake_runs == names
    assert [resume.is_done(tmp_path / "members" / n, m.config) for n, m in zip(names, members)] == [
        True, True, True, False,
    ]  # fmt: skip
    rows = table.rows(members, tmp_path, "validation_x", larger=True)
    assert [row["validation_x"] for row in rows] == [2.0, 1.0, 1.0, None]
    assert [row["state"] for row in rows] == ["done", "done", "done", "waiting"]
    table.write(rows, tmp_path, "validation_x")
    with open(tmp_path / "table.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["member", RATE, "seed", "validation_x", "steps", "seconds", "state"]
    assert found[0] == {
        "member": names[1], RATE: "0.001", "seed": "1", "validation_x": "2.0",
        "steps": "3", "seconds": "2.0", "state": "done",
    }  # fmt: skip
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 4 and lines[2].startswith(f"| {names[1]} | 0.001 | 1 | 2 | 3 |")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_processes_run_members_and_a_failure_names_one(members, tmp_path, monkeypatch):
    log = tmp_path / "calls"
    script = (
        "import sys, pathlib; folder = pathlib.Path(sys.argv[1]);"
        f"open({str(log)!r}, 'a').write(folder.name + '\\n');"
        f"sys.exit(folder.name == {members[2].name!r})"
    )
    monkeypatch.setattr(
        "train.launch.resume_command", lambda folder: [sys.executable, "-c", script, str(folder)]
    )
    with pytest.raises(DataError, match=rf"1 of 4 members failed, such as {members[2].name} "):
        run.run(members, tmp_path, stop=StopFlag(), num_processes=2)
    assert sorted(log.read_text().split()) == sorted(member.name for member in members)


def test_the_command_runs_a_sweep_and_prints_its_table(monkeypatch, capsys, tmp_path, fake_runs):
    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
        with pytest.raises(SystemExit) as stopped:
            load.main("train.sweep", command.main)
        return stopped.value.code, *capsys.readouterr()

    made = sweep.Sweep(config="tiny", members=sweep.grid({"seed": (0, 1)}), metric="validation_x")
    monkeypatch.setattr(command, "find", lambda name: made)
    flags = ["two", "--run-folder", str(tmp_path / "two"), "--train-steps", "7"]
    code, out, _ = main(*flags, "--dry-run")
    assert code == EXIT_OK and out.count("to do  seed=") == 2 and out.endswith("2 members\n")
    assert not (tmp_path / "two").exists()
    code, out, _ = main(*flags, "--launcher", "debug")
    assert code == EXIT_OK and len(fake_runs) == 2
    assert "| member | seed | validation_x | steps | seconds | state |" in out
    (folder,) = {path.parent for path in (tmp_path / "two").glob("members/*/config.json")} & {
        tmp_path / "two" / "members" / fake_runs[0]
    }
    assert run_folder.read_json(folder / "config.json")["train_steps"] == 7
    assert main(*flags)[0] == EXIT_CONFIG  # --resume
    code, out, _ = main(*flags, "--launcher", "debug", "--resume")
    assert code == EXIT_OK and len(fake_runs) == 2


def test_a_misspelt_sweep_and_no_sweep_are_one_line(monkeypatch, capsys):
    with pytest.raises(ConfigError, match="in configs/sweeps/; got .*Did you mean tiny_learning"):
        command.find("tiny_lerning_rate")
    with pytest.raises(ConfigError, match="the first argument names a sweep"):
        command.main([])


@pytest.mark.parametrize("name", load.names(command.FOLDER, function="get_sweep"))
def test_every_sweep_has_members_of_its_config(name):
    made = command.find(name)
    members = sweep.members_of(made, load.find(made.config))
    assert len(members) == len(made.members)
    assert all(dataclasses.is_dataclass(member.config) for member in members)


def test_the_plot_puts_the_numbers_on_the_axis(tmp_path):
    rows = [
        {"member": f"{i}", "rate": 10.0**-i, "kind": kind, "loss": i, "steps": 1, "seconds": 1.0,
         "state": "done"}
        for i in range(1, 4) for kind in "ab"
    ]  # fmt: skip
    rows.append(rows[0] | {"loss": None})
    table.plot(rows, tmp_path / "plot.png", "loss")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert not math.isnan(rows[0]["loss"])
