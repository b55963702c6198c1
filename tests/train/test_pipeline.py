import dataclasses
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import rich.console

from train import config_json, pipeline, pipeline_status, run_folder
from train.errors import ConfigError, DataError, Preempted
from train.pipeline import Pipeline, Stage
from train.run_folder import REPOSITORY_ROOT
from train.stopping import StopFlag


@dataclass(frozen=True, kw_only=True)
class Count:
    """Appends one line per step to `count.txt`, after what it reads from another stage."""

    num_steps: int = 2
    source: str | None = None
    more_sources: tuple[str, ...] = ()
    seconds_per_step: float = 0.0


def count(config, folder, /, *, resume, stop):
    out = folder / "count.txt"
    assert resume or not out.exists()
    if config.source is not None and not out.exists():
        shutil.copyfile(Path(config.source) / "count.txt", folder / "copy")
        (folder / "copy").replace(out)
    start = len(out.read_text().splitlines()) if out.exists() else 0
    before = len((Path(config.source) / "count.txt").read_text().split()) if config.source else 0
    for step in range(start, before + config.num_steps):
        if stop.requested:
            stop.raise_preempted(f"step {step}")
        time.sleep(config.seconds_per_step)
        with open(out, "a") as file:
            file.write(f"{folder.name} {step}\n".replace(" ", ":"))


def fail(config, folder, /, *, resume, stop):
    raise DataError("no such file")


def stop_now(config, folder, /, *, resume, stop):
    stop.request("test")
    count(config, folder, resume=resume, stop=stop)


COMMANDS = {"count": count, "fail": fail, "stop_now": stop_now}
THREE = Pipeline(
    stages=(
        Stage(name="base", command="count", config=Count()),
        Stage(name="middle", command="count", config=Count(source="stage:base")),
        Stage(name="end", command="count", config=Count(num_steps=1)),
    )
)


def run(stages, folder, *, commands=COMMANDS, stop=None, **flags):
    console = rich.console.Console(file=io.StringIO(), width=200)
    seconds = pipeline.run(
        stages, folder, commands=commands, stop=stop or StopFlag(), console=console, **flags
    )
    return seconds, console.file.getvalue()


def counted(folder):
    return [path.read_text().split() for path in sorted(folder.glob("stages/*/count.txt"))]


EXPECTED = [
    ["00-base:0", "00-base:1"],
    ["00-base:0", "00-base:1", "01-middle:2", "01-middle:3"],
    ["02-end:0"],
]


@dataclass(frozen=True)
class Seeded:
    seed: int
    parts: tuple = ()


def test_reseed_moves_every_seed_and_nothing_else():
    stages = (
        Stage(name="a", command="train", config=Seeded(7, parts=(Seeded(1), "x", 5))),
        Stage(name="b", command="train", config=Count(num_steps=3)),
    )
    moved = pipeline.reseed(Pipeline(stages=stages), 2)
    assert moved.stages[0].config == Seeded(2007, parts=(Seeded(2001), "x", 5))
    assert moved.stages[1] == stages[1]
    assert pipeline.reseed(moved, 0) == moved


def test_stages_run_in_order_and_read_earlier_ones(tmp_path):
    seconds, said = run(THREE, tmp_path / "p", command="python -m train p")
    assert counted(tmp_path / "p") == EXPECTED
    assert list(seconds) == ["base", "middle", "end"]
    assert "[stage 2/3] middle: started" in said
    assert "[stage 3/3] end: done in" in said


def test_a_finished_pipeline_is_refused_resumed_or_redone(tmp_path):
    run(THREE, tmp_path / "p")
    with pytest.raises(ConfigError, match="already holds a run"):
        run(THREE, tmp_path / "p")
    _, said = run(THREE, tmp_path / "p", resume=True)
    assert said.count("skipped, finished before") == 3
    assert counted(tmp_path / "p") == EXPECTED
    (tmp_path / "p" / "stages" / "00-base" / "mark").touch()
    run(THREE, tmp_path / "p", overwrite=True)
    assert not (tmp_path / "p" / "stages" / "00-base" / "mark").exists()


def test_kept_stages_of_another_commit_are_named(tmp_path):
    run(THREE, tmp_path / "p")
    assert "commit" not in run(THREE, tmp_path / "p", resume=True)[1]
    for name in ("00-base", "02-end"):
        file = tmp_path / "p" / "stages" / name / "environment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"git_commit": "abc"}))
    _, said = run(THREE, tmp_path / "p", resume=True)
    (line,) = [line for line in said.splitlines() if "commit" in line]
    present = run_folder.environment()["git_commit"]
    assert line == (
        f"kept as commit abc made it (this is {present}): base, end. To redo a stage delete its "
        f"folder, such as {tmp_path / 'p' / 'stages' / '00-base'}."
    )


def with_stage(name, **changes):
    return Pipeline(
        stages=tuple(
            dataclasses.replace(stage, config=dataclasses.replace(stage.config, **changes))
            if stage.name == name
            else stage
            for stage in THREE.stages
        )
    )


def test_a_changed_stage_and_its_users_are_redone_and_no_other(tmp_path):
    run(THREE, tmp_path / "p")
    changed = with_stage("base", num_steps=1)
    with pytest.raises(ConfigError, match="another config: base, middle. Add --overwrite"):
        run(changed, tmp_path / "p", resume=True)
    assert counted(tmp_path / "p") == EXPECTED
    _, said = run(changed, tmp_path / "p", resume=True, overwrite=True)
    assert "end: skipped" in said
    assert said.count("skipped") == 1
    first = ["00-base:0"]
    assert counted(tmp_path / "p") == [first, [*first, "01-middle:1", "01-middle:2"], EXPECTED[2]]
    saved = json.loads((tmp_path / "p" / "config.json").read_text())
    assert saved == config_json.encode(changed)
    assert run(changed, tmp_path / "p", resume=True)[1].count("skipped") == 3


def test_a_dropped_stage_is_deleted_only_with_overwrite(tmp_path):
    run(THREE, tmp_path / "p")
    shorter = Pipeline(stages=THREE.stages[:2])
    with pytest.raises(ConfigError, match="another config: 02-end"):
        run(shorter, tmp_path / "p", resume=True)
    run(shorter, tmp_path / "p", resume=True, overwrite=True)
    assert counted(tmp_path / "p") == EXPECTED[:2]


def test_preempted_stage_continues_where_it_was(tmp_path):
    commands = COMMANDS | {"count": stop_now}
    with pytest.raises(Preempted, match="stage base: stopped by test at step 0"):
        run(THREE, tmp_path / "p", commands=commands)
    for _ in range(4):  # the flag is read at 1 before a stage, at 2 before a step, at 3: stop
        stop = StopFlag(deadline_seconds=3.0, clock=iter(range(10)).__next__)
        with pytest.raises(Preempted):
            run(THREE, tmp_path / "p", resume=True, stop=stop)
    assert counted(tmp_path / "p") == EXPECTED[:2]
    run(THREE, tmp_path / "p", resume=True)
    assert counted(tmp_path / "p") == EXPECTED


def test_a_stop_between_stages_starts_no_further_one(tmp_path):
    def finish_then_stop(config, folder, /, *, resume, stop):
        count(config, folder, resume=resume, stop=StopFlag())
        stop.request("SIGTERM")

    with pytest.raises(Preempted, match="stopped by SIGTERM at stage middle, not started"):
        run(THREE, tmp_path / "p", commands={"count": finish_then_stop})
    assert counted(tmp_path / "p") == EXPECTED[:1]


def test_seconds_add_up_over_attempts(tmp_path):
    slow = Pipeline(stages=(Stage(name="a", command="count", config=Count(seconds_per_step=0.05)),))
    ticks = iter([0, 0, 0, 10])  # created, before the stage, before step 0, before step 1
    with pytest.raises(Preempted):
        run(slow, tmp_path / "p", stop=StopFlag(deadline_seconds=5.0, clock=ticks.__next__))
    first = json.loads((tmp_path / "p/stages/00-a/stage.json").read_text())["seconds"]
    assert first >= 0.05
    seconds, _ = run(slow, tmp_path / "p", resume=True)
    assert seconds["a"] >= 0.1


def test_what_a_kill_left_behind_is_cleared_away(tmp_path):
    (tmp_path / "p" / "stages" / ".00-base.k1ll.tmp").mkdir(parents=True)
    (tmp_path / "p" / "config.json").write_text(json.dumps(config_json.encode(THREE)))
    run(THREE, tmp_path / "p", resume=True)
    assert [path.name for path in sorted((tmp_path / "p" / "stages").iterdir())] == [
        "00-base", "01-middle", "02-end",
    ]  # fmt: skip


def test_errors_name_the_stage(tmp_path):
    broken = Pipeline(stages=(Stage(name="a", command="fail", config=Count()),))
    with pytest.raises(DataError, match="^stage a: no such file$"):
        run(broken, tmp_path / "p")
    unknown = Pipeline(stages=(Stage(name="a", command="cook", config=Count()),))
    with pytest.raises(ConfigError, match="runs one of count, .*'cook'"):
        run(unknown, tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("names", "source"),
    [(("a", "a"), None), (("A",), None), (("a-b",), None), (("a", "b"), "stage:c"),
     (("a",), "stage:a")],
)  # fmt: skip
def test_impossible_pipelines_are_refused(names, source):
    with pytest.raises(ConfigError, match="stage"):
        Pipeline(
            stages=tuple(
                Stage(name=name, command="count", config=Count(source=source)) for name in names
            )
        )


def test_references_resolve_inside_tuples_and_below_the_folder():
    config = Count(source="stage:a/records", more_sources=("x", "stage:b"))
    assert pipeline.references(config) == {"a", "b"}
    assert pipeline.resolve(config, {"a": Path("r/0"), "b": Path("r/1")}) == Count(
        source="r/0/records", more_sources=("x", "r/1")
    )


def test_a_moved_pipeline_continues(tmp_path):
    run(THREE, tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "stages" / "01-middle")
    (tmp_path / "p").rename(tmp_path / "moved")
    _, said = run(THREE, tmp_path / "moved", resume=True)
    assert said.count("skipped") == 2
    assert counted(tmp_path / "moved") == EXPECTED


def test_time_left_is_scaled_by_the_speed_so_far():
    stages = [
        Stage(name=name, command="count", config=Count(), expected_seconds=10.0) for name in "abc"
    ]
    status = pipeline_status.Status(stages, rich.console.Console(file=io.StringIO()))
    assert status.seconds_left() == 30
    status.finished("a", 20.0)  # twice as slow as expected
    assert status.seconds_left() == 40
    status.started("b", 15.0)  # continued: 15 of its 20 seconds are spent
    assert status.seconds_left() == pytest.approx(25, abs=1)
    unknown = [*stages, Stage(name="d", command="count", config=Count())]
    assert pipeline_status.Status(unknown, status._console).seconds_left() is None


def test_a_terminal_shows_the_live_table(tmp_path):
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=True, width=80)
    pipeline.run(THREE, tmp_path / "p", commands=COMMANDS, stop=StopFlag(), console=console)
    last = out.getvalue().rpartition("time left")[2]
    assert last.count("done") == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (125.0, "2 min 05 s"),
     (3599.6, "1 h 00 min"), (4321.0, "1 h 12 min")],
)  # fmt: skip
def test_durations_read_well(seconds, text):
    assert pipeline_status.duration(seconds) == text


CHILD = """
import sys
from pathlib import Path
from tests.train import test_pipeline as t
from configs import load
def main(argv):
    with t.StopFlag() as stop:
        t.run(t.SLOW, Path(argv[0]), stop=stop, resume=True)
load.main("test", main)
"""
SLOW = Pipeline(
    stages=tuple(
        dataclasses.replace(
            stage, config=dataclasses.replace(stage.config, num_steps=100, seconds_per_step=0.01)
        )
        for stage in THREE.stages
    )
)


def start_child(folder):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], cwd=REPOSITORY_ROOT, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_a_signal_ends_with_75_and_the_same_command_finishes(tmp_path):
    run(SLOW, tmp_path / "whole")
    child = start_child(tmp_path / "p")
    while not list((tmp_path / "p").glob("stages/01-*/count.txt")):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, error = child.communicate(timeout=300)
    assert child.returncode == 75
    assert b"test: stage middle: stopped by SIGTERM at step" in error
    assert start_child(tmp_path / "p").wait(timeout=300) == 0
    assert counted(tmp_path / "p") == counted(tmp_path / "whole")


@pytest.mark.soak
def test_killed_at_random_again_and_again_equals_one_run(tmp_path):
    """Kills of all kinds, also within the writing of files; about 1 minute."""
    rng = random.Random(0)
    run(SLOW, tmp_path / "whole")
    num_kills = 0
    for trial in range(5):
        folder = tmp_path / str(trial)
        while True:
            child = start_child(folder)
            try:
                code = child.wait(timeout=rng.uniform(0.4, 1.6))
            except subprocess.TimeoutExpired:
                child.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1]))
                child.wait(timeout=30)
                num_kills += 1
                continue
            assert code == 0, child.stderr.read()
            break
        assert counted(folder) == counted(tmp_path / "whole")
    assert num_kills > 10
