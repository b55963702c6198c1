"""The metrics file keeps what was done; progress is readable with and without a terminal."""

import io
import json
import math

import pytest
import rich.console

from train import metrics


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_file_forgets_later_steps_torn_lines_and_the_evaluation_to_repeat(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsFile(path, resume_step=None) as log:
        log.write(0, {"validation_loss": 3.0})
        log.write(1, {"loss": 2.5}, tokens_per_second=10.04)
        log.write(2, {"loss": 2.0})
        log.write(2, {"validation_loss": 2.0})
        log.write(3, {"loss": 1.5})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    with metrics.MetricsFile(path, resume_step=2) as log:
        log.write(2, {"validation_loss": 2.1})
    kept = lines(path)
    assert [line["step"] for line in kept] == [0, 1, 2, 2]
    assert kept[-1]["validation_loss"] == 2.1
    assert kept[1]["tokens_per_second"] == 10.0
    times = [line["elapsed_seconds"] for line in kept]
    assert times == sorted(times)  # the time of the first attempt counts


def test_a_new_file_replaces_an_old_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with metrics.MetricsFile(path, resume_step=None):
        pass
    assert path.read_text() == ""


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named_and_never_written(tmp_path, bad):
    assert metrics.not_finite({"loss": 1.0, "norm": bad}) == ["norm"]
    with (
        metrics.MetricsFile(tmp_path / "metrics.jsonl", resume_step=None) as log,
        pytest.raises(ValueError),
    ):
        log.write(1, {"loss": bad})


def progress(monkeypatch, *, is_terminal):
    """Output of three steps of one second and 50 tokens each, of ten."""
    seconds = iter(range(100))
    clock = lambda: float(next(seconds))  # noqa: E731
    monkeypatch.setattr(metrics, "PLAIN_LINE_EVERY_SECONDS", 0.0)
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=is_terminal, width=100)
    with metrics.Progress(start_step=0, train_steps=10, console=console, clock=clock) as shown:
        for step in (1, 2, 3):
            shown.update(step, loss=1.25, num_tokens=50.0)
    return out.getvalue()


def test_without_a_terminal_progress_is_plain_lines(monkeypatch):
    first, *_, last = progress(monkeypatch, is_terminal=False).splitlines()
    assert first == "step 1/10  loss 1.2500"  # it compiled: its time says nothing
    assert last.startswith("step 3/10  loss 1.2500  50 tokens/s  0:07 left")


def test_on_a_terminal_progress_is_one_bar(monkeypatch):
    out = progress(monkeypatch, is_terminal=True)
    assert "step 3/10" in out
    assert "tokens/s" in out
