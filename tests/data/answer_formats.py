"""Answers in every format that models write, right and wrong, by rule from known values.

`right(value)` are texts that state the value, `wrong(value)` texts that do not; the verdict on each
is known because of how it was made, not because a checker said so.
"""

import itertools
import random
from collections.abc import Iterator
from fractions import Fraction

NOT_A_NUMBER = [
    "", " ", "$", "%", ",", ".", "...", "-", "#", "eighteen", "none", "NaN", "inf", "x",
    "1,00", "1,0000", ",100", "1,,000", "1.2.3", "1/0", "3/4/5", "1 000", "0x12", "1e3", "9" * 41,
    "\\frac{}{}", "\u0967\u096e", "\u00b9\u2078",
]  # fmt: skip


def written(value: Fraction) -> Iterator[str]:
    """Ways to write a number, without currency or unit."""
    sign = "-" if value < 0 else ""
    size = abs(value)
    if value.denominator == 1:
        digits, grouped = str(size), f"{size.numerator:,}"
        plain = [digits, f"{digits}.0", f"{digits}.00", f"0{digits}"]
        plain += [f"{3 * size}/3", f"\\frac{{{2 * size}}}{{2}}", f"{digits} 0/7"]
        plain += [grouped, f"{grouped}.00"]
        plain += [grouped.replace(",", "{,}"), grouped.replace(",", "\\,")]
    else:
        top, bottom = size.numerator, size.denominator
        plain = [f"{top}/{bottom}", f"{top} / {bottom}", f"{2 * top}/{2 * bottom}"]
        plain += [f"\\{kind}{{{top}}}{{{bottom}}}" for kind in ("frac", "dfrac", "tfrac")]
        whole, rest = divmod(top, bottom)
        if whole:
            plain += [f"{whole} {rest}/{bottom}", f"{whole}\\frac{{{rest}}}{{{bottom}}}"]
        if 1000 % bottom == 0:
            decimal = f"{float(size):.3f}"
            plain += [decimal, decimal.rstrip("0"), decimal.removeprefix("0")]
    for text in dict.fromkeys(plain):
        yield sign + text
        yield from (["−" + text] if sign else ["+" + text])


def dressed(number: str) -> Iterator[str]:
    """Ways to present a number: currency, unit, LaTeX, bold, a full stop."""
    negative = number[0] in "-−"
    sign, size = (number[0], number[1:]) if number[0] in "-−+" else ("", number)
    yield number
    yield f"{number}." if "\\" not in number else f"{number} "
    yield from (f"{sign}${size}", f"{sign}\\${size}", f"€{number}")
    if negative:
        yield f"${sign}{size}"
    yield from (f"{number} dollars", f"{number} apples.", f"{number} m^2", f"{number} km/h")
    yield from (f"{number}%", f"{number}\\%", f"{number} percent", f"{number} (in all)")
    yield from (f"**{number}**", f"`{number}`", f"${number}$", f"\\({number}\\)")
    yield from (f"{number}\\text{{ cm}}", f"{number} \\mathrm{{kg}}", f"  {number}  ")


def spoilt(number: str) -> Iterator[str]:
    """Texts that name the number and yet do not state it: they go on, hedge, or count another."""
    yield from (f"{number} + 1", f"{number}*2", f"{number} = {number}", f"{number}^2")
    yield from (f"{number} or 7", f"{number}, 7", f"{number} to 9", f"{number} and a half")
    yield from (f"{number} dollars 7 cents", f"{number}x", f"{number} 5", f"{number}²")
    yield from (f"about {number}", f"x = {number}", f"{number} million", f"not {number}")
    yield from (f"{number}/2", f"{number}:30", f"{number}M")


def misgrouped(value: Fraction) -> Iterator[str]:
    """The right digits with commas where none belongs."""
    digits = str(abs(value.numerator))
    if value.denominator == 1 and len(digits) > 2:
        yield from (f"{digits[:-2]},{digits[-2:]}", f"{digits[:-1]},{digits[-1:]}")
        yield from [f"{digits[:-4]},{digits[-4:]}"] * (len(digits) > 4)


def marked(answer: str, decoy: str) -> Iterator[str]:
    """Whole completions whose answer is `answer`; `decoy` stands where it does not count."""
    yield f"#### {answer}"
    yield f"####{answer}"
    yield f"He has {decoy} = <<{decoy}>>{decoy} left.\n#### {answer}"
    yield f"#### {decoy}\nNo, that was wrong.\n#### {answer}"
    yield f"#### {answer}\nThis is more than {decoy}."
    yield f"The answer is $\\boxed{{{answer}}}$, not {decoy}."
    yield f"\\boxed{{{decoy}}}\n#### {answer}\n"
    yield f"#### {decoy}\nSo it is \\boxed{{{answer}}}"
    yield f"#### \\boxed{{{answer}}}"


def unmarked(answer: str) -> Iterator[str]:
    """Completions that state the answer without saying that it is one."""
    yield from (answer, f"The answer is {answer}", f"### {answer}", f"####\n{answer}")
    yield from (f"#### so {answer}", f"\\boxed{{{answer}", f"#### {answer}\n####", f"A: {answer}")


def others(value: Fraction) -> list[Fraction]:
    """Values that a careless reading takes for this one."""
    near = [value + 1, value * 10, value / 10, value * 100, -value, value + Fraction(1, 2)]
    return [other for other in near if other != value]


def cases(seed: int, num_values: int) -> Iterator[tuple[Fraction, str, bool]]:
    """(gold, completion, verdict): values in all forms, each in one presentation and context."""
    rng = random.Random(seed)
    values = [Fraction(rng.choice((1, 1, 1, -1)) * rng.randrange(1, 10 ** rng.randrange(1, 8)))
              for _ in range(num_values)]  # fmt: skip
    values += [Fraction(rng.randrange(1, 400), rng.choice((2, 4, 5, 8))) for _ in values[::4]]

    def one_of(options: Iterator[str]) -> str:
        return rng.choice(list(options))

    for value in [Fraction(0), *values]:
        decoy = str(rng.randrange(10**6))
        for number in written(value):
            for presented in dressed(number):
                yield value, one_of(marked(presented, decoy)), True
                yield rng.choice(others(value)), one_of(marked(presented, decoy)), False
        number = one_of(written(value))
        for text in itertools.chain(spoilt(number), misgrouped(value), NOT_A_NUMBER):
            is_zero = value == 0 and text == f"{number} million"
            yield value, one_of(marked(text, str(value))), is_zero
        for text in unmarked(one_of(written(value))):
            yield value, text, False
