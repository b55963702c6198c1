r"""MATH-500: competition problems whose answer is a formula, for evaluation only.

500 problems of MATH (Hendrycks et al., arXiv:2103.03874), chosen by Lightman et al.
(arXiv:2305.20050): `math_splits/test.jsonl` of openai/prm800k, found through `data.files` as
`math/math500_test.jsonl`. The one split is "test"; nothing may train on it. A completion is right
if the last `\boxed{...}` in it equals the answer (`data.math_checker`).
"""

import functools
from typing import Any

from data import files
from data.errors import DataError

FILE = "math/math500_test.jsonl"
SPLITS = ("test",)


@functools.cache
def _rows() -> tuple[dict[str, Any], ...]:
    return tuple(files.read_json_lines(FILE, fields=("problem", "answer", "unique_id")))


def split(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of "test": problem, solution, answer, subject, level (1 to 5), unique_id.

    Raises:
      DataError: for another split, or if the file is nowhere to be found.
    """
    if name not in SPLITS:
        raise DataError(
            f'math500 is for evaluation and has one split, "test"; got {name!r}. Train on other '
            "problems (data.gsm8k, data.grade_school)."
        )
    return _rows()
