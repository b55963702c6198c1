"""Folders of safetensors: what they hold, one tensor at a time, and writing them in parts.

Files are read by the `safetensors` library, which runs no code of theirs; pickled checkpoints
(`pytorch_model.bin`) would, and are refused.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401 (teaches numpy the name bfloat16)
import numpy as np
import safetensors
from safetensors.numpy import save_file

from data.errors import DataError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
MAX_FILE_BYTES = 5_000_000_000


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    shape: tuple[int, ...]


def find(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder, file by file; only the headers are read.

    Raises:
      DataError: no safetensors, a missing or truncated file, or an index that does not fit.
    """
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get("weight_map", {})
        files = [folder / name for name in dict.fromkeys(index.values())]
    elif (folder / SINGLE).is_file():
        index, files = None, [folder / SINGLE]
    else:
        raise _no_safetensors(folder)
    found: dict[str, Stored] = {}
    for file in files:
        found |= {name: Stored(file, shape) for name, shape in headers(file).items()}
    if index is not None:
        lost = [
            name for name, file in index.items() if found.get(name, (None,))[0] != folder / file
        ]
        if lost:
            raise DataError(
                f"the files of {folder} hold what {INDEX} says; {len(lost)} tensors such as "
                f"{lost[0]!r} are not in {index[lost[0]]}. Fetch the folder again."
            )
    return found


def headers(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of one file."""
    with _opened(file) as opened:
        names = opened.keys()
        return {name: tuple(opened.get_slice(name).get_shape()) for name in names}


def read(stored: Mapping[str, Stored]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors, each read when it is asked for, file after file."""
    for file in dict.fromkeys(one.file for one in stored.values()):
        with _opened(file) as opened:
            for name, one in stored.items():
                if one.file == file:
                    yield name, opened.get_tensor(name)


def read_file(file: Path) -> dict[str, np.ndarray]:
    """All tensors of one file."""
    with _opened(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def write(
    folder: Path,
    tensors: Mapping[str, Callable[[], np.ndarray]],
    num_bytes: Mapping[str, int],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes tensors in files of at most `max_file_bytes` (or of one tensor), and their index.

    tensors: each is made when its file is written, and given up after it.
    """
    parts: list[list[str]] = [[]]
    for name in tensors:
        if parts[-1] and sum(num_bytes[one] for one in (*parts[-1], name)) > max_file_bytes:
            parts.append([])
        parts[-1].append(name)
    if len(parts) == 1:
        save(folder / SINGLE, {name: make() for name, make in tensors.items()})
        return
    files = [f"model-{n + 1:05}-of-{len(parts):05}.safetensors" for n in range(len(parts))]
    for file, names in zip(files, parts, strict=True):
        save(folder / file, {name: tensors[name]() for name in names})
    index = {name: file for file, names in zip(files, parts, strict=True) for name in names}
    total = {"total_size": sum(num_bytes.values())}
    write_json(folder / INDEX, {"metadata": total, "weight_map": index})


def save(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One safetensors file; "pt" is the form that `transformers` asks for."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, file, metadata={"format": "pt"})


def read_json(file: Path) -> dict:
    """The object in a JSON file.

    Raises:
      DataError: there is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is a JSON file; {error}. Fetch it again.") from error
    if not isinstance(found, dict):
        raise DataError(
            f"{file} holds a JSON object; got a {type(found).__name__}. Fetch it again."
        )
    return found


def write_json(file: Path, content: dict) -> None:
    """The object, indented, with a line end."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8")


def _opened(file: Path):
    try:
        return safetensors.safe_open(file, framework="np")
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(
            f"{file} is a whole safetensors file; {error}. It is missing or truncated: fetch it "
            "again."
        ) from error


def _no_safetensors(folder: Path) -> DataError:
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        return DataError(
            f"a checkpoint is read from safetensors; {folder} has {pickled[0]}, a pickle, which "
            "runs whatever code its author put into it. Get the safetensors of this model, or save "
            "them with `safe_serialization=True` where you trust the file."
        )
    return DataError(
        f"a checkpoint folder has {SINGLE} or {INDEX}; {folder} has neither. Fetch it again."
    )
