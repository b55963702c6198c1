r"""MATH: competition problems whose answer is a formula, in the split of MATH-500.

500 problems of MATH (Hendrycks et al., arXiv:2103.03874), chosen by Lightman et al.
(arXiv:2305.20050), are "test"; nothing may train on them. The other 12,000 are "train", but for
every fifteenth, which is "validation" (as in `data.gsm8k`). The files are those of
openai/prm800k, `math_splits/test.jsonl` and `train.jsonl`, found through `data.files` as
`math/math500_test.jsonl` and `math/math500_train.jsonl`. A completion is right if the last
`\boxed{...}` in it equals the answer (`data.math_checker`).
"""

import functools
from typing import Any

from data import files, gsm8k
from data.errors import DataError

FILE = "math/math500_test.jsonl"
TRAIN_FILE = "math/math500_train.jsonl"
SPLITS = ("train", "validation", "test")


@functools.cache
def _rows(file: str) -> tuple[dict[str, Any], ...]:
    return tuple(files.read_json_lines(file, fields=("problem", "answer", "unique_id")))


def split(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a split: problem, solution, answer, subject, level (1 to 5), unique_id.

    Raises:
      DataError: for another split, or if its file is nowhere to be found.
    """
    if name not in SPLITS:
        raise DataError(f"a split of math500 is one of {SPLITS}; got {name!r}. Use one of these.")
    if name == "test":
        return _rows(FILE)
    return tuple(
        row
        for number, row in enumerate(_rows(TRAIN_FILE))
        if gsm8k.is_validation(number) == (name == "validation")
    )
