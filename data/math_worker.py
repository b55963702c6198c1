"""The process behind `data.math_checker`: compares two mathematical texts with math-verify.

    python -m data.math_worker MEMORY_BYTES SECONDS

One JSON list [gold, completion] per line comes in, one JSON true or false per line goes out; the
first line out says that all is imported, or why it could not be. A text that takes more than
SECONDS of processor time ends the process by a signal, whatever it is doing; time is counted so
because a verdict must not depend on what else the machine does.
"""

import json
import logging
import os
import resource
import signal
import sys


def main(memory_bytes: int, seconds: float) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # nothing that a library prints is taken for an answer
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    def answer(content: object) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        import math_verify
    except ImportError as error:
        answer(str(error))
        return
    logging.disable()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the end
    answer(True)
    for line in sys.stdin:
        gold, completion = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer(is_equal(math_verify, gold, completion))
        signal.setitimer(signal.ITIMER_PROF, 0)


def is_equal(math_verify, gold: str, completion: str) -> bool:
    """What math-verify says, without its own time limits: they need the main thread's alarm."""
    try:
        parsed = (math_verify.parse(text, parsing_timeout=None) for text in (gold, completion))
        return bool(math_verify.verify(*parsed, timeout_seconds=None))
    except (Exception, RecursionError):  # noqa: BLE001 (sympy raises anything)
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
