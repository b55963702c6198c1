"""One flag that every loop polls: stop, save, and be continued later."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from train.errors import Preempted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)

# One event often arrives twice (`timeout` signals its child and then the whole process group), so
# a repetition within this time is not taken for impatience.
REPETITION_SECONDS = 1.0


class StopFlag:
    """Remembers that a signal came or that the time is up; the loop decides when to act.

        with StopFlag(deadline_seconds=3600) as stop:
            for batch in batches:
                state = step(state, batch)
                if stop.requested:
                    save(state)
                    stop.raise_preempted()

    A second signal ends the process at once, without saving, with the shell's code 128 + signal.
    Signals are caught inside the `with` block only, and only in the main thread (elsewhere Python
    allows no handlers); the deadline works everywhere.

    Args:
      deadline_seconds: wall-clock seconds from now after which to stop; None never stops.
      clock: monotonic seconds; tests pass their own.
    """

    def __init__(
        self,
        *,
        deadline_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock = clock
        self._deadline_seconds = deadline_seconds
        self._start = clock()
        self._reason: str | None = None
        self._first_signal_at: float | None = None
        self._replaced_handlers: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        """Why to stop ("SIGTERM", "deadline of 60 s"), or None while nobody asked."""
        if self._reason is None and self._deadline_seconds is not None:
            if self._clock() - self._start >= self._deadline_seconds:
                self._reason = f"deadline of {self._deadline_seconds:g} s"
        return self._reason

    def request(self, reason: str) -> None:
        """Asks to stop from inside the program; the first reason is kept."""
        self._reason = self._reason or reason

    def raise_preempted(self, progress: str = "") -> None:
        """Raises `Preempted` naming the reason; call it when everything is saved.

        Args:
          progress: what was reached, for the message, such as "step 120 of 500".
        """
        reached = f" at {progress}" if progress else ""
        raise Preempted(f"stopped by {self.requested}{reached}; --resume continues from here")

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._replaced_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._replaced_handlers.items():
            signal.signal(number, handler)
        self._replaced_handlers.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, self._clock()
        if self._first_signal_at is None:
            self._first_signal_at = now
            self.request(name)
            _write_stderr(f"\n{name}: saving, then stopping; once more ends at once.\n")
        elif now - self._first_signal_at >= REPETITION_SECONDS:
            _write_stderr(f"\n{name} again: ending at once.\n")
            os._exit(128 + number)


def _write_stderr(text: str) -> None:
    # Not print(): a handler may interrupt a print, and buffered files refuse to be re-entered.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
