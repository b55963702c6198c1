"""GSM8K: grade-school word problems with solutions in steps (Cobbe et al., arXiv:2110.14168).

The files are upstream's, `train.jsonl` (here `.xz`) and `test.jsonl` of openai/grade-school-math,
found through `data.files` below `gsm8k/`. The prompt is the question and a line end; a completion
is a line per step, with calculations as `<<48/2=24>>`, and `#### 72` as the last line.

Splits: "test" is upstream's. Of the rows of `train.jsonl`, numbered from 0, those with
n % 15 == 14 are "validation" (498), the others "train" (6,975). Row n is "gsm8k/train/n" in both.
"""

import dataclasses
import functools
import re
from fractions import Fraction
from typing import Literal

from data import documents, files, gsm8k_checker
from data.documents import Loss
from data.errors import DataError
from data.packing import Documents
from data.tokenizer import Tokenizer

SPLITS = ("train", "validation", "test")
FILES = {"train": "gsm8k/train.jsonl.xz", "test": "gsm8k/test.jsonl"}
VALIDATION_EVERY = 15

_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


@dataclasses.dataclass(frozen=True)
class Row:
    """One problem: its name, the question, and the written solution that ends with `#### n`."""

    id: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        return self.question + "\n"

    @functools.cached_property
    def gold(self) -> Fraction:
        number = gsm8k_checker.answer(self.answer)
        if number is None:
            raise DataError(
                f"a solution of GSM8K ends with #### and a number; got {self.answer[-40:]!r} in "
                f"{self.id}. Replace the file."
            )
        return number


@functools.cache
def _file(name: str) -> tuple[Row, ...]:
    rows = files.read_json_lines(FILES[name], fields=("question", "answer"))
    return tuple(
        Row(f"gsm8k/{name}/{number}", row["question"], row["answer"])
        for number, row in enumerate(rows)
    )


def train_row(number: int) -> Row:
    """Row `number` of upstream's `train.jsonl`, whether it is in "train" or in "validation"."""
    return _file("train")[number]


def split(name: str) -> tuple[Row, ...]:
    """The rows of "train", "validation" or "test".

    Raises:
      DataError: for another name, or if the files are nowhere to be found.
    """
    if name not in SPLITS:
        raise DataError(f"a split of gsm8k is one of {SPLITS}; got {name!r}. Use one of these.")
    if name == "test":
        return _file("test")
    return tuple(
        row
        for number, row in enumerate(_file("train"))
        if is_validation(number) == (name == "validation")
    )


def without_calculator(answer: str) -> str:
    """A solution without its calculator annotations, such as `<<48/2=24>>`."""
    return _CALCULATOR.sub("", answer)


def is_validation(number: int) -> bool:
    """Whether row `number` of `train.jsonl` is held out."""
    return number % VALIDATION_EVERY == VALIDATION_EVERY - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gsm8kSource:
    """Questions and solutions of GSM8K as training text; never of the test split."""

    split: Literal["train", "validation"] = "train"
    """Which rows."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    loss: Loss = "completion"
    """Tokens that count: "completion" the solution alone, "results" only what follows "=" up to the
    line's end, "all"."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        texts = ((row.prompt, row.answer) for row in split(self.split))
        return documents.from_texts(texts, tokenizer, self.loss)
