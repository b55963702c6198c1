"""Generated tasks that ask what an attention can do: copy, recall, look up.

A source is a config that gives the same documents every time: `SelectiveCopyingSource`,
`InductionHeadsSource` and `RecallSource`. Their tokens are symbols without meaning (tokenizer
"symbols-N", see `data.tokenizer`), numbered after padding and end of text. Only the answers are
counted in the loss. Answers stand in the text, so the model reads its own earlier ones; whether a
whole answer is right when each token follows right ones is the same as whether greedy decoding
writes it.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from data.errors import DataError
from data.packing import Documents
from data.tokenizer import FIRST_SYMBOL, Tokenizer

Tokens = Int[np.ndarray, "documents T"]
IsCounted = Bool[np.ndarray, "documents T"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectiveCopyingSource:
    """Data tokens scattered among noise are to be written again, in their order.

        | . . c . a . . . c . | c a c        (between markers 16 data tokens in 256; the answer)

    Symbol 0 is noise, 1 the marker, the rest are data. Source: the selective copying task of Mamba,
    arXiv:2312.00752, section 4.1.1, without a marker at the start and answers that are read again.
    """

    num_documents: int
    """Documents generated, once; later epochs see them in another order."""
    context_tokens: int = 256
    """Noise and data between the markers."""
    num_data_tokens: int = 16
    """How many of them are data."""
    num_symbols: int = 16
    """Noise, marker and the symbols that data is drawn from."""
    seed: int = 0
    """Decides the documents."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        fits = 1 <= self.num_data_tokens <= self.context_tokens
        _check(self, tokenizer, fits=fits, rule="data to copy is a part of its context")
        rng, rows = np.random.default_rng(self.seed), self.num_documents
        data = rng.integers(2, self.num_symbols, (rows, self.num_data_tokens))
        places = _distinct(rng, rows, self.context_tokens, self.num_data_tokens)
        context = np.zeros((rows, self.context_tokens), np.int64)
        np.put_along_axis(context, np.sort(places, axis=1), data, axis=1)
        marker = np.ones((rows, 1), np.int64)
        tokens = np.concatenate([marker, context, marker, data], axis=1)
        is_counted = np.zeros(tokens.shape, bool)
        is_counted[:, -self.num_data_tokens :] = True
        return _documents(tokens, is_counted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InductionHeadsSource:
    """What followed the trigger the first time is to be written when it comes again, at the end.

        d a ! c b b a d ! c                  (the last token is the answer)

    Symbol 0 is the trigger, which occurs twice; the rest are random. Source: the induction heads
    task of Mamba, arXiv:2312.00752, section 4.1.2.
    """

    num_documents: int
    """Documents generated, once; later epochs see them in another order."""
    context_tokens: int = 256
    """Tokens up to and including the second trigger."""
    num_symbols: int = 16
    """The trigger and the other symbols."""
    seed: int = 0
    """Decides the documents."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        fits = self.context_tokens >= 3
        _check(self, tokenizer, fits=fits, rule="two triggers have a token between them")
        rng, rows = np.random.default_rng(self.seed), self.num_documents
        tokens = rng.integers(1, self.num_symbols, (rows, self.context_tokens + 1))
        first = rng.integers(0, self.context_tokens - 2, rows)
        tokens[np.arange(rows), first] = 0
        tokens[:, -2] = 0
        tokens[:, -1] = tokens[np.arange(rows), first + 1]
        is_counted = np.zeros(tokens.shape, bool)
        is_counted[:, -1] = True
        return _documents(tokens, is_counted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecallSource:
    """Multi-query associative recall: pairs of key and value, later each key asks for its value.

        k3 v1 k5 v8 k1 v2 x x k5 v8 x x k3 v1 x x x x k1 v2      (x: any symbol)

    Keys are the lower half of the symbols, values the upper one; the keys of a document are
    distinct, and so are its values. Questions begin at even places after the pairs, mostly soon:
    place g has probability proportional to (g + 1)^(power - 1). Source: MQAR of Zoology,
    arXiv:2312.04927, appendix E, where any symbol stands in place of the answer.
    """

    num_documents: int
    """Documents generated, once; later epochs see them in another order."""
    context_tokens: int = 64
    """Tokens of a document, less one."""
    num_pairs: int = 4
    """Pairs of key and value; at most a quarter of the tokens."""
    num_symbols: int = 8192
    """Keys and values together."""
    power: float = 0.01
    """1 asks at any place with equal probability."""
    seed: int = 0
    """Decides the documents."""
    weight: float = 1.0
    """Share of the rows of a mixture, against the other weights."""

    def documents(self, tokenizer: Tokenizer, length: int) -> Documents:
        pairs, half = self.num_pairs, self.num_symbols // 2
        fits = 4 * pairs <= self.context_tokens and pairs <= half
        rule = "a pair needs 4 tokens, a key and a value of its own"
        _check(self, tokenizer, fits=fits, rule=rule)
        rng, rows = np.random.default_rng(self.seed), self.num_documents
        keys = _distinct(rng, rows, half, pairs)
        values = half + _distinct(rng, rows, half, pairs)
        tokens = rng.integers(0, self.num_symbols, (rows, self.context_tokens + 1))
        tokens[:, 0 : 2 * pairs : 2] = keys
        tokens[:, 1 : 2 * pairs : 2] = values
        num_places = (self.context_tokens - 2 * pairs) // 2
        log_weights = (self.power - 1) * np.log(np.arange(1, num_places + 1))
        questions = 2 * pairs + 2 * _distinct(rng, rows, num_places, pairs, log_weights)
        np.put_along_axis(tokens, questions, keys, axis=1)
        np.put_along_axis(tokens, questions + 1, values, axis=1)
        is_counted = np.zeros(tokens.shape, bool)
        np.put_along_axis(is_counted, questions + 1, True, axis=1)
        return _documents(tokens, is_counted)


def _distinct(
    rng: np.random.Generator,
    num_rows: int,
    num_values: int,
    count: int,
    log_weights: np.ndarray | float = 0.0,
) -> Int[np.ndarray, "rows count"]:
    """`count` distinct numbers below `num_values` per row, drawn one after another by weight.

    The largest of log w + Gumbel noise (arXiv:1903.06059); equal weights unless given. Rows are
    done in slices, so that the noise of many rows over many values stays small.
    """
    drawn = np.empty((num_rows, count), np.int64)
    slice_rows = max(1, 2**22 // num_values)
    for start in range(0, num_rows, slice_rows):
        part = drawn[start : start + slice_rows]
        noise = log_weights + rng.gumbel(size=(len(part), num_values))
        largest = np.argpartition(-noise, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(noise, largest, axis=1), axis=1)
        part[:] = np.take_along_axis(largest, order, axis=1)
    return drawn


def _check(source, tokenizer: Tokenizer, *, fits: bool, rule: str) -> None:
    room = tokenizer.vocab_size - FIRST_SYMBOL
    if not 3 <= source.num_symbols <= room:
        raise DataError(
            f"a generated task has from 3 symbols to those of its tokenizer, here {room}; got "
            f'{source}. Take fewer symbols, or tokenizer "symbols-{source.num_symbols}".'
        )
    if not fits:
        raise DataError(f"{rule}; got {source}. Correct these numbers.")


def _documents(symbols: Tokens, is_counted: IsCounted) -> Documents:
    """Rows of symbols, numbered from 0, as documents of tokens."""
    num_documents, length = symbols.shape
    return Documents(
        tokens=(symbols.astype(np.int32) + FIRST_SYMBOL).ravel(),
        is_counted=is_counted.ravel(),
        lengths=np.full(num_documents, length),
    )
