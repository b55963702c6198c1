"""Verifiable instructions: sentences that say how an answer must look, each with its checker.

    one = draw(generator)                    Instruction("length_constraints:number_sentences", ...)
    one.text                                 "Use less than 3 sentences."
    one.is_followed("One. Two.")             True

Kinds and arguments have the names of IFEval (arXiv:2311.07911), whose checkers read them too; the
wordings are our own, and sentences and words are found without a package.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.errors import DataError

Arguments = dict[str, Any]
WORDS = (
    "river", "window", "gentle", "market", "signal", "garden", "honest", "number", "winter",
    "bridge", "careful", "simple", "journey", "reason", "yellow", "quiet",
)  # fmt: skip
END_PHRASES = ("That is all I know.", "I hope this helps.", "Is there anything else?")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family of instructions.

    text: a sentence with fields for the arguments. check: `check(answer, **arguments)`.
    draw: random arguments.
    """

    text: str
    check: Callable[..., bool]
    draw: Callable[[np.random.Generator], Arguments]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; JSON writes it as {"id": ..., its arguments}."""

    id: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """How a user says it."""
        shown = {
            name: ", ".join(f'"{word}"' for word in value) if isinstance(value, list) else value
            for name, value in self.arguments.items()
        }
        return KINDS[self.id].text.format(**shown)

    def is_followed(self, answer: str) -> bool:
        """Whether an answer keeps to it; an empty one does not."""
        return bool(answer.strip()) and KINDS[self.id].check(answer, **self.arguments)

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, **self.arguments}


def from_json(row: Any) -> Instruction:
    """The inverse of `as_json`.

    Raises:
      DataError: it is of another form, or of an unknown kind.
    """
    if not isinstance(row, Mapping) or row.get("id") not in KINDS:
        raise DataError(f"an instruction has an id, one of {', '.join(KINDS)}; got {row!r}.")
    kind, arguments = KINDS[row["id"]], {k: v for k, v in row.items() if k != "id"}
    wanted = set(kind.draw(np.random.default_rng(0)))
    if set(arguments) != wanted:
        raise DataError(f"{row['id']} has the arguments {sorted(wanted)}; got {row!r}.")
    return Instruction(row["id"], arguments)


def draw(generator: np.random.Generator) -> Instruction:
    """A random instruction of a random kind."""
    name = list(KINDS)[generator.integers(len(KINDS))]
    return Instruction(name, KINDS[name].draw(generator))


# ---------------------------------------------------------------------------------------- checkers


def _words(answer: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", answer)


def _has_words(answer: str, keywords: list[str]) -> bool:
    said = {word.lower() for word in _words(answer)}
    return all(word.lower() in said for word in keywords)


def _has_none(answer: str, forbidden_words: list[str]) -> bool:
    said = {word.lower() for word in _words(answer)}
    return not any(word.lower() in said for word in forbidden_words)


def _compare(count: int, relation: str, number: int) -> bool:
    return count >= number if relation == "at least" else count < number


def _num_words(answer: str, relation: str, num_words: int) -> bool:
    return _compare(len(_words(answer)), relation, num_words)


def _num_sentences(answer: str, relation: str, num_sentences: int) -> bool:
    """A sentence ends with . ! or ? before a space, a line end or the end of the text."""
    parts = re.split(r"(?<=[.!?])[\"')\]]*(?:\s+|$)|\n+", answer.strip())
    return _compare(sum(map(bool, map(_words, parts))), relation, num_sentences)


def _num_paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = re.split(r"^\s*\*\*\*\s*$", answer, flags=re.MULTILINE)
    return len(parts) == num_paragraphs and all(part.strip() for part in parts)


def _num_bullets(answer: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*[*-]\s+\S", answer, flags=re.MULTILINE)) == num_bullets


def _has_title(answer: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^<>\n]*)>>", answer))


def _is_json(answer: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\n(.*)\n```", answer.strip(), re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    return True


def _number(name: str, low: int, high: int, **fixed: Any) -> Callable[..., Arguments]:
    """Draws `name` from low..high beside `fixed`, of which a tuple is a choice."""

    def drawn(generator: np.random.Generator) -> Arguments:
        chosen = {
            key: value[generator.integers(len(value))] if isinstance(value, tuple) else value
            for key, value in fixed.items()
        }
        return chosen | {name: int(generator.integers(low, high + 1))}

    return drawn


def _some_words(name: str, count: int) -> Callable[..., Arguments]:
    def drawn(generator: np.random.Generator) -> Arguments:
        return {name: [WORDS[n] for n in generator.permutation(len(WORDS))[:count]]}

    return drawn


def _nothing(generator: np.random.Generator) -> Arguments:
    del generator
    return {}


RELATIONS = ("at least", "less than")
KINDS: Mapping[str, Kind] = {
    "keywords:existence": Kind("Use the words {keywords}.", _has_words, _some_words("keywords", 2)),
    "keywords:forbidden_words": Kind(
        "Do not use the words {forbidden_words}.", _has_none, _some_words("forbidden_words", 3)
    ),
    "length_constraints:number_words": Kind(
        "Use {relation} {num_words} words.",
        _num_words,
        _number("num_words", 20, 200, relation=RELATIONS),
    ),
    "length_constraints:number_sentences": Kind(
        "Use {relation} {num_sentences} sentences.",
        _num_sentences,
        _number("num_sentences", 2, 8, relation=RELATIONS),
    ),
    "length_constraints:number_paragraphs": Kind(
        "Write {num_paragraphs} paragraphs, with a line of three asterisks (***) between two.",
        _num_paragraphs,
        _number("num_paragraphs", 2, 5),
    ),
    "detectable_format:number_bullet_lists": Kind(
        "Give exactly {num_bullets} bullet points, each on a line that begins with * or -.",
        _num_bullets,
        _number("num_bullets", 2, 6),
    ),
    "detectable_format:title": Kind(
        "Give it a title, in double angular brackets like <<this one>>.", _has_title, _nothing
    ),
    "detectable_format:json_format": Kind(
        "The whole answer must be JSON, alone or in one fenced block.", _is_json, _nothing
    ),
    "change_case:english_lowercase": Kind(
        "Write in lower case only, without any capital letter.",
        lambda answer: answer == answer.lower(),
        _nothing,
    ),
    "change_case:english_capital": Kind(
        "WRITE IN CAPITAL LETTERS ONLY.", lambda answer: answer == answer.upper(), _nothing
    ),
    "startend:end_checker": Kind(
        "End with exactly these words, and nothing after them: {end_phrase}",
        lambda answer, end_phrase: answer.strip().endswith(end_phrase),
        lambda generator: {"end_phrase": END_PHRASES[generator.integers(len(END_PHRASES))]},
    ),
    "startend:quotation": Kind(
        "Put the whole answer in double quotation marks.",
        lambda answer: len(answer.strip()) > 2 and answer.strip()[0] == answer.strip()[-1] == '"',
        _nothing,
    ),
    "punctuation:no_comma": Kind(
        "Do not use any comma.", lambda answer: "," not in answer, _nothing
    ),
}
