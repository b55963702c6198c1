r"""Which completions of a MATH problem are right: what stands in the last `\boxed{...}`.

Two texts are compared by `math-verify` (extra `eval`; Kydlíček et al., github.com/huggingface/
Math-Verify), which parses LaTeX into sympy. That can take forever, or all memory, on texts a few
characters long (`9^{9^{9^9}}`), and its own time limits are alarms, which only the main thread can
set. So it runs in processes of its own (`data.math_worker`) that are reused, and end and are
replaced when a text takes too long: from any thread, an answer comes. The limit is of processor
time, so that a busy machine gives the same verdicts; what sleeps is killed after `WALL_SECONDS`.
"""

import atexit
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Hashable
from typing import Literal

from data import files, gsm8k_checker
from data.errors import DataError

Verdict = Literal["right", "wrong", "too slow", "died"]
"""Only "right" is right. "died": it ran out of memory or crashed."""

LIMIT_SECONDS = 5.0  # of processor time
WALL_SECONDS = 60.0
MEMORY_BYTES = 2 * 2**30
MAX_CHARACTERS = 100_000
_FRACTION_COMMAND = re.compile(r"\\[dt]?frac(?![a-z])")
_NOT_OF_A_NUMBER = re.compile(r"[^\W\d_]|[!%]")  # letters and signs that change its value
_START_SECONDS = 120.0
_END_SECONDS = 10.0


def check(gold: str, completion: str, *, mode: gsm8k_checker.Mode = "strict") -> bool:
    """Whether the completion's answer equals the gold answer (LaTeX, without a box).

    Safe in threads. Never raises once `require_math_verify` has not. What needs more than
    `LIMIT_SECONDS` is wrong; as many texts are compared at once as there are processors.
    """
    return judge(gold, completion, mode=mode) == "right"


def judge(gold: str, completion: str, *, mode: gsm8k_checker.Mode = "strict") -> Verdict:
    """The verdict, and why if there is none.

    Args:
      mode: "strict" reads the last box and nothing else; "flexible" gives the whole text to
        math-verify, which also takes formulas and numbers outside of boxes.

    Raises:
      DataError: math-verify is not installed.
    """
    if not isinstance(completion, str) or len(completion) > MAX_CHARACTERS:
        return "wrong"
    answer = boxed(completion)
    if answer is not None and "".join(answer.split()) == "".join(gold.split()):
        return "right"
    if mode == "strict":
        if answer is None:
            return "wrong"
        completion = f"\\boxed{{{answer}}}"
    return _pool().judge(f"\\boxed{{{gold}}}", completion)


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` of a text; None if there is none or it stays open."""
    start = text.rfind(gsm8k_checker.BOX)
    return None if start < 0 else gsm8k_checker.balanced(text, start + len(gsm8k_checker.BOX))


def answer_key(text: str) -> Hashable | None:
    r"""The last box of a text, for finding equal answers: a number by its value (`\frac12`, `0.5`),
    anything else (also `2x`, `3i`, `5!`) as it is written, but for spaces. None without a box.

    Equal keys are equal answers; `judge` also finds those that are written differently.
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return None
    answer = boxed(text)
    if answer is None or not answer.strip():
        return None
    written = "".join(answer.split())
    is_number = not _NOT_OF_A_NUMBER.search(_FRACTION_COMMAND.sub("", written))
    number = gsm8k_checker.read_number(answer) if is_number else None
    return written if number is None else number


def require_math_verify() -> None:
    """Raises the error that names the extra, before anything else is done."""
    if importlib.util.find_spec("math_verify") is None:
        raise _not_installed("there is no module math_verify")


def _not_installed(reason: str) -> DataError:
    return DataError(
        f"answers to MATH are compared by math-verify; got {reason!r}. "
        "Install the extra: pip install -c constraints.txt -e '.[eval]'."
    )


# ---------------------------------------------------------------------------------- processes


class _DeadError(Exception):
    """The process is gone, or was too slow and is now killed."""

    def __init__(self, verdict: Verdict):
        super().__init__(verdict)
        self.verdict = verdict


class Worker:
    """One process; `ask` is called by one thread at a time."""

    def __init__(self, limit_seconds: float):
        self.limit_seconds = limit_seconds
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data.math_worker", str(MEMORY_BYTES), str(limit_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=files.REPOSITORY_ROOT,
        )
        try:
            ready = self._read(_START_SECONDS)
        except _DeadError as error:
            raise DataError(
                f"the process that compares answers to MATH is ready within {_START_SECONDS:.0f} "
                f"seconds; got one that was {error.verdict}. Run python -m data.math_worker "
                f"{MEMORY_BYTES} {limit_seconds:g} to see why."
            ) from error
        if ready is not True:
            self.kill()
            raise _not_installed(str(ready))

    def ask(self, gold: str, completion: str) -> bool:
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps([gold, completion]).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            self.kill()
            raise _DeadError("died") from error
        return self._read(WALL_SECONDS) is True

    def _read(self, seconds: float) -> object:
        """One line of the process, within the time; else it is killed."""
        assert self.process.stdout is not None
        descriptor, line = self.process.stdout.fileno(), b""
        end = time.monotonic() + seconds
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                self.kill()
                raise _DeadError("too slow")
            part = os.read(descriptor, 2**16)
            if not part:  # it has ended, or is about to
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_END_SECONDS)
                self.kill()
                is_slow = self.process.returncode == -signal.SIGPROF
                raise _DeadError("too slow" if is_slow else "died")
            line += part
        return json.loads(line)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not yet written stays unwritten
                    pipe.close()


@dataclasses.dataclass
class Pool:
    """Processes that are started when they are first needed, and again after they were killed."""

    size: int = dataclasses.field(default_factory=lambda: min(4, os.cpu_count() or 1))
    limit_seconds: float = LIMIT_SECONDS
    num_started: int = 0

    def __post_init__(self):
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()  # None: not started
        for _ in range(self.size):
            self._idle.put(None)

    def judge(self, gold: str, completion: str) -> Verdict:
        """Waits for an idle process and asks it."""
        worker = self._idle.get()
        try:
            if worker is None:
                worker = Worker(self.limit_seconds)
                with self._lock:
                    self.num_started += 1
            return "right" if worker.ask(gold, completion) else "wrong"
        except _DeadError as error:
            worker = None
            return error.verdict
        except BaseException:  # interrupted: an answer may still be under way
            if worker is not None:
                worker.kill()
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the idle processes; the pool can be used again."""
        for _ in range(self.size):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
        for _ in range(self.size):
            self._idle.put(None)


@functools.cache
def _pool() -> Pool:
    pool = Pool()
    atexit.register(pool.close)
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child must not read its parent's answers
