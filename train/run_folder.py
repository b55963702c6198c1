"""A run folder: where one run keeps its config, its origin and everything it makes.

    config.json       the resolved config (`train.config_json`)
    command.txt       every command line that worked on this folder, oldest first
    environment.json  versions, git commit, processor; no names or paths of the machine
    metrics.jsonl     one JSON object per logged step
    checkpoints/  records/  samples/  report/
    stages/           only in the folder of a pipeline

Only config.json, command.txt and environment.json are written here; the rest appears with its
first file.
"""

import functools
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train import config_json
from train.errors import ConfigError, DataError

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
RECORDED_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mctx", "grain", "array_record", "numpy",
)  # fmt: skip


def prepare(
    path: str | os.PathLike[str],
    config: Any,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    extra_files: Mapping[str, Any] | None = None,
) -> Path:
    """Creates the folder of a run, or opens it again; never touches work that is not meant.

    | the folder holds     | neither | resume   | overwrite | both     |
    | -------------------- | ------- | -------- | --------- | -------- |
    | nothing              | create  | create   | create    | create   |
    | a run of this config | refuse  | continue | replace   | continue |
    | one of another config| refuse  | refuse   | replace   | replace  |
    | no run, other files  | refuse  | refuse   | refuse    | refuse   |

    Args:
      command: the command line, appended to command.txt.
      extra_files: more JSON files of a new folder, file name -> content.

    Returns:
      The path; whether there is anything to continue shows in what it contains.

    Raises:
      ConfigError: refused, with the reason and the flag that would allow it.
    """
    path = Path(path)
    payload = config_json.encode(config)
    if path.is_dir() and any(path.iterdir()):
        saved = _read_config(path)
        changes = config_json.differences(saved, payload)
        if resume and not changes:
            append_command(path, command)
            return path
        if not overwrite:
            raise ConfigError(_refusal(path, changes, resume))
        doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.replace(doomed)  # killed while deleting, a half-deleted run must not bear its name
        shutil.rmtree(doomed)
    elif path.exists() and not path.is_dir():
        raise ConfigError(
            f"a run folder is a folder; {path} is a file. Choose another --run-folder."
        )
    files = {"config.json": payload, "environment.json": environment(), **(extra_files or {})}
    _create(path, files, command)
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file so that a reader finds the old content or the new, never a part."""
    path = Path(path)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
      DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"a file is missing: {path}. Check the path or make it again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON ({error}). Delete it and make it again.") from error


def environment() -> dict[str, Any]:
    """Where numbers come from: versions, commit and processor, comparable between machines."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu_model": _cpu_model(),
        "cpu_cores": available_cores(),
        "jax_platforms": os.environ.get("JAX_PLATFORMS", ""),
    }


def available_cores() -> int:
    """Cores that this process may use, which in a container or a job can be fewer than exist."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _refusal(path: Path, changes: list[str], resume: bool) -> str:
    if not changes:
        return (
            f"{path} already holds a run of this config. Use --resume to continue it, "
            "--overwrite to delete it and start again, or another --run-folder."
        )
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return (
        f"{path} holds a run of another config ({'; '.join(changes[:3])}{more}). "
        f"{'--resume needs the same config; use' if resume else 'Use'} another --run-folder, "
        "or --overwrite to delete it."
    )


def _read_config(path: Path) -> Any:
    """The encoded config of a folder, which also tells that deleting the folder is safe."""
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"a run folder is new, empty or has a config.json; {path} holds other files and is "
            "left alone, even with --overwrite. Choose another --run-folder."
        )
    try:
        return read_json(path / "config.json")
    except DataError:
        return None  # differs from every config: refused, or replaced with --overwrite


def _create(path: Path, files: Mapping[str, Any], command: str) -> None:
    """All files at once: a run killed here leaves no folder, or a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp is private, a run folder is like any other
        for name, content in files.items():
            write_json(temporary / name, content)
        append_command(temporary, command)
        temporary.replace(path)  # an empty folder at `path` gives way
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append_command(path: Path, command: str) -> None:
    """Adds a command line to command.txt; an empty one adds nothing."""
    if command:
        with open(path / "command.txt", "a", encoding="utf-8") as file:
            file.write(command + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
