r"""Generated word problems in the form of GSM8K, for models that learn on a laptop.

    Ada has 4 boxes with 6 apples in each box. Then Ada gives 5 apples to Ben. How many apples ...?
    Ada has 4*6 = <<4*6=24>>24 apples.
    Ada has 24-5 = <<24-5=19>>19 apples left.
    #### 19

The prompt is the first line. Stories are composed of `data.grade_school_templates` in 2 to 6 steps;
all arithmetic is exact, with whole numbers from 1 to 999. The split of a story follows from a hash
of its template and the numbers of its opening, so no template with the same numbers, and no
question, is in two splits, whatever the seeds.
"""

import dataclasses
import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from data import documents
from data.documents import Loss
from data.errors import DataError
from data.grade_school_templates import (
    EVENTS,
    HAVE,
    LARGEST,
    NAMES,
    OPENINGS,
    PARTS,
    THINGS,
    Event,
    Opening,
)
from data.packing import Documents
from data.tokenizer import Tokenizer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MIN_STEPS, MAX_STEPS = 2, 6
SHORT_STEPS = 3
SMALL = 99
"""Largest number of the sets of small numbers."""
MAX_EVENTS = 4
NUM_HELD_OUT = 500
"""Problems of the sets "validation" and "test"."""
NUM_TRAIN = 5_000
"""Problems of the set "train", which a search plays; `GradeSchoolSource` gives any number."""

_SET_SEEDS = {"train": 2**32, "validation": 2**32 + 1, "test": 2**32 + 2}  # none of a config's
_SHARE_OF_256 = {"test": range(16), "validation": range(16, 32), "train": range(32, 256)}
_CALCULATION = re.compile(r"<<([^=>]+)=([0-9]+)>>")
_MAX_TRIES = 200
_MAX_TRIES_OF_PART = 50


@dataclasses.dataclass(frozen=True)
class GradeSchoolProblem:
    """One story.

    template: names of the opening and the events. numbers: what was drawn, in order. largest: of
    all numbers in question and answer (but the 100 of a percentage).
    """

    template: str
    numbers: tuple[int, ...]
    question: str
    answer: str
    gold: int
    num_steps: int
    largest: int

    @property
    def prompt(self) -> str:
        return self.question + "\n"


class _Number(int):
    """A number that a story can also write as "twice" or "a third"."""

    def __format__(self, form: str) -> str:
        if form == "part":
            return PARTS[self]
        if form == "times":
            return "twice" if self == 2 else f"{int(self)} times"
        return str(int(self))


# ------------------------------------------------------------------------------- structures


@dataclasses.dataclass(frozen=True)
class _Structure:
    """An opening and the events that follow it."""

    opening: Opening
    events: tuple[Event, ...] = ()

    @functools.cached_property
    def parts(self) -> tuple[Opening | Event, ...]:
        return (self.opening, *self.events)

    @functools.cached_property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def num_steps(self) -> int:
        return sum(len(part.steps) for part in self.parts)

    @functools.cached_property
    def question(self) -> str:
        if not self.events:
            return self.opening.question
        return self.events[-1].question or HAVE


Group = dict[int, list[_Structure]]  # number of steps -> stories


@functools.cache
def groups(min_steps: int, max_steps: int) -> tuple[Group, ...]:
    """All stories of so many steps, by opening; no event comes twice in a story.

    Openings that go on in many ways are there three times, to be drawn as often.
    """
    changes = [event for event in EVENTS if event.question is None]
    ends = [event for event in EVENTS if event.question is not None]
    chains: list[tuple[Event, ...]] = [()]
    for count in range(1, MAX_EVENTS + 1):
        chains += list(itertools.permutations(changes, count))
        chains += [
            (*some, end) for some in itertools.permutations(changes, count - 1) for end in ends
        ]
    found = []
    for opening in OPENINGS:
        group: Group = {}
        for chain in chains if opening.goes_on else [()]:
            structure = _Structure(opening, chain)
            if min_steps <= structure.num_steps <= max_steps:
                group.setdefault(structure.num_steps, []).append(structure)
        if group:
            found += [group] * (3 if opening.goes_on else 1)
    return tuple(found)


# --------------------------------------------------------------------------------- problems


def problems(
    seed: int,
    split: Split = "train",
    *,
    min_steps: int = MIN_STEPS,
    max_steps: int = MAX_STEPS,
    largest: int = LARGEST,
) -> Iterator[GradeSchoolProblem]:
    """Endless problems of a split, all different; the same seed gives the same ones.

    The opening is drawn first, then how many steps, then how the story goes on. Stories with a
    number above `largest` are passed over.

    Raises:
      DataError: for another split, steps outside of 2 to 6, or numbers that are too small.
    """
    if split not in SPLITS:
        raise DataError(f"a split of grade_school is one of {SPLITS}; got {split!r}. Use one.")
    if not MIN_STEPS <= min_steps <= max_steps <= MAX_STEPS:
        raise DataError(
            f"stories have {MIN_STEPS} to {MAX_STEPS} steps; got {min_steps=}, {max_steps=}. "
            "Choose within that."
        )
    if largest < SMALL:
        raise DataError(f"stories need numbers of up to {SMALL} or more; got {largest=}. Raise it.")
    rng = random.Random(seed)
    stories = groups(min_steps, max_steps)
    seen: set[str] = set()
    while True:
        group = _choose(rng, stories)
        structure = _choose(rng, group[_choose(rng, sorted(group))])
        values = _draw(rng, structure, split)
        problem = None if values is None else _tell(rng, structure, *values)
        if problem is None or problem.largest > largest:
            continue
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


def split_of(template: str, numbers: Sequence[int]) -> str:
    """The split of a template with these numbers of its opening, by the first byte of SHA-256."""
    first = hashlib.sha256(f"{template} {tuple(numbers)}".encode()).digest()[0]
    return next(name for name, share in _SHARE_OF_256.items() if first in share)


@functools.cache
def problem_set(
    split: Split, max_steps: int = MAX_STEPS, largest: int = LARGEST
) -> tuple[GradeSchoolProblem, ...]:
    """The fixed problems of a split that are asked by name, of 2 to `max_steps` steps."""
    count = NUM_TRAIN if split == "train" else NUM_HELD_OUT
    stream = problems(_SET_SEEDS.get(split, 0), split, max_steps=max_steps, largest=largest)
    return tuple(itertools.islice(stream, count))


def _choose(rng: random.Random, options):
    return options[int(rng.random() * len(options))]


_Calculation = tuple[str, str, int]  # name, expression with numbers, result
_Part = tuple[dict[str, int], list[_Calculation]]  # all numbers by name, and how they came about


def _draw(rng: random.Random, structure: _Structure, split: str):
    """Numbers of that split with which all comes out whole, and the calculations; or None."""
    for _ in range(_MAX_TRIES):
        numbers: list[int] = []
        parts: list[_Part] = []
        known: dict[str, int] = {}
        for part in structure.parts:
            drawn = _draw_part(rng, part, {"x": known["x"]} if parts else {})
            if drawn is None:
                break
            known, calculations, new = drawn
            if not parts and split_of(structure.name, new) != split:
                break
            parts.append((known, calculations))
            numbers += new
        else:
            return tuple(numbers), parts
    return None


def _draw_part(rng: random.Random, part: Opening | Event, carried: dict[str, int]):
    """All numbers of one part, its calculations, and the numbers drawn for it."""
    for _ in range(_MAX_TRIES_OF_PART):
        drawn = {name: _choose(rng, options) for name, options in part.draws.items()}
        known = carried | drawn
        calculations = _calculate(part.steps, known)
        if calculations is not None:
            return known, calculations, list(drawn.values())
    return None


@functools.cache
def _parsed(step: str) -> tuple[str, tuple[str, ...], str]:
    """Target, words of the formula, and sentence of `target = formula | sentence`."""
    formula, sentence = step.split(" | ")
    target, expression = formula.split(" = ")
    return target, tuple(expression.split()), sentence


def _calculate(steps: tuple[str, ...], known: dict[str, int]) -> list[_Calculation] | None:
    """Results of the steps, added to `known`; None if one is not whole or not from 1 to LARGEST."""
    done = []
    for step in steps:
        target, words, _ = _parsed(step)
        operands = [int(word) if word.isdigit() else known[word] for word in words[::2]]
        value = operands[0]
        for operator, operand in zip(words[1::2], operands[1:], strict=True):
            if operator == "/":
                value, rest = divmod(value, operand)
                if rest:
                    return None
            else:
                value = {"+": value + operand, "-": value - operand, "*": value * operand}[operator]
        if not 1 <= value <= LARGEST:
            return None
        written = "".join(
            word if place % 2 else str(operands[place // 2]) for place, word in enumerate(words)
        )
        known[target] = value
        done.append((target, written, value))
    return done


def _tell(
    rng: random.Random,
    structure: _Structure,
    numbers: tuple[int, ...],
    parts: list[_Part],
) -> GradeSchoolProblem:
    names, objects = rng.sample(NAMES, 3 + len(structure.events)), rng.sample(THINGS, 2)
    words = {"A": names[0], "C": names[2], "things": objects[0], "others": objects[1]}
    told, lines = [], []
    for place, part in enumerate(structure.parts):
        known, calculations = parts[place]
        words["B"] = names[1] if not place else names[2 + place]
        values = {name: _Number(value) for name, value in known.items()}
        told.append(part.text.format(**words, **values))
        for step, (target, expression, value) in zip(part.steps, calculations, strict=True):
            sentence = _parsed(step)[2]
            calculation = f"{expression} = <<{expression}={value}>>{value}"
            lines.append(sentence.format(**(words | values | {target: calculation})))
        question = structure.question.format(**words, **values)
    gold = parts[-1][1][-1][2]
    return GradeSchoolProblem(
        template=structure.name,
        numbers=numbers,
        question=" ".join([*told, question]),
        answer="\n".join([*lines, f"#### {gold}"]),
        gold=gold,
        num_steps=structure.num_steps,
        largest=max(value for known, _ in parts for value in known.values()),
    )


# ----------------------------------------------------------------------------------- source


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradeSchoolSource:
    """Generated word problems as training text."""

    split: Split = "train"
    """Which problems; the test split is for evaluation."""
    num_problems: int = 50_000
    """Problems generated, once; later epochs see the same ones in another order."""
    seed: int = 0
    """Decides the problems."""
    min_steps: int = MIN_STEPS
    """Fewest lines of a solution, without the answer."""
    max_steps: int = MAX_STEPS
    """Most lines of a solution, without the answer."""
    largest: int = LARGEST
    """Largest number of a story, 99 to 999."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    loss: Loss = "completion"
    """Tokens that count: "completion" the solution alone, "results" only what follows "=" up to the
    line's end, "all"."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        texts = ((problem.prompt, problem.answer) for problem in self.problems())
        return documents.from_texts(texts, tokenizer, self.loss)

    def problems(self) -> Iterator[GradeSchoolProblem]:
        stream = problems(
            self.seed,
            self.split,
            min_steps=self.min_steps,
            max_steps=self.max_steps,
            largest=self.largest,
        )
        return itertools.islice(stream, self.num_problems)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CalculationSource(GradeSchoolSource):
    """The calculations of generated problems without the stories: arithmetic in a tenth of the
    tokens. Only the results count.
    """

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        texts = (
            (f" = <<{expression}=", f"{result}>>")
            for problem in self.problems()
            for expression, result in _CALCULATION.findall(problem.answer)
        )
        return documents.from_texts(texts, tokenizer, "completion")
