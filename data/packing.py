"""Documents of different lengths -> windows of one length, several documents per window."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from data.errors import DataError


@dataclasses.dataclass(frozen=True)
class Documents:
    """Tokenised documents, one after another in flat arrays.

    Attributes:
      tokens: ids of all documents.
      is_counted: whether a token is predicted and counted in the loss. The first token of a
        document never is: nothing precedes it.
      lengths: tokens per document.
    """

    tokens: Int[np.ndarray, " total"]
    is_counted: Bool[np.ndarray, " total"]
    lengths: Int[np.ndarray, " documents"]

    def __post_init__(self):
        self.is_counted[self.starts] = False

    @property
    def starts(self) -> Int[np.ndarray, " documents"]:
        """Place of the first token of each document."""
        return np.cumsum(self.lengths) - self.lengths


@dataclasses.dataclass(frozen=True)
class Windows:
    """Packed documents. Segment 0 is padding; documents of a window are segments 1, 2, ..."""

    tokens: Int[np.ndarray, "rows T"]
    is_counted: Bool[np.ndarray, "rows T"]
    segment_ids: Int[np.ndarray, "rows T"]

    def __len__(self) -> int:
        return len(self.tokens)


def concatenate(windows: Sequence[Windows]) -> Windows:
    """All windows, one after another."""
    names = [field.name for field in dataclasses.fields(Windows)]
    return Windows(*(np.concatenate([getattr(part, name) for part in windows]) for name in names))


def pack(documents: Documents, length: int, *, pad_id: int) -> Windows:
    """Packs documents in their order: a window is closed when the next one does not fit.

    Raises:
      DataError: if a document is longer than a window.
    """
    lengths = documents.lengths
    if not len(lengths) or lengths.max() > length:
        raise DataError(
            f"a source needs documents, none longer than a window of {length} tokens; got "
            f"{len(lengths)} documents of up to {max(lengths, default=0)} tokens. "
            "Raise sequence_length_tokens, or give a source that has text."
        )
    row, offset, segment = _places(lengths.tolist(), length)
    within = np.arange(len(documents.tokens)) - np.repeat(documents.starts, lengths)
    to = (np.repeat(row, lengths), np.repeat(offset, lengths) + within)
    shape = (row[-1] + 1, length)
    tokens = np.full(shape, pad_id, np.int32)
    is_counted = np.zeros(shape, bool)
    segment_ids = np.zeros(shape, np.int16)
    tokens[to] = documents.tokens
    is_counted[to] = documents.is_counted
    segment_ids[to] = np.repeat(segment, lengths)
    return Windows(tokens, is_counted, segment_ids)


def _places(lengths: list[int], capacity: int) -> Int[np.ndarray, "3 documents"]:
    """Row, offset in the row and segment (from 1) of each document."""
    places = []
    row, used, segment = 0, 0, 0
    for length in lengths:
        if used + length > capacity:
            row, used, segment = row + 1, 0, 0
        segment += 1
        places.append((row, used, segment))
        used += length
    return np.array(places).T


def positions(segment_ids: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
    """Position of each token in its own document; 0 in padding."""
    place = np.broadcast_to(np.arange(segment_ids.shape[1], dtype=np.int32), segment_ids.shape)
    is_start = np.diff(segment_ids, axis=1, prepend=-1) != 0
    start = np.maximum.accumulate(np.where(is_start, place, 0), axis=1)
    return np.where(segment_ids > 0, place - start, 0).astype(np.int32)
