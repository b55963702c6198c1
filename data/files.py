"""Finds downloaded data files, wherever a machine keeps them."""

import os
import pathlib

REPOSITORY_ROOT = pathlib.Path(__file__).resolve().parent.parent


def roots() -> tuple[pathlib.Path, ...]:
    """Folders that are searched, in order: `$TAYLORZERO_DATA`, then `../shared/data`."""
    named = os.environ.get("TAYLORZERO_DATA")
    beside = REPOSITORY_ROOT.parent / "shared" / "data"
    return (pathlib.Path(named), beside) if named else (beside,)


def find(name: str) -> pathlib.Path | None:
    """The first existing file or folder `name` (such as "game24/24.csv"), else None."""
    return next((root / name for root in roots() if (root / name).exists()), None)
