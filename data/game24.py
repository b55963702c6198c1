r"""Game of 24: reach 24 from four numbers with + - * /, using each number exactly once.

The prompt is the numbers, ascending: "4 5 6 10\n". A completion is one line per step,
"10 - 4 = 6 left 5 6 6\n": operands, result, numbers left, ascending; the last line has no `left`
and ends with the end-of-text token: "30 - 6 = 24". `check` says which completions are right.

Random legal play teaches this form and its arithmetic without ever showing a solution on purpose.
It stays with integers 0..99 (16 of the 1,362 puzzles need fractions and cannot be solved so).
"""

import functools
import itertools
import pathlib
import random
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from data import tokenizer as tokenizers
from data.errors import DataError
from data.game24_checker import check

TARGET = 24
LARGEST_GIVEN = 13
LARGEST_INTERMEDIATE = 99
SPLITS = ("train", "validation", "test")

Numbers = tuple[int, ...]

__all__ = [
    "all_puzzles",
    "check",
    "iterate_legal_plays",
    "legal_play",
    "legal_plays",
    "prompt_text",
    "solvable",
    "split",
    "test_puzzles",
]

_TEST_LIST = pathlib.Path(__file__).with_name("game24_test.txt")
_SPLIT_SEED = 24
_PLAYS_AT_ONCE = 8192


# ---------------------------------------------------------------------------------- puzzles


def prompt_text(numbers: Sequence[int]) -> str:
    return " ".join(map(str, sorted(numbers))) + "\n"


def solvable(numbers: Sequence[int], target: int = TARGET) -> bool:
    """Whether some expression that uses every number once equals the target, exactly."""
    goal = Fraction(target)
    if len(numbers) < 2:
        return [Fraction(number) for number in numbers] == [goal]
    if not goal:  # x * 0 gives it with every x: there are no few partners
        return goal in _values(tuple(sorted(numbers)))
    return any(
        needed in _values(right)
        for left, right in _partitions(tuple(sorted(numbers)))
        for value in _values(left)
        for needed in _partners(value, goal)
    )


@functools.cache
def _values(numbers: Numbers) -> frozenset[Fraction]:
    """Values of all expressions that use every one of these (sorted) numbers once."""
    if len(numbers) == 1:
        return frozenset({Fraction(numbers[0])})
    found = set()
    for left, right in _partitions(numbers):
        for x, y in itertools.product(_values(left), _values(right)):
            found |= {x + y, x - y, y - x, x * y}
            found |= ({x / y} if y else set()) | ({y / x} if x else set())
    return frozenset(found)


def _partitions(numbers: Numbers) -> set[tuple[Numbers, Numbers]]:
    """Ways to part the numbers into two non-empty heaps, the larger one second."""
    places = range(len(numbers))
    return {
        (tuple(numbers[i] for i in chosen), tuple(numbers[i] for i in places if i not in chosen))
        for size in range(1, len(numbers) // 2 + 1)
        for chosen in itertools.combinations(places, size)
    }


def _partners(x: Fraction, goal: Fraction) -> list[Fraction]:
    """Every y for which x and y give the goal by one operation (goal is not zero)."""
    partners = [goal - x, x - goal, goal + x, goal * x] if x else [goal, -goal]
    return [*partners, goal / x, x / goal] if x else partners


@functools.cache
def all_puzzles() -> tuple[Numbers, ...]:
    """All 1,362 solvable multisets of four numbers 1..13, sorted."""
    multisets = itertools.combinations_with_replacement(range(1, LARGEST_GIVEN + 1), 4)
    return tuple(numbers for numbers in multisets if solvable(numbers))


@functools.cache
def test_puzzles() -> tuple[Numbers, ...]:
    """The 100 test puzzles in the order of their rank; nothing may train on them."""
    lines = _TEST_LIST.read_text("utf-8").splitlines()
    return tuple(tuple(map(int, line.split())) for line in lines if not line.startswith("#"))


@functools.cache
def split(name: str) -> tuple[Numbers, ...]:
    """Puzzles of a split: "train" (631), "validation" (631) or "test" (100), disjoint.

    Train and validation are the two halves of a fixed shuffle of all puzzles but the test ones.
    """
    if name not in SPLITS:
        raise DataError(f"a split of game24 is one of {SPLITS}; got {name!r}. Use one of these.")
    if name == "test":
        return test_puzzles()
    others = sorted(set(all_puzzles()) - set(test_puzzles()))
    random.Random(_SPLIT_SEED).shuffle(others)
    half = len(others) // 2
    return tuple(others[:half] if name == "train" else others[half:])


# ------------------------------------------------------------------------ random legal play


def legal_plays(
    rng: np.random.Generator,
    num_plays: int,
    *,
    num_numbers: int = 4,
    max_number: int = LARGEST_GIVEN,
    exclude: Collection[Numbers] | None = None,
) -> Int[np.ndarray, "num_plays length"]:
    """Token ids (of the "game24" tokenizer) of random legal plays, one per row.

    The numbers are uniform in 1..max_number; each step is uniform among the distinct legal lines
    `a op b = c` with a >= b and an integer c in 0..99. All rows have the same layout: the first
    `num_numbers + 1` columns are the prompt, the last one is the end-of-text token.

    Args:
      num_numbers: how many numbers a play begins with; fewer than 4 gives the later states of
        a game, for which max_number=99 is natural.
      exclude: sorted tuples of numbers that are never drawn; None means the test puzzles.
    """
    if num_plays < 1 or num_numbers < 2 or not 1 <= max_number <= LARGEST_INTERMEDIATE:
        raise DataError(
            f"plays are 1 or more and begin with 2 or more numbers of 1..{LARGEST_INTERMEDIATE}; "
            f"got {num_plays=}, {num_numbers=}, {max_number=}. Choose values in these ranges."
        )
    excluded = test_puzzles() if exclude is None else exclude
    chunks = []
    for done in range(0, num_plays, _PLAYS_AT_ONCE):
        size = min(_PLAYS_AT_ONCE, num_plays - done)
        numbers = _draw_numbers(rng, size, num_numbers, max_number, excluded)
        chunks.append(_play(rng, numbers))
    return np.concatenate(chunks)


def legal_play(rng: np.random.Generator, **options) -> tuple[str, str]:
    """One random legal play as (prompt, completion) text; options as in `legal_plays`."""
    return _as_text(legal_plays(rng, 1, **options)[0])


def iterate_legal_plays(seed: int, **options) -> Iterator[tuple[str, str]]:
    """Endless (prompt, completion) of random legal plays; the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield from map(_as_text, legal_plays(rng, 1024, **options))


def _as_text(ids: Int[np.ndarray, " length"]) -> tuple[str, str]:
    text = tokenizers.load_tokenizer("game24").decode(ids.tolist())
    prompt, newline, completion = text.partition("\n")
    return prompt + newline, completion


def _draw_numbers(rng, num_plays: int, num_numbers: int, max_number: int, excluded):
    """Sorted rows of uniform numbers, none of them excluded."""
    base = (LARGEST_INTERMEDIATE + 1) ** np.arange(num_numbers)
    forbidden = [np.dot(numbers, base) for numbers in excluded if len(numbers) == num_numbers]
    numbers = np.zeros((num_plays, num_numbers), np.int64)
    to_draw = np.arange(num_plays)
    for _ in range(1000):
        drawn = rng.integers(1, max_number + 1, (len(to_draw), num_numbers))
        numbers[to_draw] = np.sort(drawn, axis=1)
        to_draw = to_draw[np.isin(numbers[to_draw] @ base, forbidden)]
        if not len(to_draw):
            return numbers
    raise DataError(
        f"some numbers of 1..{max_number} must not be excluded; got {len(forbidden)} excluded "
        f"multisets of {num_numbers} numbers and found no other. Exclude fewer."
    )


def _play(rng, numbers: Int[np.ndarray, "B N"]) -> Int[np.ndarray, "B length"]:
    """Plays every row to its end and writes it as token ids."""
    tokenizer = tokenizers.load_tokenizer("game24")
    newline, left, equals, *operators, zero = tokenizer.encode("\nleft = + - * / 0")

    def constant(token_id):
        return np.full((len(numbers), 1), token_id)

    columns = [zero + numbers, constant(newline)]
    while numbers.shape[1] > 1:
        (a, operator, b, result), numbers = _random_step(rng, numbers)
        columns += [zero + a, np.array(operators)[operator], zero + b]
        columns += [constant(equals), zero + result]
        if numbers.shape[1] > 1:
            columns += [constant(left), zero + numbers, constant(newline)]
    columns.append(constant(tokenizer.eos_id))
    return np.concatenate(columns, axis=1).astype(np.int32)


def _random_step(rng, numbers: Int[np.ndarray, "B N"]):
    """One uniformly random legal step per row: ((a, operator, b, result) [B,1], left [B,N-1])."""
    count = numbers.shape[1]
    pairs = np.array(list(itertools.combinations(range(count), 2)))
    b, a = numbers[:, pairs[:, 0]], numbers[:, pairs[:, 1]]  # ascending rows: a >= b
    divisor = np.maximum(b, 1)
    results = np.stack([a + b, a - b, a * b, a // divisor], axis=-1)
    legal = results <= LARGEST_INTERMEDIATE
    legal[..., 3] &= (b > 0) & (a % divisor == 0)
    pair_key = a * (LARGEST_INTERMEDIATE + 1) + b
    equal = pair_key[:, :, None] == pair_key[:, None, :]
    is_repeat = np.any(equal & np.tri(len(pairs), k=-1, dtype=bool), axis=-1)  # same line as before
    legal &= ~is_repeat[..., None]

    legal_so_far = np.cumsum(legal.reshape(len(numbers), -1), axis=1)
    wanted = rng.integers(legal_so_far[:, -1:])
    pair, operator = np.divmod(np.argmax(legal_so_far > wanted, axis=1), 4)
    row = np.arange(len(numbers))
    result = results[row, pair, operator][:, None]
    others = np.array([[i for i in range(count) if i not in pair] for pair in pairs], dtype=int)
    kept = np.take_along_axis(numbers, others.reshape(len(pairs), -1)[pair], axis=1)
    step = (a[row, pair][:, None], operator[:, None], b[row, pair][:, None], result)
    return step, np.sort(np.concatenate([kept, result], axis=1), axis=1)
