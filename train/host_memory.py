"""Memory that XLA's CPU programs free stays with the process.

XLA takes the buffers of every step from malloc and frees them after it. By default glibc returns
large ones to the kernel at once, so each step pays for its pages again: for a gradient with 300 MB
of temporaries 75,000 page faults, a quarter of the step (docs/experiments.md, 2026-11-21).
"""

import ctypes
import sys

# From <malloc.h>: one arena for all threads, no mmap for large blocks, and no trimming of the heap.
_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed; call before JAX starts its threads.

    Returns:
      Whether it was told: there is nothing to tell on other systems and C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.values())
