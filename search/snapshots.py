"""Games under way as files, so that a search survives the end of its process.

A file is written under another name, synced and renamed: it is there as a whole or not at all. It
holds the arrays of a `game.Snapshot` and a JSON header with what it belongs to.
"""

import dataclasses
import json
import os
import tempfile
import zipfile
from pathlib import Path

import ml_dtypes  # noqa: F401 (numpy learns the names of its types)
import numpy as np

from data import records
from search.game import Snapshot
from train.errors import DataError

SCHEMA_VERSION = 1


def write(path: Path, snapshot: Snapshot, belongs_to: str) -> None:
    """Replaces the file. belongs_to: names the games, such as a hash of all that decides them."""
    header = {
        "schema_version": SCHEMA_VERSION,
        "belongs_to": belongs_to,
        "move": snapshot.move,
        "evaluations": snapshot.evaluations.tolist(),
        "types": [(x.dtype.name, x.shape) for x in snapshot.arrays],
        "searched": [
            [[dataclasses.asdict(position), dataclasses.asdict(tree)] for position, tree in row]
            for row in snapshot.searched
        ],
    }
    arrays = {
        f"array_{n}": np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        for n, x in enumerate(snapshot.arrays)
    }
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: a batch that was given up for lost may still be played elsewhere.
    descriptor, partial = tempfile.mkstemp(".partial", f".{path.name}.", path.parent)
    try:
        with open(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def read(path: Path, belongs_to: str) -> Snapshot | None:
    """The games, or None if there is no file.

    Raises:
      DataError: it is no snapshot, of a newer program, or of other games.
    """
    try:
        with np.load(path) as file:
            header = json.loads(bytes(file["header"]))
            raw = [file[f"array_{n}"] for n in range(len(header["types"]))]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no snapshot of games: {error}. Delete it.") from error
    expected = (SCHEMA_VERSION, belongs_to)
    found = (header["schema_version"], header["belongs_to"])
    if found != expected:
        raise DataError(
            f"games go on from a snapshot of the same games; {path} has (schema, games) {found}, "
            f"where {expected} is needed. Restore the config and the checkpoint that began them, "
            "or delete the file to search them again."
        )
    types = [(np.dtype(name), tuple(shape)) for name, shape in header["types"]]
    return Snapshot(
        move=header["move"],
        arrays=[x.view(dtype).reshape(shape) for x, (dtype, shape) in zip(raw, types, strict=True)],
        evaluations=np.array(header["evaluations"], np.int64),
        searched=[
            [(_of(records.Position, position), _of(records.Tree, tree)) for position, tree in row]
            for row in header["searched"]
        ],
    )


def _of(cls, fields: dict):
    return cls(**{name: _as_tuples(value) for name, value in fields.items()})


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
