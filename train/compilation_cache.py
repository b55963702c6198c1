"""Compiled programs are kept between runs: a second start takes seconds less.

JAX finds a program again by its text, its options and the version of the compiler. Programs for a
CPU also contain instructions that another CPU may not have, so each kind of CPU has its folder.
"""

import hashlib
import os
import platform
import sys
from pathlib import Path

WORTH_KEEPING_SECONDS = 0.1


def enable() -> None:
    """Keeps programs in the user's cache folder, for this process and those it starts.

    A folder already named in JAX_COMPILATION_CACHE_DIR stays; an empty name switches this off.
    """
    settings = {
        "jax_compilation_cache_dir": str(_folder()),
        "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)  # read when JAX is imported
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(name, value)


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "taylorzero" / "xla" / _cpu_kind()


def _cpu_kind() -> str:
    """Short hash of the instructions this CPU has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        instructions = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        instructions = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {instructions}".encode()).hexdigest()[:12]
