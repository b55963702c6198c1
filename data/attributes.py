r"""Answers with graded attributes: HelpSteer, HelpSteer2, SteerLM, and their label strings.

    row = AttributeRow(prompt="Name a colour.", response="Red.", attributes={"helpfulness": 4})
    label_text({"helpfulness": 4, "verbosity": 0})        "helpfulness:4,verbosity:0"

Forms of a line that `read` knows, by their fields:
  prompt, response, helpfulness ... verbosity   HelpSteer and HelpSteer2; a grade may be missing
  conversations: [{from, value, label}], system SteerLM chats; a row per labelled answer
  text, label: nine numbers                     NeMo-Aligner's regression rows; -100 is no grade
  prompt, chosen, rejected and their rewards    two rows per pair (see `of_pairs`)
Sources: SteerLM (arXiv:2310.05344), HelpSteer2 (arXiv:2406.08673).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data import json_rows, preferences
from data.chat import Prompt
from data.errors import DataError
from data.json_rows import JsonRow

NINE = (
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
)
"""The order of NeMo-Aligner's labels and predictions."""
FIVE = NINE[4:]
"""Those of HelpSteer, in the same order."""
LOWEST, HIGHEST = 0, 4
MASKED = -100.0
"""Stands for a grade that was not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributeSource:
    """Graded answers from a file."""

    path: str
    """A file, or the name of one that `data.files.find` knows."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    begin: float = 0.0
    """Where in the file to begin: 0.9 leaves out the first nine tenths of its rows."""
    end: float = 1.0
    """Where to end; sources with ends that meet share no row."""
    reward_attribute: str = "helpfulness"
    """Of preference pairs: which attribute their rewards are."""
    reward_range: tuple[float, float] = (1.0, 10.0)
    """Of preference pairs: rewards that become the grades 0 and 4."""

    def rows(self) -> list["AttributeRow"]:
        """The rows, those of a pair one after the other.

        Raises:
          DataError: a line is wrong.
        """
        lines = preferences.part_of(json_rows.read(self.path), self.begin, self.end)
        return [
            found
            for line in lines
            for found in of_row(
                line, reward_attribute=self.reward_attribute, reward_range=self.reward_range
            )
        ]


WEIGHTS: Mapping[str, Mapping[str, float]] = {
    # Model card of Nemotron-4-340B-Reward.
    "nemotron4_340b": dict(zip(FIVE, (0.3, 0.74, 0.46, 0.47, -0.33))),
    # HelpSteer2 (arXiv:2406.08673), Llama3-70B-SteerLM-RM.
    "llama3_70b_steerlm": dict(zip(FIVE, (0.65, 0.8, 0.45, 0.55, -0.4))),
    "uniform": dict.fromkeys(FIVE, 0.2),
    "helpfulness": {"helpfulness": 1.0},
}
"""Published ways to make one reward of the attributes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributeRow:
    """An answer and its grades, 0 to 4; attributes that were not graded are left out."""

    prompt: Prompt
    response: str
    attributes: Mapping[str, float]
    origin: str = dataclasses.field(default="", compare=False)
    """File and line, for errors."""

    def __post_init__(self):
        check_grades(self.attributes, self.origin)


def names(num_attributes: int) -> tuple[str, ...]:
    """The attributes of a reward head with that many outputs, in their order.

    Raises:
      DataError: there is no such head.
    """
    known = {len(NINE): NINE, len(FIVE): FIVE}
    if num_attributes not in known:
        raise DataError(
            f"a reward head has {len(FIVE)} outputs (HelpSteer) or {len(NINE)}; got "
            f"{num_attributes}. Set model.num_attributes to one of these."
        )
    return known[num_attributes]


def check_grades(attributes: Mapping[str, float], origin: str = "") -> None:
    """Raises a DataError unless names are known and grades lie from 0 to 4."""
    for name, grade in attributes.items():
        if name not in NINE or not LOWEST <= grade <= HIGHEST:
            raise DataError(
                f"{origin or 'a row'}: grades are of {', '.join(NINE)}, from {LOWEST} to {HIGHEST};"
                f" got {name}={grade!r}. Correct that row."
            )


def vector(attributes: Mapping[str, float], order: Sequence[str]) -> Float[np.ndarray, " A"]:
    """Grades in an order, MASKED where there is none."""
    return np.array([attributes.get(name, MASKED) for name in order], np.float32)


def reward(predictions: Float[np.ndarray, "*B A"], weights: str) -> Float[np.ndarray, "*B"]:
    """Weighted sum of attributes; `weights` names one of WEIGHTS.

    Raises:
      DataError: there are no such weights.
    """
    if weights not in WEIGHTS:
        raise DataError(
            f"weights of attributes are one of {', '.join(WEIGHTS)}; got {weights!r}. "
            "Use one of these."
        )
    order = names(np.shape(predictions)[-1])
    return np.asarray(predictions) @ np.array([WEIGHTS[weights].get(n, 0.0) for n in order])


def quantize(predictions: Float[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
    """Predictions as grades: clipped to 0..4, then the nearest whole number, halves to even."""
    return np.rint(np.clip(predictions, LOWEST, HIGHEST)).astype(np.int32)


# ------------------------------------------------------------------------------------ labels


def label_text(attributes: Mapping[str, float]) -> str:
    """`name:grade` of whole grades, joined by commas, in the order of NINE.

    Raises:
      DataError: no grade, one that is not whole, or one that is none.
    """
    check_grades(attributes)
    if not attributes or any(grade != int(grade) for grade in attributes.values()):
        raise DataError(
            f"a label has whole grades; got {dict(attributes)}. Round them (`quantize`)."
        )
    return ",".join(f"{name}:{int(attributes[name])}" for name in NINE if name in attributes)


def parse_labels(text: str) -> dict[str, int]:
    """The inverse of `label_text`.

    Raises:
      DataError: anything that `label_text` would not have written.
    """
    parts = [part.split(":") for part in text.split(",")]
    pairs = {part[0]: part[1] for part in parts if len(part) == 2}
    grades = {name: int(grade) for name, grade in pairs.items() if re.fullmatch("[0-4]", grade)}
    if not grades or not set(grades) <= set(NINE) or label_text(grades) != text:
        raise DataError(
            f"a label is `name:grade` joined by commas, names in the order {', '.join(NINE)}, "
            f"grades from {LOWEST} to {HIGHEST}; got {text!r}. Correct it."
        )
    return grades


# ------------------------------------------------------------------------------------- files


def read(
    path: str, *, reward_attribute: str = "helpfulness", reward_range: tuple[float, float] = (1, 10)
) -> list[AttributeRow]:
    """The rows of a file of JSON lines, in any of the forms above.

    Args:
      reward_attribute, reward_range: for preference pairs, see `of_pairs`.

    Raises:
      DataError: names the file, the line and the field that is wrong.
    """
    source = AttributeSource(
        path=path, reward_attribute=reward_attribute, reward_range=reward_range
    )
    return source.rows()


def of_row(
    row: JsonRow,
    *,
    reward_attribute: str = "helpfulness",
    reward_range: tuple[float, float] = (1, 10),
) -> list[AttributeRow]:
    """The graded answers in a line; arguments and errors as those of `read`."""
    if "response" in row.fields:
        return [_helpsteer(row)]
    if "conversations" in row.fields:
        return _steerlm(row)
    if "text" in row.fields:
        return [_regression(row)]
    if "chosen" not in row.fields:
        row.fail("response", "or conversations, text or chosen must be there: they name the form")
    pair = preferences.of_row(row)
    return of_pairs([pair], attribute=reward_attribute, reward_range=reward_range)


def write(path: str | Path, rows: Iterable[AttributeRow]) -> None:
    """Writes HelpSteer's form, which `read` reads back."""
    json_rows.write(
        path,
        (
            {"prompt": _plain(row.prompt), "response": row.response}
            | {name: row.attributes[name] for name in NINE if name in row.attributes}
            for row in rows
        ),
    )


def of_pairs(
    pairs: Iterable[preferences.Preference],
    *,
    attribute: str = "helpfulness",
    reward_range: tuple[float, float] = (1, 10),
) -> list[AttributeRow]:
    """Both answers of pairs with rewards; `reward_range` becomes 0 to 4.

    Raises:
      DataError: a pair has no rewards, or one beyond the range.
    """
    low, high = reward_range
    rows = []
    for pair in pairs:
        for answer, given in (
            (pair.chosen, pair.chosen_reward),
            (pair.rejected, pair.rejected_reward),
        ):
            if given is None or not low <= given <= high:
                raise DataError(
                    f"{pair.origin or 'a pair'}: rewards lie in {low}..{high}; got {given}. "
                    "Give the pair rewards, or correct reward_range."
                )
            grade = LOWEST + (HIGHEST - LOWEST) * (given - low) / (high - low)
            rows.append(
                AttributeRow(
                    prompt=pair.prompt,
                    response=answer,
                    attributes={attribute: grade},
                    origin=pair.origin,
                )
            )
    return rows


def _helpsteer(row: JsonRow) -> AttributeRow:
    given = {name: row.number(name) for name in NINE if row.fields.get(name) is not None}
    for name, grade in given.items():
        if not LOWEST <= grade <= HIGHEST:
            row.fail(name, f"is a grade from {LOWEST} to {HIGHEST}")
    if not given:
        row.fail("helpfulness", f"or another grade of {', '.join(NINE)} is needed")
    return AttributeRow(
        prompt=preferences.prompt_of(row),
        response=row.text("response"),
        attributes=given,
        origin=row.origin,
    )


def _steerlm(row: JsonRow) -> list[AttributeRow]:
    messages = preferences.steerlm_messages(row)
    return [
        AttributeRow(
            prompt=messages[:number],
            response=one["content"],
            attributes=_label(row, one["labels"]),
            origin=row.origin,
        )
        for number, one in enumerate(messages)
        if one["role"] == "assistant" and "labels" in one
    ]


def _label(row: JsonRow, text: str) -> dict[str, int]:
    try:
        return parse_labels(text)
    except DataError as error:
        row.fail("conversations", f"has labels: {error}")


def _regression(row: JsonRow) -> AttributeRow:
    label = row.fields.get("label")
    is_grade = [
        isinstance(x, (int, float)) and (LOWEST <= x <= HIGHEST or x == MASKED)
        for x in (label if isinstance(label, list) else ())
    ]
    if len(is_grade) != len(NINE) or not all(is_grade):
        row.fail("label", f"is a list of {len(NINE)} grades, {LOWEST} to {HIGHEST} or -100")
    assert isinstance(label, list)
    messages = preferences.chat_of(row)
    if messages[-1]["role"] != "assistant":
        row.fail("text", "ends with an answer")
    return AttributeRow(
        prompt=messages[:-1],
        response=messages[-1]["content"],
        attributes={n: float(x) for n, x in zip(NINE, label, strict=True) if x != MASKED},
        origin=row.origin,
    )


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dict(one) for one in prompt]
