"""Which completions of a Game of 24 puzzle are right.

A completion is right in one of two forms; whatever it states must be true.

Steps, one per line, words separated by spaces:
    10 - 4 = 6 left 5 6 6
    5 * 6 = 30 left 6 30
    30 - 6 = 24
  Each step takes two of the numbers present (in either order), states their exact result, and after
  `left` all the numbers then present, in any order. Only the last line may omit `left`. There is
  one step less than there are numbers, and the last result is 24. Results may be negative
  ("-5") or fractions ("8/3", no spaces).

An equation, on one line, with or without "= 24" at its end:
    (10 - 4) * 5 - 6 = 24
  Each given number stands in it exactly once, as digits, joined only by binary + - * / and
  parentheses; its exact value is 24.

In both, `×`, `÷` and `−` stand for `*`, `/` and `-`; spaces and line ends at the two ends and
repeated spaces do not matter. Everything else is wrong: other characters (tabs among them) or
digits, leading zeros, decimals, powers, unary minus in an equation, implied products, blank lines,
or text before or after.
"""

import operator as op
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

MAX_CHARACTERS = 1000
MAX_DEPTH = 50

_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-"})
_ALLOWED = re.compile(r"[0-9a-z+\-*/=() \n]*", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,8})(/[1-9][0-9]{0,8})?", re.ASCII)
_SYMBOL = re.compile(r" *(0|[1-9][0-9]{0,8}|[-+*/()])", re.ASCII)
_OPERATIONS = {"+": op.add, "-": op.sub, "*": op.mul, "/": op.truediv}
_CONCLUSION = re.compile(r" *= *24$", re.ASCII)


class _WrongError(Exception):
    """The completion is not a right answer."""


def check(numbers: Sequence[int], completion: str) -> bool:
    """Whether the completion solves the puzzle, by the rules above. Never raises, always quick."""
    if not isinstance(completion, str) or len(completion) > MAX_CHARACTERS:
        return False
    text = completion.translate(_SIGNS).strip(" \n")
    if not text or not _ALLOWED.fullmatch(text):
        return False
    lines = text.split("\n")
    try:
        if len(lines) > 1 or "left" in text:
            return _follow_steps(Counter(map(Fraction, numbers)), lines) == 24
        return _evaluate(Counter(numbers), _CONCLUSION.sub("", text)) == 24
    except _WrongError:
        return False


# -------------------------------------------------------------------------------------- steps


def _follow_steps(present: Counter[Fraction], lines: list[str]) -> Fraction:
    """Takes the steps one by one; returns the only number that remains."""
    for i, line in enumerate(lines):
        words = line.split()
        _require(len(words) >= 5)
        left, right, result = (_number(words[place]) for place in (0, 2, 4))
        for operand in (left, right):
            _require(present[operand] > 0)
            present[operand] -= 1
        _require(words[3] == "=" and _apply(words[1], left, right) == result)
        present[result] += 1
        if len(words) > 5 or i < len(lines) - 1:
            _require(len(words) > 5 and words[5] == "left")
            _require(Counter(map(_number, words[6:])) == +present)
    _require(present.total() == 1)
    return next(present.elements())


def _number(word: str) -> Fraction:
    _require(_NUMBER.fullmatch(word))
    return Fraction(word)


# ----------------------------------------------------------------------------------- equation


def _evaluate(given: Counter[int], text: str) -> Fraction:
    """Value of an expression that uses exactly the given numbers."""
    symbols = _symbols(text)
    _require(Counter(int(symbol) for symbol in symbols if symbol.isdigit()) == given)
    symbols.reverse()  # a stack: the next symbol is the last
    value = _sum(symbols, depth=0)
    _require(not symbols)
    return value


def _symbols(text: str) -> list[str]:
    """Numbers, operators and parentheses in order."""
    symbols, position = [], 0
    text = text.rstrip(" ")
    while position < len(text):
        match = _SYMBOL.match(text, position)
        if not match:
            raise _WrongError
        symbols.append(match[1])
        position = match.end()
    return symbols


def _sum(symbols: list[str], depth: int) -> Fraction:
    """Rule: sum = product (("+" | "-") product)*."""
    value = _product(symbols, depth)
    while symbols and symbols[-1] in "+-":
        value = _apply(symbols.pop(), value, _product(symbols, depth))
    return value


def _product(symbols: list[str], depth: int) -> Fraction:
    """Rule: product = atom (("*" | "/") atom)*."""
    value = _atom(symbols, depth)
    while symbols and symbols[-1] in "*/":
        value = _apply(symbols.pop(), value, _atom(symbols, depth))
    return value


def _atom(symbols: list[str], depth: int) -> Fraction:
    """Rule: atom = number | "(" sum ")"."""
    _require(symbols and depth < MAX_DEPTH)
    symbol = symbols.pop()
    if symbol.isdigit():
        return Fraction(symbol)
    _require(symbol == "(")
    value = _sum(symbols, depth + 1)
    _require(symbols and symbols.pop() == ")")
    return value


# ------------------------------------------------------------------------------------- shared


def _apply(operator: str, left: Fraction, right: Fraction) -> Fraction:
    _require(operator in _OPERATIONS and (operator != "/" or right))
    return _OPERATIONS[operator](left, right)


def _require(condition: object) -> None:
    if not condition:
        raise _WrongError
