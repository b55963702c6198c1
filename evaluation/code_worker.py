"""`python -m evaluation.code_worker SECONDS MEMORY_BYTES`: runs the program on stdin, locked up.

Exit code `PASSED`: it ran to its end. No network (a namespace of its own, which Linux must allow),
no more processor time, memory, processes or open files than said, files of at most 1 MB, in the
current folder, which the caller throws away. This keeps honest mistakes of a model in; it is no
prison for a program that wants out: use a machine that holds nothing for strangers' models.
"""

import ctypes
import os
import resource
import sys

PASSED = 120
NO_NETWORK = 125  # exit code where the network could not be taken away
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # linux/sched.h


def lock_up(seconds: int, memory_bytes: int) -> bool:
    """Takes everything away that a program has no need of; False where that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) != 0 and libc.unshare(_NEW_USER | _NEW_NETWORK) != 0:
        return False
    for kind, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 10**6),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    # Root is not counted by RLIMIT_NPROC: programs get no function that starts a process either.
    for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "kill", "killpg"):
        if hasattr(os, name):
            delattr(os, name)
    sys.modules["_posixsubprocess"] = None  # type: ignore[assignment]
    return True


def main(seconds: int, memory_bytes: int) -> None:
    program, end = sys.stdin.read(), os._exit
    code = compile(program, "program", "exec", dont_inherit=True)
    if not lock_up(seconds, memory_bytes):
        end(NO_NETWORK)
    try:
        exec(code, {"__name__": "program"})
    except BaseException:  # noqa: BLE001 (one that ends itself has not passed)
        end(1)
    end(PASSED)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
