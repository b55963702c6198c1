"""The truth about an answer, where there is one: rows that say how they are checked.

    {"prompt": ..., "check": {"problem_set": "grade_school", "split": "train", "id": "..."}}
    {"prompt": ..., "check": {"instructions": [{"id": "punctuation:no_comma"}, ...]}}

A row without the field `check` has no truth to ask, and a reward model judges it.
"""

import functools
from collections.abc import Mapping
from typing import Any

from data import instructions, problems
from data.errors import DataError
from data.problems import Problem


def verdict(row: Mapping[str, Any]) -> bool | None:
    """Whether the response of a row is right; None where nobody can say.

    Raises:
      DataError: a `check` of another form, or one that names no problem.
    """
    check = row.get("check")
    if check is None:
        return None
    match check:
        case {"problem_set": str(name), "split": str(split), "id": str(number)}:
            return _problem(name, split, number).verify(row["response"])
        case {"instructions": [*rows], **others} if rows and not others:
            return all(instructions.from_json(one).is_followed(row["response"]) for one in rows)
    raise DataError(
        "a check names a problem (problem_set, split, id) or instructions; got "
        f"{check!r}. Correct the row, or leave the field out."
    )


def _problem(name: str, split: str, number: str) -> Problem:
    found = _problems(name, split).get(number)
    if found is None:
        raise DataError(f"a check names a problem of {name} {split}; got {number!r}.")
    return found


@functools.lru_cache(maxsize=4)
def _problems(name: str, split: str) -> dict[str, Problem]:
    return {one.prompt.id: one for one in problems.load_problems(name, split)}
