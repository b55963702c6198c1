"""Metrics: numbers with their unit in the name, one JSON object per line, and the progress line.

Same config, same seed, same machine: the same lines, apart from the fields of `TIME_FIELDS`.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

TIME_FIELDS = ("elapsed_seconds", "tokens_per_second")
PLAIN_LINE_EVERY_SECONDS = 10.0
VALIDATION_PREFIX = "validation_"


class MetricsFile:
    """Appends to metrics.jsonl, and forgets what a resumed run will do again."""

    def __init__(self, path: Path, *, resume_step: int | None):
        """`resume_step`: step of the checkpoint the run continues from, None for a new run.

        Lines of later steps, and a line torn by a crash, are dropped. So is the evaluation at that
        very step: it follows the checkpoint, and is done again.
        """
        self._path = path
        kept = [] if resume_step is None else [
            line for line in _whole_lines(path) if _precedes(json.loads(line), resume_step)
        ]  # fmt: skip
        self._seconds_before = max(
            (json.loads(line).get("elapsed_seconds", 0.0) for line in kept), default=0.0
        )
        self._start = time.monotonic()
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def write(self, step: int, values: Mapping[str, float], **time_values: float) -> None:
        """One line; `elapsed_seconds` counts the time of all attempts."""
        elapsed = self._seconds_before + time.monotonic() - self._start
        line: dict[str, Any] = {"step": step, **values, "elapsed_seconds": round(elapsed, 3)}
        line |= {name: round(value, 1) for name, value in time_values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()


def not_finite(values: Mapping[str, float]) -> list[str]:
    """Names of the values that are NaN or infinite."""
    return [name for name, value in values.items() if not math.isfinite(value)]


class Progress:
    """Where training is: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(
        self,
        *,
        start_step: int,
        train_steps: int,
        console: rich.console.Console,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`clock`: monotonic seconds; tests pass their own."""
        self._console, self._clock = console, clock
        self._start_step, self._train_steps = start_step, train_steps
        self._last_line = -math.inf
        self._rate = _Rate(start_step)
        self._bar = None
        if console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.description}"),
                console=console,
            )
            self._task = self._bar.add_task("compiling", total=train_steps, completed=start_step)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, loss: float, num_tokens: float) -> float:
        """Shows one finished step; returns tokens per second."""
        now = self._clock()
        tokens_per_second, seconds_per_step = self._rate.update(step, num_tokens, now)
        text = f"loss {loss:.4f}"
        if tokens_per_second:
            left = _clock_text(seconds_per_step * (self._train_steps - step))
            text += f"  {tokens_per_second:,.0f} tokens/s  {left} left"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
            return tokens_per_second
        is_last = step == self._train_steps
        if is_last or now - self._last_line >= PLAIN_LINE_EVERY_SECONDS:
            self._last_line = now
            self.say(f"step {step}/{self._train_steps}  {text}")
        return tokens_per_second

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Rate:
    """Tokens and steps per second, without the first step (it compiles)."""

    def __init__(self, start_step: int):
        self._first_step = start_step + 1
        self._since: float | None = None
        self._tokens = 0.0

    def update(self, step: int, num_tokens: float, now: float) -> tuple[float, float]:
        if self._since is None:
            self._since = now
            return 0.0, 0.0
        self._tokens += num_tokens
        seconds = max(now - self._since, 1e-9)
        return self._tokens / seconds, seconds / max(step - self._first_step, 1)


def _clock_text(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _whole_lines(path: Path) -> list[str]:
    """Lines up to the last line end: what a crash cut off is not a line."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()


def _precedes(line: Mapping[str, Any], resume_step: int) -> bool:
    is_validation = any(name.startswith(VALIDATION_PREFIX) for name in line)
    return line["step"] < resume_step + (not is_validation)
