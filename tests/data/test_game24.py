import csv
import hashlib
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from data import game24
from data.errors import DataError
from data.tokenizer import load_tokenizer


def brute_force(numbers: tuple[Fraction, ...], target: int = 24) -> bool:
    """Every order of every operation, the plain way."""
    if len(numbers) == 1:
        return numbers[0] == target
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(numbers[k] for k in range(len(numbers)) if k not in (i, j))
        a, b = numbers[i], numbers[j]
        results = [a + b, a - b, a * b] + ([a / b] if b else [])
        if any(brute_force((*rest, result), target) for result in results):
            return True
    return False


def test_solvable_equals_brute_force():
    rng = np.random.default_rng(0)
    for size, low, high in [(1, 20, 28), (2, 0, 30), (3, 0, 15), (3, 0, 99), (4, 0, 6), (4, 8, 13)]:
        for numbers in rng.integers(low, high, (12, size)).tolist():
            for target in (24, 0):
                want = brute_force(tuple(map(Fraction, numbers)), target)
                assert game24.solvable(numbers, target) == want, (numbers, target)


def test_fractions_are_used():
    assert game24.solvable((3, 3, 8, 8)) and game24.solvable((1, 5, 5, 5))
    assert not game24.solvable((1, 1, 1, 1)) and not game24.solvable(())


def test_there_are_1362_puzzles():
    puzzles = game24.all_puzzles()
    assert len(puzzles) == len(set(puzzles)) == 1362
    assert all(list(numbers) == sorted(numbers) for numbers in puzzles)


def test_lists_equal_the_published_file(data_file):
    with open(data_file("game24/24.csv"), newline="") as file:
        rows = [(int(row["Rank"]), row["Puzzles"]) for row in csv.DictReader(file)]
    puzzles = {rank: tuple(sorted(map(int, text.split()))) for rank, text in rows}
    assert game24.test_puzzles() == tuple(puzzles[rank] for rank in range(901, 1001))
    assert set(puzzles.values()) == set(game24.all_puzzles())


def test_splits_are_disjoint_complete_and_fixed():
    splits = {name: game24.split(name) for name in game24.SPLITS}
    assert {name: len(part) for name, part in splits.items()} == {
        "train": 631,
        "validation": 631,
        "test": 100,
    }
    everything = list(itertools.chain.from_iterable(splits.values()))
    assert sorted(everything) == sorted(game24.all_puzzles())
    digest = hashlib.sha256(repr(splits).encode()).hexdigest()
    assert digest.startswith("39b006e13926"), "records and results depend on the splits"


@pytest.mark.parametrize("num_numbers", [2, 3, 4, 5])
def test_plays_are_legal(num_numbers):
    options = {"num_numbers": num_numbers, "max_number": 13 if num_numbers > 3 else 99}
    for prompt, completion in itertools.islice(game24.iterate_legal_plays(3, **options), 300):
        state = list(map(int, prompt.split()))
        assert state == sorted(state) and len(state) == num_numbers
        assert all(1 <= number <= options["max_number"] for number in state)
        lines = completion.split("\n")
        assert len(lines) == num_numbers - 1
        for i, line in enumerate(lines):
            step, _, left = line.partition(" left ")
            a, operator, b, equals, result = step.split()
            a, b, result = int(a), int(b), int(result)
            assert a >= b and 0 <= result <= 99 and equals == "="
            values = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b) if b else math.nan}
            assert values[operator] == result
            present = Counter(state)
            present.subtract([a, b])
            assert min(present.values()) >= 0
            state = sorted([*present.elements(), result])
            assert left == (" ".join(map(str, state)) if i < len(lines) - 1 else "")


def test_each_distinct_step_is_equally_likely():
    plays = game24.legal_plays(np.random.default_rng(0), 200_000, num_numbers=3, max_number=4)
    chosen = plays[_rows_of(plays, (2, 2, 4))]
    lines = Counter(map(tuple, chosen[:, 4:7].tolist()))
    # 2+2 2-2 2*2 2/2 and 4+2 4-2 4*2 4/2: eight lines, though there are twelve pairs of places
    assert len(lines) == 8
    expected = len(chosen) / 8
    chi_squared = sum((count - expected) ** 2 / expected for count in lines.values())
    assert chi_squared < 24.3, lines  # 0.1% point for 7 degrees of freedom


def _rows_of(plays, numbers):
    wanted = load_tokenizer("game24").encode(" ".join(map(str, numbers)))
    return (plays[:, : len(wanted)] == wanted).all(axis=1)


def test_test_puzzles_are_never_drawn_in_any_order():
    tokens = game24.legal_plays(np.random.default_rng(1), 60_000)
    zero = load_tokenizer("game24").encode("0")[0]
    drawn = set(map(tuple, (tokens[:, :4] - zero).tolist()))
    assert not drawn & set(game24.test_puzzles())
    # about 0.003% of draws per test multiset: without the exclusion nearly all would be here
    free = game24.legal_plays(np.random.default_rng(1), 60_000, exclude=())
    unexcluded = set(map(tuple, (free[:, :4] - zero).tolist()))
    assert len(unexcluded & set(game24.test_puzzles())) > 80


def test_exclude_is_an_argument():
    rng = np.random.default_rng(0)
    prompt, _ = game24.legal_play(rng, num_numbers=2, max_number=2, exclude=[(1, 1), (1, 2)])
    assert prompt == "2 2\n"
    with pytest.raises(DataError, match="Exclude fewer"):
        game24.legal_play(rng, num_numbers=2, max_number=1, exclude=[(1, 1)])


@pytest.mark.parametrize(
    ("count", "options"), [(0, {}), (1, {"num_numbers": 1}), (1, {"max_number": 100})]
)
def test_impossible_plays_are_refused(count, options):
    with pytest.raises(DataError, match="2 or more numbers"):
        game24.legal_plays(np.random.default_rng(0), count, **options)


def test_plays_repeat_with_the_seed():
    first, again, other = (
        list(itertools.islice(game24.iterate_legal_plays(seed), 1500)) for seed in (5, 5, 6)
    )
    assert first == again != other
    assert len(game24.legal_plays(np.random.default_rng(0), 8193)) == 8193
