"""ListOps: nested lists of digits under MIN, MAX, MED, SM, FIRST, LAST; the value is asked.

    [MAX 2 9 [MIN 4 7 ] 0 ] = 9

Source: Nangia and Bowman, arXiv:1804.06028. Their files also hold the parentheses of a binary parse
tree, which say nothing that the brackets do not, and are left out.
"""

import dataclasses
from typing import Literal

import numpy as np

from data import files
from data.errors import DataError
from data.packing import Documents
from data.tokenizer import Tokenizer

PARTS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListOpsSource:
    """Expressions of a file and their values; only the value is counted in the loss.

    Every tenth line, from line 9 on, is of the part "test", and from line 8 of "validation"; an
    expression that is also in an earlier part ("train" first) is dropped from the later one.
    """

    path: str = "listops/test_d20s.tsv.xz"
    """A file of lines `value TAB expression`, or the name of one that `data.files.find` knows."""
    part: Literal["train", "validation", "test"] = "train"
    """Which lines."""
    max_tokens: int = 128
    """Longer expressions, counted with "=" and value, are left out."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        by_part: dict[str, dict[str, str]] = {part: {} for part in PARTS}
        for number, line in enumerate(files.read_text(self.path).splitlines()):
            value, tab, expression = line.partition("\t")
            if not tab or value not in tuple("0123456789"):
                raise DataError(
                    f"a line of ListOps is a digit, a tab and an expression; got {line[:60]!r} at "
                    f"line {number + 1} of {self.path}. Replace the file."
                )
            text = " ".join(word for word in expression.split() if word not in ("(", ")"))
            part = next(name for name, digits in PARTS.items() if number % 10 in digits)
            by_part[part][text] = value
        chosen = by_part[self.part]
        for earlier in list(PARTS)[: list(PARTS).index(self.part)]:
            for text in by_part[earlier]:
                chosen.pop(text, None)
        rows = [tokenizer.encode(f"{text} = {value}") for text, value in chosen.items()]
        rows = [row for row in rows if len(row) <= self.max_tokens]
        lengths = np.array([len(row) for row in rows], int)
        is_counted = np.zeros(lengths.sum(), bool)
        is_counted[np.cumsum(lengths) - 1] = True
        flat = [token for row in rows for token in row]
        return Documents(np.array(flat, np.int32), is_counted, lengths)
