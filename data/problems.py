"""Problems: what is asked, and a checker that knows whether an answer is right.

A search that must not see the answer is given `Prompt`s, which carry nothing to cheat with; a
`Problem` joins a prompt with its checker and goes only where outcomes are allowed to be known.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence

from data import game24
from data.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """All that a search without an oracle may see of a problem."""

    id: str
    split: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A prompt and its checker. `checker(completion)` must not raise and must be picklable."""

    prompt: Prompt
    checker: Callable[[str], bool]

    def verify(self, completion: str) -> bool:
        """Whether the completion (text after the prompt, without it) is a right answer."""
        return self.checker(completion)


def game24_problem(numbers: Sequence[int], split: str = "custom") -> Problem:
    """One Game of 24 puzzle.

    Raises:
      DataError: if no expression over these numbers gives 24.
    """
    numbers = tuple(sorted(numbers))
    if not game24.solvable(numbers):
        raise DataError(
            f"a Game of 24 puzzle must have a solution; got {numbers}, which has none. "
            "Choose other numbers (`data.game24.all_puzzles()` lists the solvable ones)."
        )
    return _game24_problem(numbers, split)


def _game24_problem(numbers: tuple[int, ...], split: str) -> Problem:
    name = "game24/" + "-".join(map(str, numbers))
    prompt = Prompt(id=name, split=split, text=game24.prompt_text(numbers))
    return Problem(prompt=prompt, checker=functools.partial(game24.check, numbers))


def _load_game24(split: str) -> list[Problem]:
    return [_game24_problem(numbers, split) for numbers in game24.split(split)]


_BY_NAME: dict[str, Callable[[str], list[Problem]]] = {"game24": _load_game24}


def load_problems(name: str, split: str) -> list[Problem]:
    """All problems of a split, in a fixed order.

    Args:
      name: "game24".
      split: "train", "validation" or "test".

    Raises:
      DataError: for an unknown name or split, naming the nearest known one.
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        raise DataError(
            f"a problem set is one of {sorted(_BY_NAME)}; got {name!r}. "
            + (f"Did you mean {near[0]!r}?" if near else "Use one of these names.")
        )
    return _BY_NAME[name](split)
