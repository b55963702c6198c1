"""Problems: what is asked, and a checker that knows whether an answer is right.

A search that must not see the answer is given `Prompt`s, which carry nothing to cheat with; a
`Problem` joins a prompt with its checker and goes only where outcomes are allowed to be known.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from data import game24, grade_school, gsm8k, gsm8k_checker, math500, math_checker, prompts
from data.errors import DataError

_T = TypeVar("_T")


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


def _load_gsm8k(mode: gsm8k_checker.Mode, split: str) -> list[Problem]:
    return [
        Problem(
            prompt=Prompt(id=row.id, split=split, text=row.prompt),
            checker=functools.partial(gsm8k_checker.check, row.gold, mode=mode),
        )
        for row in gsm8k.split(split)
    ]


def _load_math500(split: str) -> list[Problem]:
    rows = math500.split(split)
    math_checker.require_math_verify()
    loaded = []
    for row in rows:
        name, text = f"math500/{row['unique_id']}", row["problem"] + "\n"
        checker = functools.partial(math_checker.check, row["answer"])
        loaded.append(Problem(prompt=Prompt(id=name, split=split, text=text), checker=checker))
    return loaded


def _load_grade_school(
    name: str, max_steps: int, largest: int, split: grade_school.Split
) -> list[Problem]:
    return [
        Problem(
            prompt=Prompt(id=f"{name}/{split}/{number}", split=split, text=problem.prompt),
            checker=functools.partial(gsm8k_checker.check, problem.gold),
        )
        for number, problem in enumerate(grade_school.problem_set(split, max_steps, largest))
    ]


def _few_shot(
    load: Callable[[str], list[Problem]], examples: Sequence[prompts.Example], split: str
) -> list[Problem]:
    return [prompts.few_shot(problem, examples) for problem in load(split)]


def _chat(load: Callable[[str], list[Problem]], instruction: str, split: str) -> list[Problem]:
    return [prompts.chat(problem, instruction) for problem in load(split)]


_load_strict_gsm8k = functools.partial(_load_gsm8k, "strict")
_BY_NAME: dict[str, Callable[..., list[Problem]]] = {
    "game24": _load_game24,
    **{
        name: functools.partial(_load_grade_school, name, max_steps, largest)
        for name, max_steps, largest in (
            ("grade_school", grade_school.MAX_STEPS, grade_school.LARGEST),
            ("grade_school_short", grade_school.SHORT_STEPS, grade_school.LARGEST),
            ("grade_school_small", grade_school.SHORT_STEPS, grade_school.SMALL),
        )
    },
    "gsm8k": _load_strict_gsm8k,
    "gsm8k_chat": functools.partial(_chat, _load_strict_gsm8k, prompts.GSM8K_INSTRUCTION),
    "gsm8k_few_shot": functools.partial(_few_shot, _load_strict_gsm8k, prompts.GSM8K_EXAMPLES),
    "gsm8k_flexible": functools.partial(_load_gsm8k, "flexible"),
    "math500": _load_math500,
    "math500_chat": functools.partial(_chat, _load_math500, prompts.MATH_INSTRUCTION),
    "math500_few_shot": functools.partial(_few_shot, _load_math500, prompts.MATH_EXAMPLES),
}


def load_problems(name: str, split: str) -> list[Problem]:
    """All problems of a split, in a fixed order.

    Args:
      name: "game24", "grade_school" (2 to 6 steps), "grade_school_short" (2 or 3),
        "grade_school_small" (2 or 3, with numbers of up to 99), "gsm8k" (the answer stands after
        `####` or in a box), "gsm8k_flexible" (it is the last number) or "math500". The same
        problems as `data.prompts` puts them to a model that was not trained on their form:
        "gsm8k_few_shot", "gsm8k_chat", "math500_few_shot" and "math500_chat".
      split: "train", "validation" or "test".

    Raises:
      DataError: for an unknown name or split, naming the nearest known one, or if its files are
        nowhere to be found.
    """
    return _known(_BY_NAME, name)(split)


_ANSWER_KEYS: dict[str, Callable[[str], Hashable | None]] = {
    "game24": lambda text: text or None,  # every result is 24: what differs is the way there
    "grade_school": gsm8k_checker.answer,
    "grade_school_short": gsm8k_checker.answer,
    "grade_school_small": gsm8k_checker.answer,
    "gsm8k": gsm8k_checker.answer,
    "gsm8k_chat": gsm8k_checker.answer,
    "gsm8k_few_shot": gsm8k_checker.answer,
    "gsm8k_flexible": functools.partial(gsm8k_checker.answer, mode="flexible"),
    "math500": math_checker.answer_key,
    "math500_chat": math_checker.answer_key,
    "math500_few_shot": math_checker.answer_key,
}


def answer_key(name: str) -> Callable[[str], Hashable | None]:
    """Of the completions of one problem: those with equal keys give the same answer, None gives no
    answer. For votes among texts; it knows nothing of the right answer.

    Raises:
      DataError: for an unknown name.
    """
    return _known(_ANSWER_KEYS, name)


def _known(by_name: Mapping[str, _T], name: str) -> _T:
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=1)
        raise DataError(
            f"a problem set is one of {sorted(by_name)}; got {name!r}. "
            + (f"Did you mean {near[0]!r}?" if near else "Use one of these names.")
        )
    return by_name[name]
