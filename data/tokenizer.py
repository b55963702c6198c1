"""Text <-> token ids.

A tokenizer is anything with the members of `Tokenizer`. `WordTokenizer` is the exact one for small
formal languages such as Game of 24: one token per word, nothing ever split or normalised.
`PieceTokenizer` is for stories: known words, and all else in characters.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from data import grade_school_words, planted
from data.errors import DataError

PAD = "<pad>"
EOS = "<eos>"
NEWLINE = "\n"
FIRST_SYMBOL = 2  # id after padding and end of text


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the project asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that stand for no text: padding, end of text, and begin of text and others if any."""

    @property
    def newline_id(self) -> int | None:
        """Id of the token that is exactly a line end; None where there is no such token."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides the ids: equal fingerprints, equal ids."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without an end-of-text token."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; padding and end-of-text give nothing."""


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    r"""One token per word: words are separated by one space, and "\n" is a word without spaces.

    Text of exactly that form is canonical: `decode(encode(text)) == text`. Anything else is a
    `DataError`, so a word can never silently become another one.

    Args:
      words: the vocabulary in the order of the ids; begins with "<pad>", "<eos>".
    """

    words: tuple[str, ...]

    def __post_init__(self):
        broken = [word for word in self.words if word != NEWLINE and word.split() != [word]]
        if self.words[:2] != (PAD, EOS) or broken or len(set(self.words)) != len(self.words):
            raise DataError(
                f"a vocabulary begins with {PAD!r}, {EOS!r} and holds distinct words without "
                f"spaces; got {self.words[:2]} first, {broken=} in {len(self.words)} words. "
                "Correct the list of words."
            )

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def eos_id(self) -> int:
        return 1

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.eos_id)

    @functools.cached_property
    def newline_id(self) -> int | None:
        return self._ids.get(NEWLINE)

    @functools.cached_property
    def fingerprint(self) -> str:
        content = json.dumps({"kind": "words", "words": self.words})
        return hashlib.sha256(content.encode()).hexdigest()

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words) if word not in (PAD, EOS)}

    def encode(self, text: str) -> list[int]:
        words = []
        for i, line in enumerate(text.split(NEWLINE)):
            if i:
                words.append(NEWLINE)
            if line:
                words.extend(line.split(" "))
        try:
            return [self._ids[word] for word in words]
        except KeyError as error:
            raise DataError(
                f"every word must be in the vocabulary of {self.vocab_size} words; got "
                f"{error.args[0]!r} in {text[:80]!r}. Separate known words by single spaces."
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < len(self.words):
            raise DataError(
                f"a token id is 0..{len(self.words) - 1}; got {min(ids)}..{max(ids)}. "
                "Decode with the tokenizer that the ids were made with."
            )
        line = " ".join([self.words[i] for i in ids if i > 1])  # neither padding nor end of text
        return line.replace(" \n", NEWLINE).replace("\n ", NEWLINE)


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """One token per byte: any text can be encoded; bytes that are no UTF-8 decode to U+FFFD."""

    vocab_size: int = 256 + FIRST_SYMBOL
    pad_id: int = 0
    eos_id: int = 1
    special_ids: tuple[int, ...] = (0, 1)
    newline_id: int | None = FIRST_SYMBOL + ord(NEWLINE)
    fingerprint: str = hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: str) -> list[int]:
        return [FIRST_SYMBOL + byte for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise DataError(
                f"a token id is 0..{self.vocab_size - 1}; got {min(ids)}..{max(ids)}. "
                "Decode with the tokenizer that the ids were made with."
            )
        text = bytes(i - FIRST_SYMBOL for i in ids if i >= FIRST_SYMBOL)
        return text.decode("utf-8", errors="replace")


@dataclasses.dataclass(frozen=True)
class PieceTokenizer:
    """Whole words of a list with the space before them, all other characters one by one.

    Any text of printable ASCII and line ends comes back exactly: `decode(encode(text)) == text`.
    Digits are always apart, and so is "=". Other characters are a `DataError`.

    Args:
      words: words of letters that are one piece; a word that begins with a capital letter is one
        also where no space stands before it, as in the beginning of a line.
      marks: other pieces of several characters, which are sought first.
    """

    words: tuple[str, ...]
    marks: tuple[str, ...] = ()

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """Text of every id; padding and end of text have none."""
        characters = (NEWLINE, *map(chr, range(32, 127)))
        capitals = tuple(word for word in self.words if word[:1].isupper() and len(word) > 1)
        spaced = tuple(f" {word}" for word in self.words)
        return ("", "", *characters, *self.marks, *capitals, *spaced)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces) if piece}

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join([*map(re.escape, self.marks), " ?[A-Za-z]+", "."]), re.DOTALL)

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def pad_id(self) -> int:
        return 0

    @property
    def eos_id(self) -> int:
        return 1

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.eos_id)

    @property
    def newline_id(self) -> int | None:
        return FIRST_SYMBOL

    @functools.cached_property
    def fingerprint(self) -> str:
        content = json.dumps({"kind": "pieces", "pieces": self.pieces})
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        try:
            for piece in self._pattern.findall(text):
                if piece in self._ids:
                    ids.append(self._ids[piece])
                else:
                    ids += [self._ids[character] for character in piece]
        except KeyError as error:
            raise DataError(
                "text is made of printable ASCII characters and line ends; got "
                f"{error.args[0]!r} in {text[:80]!r}. Leave it out, or use the tokenizer bytes."
            ) from None
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise DataError(
                f"a token id is 0..{self.vocab_size - 1}; got {min(ids)}..{max(ids)}. "
                "Decode with the tokenizer that the ids were made with."
            )
        return "".join([self.pieces[i] for i in ids])


def _game24() -> WordTokenizer:
    symbols = (PAD, EOS, NEWLINE, "left", "=", "+", "-", "*", "/")
    return WordTokenizer(symbols + tuple(str(number) for number in range(100)))


def _listops() -> WordTokenizer:
    operators = ("[MIN", "[MAX", "[MED", "[SM", "[FIRST", "[LAST", "]", "=")
    return WordTokenizer((PAD, EOS, *operators, *map(str, range(10))))


def _grade_school() -> PieceTokenizer:
    return PieceTokenizer(grade_school_words.WORDS, marks=(" = <<", ">>", "#### "))


def _planted() -> PieceTokenizer:
    r"""Of the planted world: a word or phrase is a token, and each mark of SteerLM."""
    from data import attributes, chat  # which know this module

    turn, labels = f"\n{chat.TURN_START}", chat.LABELS_START
    opening = f"{chat.SYSTEM_START}System\n{chat.SYSTEM}{turn}User\n"
    grades = [f"{name}:" for name in attributes.FIVE]
    marks = (opening, f"{turn}Assistant\n", turn, labels, *(f",{one}" for one in grades), grades[0])
    return PieceTokenizer(planted.WORDS, marks=(*marks, *planted.PHRASES))


def _symbols(count: int) -> WordTokenizer:
    return WordTokenizer((PAD, EOS, *(f"s{n}" for n in range(count))))


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that a model begins with: first the token that begins texts, if any."""
    ids, begin = tokenizer.encode(text), getattr(tokenizer, "bos_id", None)
    return ids if begin is None or ids[:1] == [begin] else [begin, *ids]


_BY_NAME: dict[str, Callable[[], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "game24": _game24,
    "grade_school": _grade_school,
    "listops": _listops,
    "planted": _planted,
}
_SYMBOLS = re.compile(r"symbols-([1-9][0-9]{0,5})")


def names() -> list[str]:
    """Names of all tokenizers but those of symbols."""
    return sorted(_BY_NAME)


@functools.lru_cache
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name; the same object every time. "symbols-N": s0, s1, ... of N words.
    A folder with `tokenizer.json` or `tokenizer.model`: what is in it (`data.folder_tokenizer`).

    Raises:
      DataError: for an unknown name, naming the nearest known one.
    """
    if symbols := _SYMBOLS.fullmatch(name):
        return _symbols(int(symbols[1]))
    if name not in _BY_NAME and pathlib.Path(name).is_dir():
        from data import folder_tokenizer  # which knows this module

        return folder_tokenizer.load(pathlib.Path(name))
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        raise DataError(
            f"a tokenizer is one of {sorted(_BY_NAME)}, symbols-N or a folder; got {name!r}. "
            + (f"Did you mean {near[0]!r}?" if near else "Use one of these names.")
        )
    return _BY_NAME[name]()
