"""Finds downloaded data files, wherever a machine keeps them."""

import json
import lzma
import os
import pathlib
from typing import Any

from data.errors import DataError

REPOSITORY_ROOT = pathlib.Path(__file__).resolve().parent.parent


def roots() -> tuple[pathlib.Path, ...]:
    """Folders that are searched, in order: `$TAYLORZERO_DATA`, then `../shared/data`."""
    named = os.environ.get("TAYLORZERO_DATA")
    beside = REPOSITORY_ROOT.parent / "shared" / "data"
    return (pathlib.Path(named), beside) if named else (beside,)


def find(name: str) -> pathlib.Path | None:
    """The first existing file or folder `name` (such as "game24/24.csv"), else None.

    A file may be there plain or as .xz, whichever is asked for.
    """
    plain = name.removesuffix(".xz")
    forms = dict.fromkeys((name, plain, f"{plain}.xz"))
    return next((root / form for root in roots() for form in forms if (root / form).exists()), None)


def read_text(path: str) -> str:
    """Contents of a file given by its path or by its name among the known data."""
    found = pathlib.Path(path) if pathlib.Path(path).exists() else find(path)
    if found is None:
        raise DataError(
            f"this needs a file of data; got {path!r}, which is neither a path nor below "
            f"{', '.join(map(str, roots()))}. Put it there, set TAYLORZERO_DATA to the folder that "
            "has it (docs/data.md says where it comes from), or correct the path."
        )
    try:
        contents = found.read_bytes()
        contents = lzma.decompress(contents) if found.suffix == ".xz" else contents
        return contents.decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(
            f"text is in UTF-8, plain or .xz; got {found}: {error}. Replace the file."
        ) from error


def read_json_lines(path: str, *, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, all of which have these fields.

    Raises:
      DataError: if there is no such file, or a line is not such an object.
    """
    rows = []
    lines = read_text(path).split("\n")  # and not at U+2028, which may stand in a string
    for number, line in enumerate(lines if lines[-1] else lines[:-1]):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            row = error
        if not isinstance(row, dict) or not set(fields) <= set(row):
            raise DataError(
                f"a line of {path} is a JSON object with the fields {fields}; got {line[:60]!r} at "
                f"line {number + 1}. Replace the file."
            )
        rows.append(row)
    return rows
