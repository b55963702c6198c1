"""What a pipeline shows while it runs: the stages, their time, and the time left."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import rich
import rich.console
import rich.live
import rich.markup
import rich.table


@runtime_checkable
class _Stage(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def command(self) -> str: ...
    @property
    def expected_seconds(self) -> float: ...


@contextlib.contextmanager
def show(
    stages: Sequence[_Stage], *, console: rich.console.Console | None = None
) -> Iterator["Status"]:
    """On a terminal a live table, below which a stage may draw its own progress; else lines."""
    console = console or rich.get_console()
    status = Status(stages, console)
    if not console.is_terminal:
        yield status
        return
    with rich.live.Live(
        get_renderable=status.table, console=console, refresh_per_second=1, vertical_overflow="crop"
    ):
        yield status


class Status:
    """States and seconds of the stages; `skipped`, `started`, `finished` move a stage on."""

    def __init__(self, stages: Sequence[_Stage], console: rich.console.Console):
        self._stages = {stage.name: stage for stage in stages}
        self._console = console
        self._states = dict.fromkeys(self._stages, "waiting")
        self._seconds = dict.fromkeys(self._stages, 0.0)
        self._running: str | None = None
        self._running_since = 0.0

    def skipped(self, name: str, seconds: float) -> None:
        """It had finished in an earlier call and took `seconds` then."""
        self._states[name], self._seconds[name] = "skipped", seconds
        self._print_line(f"{name}: skipped, finished before in {duration(seconds)}")

    def started(self, name: str, seconds_before: float) -> None:
        """It begins, or continues after `seconds_before` of earlier attempts."""
        self._states[name], self._seconds[name] = "running", seconds_before
        self._running, self._running_since = name, time.monotonic()
        again = f", continues after {duration(seconds_before)}" if seconds_before else ""
        self._print_line(f"{name}: started{again}; time left {self._left_text()}")

    def finished(self, name: str, seconds: float) -> None:
        """It is done after `seconds` over all attempts."""
        self._states[name], self._seconds[name] = "done", seconds
        self._running = None
        self._print_line(f"{name}: done in {duration(seconds)}")

    def table(self) -> rich.table.Table:
        """The live table."""
        table = rich.table.Table(
            "stage", "command", "state", "time",
            box=None, title=f"time left {self._left_text()}", title_justify="left",
        )  # fmt: skip
        styles = {"waiting": "dim", "running": "bold cyan", "done": "green", "skipped": "green"}
        for name, stage in self._stages.items():
            state = self._states[name]
            elapsed = "" if state == "waiting" else duration(self._elapsed(name))
            table.add_row(name, stage.command, state, elapsed, style=styles[state])
        return table

    def seconds_left(self) -> float | None:
        """Seconds until the end, from the expected ones and how fast the stages went so far.

        None when a stage that is not finished has no expectation.
        """
        done = [name for name, state in self._states.items() if state in ("done", "skipped")]
        known = [name for name in done if self._stages[name].expected_seconds > 0]
        expected = sum(self._stages[name].expected_seconds for name in known)
        slowness = sum(self._seconds[name] for name in known) / expected if expected else 1.0
        left = 0.0
        for name, stage in self._stages.items():
            if name in done:
                continue
            if stage.expected_seconds <= 0:
                return None
            left += max(0.0, slowness * stage.expected_seconds - self._elapsed(name))
        return left

    def _elapsed(self, name: str) -> float:
        running = time.monotonic() - self._running_since if name == self._running else 0.0
        return self._seconds[name] + running

    def _left_text(self) -> str:
        left = self.seconds_left()
        return "unknown" if left is None else f"about {duration(left)}"

    def _print_line(self, line: str) -> None:
        if not self._console.is_terminal:
            place = f"stage {list(self._stages).index(line.partition(':')[0]) + 1}"
            line = f"[{place}/{len(self._stages)}] {line}"
            self._console.print(rich.markup.escape(line), highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds for people: "8.1 s", "2 min 05 s", "1 h 12 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
