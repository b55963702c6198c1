"""Pairs of answers, one preferred: files in several forms -> `Preference`.

Forms of a line that `read` knows, by their fields:
  prompt, chosen, rejected [, chosen_reward, rejected_reward]   texts, or messages (TRL: chosen and
                                                                rejected then end with an answer)
  ... and metadata.{score_chosen, score_rejected}               binarised UltraFeedback
  prompt, response_1, response_2, preference_strength           HelpSteer2-Preference; -3 to 3,
                                                                negative: the first is better
  input, output_1, output_2, label (1 or 2)                     LLMBar
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data import chat, json_rows
from data.chat import Prompt
from data.errors import DataError
from data.json_rows import JsonRow
from data.prompts import Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """One prompt, two answers; rewards where they are known, in any unit."""

    prompt: Prompt
    chosen: str
    rejected: str
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    origin: str = dataclasses.field(default="", compare=False)
    """File and line, for errors."""

    @property
    def reward_gap(self) -> float | None:
        """Reward of the chosen answer less that of the other; None where one is not known."""
        if self.chosen_reward is None or self.rejected_reward is None:
            return None
        return self.chosen_reward - self.rejected_reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceSource:
    """Pairs from a file."""

    path: str
    """A file, or the name of one that `data.files.find` knows."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    begin: float = 0.0
    """Where in the file to begin: 0.9 leaves out the first nine tenths of its rows."""
    end: float = 1.0
    """Where to end; sources with ends that meet share no row."""
    min_reward_gap: float | None = None
    """Leave out pairs whose rewards are nearer to each other; None keeps all."""

    def pairs(self) -> list[Preference]:
        """The pairs.

        Raises:
          DataError: a line is wrong, or no pair is left.
        """
        found = part_of(read(self.path), self.begin, self.end)
        if self.min_reward_gap is not None:
            gaps = [pair.reward_gap for pair in found]
            if None in gaps:
                raise DataError(
                    f"min_reward_gap needs rewards; {found[gaps.index(None)].origin} has none. "
                    "Leave it None, or give the pairs rewards."
                )
            found = [
                pair
                for pair, gap in zip(found, gaps, strict=True)
                if gap is not None and gap >= self.min_reward_gap
            ]
        if not found:
            raise DataError(f"a source has pairs; none of {self.path} is left. Change {self}.")
        return found


def part_of(rows: list[Any], begin: float, end: float) -> list[Any]:
    """The rows from one share of a file to another."""
    if not 0 <= begin < end <= 1:
        raise DataError(
            "a part of a file begins before it ends, both from 0 to 1; got "
            f"begin={begin}, end={end}. Correct them."
        )
    return rows[round(begin * len(rows)) : round(end * len(rows))]


def read(path: str) -> list[Preference]:
    """The pairs of a file, in any of the forms above.

    Raises:
      DataError: names the file, the line and the field that is wrong.
    """
    return [of_row(row) for row in json_rows.read(path)]


def write(path: str | Path, pairs: Iterable[Preference]) -> None:
    """Writes JSON lines that `read` reads back."""
    rows = []
    for pair in pairs:
        prompt = pair.prompt if isinstance(pair.prompt, str) else [dict(m) for m in pair.prompt]
        row: dict[str, Any] = {
            "prompt": prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
        }
        for name in ("chosen_reward", "rejected_reward"):
            if getattr(pair, name) is not None:
                row[name] = getattr(pair, name)
        rows.append(row)
    json_rows.write(path, rows)


def of_row(row: JsonRow) -> Preference:
    """The pair in a line.

    Raises:
      DataError: names the field that is wrong.
    """
    if "output_1" in row.fields:
        return _llmbar(row)
    if "response_1" in row.fields:
        return _helpsteer2(row)
    rewards: dict[str, float | None] = dict.fromkeys(("chosen_reward", "rejected_reward"))
    metadata = row.fields.get("metadata")
    if isinstance(metadata, Mapping) and "score_chosen" in metadata:
        scores = JsonRow(row.file, row.line, metadata)
        rewards = {
            "chosen_reward": scores.number("score_chosen"),
            "rejected_reward": scores.number("score_rejected"),
        }
    rewards |= {name: row.number(name) for name in rewards if row.fields.get(name) is not None}
    prompt = prompt_of(row) if "prompt" in row.fields else None
    answers: dict[str, str] = {}
    for name in ("chosen", "rejected"):
        if isinstance(row.fields.get(name), list):
            *before, last = _messages(row, name)
            if last["role"] != "assistant":
                row.fail(name, "ends with an answer of the assistant")
            if before and prompt not in (None, tuple(before)):
                row.fail(name, "has the same messages before the answer as prompt, or none")
            prompt = tuple(before) or prompt
            answers[name] = last["content"]
        else:
            answers[name] = row.text(name)
    if prompt is None:
        row.fail("prompt", "is a text or a list of messages")
    return Preference(
        prompt=prompt,
        chosen=answers["chosen"],
        rejected=answers["rejected"],
        chosen_reward=rewards["chosen_reward"],
        rejected_reward=rewards["rejected_reward"],
        origin=row.origin,
    )


def prompt_of(row: JsonRow) -> Prompt:
    """The field `prompt`, a text or messages of which the last is not an answer."""
    if not isinstance(row.fields.get("prompt"), list):
        return row.text("prompt")
    messages = _messages(row, "prompt")
    if messages[-1]["role"] == "assistant":
        row.fail("prompt", "ends with a message that is not the assistant's")
    return messages


def chat_of(row: JsonRow) -> tuple[Message, ...]:
    """The chat in a line of any form: `messages`, SteerLM's `conversations` or `text`, a prompt and
    its `response` or the `chosen` answer.

    Raises:
      DataError: names the field that is wrong.
    """
    if "messages" in row.fields:
        return _messages(row, "messages")
    if "conversations" in row.fields:
        return steerlm_messages(row)
    if "response" in row.fields:
        return chat.with_answer(prompt_of(row), row.text("response"))
    if "text" in row.fields:
        try:
            return chat.parse_steerlm(row.text("text"))
        except DataError as error:
            row.fail("text", f"is a chat in SteerLM's template ({error})")
    pair = of_row(row)
    return chat.with_answer(pair.prompt, pair.chosen)


def steerlm_messages(row: JsonRow) -> tuple[Message, ...]:
    """The messages of a SteerLM chat; an answer with a label has it as "labels"."""
    for name, rule in (("mask", "User"), ("type", "VALUE_TO_TEXT")):
        if row.fields.get(name, rule) not in (rule, None):
            row.fail(name, f"is {rule!r}: answers are learned, and follow their labels")
    found: list[Message] = []
    if "system" in row.fields and row.text("system") != chat.SYSTEM:
        found.append({"role": "system", "content": row.text("system")})
    for number, turn in enumerate(row.objects("conversations")):
        role = {"User": "user", "Assistant": "assistant"}.get(turn.get("from", ""))
        if role is None or not isinstance(turn.get("value"), str):
            row.fail("conversations", f'has "from" User or Assistant and a "value" (turn {number})')
        message = {"role": role, "content": turn["value"]}
        label = turn.get("label")
        if isinstance(label, str) and role == "assistant":
            message["labels"] = label
        elif label is not None:
            row.fail("conversations", f"has labels, texts, at answers alone (turn {number})")
        found.append(message)
    return tuple(found)


def _messages(row: JsonRow, field: str) -> tuple[Message, ...]:
    found = row.objects(field)
    for number, one in enumerate(found):
        if one.get("role") not in chat.ROLES or not isinstance(one.get("content"), str):
            row.fail(
                field, f'has "role", one of {chat.ROLES}, and a text "content" (message {number})'
            )
    keys = ("role", "content", "labels")
    return tuple({key: one[key] for key in keys if key in one} for one in found)


def _llmbar(row: JsonRow) -> Preference:
    label = row.fields.get("label")
    if label not in (1, 2):
        row.fail("label", "is 1 or 2, the better output")
    chosen, rejected = ("output_1", "output_2") if label == 1 else ("output_2", "output_1")
    return Preference(
        prompt=row.text("input"),
        chosen=row.text(chosen),
        rejected=row.text(rejected),
        origin=row.origin,
    )


def _helpsteer2(row: JsonRow) -> Preference:
    """The strength of the preference is the reward of the better answer; 0 counts as the second."""
    strength = row.number("preference_strength")
    if strength not in range(-3, 4):
        row.fail("preference_strength", "is a whole number from -3 to 3")
    first, second = "response_1", "response_2"
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    return Preference(
        prompt=prompt_of(row),
        chosen=row.text(chosen),
        rejected=row.text(rejected),
        chosen_reward=abs(strength),
        rejected_reward=0.0,
        origin=row.origin,
    )


def fault(pair: Preference) -> str | None:
    """Why a pair teaches nothing; None if it may."""
    if pair.chosen == pair.rejected:
        return "chosen and rejected are equal"
    return None if pair.chosen and pair.rejected else "an answer is empty"
