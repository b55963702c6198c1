"""Chats as training text: supervised fine-tuning on answers, and SteerLM's with labels."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data import answer_rows, attributes, chat, json_rows, preferences
from data.answer_rows import TooLong
from data.chat import TemplateName
from data.errors import DataError
from data.json_rows import JsonRow
from data.packing import Documents
from data.prompts import Message
from data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSource:
    """Chats from a file of JSON lines; only what the assistant says counts in the loss.

    A line is a chat (`messages`, or SteerLM's `conversations`), a `prompt` with its `response`, or
    a preference pair, of which the `chosen` answer is taken.
    """

    path: str
    """A file, or the name of one that `data.files.find` knows."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    template: TemplateName = "chatml"
    """How a chat becomes text: "steerlm", "chatml", "plain", or "own" of the tokenizer's folder."""
    with_labels: bool = False
    """Write the grades of an answer before it, as SteerLM does (template "steerlm"); the model is
    given them, and does not learn to say them."""
    begin: float = 0.0
    """Where in the file to begin: 0.9 leaves out the first nine tenths of its rows."""
    end: float = 1.0
    """Where to end; sources with ends that meet share no row."""
    too_long: TooLong = "cut"
    """Chats longer than a window: "cut" them, the last answer at its end and what precedes it at
    its beginning, or "drop" them."""
    max_unusable: float = answer_rows.MAX_UNUSABLE
    """Share of chats that may teach nothing; they are left out."""

    def chats(self) -> tuple[list[Sequence[Message]], list[str]]:
        """The chats, and where each comes from.

        Raises:
          DataError: a line is wrong.
        """
        rows = preferences.part_of(json_rows.read(self.path), self.begin, self.end)
        found = [(messages, row.origin) for row in rows for messages in self._of_row(row)]
        return [messages for messages, _ in found], [origin for _, origin in found]

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        chats, origins = self.chats()
        return answer_rows.documents(
            chats,
            origins,
            tokenizer,
            self.template,
            length,
            too_long=self.too_long,
            max_unusable=self.max_unusable,
        )

    def _of_row(self, row: JsonRow) -> list[Sequence[Message]]:
        if self.with_labels and self.template != "steerlm":
            raise DataError(
                'labels are written by the template "steerlm" alone; got with_labels and '
                f"{self.template!r}. Set template to it."
            )
        if not self.with_labels:
            messages = preferences.chat_of(row)
            return [[{k: v for k, v in one.items() if k != "labels"} for one in messages]]
        graded = attributes.of_row(row)
        if "conversations" in row.fields:  # one chat, whose labels stand at its answers
            return [preferences.chat_of(row)]
        return [labelled_chat(each) for each in graded]


def labelled_chat(row: attributes.AttributeRow) -> tuple[Message, ...]:
    """A graded answer as a chat, its grades (rounded to whole ones) as the answer's labels."""
    grades = {
        name: int(attributes.quantize(np.asarray(grade))) for name, grade in row.attributes.items()
    }
    *before, answer = chat.with_answer(row.prompt, row.response)
    return (*before, {**answer, "labels": attributes.label_text(grades)})
