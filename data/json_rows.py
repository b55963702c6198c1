"""Lines of JSON files with typed fields: an error names the file, the line and the field."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from data import files
from data.errors import DataError


@dataclasses.dataclass(frozen=True)
class JsonRow:
    """One object of a file."""

    file: str
    line: int
    fields: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """Where it stands."""
        return f"{self.file}:{self.line}"

    def fail(self, field: str, rule: str) -> NoReturn:
        """Raises the DataError of a field."""
        found = repr(self.fields[field])[:80] if field in self.fields else "no such field"
        raise DataError(f"{self.origin}: {field} {rule}; got {found}. Correct that line.")

    def text(self, field: str) -> str:
        """A field that is a text."""
        value = self.fields.get(field)
        if not isinstance(value, str):
            self.fail(field, "is a text")
        return value

    def number(self, field: str, *, default: float | None = None) -> float:
        """A field that is a finite number; `default` where there is none, if that is allowed."""
        value = self.fields.get(field)
        if value is None and default is not None and field not in self.fields:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            self.fail(field, "is a number")
        if not math.isfinite(value):
            self.fail(field, "is a finite number")
        return float(value)

    def objects(self, field: str) -> list[Mapping[str, Any]]:
        """A field that is a list of objects, not empty."""
        value = self.fields.get(field)
        if not isinstance(value, list) or not value or not all(isinstance(x, dict) for x in value):
            self.fail(field, "is a list of objects")
        return value


def read(path: str) -> list[JsonRow]:
    """The rows of a file of JSON lines, or of one JSON list where its name ends with .json.

    Raises:
      DataError: there is no such file, it has no rows, or a line is no object.
    """
    if path.removesuffix(".xz").endswith(".json"):
        try:
            found = json.loads(files.read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is a JSON list; got {error}. Replace the file.") from error
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise DataError(f"{path} is a JSON list of objects. Replace the file.")
    else:
        found = files.read_json_lines(path, fields=())
    if not found:
        raise DataError(f"a file of rows has some; {path} is empty. Give another one.")
    return [JsonRow(path, number, row) for number, row in enumerate(found, 1)]


def write(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines; the file appears complete or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    temporary.replace(path)
