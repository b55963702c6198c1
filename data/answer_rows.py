"""Chats, graded answers and pairs of answers -> rows of token ids of one length.

Rows that teach nothing are left out, and refused where they are many: an answer that is empty or
equal to the other one, a chat without an answer, a row that is too long and must not be cut.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from data import attributes, chat, packing, preferences
from data.attributes import AttributeRow
from data.chat import TemplateName
from data.errors import DataError
from data.mixture import Arrays
from data.packing import Documents
from data.preferences import Preference
from data.prompts import Message
from data.tokenizer import Tokenizer

TooLong = Literal["cut", "drop"]
Encoded = tuple[list[int], list[bool]]
MAX_UNUSABLE = 0.01


def documents(
    chats: Sequence[Sequence[Message]],
    origins: Sequence[str],
    tokenizer: Tokenizer,
    template: TemplateName,
    length: int,
    *,
    too_long: TooLong = "cut",
    max_unusable: float = MAX_UNUSABLE,
) -> Documents:
    """Chats as documents of at most `length` tokens, of which the answers count.

    Raises:
      DataError: more than the share `max_unusable` of the chats are unusable.
    """

    def encode(messages: Sequence[Message]) -> Encoded | str:
        if not any(one["role"] == "assistant" and one["content"] for one in messages):
            return "no message of the assistant has a text"
        return _fit(chat.encode(messages, tokenizer, template), length, too_long)

    _, rows = _usable(encode, chats, origins, max_unusable, "chats")
    return packing.Documents(
        tokens=np.array([token for tokens, _ in rows for token in tokens], np.int32),
        is_counted=np.array([counts for _, flags in rows for counts in flags], bool),
        lengths=np.array([len(tokens) for tokens, _ in rows], int),
    )


def pairs(
    rows: Sequence[Preference],
    tokenizer: Tokenizer,
    template: TemplateName,
    length: int,
    *,
    scored: bool,
    too_long: TooLong = "cut",
    max_unusable: float = MAX_UNUSABLE,
) -> Arrays:
    """Pairs as rows; index 0 of the second axis is the chosen answer, 1 the rejected one.

    Args:
      scored: end as a reward model reads it, not as a model says it.

    Returns:
      tokens int32 [n,2,T], answer_mask float32 [n,2,T] (1 = a token of the answer), lengths int32
      [n,2], rewards float32 [n,2] (1 and 0 where they are not known).

    Raises:
      DataError: more than the share `max_unusable` of the pairs are unusable.
    """

    def encode(pair: Preference) -> tuple[Encoded, Encoded] | str:
        if fault := preferences.fault(pair):
            return fault
        both = []
        for answer in (pair.chosen, pair.rejected):
            messages = chat.with_answer(pair.prompt, answer)
            fitted = _encode_answer(messages, tokenizer, template, length, scored, too_long)
            if isinstance(fitted, str):
                return fitted
            both.append(fitted)
        chosen, rejected = both
        return (chosen, rejected) if chosen != rejected else "the answers are equal once cut"

    kept, found = _usable(encode, rows, [row.origin for row in rows], max_unusable, "pairs")
    flat = _pad([each for both in found for each in both], length, tokenizer.pad_id)
    rewards = [
        (1.0, 0.0) if row.reward_gap is None else (row.chosen_reward, row.rejected_reward)
        for row in kept
    ]
    arrays = {name: array.reshape(-1, 2, *array.shape[1:]) for name, array in flat.items()}
    return arrays | {"rewards": np.array(rewards, np.float32)}


def graded(
    rows: Sequence[AttributeRow],
    tokenizer: Tokenizer,
    template: TemplateName,
    length: int,
    *,
    order: Sequence[str],
    too_long: TooLong = "cut",
    max_unusable: float = MAX_UNUSABLE,
) -> Arrays:
    """Graded answers as a reward model reads them.

    Returns:
      tokens int32 [n,T], answer_mask float32 [n,T], lengths int32 [n], labels float32 [n,A] in
      `order`, `attributes.MASKED` where there is no grade.

    Raises:
      DataError: more than the share `max_unusable` of the rows are unusable, or all rows have the
        same grades.
    """

    def encode(row: AttributeRow) -> Encoded | str:
        if not row.response:
            return "the answer is empty"
        if not set(row.attributes) & set(order):
            return f"none of {', '.join(order)} is graded"
        messages = chat.with_answer(row.prompt, row.response)
        return _encode_answer(messages, tokenizer, template, length, True, too_long)

    kept, found = _usable(encode, rows, [row.origin for row in rows], max_unusable, "rows")
    labels = np.stack([attributes.vector(row.attributes, order) for row in kept])
    if len(labels) > 1 and (labels == labels[0]).all():
        raise DataError(
            f"grades tell answers apart; all {len(labels)} rows have those of {kept[0].origin}: "
            f"{dict(kept[0].attributes)}. Give rows with different grades."
        )
    return _pad(found, length, tokenizer.pad_id) | {"labels": labels}


def scored_rows(
    chats: Sequence[Sequence[Message]], tokenizer: Tokenizer, template: TemplateName, length: int
) -> Arrays:
    """Chats that end with an answer, cut to `length` tokens, as a reward model reads them."""
    found = [
        _encode_answer(messages, tokenizer, template, length, True, "cut") for messages in chats
    ]
    return _pad(found, length, tokenizer.pad_id)


def _encode_answer(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: TemplateName,
    length: int,
    scored: bool,
    too_long: TooLong,
) -> Any:
    """Tokens of a chat whose last message is the answer that counts, or why there are none."""
    if not scored:
        encoded = chat.encode(messages, tokenizer, template, last_answer_only=True)
        return _fit(encoded, length, too_long)
    tokens, is_answer, num_after = chat.encode_scored(messages, tokenizer, template)
    return _fit((tokens, is_answer), length, too_long, kept_end=num_after)


def _fit(encoded: Encoded, length: int, too_long: TooLong, kept_end: int = 0) -> Encoded | str:
    if len(encoded[0]) <= length:
        return encoded
    if too_long == "drop":
        return f"it has {len(encoded[0])} tokens, more than the {length} of a row"
    return chat.cut(*encoded, length, kept_end=kept_end)


def _usable(
    encode: Callable[[Any], Any],
    rows: Sequence[Any],
    origins: Sequence[str],
    max_unusable: float,
    what: str,
) -> tuple[list[Any], list[Any]]:
    """The rows that can be used, and what `encode` makes of them; it gives a reason otherwise.

    Raises:
      DataError: more than the share `max_unusable` cannot, or none can; the first is named.
    """
    encoded = [encode(row) for row in rows]
    wrong = [number for number, each in enumerate(encoded) if isinstance(each, str)]
    if len(wrong) > max_unusable * len(rows) or len(wrong) == len(rows):
        first = f"; the first is {origins[wrong[0]]}: {encoded[wrong[0]]}" if wrong else ""
        raise DataError(
            f"at most {max_unusable:.1%} of the {what} may teach nothing; {len(wrong)} of "
            f"{len(rows)} do{first}. Correct the data, or raise max_unusable."
        )
    kept = [number for number, each in enumerate(encoded) if not isinstance(each, str)]
    return [rows[number] for number in kept], [encoded[number] for number in kept]


def _pad(rows: Sequence[Encoded], length: int, pad_id: int) -> Arrays:
    tokens = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), np.float32)
    for number, (ids, is_answer) in enumerate(rows):
        tokens[number, : len(ids)] = ids
        mask[number, : len(ids)] = is_answer
    lengths = np.array([len(ids) for ids, _ in rows], np.int32)
    return {"tokens": tokens, "answer_mask": mask, "lengths": lengths}
