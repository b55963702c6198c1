"""Text sources -> packed windows of tokens with loss masks -> batches.

A source is a small config with a weight; it gives tokenised documents. They are packed once,
in memory. From there grain works on row numbers only (shuffle, repeat, mix, batch) and the rows of
a batch are gathered together, so windows of 32 tokens cost no more per token than long ones.

A batch is a dictionary of arrays [B, T]:
  tokens       int32    ids
  loss_mask    float32  1 = this token is predicted and counted
  segment_ids  int32    0 = padding, 1.. = documents packed into the row
  positions    int32    place of the token in its own document
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import grain
import numpy as np
from jaxtyping import Bool, Int

from data import builders, files, game24, mixture, packing, records
from data.errors import DataError
from data.packing import Documents, Windows
from data.tokenizer import Tokenizer, load_tokenizer, prompt_ids

Loss = Literal["all", "completion", "results"]
Batch = dict[str, np.ndarray]


class Source(Protocol):
    """A weighted source of training text; its share of the rows of a mixture is its weight."""

    @property
    def weight(self) -> float: ...

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        """Tokenised documents of at most `length` tokens."""


# ---------------------------------------------------------------------------------- sources


@dataclasses.dataclass(frozen=True, kw_only=True)
class LegalPlaySource:
    """Random legal play of Game of 24 (see `data.game24.legal_plays`); never a test puzzle."""

    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    num_plays: int = 320_000
    """Plays generated, once; later epochs see the same plays in another order."""
    seed: int = 0
    """Decides the plays."""
    num_numbers: int = 4
    """How many numbers a play begins with: 4 is the game, 3 and 2 are its later states."""
    max_number: int = game24.LARGEST_GIVEN
    """Largest number a play begins with: 13 is the game, 99 reaches its later states."""
    loss: Loss = "completion"
    """Tokens that count: "completion" all after the prompt, "results" only what follows "=" up to
    the line's end (arithmetic without a preference for any move), "all"."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        native = load_tokenizer("game24")
        plays = game24.legal_plays(
            np.random.default_rng(self.seed),
            self.num_plays,
            num_numbers=self.num_numbers,
            max_number=self.max_number,
        )
        if tokenizer.fingerprint != native.fingerprint:
            texts = (native.decode(play).partition("\n") for play in plays.tolist())
            return from_texts(((a + b, c) for a, b, c in texts), tokenizer, self.loss)
        is_prompt = np.zeros(plays.shape, bool)
        is_prompt[:, : self.num_numbers + 1] = True
        lengths = np.full(len(plays), plays.shape[1])
        return _documents(plays.ravel(), is_prompt.ravel(), lengths, tokenizer, self.loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFileSource:
    """A UTF-8 text file (or `.xz`), cut into documents and these into windows."""

    path: str
    """A file, or the name of one that `data.files.find` knows."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    separator: str | None = None
    """Text between documents; None makes the file one document."""
    begin: float = 0.0
    """Where in the file to begin: 0.9 leaves out the first nine tenths of its characters."""
    end: float = 1.0
    """Where to end; sources with ends that meet share no character."""
    loss: Loss = "all"
    """Tokens that count: "all"; a text file has no prompts."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        text = files.read_text(self.path)
        if not 0 <= self.begin < self.end <= 1:
            raise DataError(
                "a part of a file begins before it ends, both from 0 to 1; got "
                f"begin={self.begin}, end={self.end}. Correct them."
            )
        text = text[round(self.begin * len(text)) : round(self.end * len(text))]
        parts = [text] if self.separator is None else text.split(self.separator)
        whole = from_texts((("", part) for part in parts if part), tokenizer, self.loss)
        cuts = ((int(size), begin) for size in whole.lengths for begin in range(0, size, length))
        pieces = [min(length, size - begin) for size, begin in cuts]
        return Documents(whole.tokens, whole.is_counted, np.array(pieces, int))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordTextSource:
    """The texts of searched games, from a folder of record shards."""

    path: str
    """Folder of record shards."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    include: Literal["solved", "all"] = "solved"
    """Which games: "solved" ones or "all"."""
    from_leaves: bool = False
    """Also every finished text that the search reached, under the same rule."""
    loss: Loss = "completion"
    """Tokens that count: "completion" all after the prompt, "results" only what follows "=" up to
    the line's end, "all"."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        texts: dict[tuple[str, str], None] = {}  # a dictionary keeps the order and drops repeats
        for record in records.read_for_training(self.path):
            ends = [(record.completion_tokens, record.outcome)]
            ends += [(leaf.tokens, leaf.outcome) for leaf in record.leaves if self.from_leaves]
            for tokens, outcome in ends:
                if self.include == "all" or outcome == 1:
                    texts[record.prompt, tokenizer.decode(tokens)] = None
        return from_texts(texts, tokenizer, self.loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsSource:
    """A tfds dataset whose examples have the texts `prompt` and `completion`."""

    name: str
    """Dataset and config, such as "game24/legal_play" (`data.builders`); prepared on first use, as
    ArrayRecord files."""
    split: str = "train"
    """Which of its splits."""
    data_dir: str | None = None
    """Where tfds keeps datasets; None is its own default."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""
    loss: Loss = "completion"
    """Tokens that count: "completion" all after the prompt, "results" only what follows "=" up to
    the line's end, "all"."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        examples = builders.data_source(self.name, self.split, self.data_dir)
        texts = ((one["prompt"].decode(), one["completion"].decode()) for one in examples)
        return from_texts(texts, tokenizer, self.loss)


def from_texts(texts: Iterable[tuple[str, str]], tokenizer: Tokenizer, loss: Loss) -> Documents:
    """Tokenises (prompt, completion) pairs and ends each with the end-of-text token."""
    tokens, is_prompt, lengths = [], [], []
    for prompt, completion in texts:
        before, after = prompt_ids(tokenizer, prompt), tokenizer.encode(completion)
        tokens += [*before, *after, tokenizer.eos_id]
        is_prompt += [True] * len(before) + [False] * (len(after) + 1)
        lengths.append(len(before) + len(after) + 1)
    flat = np.array(tokens, np.int32), np.array(is_prompt, bool), np.array(lengths, int)
    return _documents(*flat, tokenizer, loss)


def _documents(tokens, is_prompt, lengths, tokenizer: Tokenizer, loss: Loss) -> Documents:
    if loss == "all":
        is_counted = np.ones(len(tokens), bool)
    elif loss == "completion":
        is_counted = ~is_prompt
    else:
        is_counted = ~is_prompt & _is_result(tokens, lengths, tokenizer)
    return Documents(tokens, is_counted, lengths)


def _is_result(tokens, lengths, tokenizer: Tokenizer) -> Bool[np.ndarray, " total"]:
    """Tokens after an "=" up to and with the token that ends the line or the document."""
    equals = tokenizer.encode("=")
    if len(equals) != 1 or tokenizer.newline_id is None:
        raise DataError(
            f'loss "results" needs one token each for "=" and the line end; got {equals} and '
            f'{tokenizer.newline_id}. Use loss "completion" with this tokenizer.'
        )
    place = np.arange(len(tokens))
    ends_line = tokens == tokenizer.newline_id
    ends_line[np.cumsum(lengths) - 1] = True
    last_equals = np.maximum.accumulate(np.where(tokens == equals[0], place, -1))
    last_end = np.maximum.accumulate(np.where(ends_line, place, -1))
    before = [np.concatenate([[-1], last[:-1]]) for last in (last_equals, last_end)]
    return before[0] > before[1]


# ---------------------------------------------------------------------------------- batches


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Packed windows of several sources, one source after another.

    Attributes:
      num_rows: windows per source.
      weights: share of each source in the rows of a mixture.
    """

    windows: Windows
    num_rows: tuple[int, ...]
    weights: tuple[float, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that training can see of the corpus."""
        digest = hashlib.sha256(repr((self.num_rows, self.weights)).encode())
        for array in (self.windows.tokens, self.windows.is_counted, self.windows.segment_ids):
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def gather(self, rows: Int[np.ndarray, " B"]) -> Batch:
        """The batch of these rows."""
        segment_ids = self.windows.segment_ids[rows]
        return {
            "tokens": self.windows.tokens[rows],
            "loss_mask": self.windows.is_counted[rows].astype(np.float32),
            "segment_ids": segment_ids.astype(np.int32),
            "positions": packing.positions(segment_ids),
        }


def load(sources: Sequence[Source], tokenizer: Tokenizer, *, sequence_length_tokens: int) -> Corpus:
    """Reads, tokenises and packs all sources."""
    weights = tuple(float(source.weight) for source in sources)
    if not weights or min(weights) <= 0:
        raise DataError(
            f"a corpus needs sources of positive weight; got weights {weights}. "
            "Leave out the sources that shall not be used."
        )
    windows = []
    for source in sources:
        documents = source.documents(tokenizer, sequence_length_tokens)
        windows.append(packing.pack(documents, sequence_length_tokens, pad_id=tokenizer.pad_id))
    return Corpus(packing.concatenate(windows), tuple(map(len, windows)), weights)


def batches(
    corpus: Corpus, *, batch_size: int, seed: int, host: int = 0, num_hosts: int = 1
) -> grain.IterDataset[Batch]:
    """Endless batches of a corpus; the arguments are those of `data.mixture.batched_rows`."""
    rows = mixture.batched_rows(
        corpus.num_rows,
        corpus.weights,
        corpus.gather,
        batch_size=batch_size,
        seed=seed,
        host=host,
        num_hosts=num_hosts,
    )
    return mixture.iterate(rows)
