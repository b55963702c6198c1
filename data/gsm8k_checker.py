r"""Which completions of a GSM8K problem are right: the number that the text ends with, exactly.

Two ways to find the answer in a text:

strict: what stands after the last marker, `#### ` or `\boxed{...}`, and nothing but one number and
  its unit. After `#### ` this is the rest of the line. No marker, no answer; an answer that cannot
  be read is wrong, and no earlier one is taken in its place.
flexible: the last number anywhere in the text.

A number is an integer, a decimal, a fraction `3/4` or a mixed number `1 3/4`, with or without:
  sign           -5  −5  +5, before or after the currency
  currency       $5  \$5  -$5  €5  £5
  thousands      1,000  1{,}000  1\,000 (in threes: `1,00` is no number)
  zeros          18.00  007  .5
  percent        50%  50\% and 50 are the same number: golds are written without the sign
  LaTeX          $18$  \(18\)  \frac{3}{4}  1\tfrac12  18\text{ cm}
  bold, fences   **18**  `18`
  a unit         18 dollars  18 m^2  $18/hour  18.  (words, no further number)
  a scale        5 hundred, thousand, million, billion
What follows the number must not go on computing or naming numbers: `5+3`, `5x`, `5 or 6`,
`5 and a half`, `5:30`, `1e3`, `5k` are not answers.

How this differs from the two filters of lm-eval's task gsm8k: its `strict-match` is the first
`#### (\-?[0-9\.\,]+)`, its `flexible-extract` the last `(-?[$0-9.,]{2,})|(-?[0-9]+)`; then `,`, `$`
and a full stop at the end are deleted, and strings compared. They read `$.`, `,` or `...` as
numbers, `10-4` as ending with -4, `24 m2` with 2, `3/4` with 4; 18.00 is not 18, and `#### $18` has
no strict answer. Here the last marker counts, so that a text is judged by what it ends with.
"""

import collections
import re
import string
import unicodedata
from fractions import Fraction
from typing import Literal

Mode = Literal["strict", "flexible"]

MARKER = "####"
BOX = "\\boxed{"
MAX_CHARACTERS = 100_000

_DIGITS = r"[0-9]{1,40}+"
_WHOLE = rf"(?:[0-9]{{1,3}}(?:,[0-9]{{3}})++|{_DIGITS})"
_DECIMAL = rf"(?:{_WHOLE}(?:\.{_DIGITS})?+|\.{_DIGITS})"
_CURRENCY = r"[$€£¥₹]"
_FRACTION = (
    rf"(?:(?P<top>{_WHOLE}) ?/ ?(?P<bottom>{_WHOLE})"
    r"|\\frac ?(?:\{(?P<frac_top>[0-9]{1,40})\}|(?P<digit_top>[0-9])) ?"
    r"(?:\{(?P<frac_bottom>[0-9]{1,40})\}|(?P<digit_bottom>[0-9])))"
)
_NUMBER = re.compile(
    rf"(?P<sign>[-+])? ?(?:{_CURRENCY} ?){{0,2}}+(?P<inner_sign>[-+])?"
    rf"(?:(?:(?P<whole>{_WHOLE})(?: and )?+ *)?{_FRACTION}|(?P<decimal>{_DECIMAL}))"
)
# Maximal runs of digits, so that a malformed number is never read in part.
_RUN = r"(?:[0-9]++(?:[.,][0-9]++)*+|\.[0-9]++)"
_BRACED = r"(?:\{[0-9]++\}|[0-9])"
_FRACTION_RUN = rf"(?:{_RUN}(?: ?/ ?{_RUN})++|\\frac ?{_BRACED} ?{_BRACED})"
_ANYWHERE = re.compile(
    rf"(?:(?<![0-9A-Za-z_)}}\]])[-+])?(?:{_CURRENCY} ?){{0,2}}+(?:(?<={_CURRENCY})-)?"
    r"(?<![0-9A-Za-z_^.,/])"
    rf"(?:(?:{_RUN}(?: and )?+ *)?{_FRACTION_RUN}|{_RUN})"
)
_SCALE = re.compile(r" *(hundred|thousand|million|billion)\b", re.IGNORECASE)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_POWER_OF_LENGTH = re.compile(
    r"\b(?:[cdkm]?m|ft|feet|foot|in|inch|inches|yd|yards?|mi|miles?|meters?|metres?|units?)"
    r" ?(?:\^ ?\{?[23]\}?|[23])(?![0-9A-Za-z])"
)
_GOES_ON = re.compile(
    r" *(?:[-+*^=:<>×÷·~|\\&±²³⁰¹⁴-⁹]|/(?! ?[A-Za-z])"
    r"|(?:and|or|to|over|times|plus|minus|point|half|x)\b)"
    r"|(?-i:[kKMBxXeE])(?![A-Za-z])",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"(?<![0-9])[0-9]++(?:st|nd|rd|th)\b")
_SPACES = re.compile(r"[ \t\u00a0\u2009\u202f]++")
_LATEX = [
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\{,\}|\\,(?=[0-9])"), ","),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*+)\}"), r" \1 "),
    (re.compile(r"\\[(){}\[\],;:! ]|\\q?quad\b|\*\*|__|`"), " "),
    (re.compile(r"\\([$%])"), r"\1"),
]
_SIGNS = str.maketrans({"−": "-", "﹣": "-", "－": "-"})


def check(
    gold: Fraction | int, completion: str, *, mode: Mode = "strict", marker: str = MARKER
) -> bool:
    """Whether the completion's answer is exactly the gold number. Never raises, always quick."""
    return answer(completion, mode=mode, marker=marker) == gold


def answer(text: str, *, mode: Mode = "strict", marker: str = MARKER) -> Fraction | None:
    """The number that a text gives as its answer; None if it gives none.

    Args:
      mode: "strict" or "flexible", see above.
      marker: what stands before the answer in "strict" mode, beside a box.
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return None
    if mode == "flexible":
        return _last_number(text)
    at_marker, at_box = text.rfind(marker), text.rfind(BOX)
    if at_box > at_marker:
        inside = balanced(text, at_box + len(BOX))
        return None if inside is None else read_number(inside)
    if at_marker < 0:
        return None
    return read_number(text[at_marker + len(marker) :].partition("\n")[0])


def balanced(text: str, start: int) -> str | None:
    """The text from `start` up to the brace that closes what was open there; None if none does."""
    depth = 1
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1] != "\\":
            depth += 1 if text[place] == "{" else -1
            if not depth:
                return text[start:place]
    return None


def read_number(text: str) -> Fraction | None:
    """The value of a text that is one number and perhaps its unit; None for any other text."""
    text = _plain(text).strip()
    match = _NUMBER.match(text)
    if not match:
        return None
    return _scaled(match, _POWER_OF_LENGTH.sub("", text[match.end() :]), may_go_on=False)


def _last_number(text: str) -> Fraction | None:
    text = _ORDINAL.sub(" ", _POWER_OF_LENGTH.sub(" ", _plain(text)))
    last = next(iter(collections.deque(_ANYWHERE.finditer(text), maxlen=1)), None)
    match = last and _NUMBER.fullmatch(last[0])
    return _scaled(match, text[last.end() :], may_go_on=True) if match and last else None


def _plain(text: str) -> str:
    """The text without what LaTeX, Markdown and typography add to numbers."""
    if not text.isascii():
        for character in set(text) - set(string.printable):
            plain = unicodedata.normalize("NFKC", character)
            if "\u2044" in plain:  # ½ -> 1/2, which may follow a number
                text = text.replace(character, " " + plain.replace("\u2044", "/"))
        text = text.translate(_SIGNS)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return _SPACES.sub(" ", text)


def _scaled(match: re.Match[str], rest: str, *, may_go_on: bool) -> Fraction | None:
    """The number, times the scale words that follow it; None if it is none."""
    value = _value(match)
    while value is not None and (scale := _SCALE.match(rest)):
        value *= _SCALES[scale[1].lower()]
        rest = rest[scale.end() :]
    if may_go_on:
        return value
    is_unit = not _GOES_ON.match(rest) and not any(character.isdigit() for character in rest)
    return value if is_unit else None


def _value(match: re.Match[str]) -> Fraction | None:
    sign, inner_sign = match["sign"], match["inner_sign"]
    if sign and inner_sign:
        return None
    if match["decimal"]:
        value = Fraction(match["decimal"].replace(",", ""))
    else:
        top = match["top"] or match["frac_top"] or match["digit_top"]
        bottom = match["bottom"] or match["frac_bottom"] or match["digit_bottom"]
        below = int(bottom.replace(",", ""))
        if not below:
            return None
        value = Fraction(int(top.replace(",", "")), below)
        value += int((match["whole"] or "0").replace(",", ""))
    return -value if "-" in (sign, inner_sign) else value
