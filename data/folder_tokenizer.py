"""Tokenizers of checkpoint folders: `tokenizer.json` or SentencePiece's `tokenizer.model`.

What begins and ends a text stands in `tokenizer_config.json`, as `transformers` writes it; so does
the chat template, or in `chat_template.jinja`. Templates are programs of strangers: they run in
jinja2's sandbox. A folder of a model that was trained here names its tokenizer in
`taylorzero_tokenizer.json`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import sentencepiece
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data import tokenizer as named
from data.errors import DataError

PIECES, SENTENCES, NAMED = "tokenizer.json", "tokenizer.model", "taylorzero_tokenizer.json"
SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
BESIDE = (SETTINGS, TEMPLATE, "special_tokens_map.json", "added_tokens.json")


def is_in(folder: Path) -> bool:
    """Whether a folder has a tokenizer."""
    return any((folder / name).is_file() for name in (PIECES, SENTENCES, NAMED))


def name_in(folder: Path) -> str:
    """What `load_tokenizer` knows the tokenizer of a folder by: its name, or the folder."""
    if (folder / NAMED).is_file():
        return json.loads((folder / NAMED).read_text())["name"]
    return os.path.relpath(folder)


def load(folder: Path) -> named.Tokenizer:
    """The tokenizer of a folder.

    Raises:
      DataError: there is none, or none that can be read.
    """
    folder = Path(folder)
    if (folder / NAMED).is_file():
        return named.load_tokenizer(name_in(folder))
    if not is_in(folder):
        raise DataError(
            f"a folder of a tokenizer has {PIECES} or {SENTENCES}; {folder} has neither. Copy the "
            "tokenizer of the model into it."
        )
    return FolderTokenizer(folder.absolute())


def save(folder: Path, tokenizer: named.Tokenizer) -> None:
    """Writes a tokenizer into a folder, where `load` finds it: its own files, unchanged.

    Raises:
      DataError: it has neither a folder nor a name.
    """
    if isinstance(tokenizer, FolderTokenizer):
        for name in (PIECES, SENTENCES, *BESIDE):
            if (tokenizer.folder / name).is_file():
                shutil.copyfile(tokenizer.folder / name, folder / name)
        return
    for name in named.names():
        if named.load_tokenizer(name).fingerprint == tokenizer.fingerprint:
            (folder / NAMED).write_text(json.dumps({"name": name}) + "\n")
            return
    raise DataError(
        f"a tokenizer is written that lies in a folder or has one of the names {named.names()}; "
        f"got a {type(tokenizer).__name__}. Save the model without its tokenizer."
    )


@dataclasses.dataclass(frozen=True)
class FolderTokenizer:
    """A tokenizer of `folder`; its members are those of `data.tokenizer.Tokenizer`."""

    folder: Path

    @functools.cached_property
    def _backend(self) -> "tokenizers.Tokenizer | _SentencePieces":
        try:
            if (self.folder / PIECES).is_file():
                return tokenizers.Tokenizer.from_file(str(self.folder / PIECES))
            return _SentencePieces(self.folder / SENTENCES)
        except Exception as error:  # both libraries raise bare ones
            raise DataError(
                f"the tokenizer in {self.folder} cannot be read: {error}. Fetch it again."
            ) from error

    @functools.cached_property
    def _settings(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in ("special_tokens_map.json", SETTINGS):
            if (self.folder / name).is_file():
                found |= json.loads((self.folder / name).read_text(encoding="utf-8"))
        return found

    def _special(self, name: str) -> str | None:
        """Text of a special token such as "bos_token"; it may be an object with a "content"."""
        given = self._settings.get(name)
        return given["content"] if isinstance(given, Mapping) else given

    def _id_of(self, name: str) -> int | None:
        text = self._special(name)
        return None if text is None else self._backend.token_to_id(text)

    @functools.cached_property
    def vocab_size(self) -> int:
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def bos_id(self) -> int | None:
        """Id of the token that begins a text; None where texts begin without one."""
        if "add_bos_token" in self._settings:
            begins = self._settings["add_bos_token"]
        elif isinstance(self._backend, _SentencePieces):
            begins = True
        else:
            begins = self._backend.encode("a").ids[:1] == [self._id_of("bos_token")]
        return self._id_of("bos_token") if begins else None

    @property
    def begin_id(self) -> int | None:
        """Id of "bos_token", whether or not texts begin with it."""
        return self._id_of("bos_token")

    @functools.cached_property
    def eos_id(self) -> int:
        found = self._id_of("eos_token")
        if found is None:
            raise DataError(
                f"a tokenizer has a token that ends a text; {self.folder / SETTINGS} names "
                f'{self._special("eos_token")!r}. Write its "eos_token".'
            )
        return found

    @functools.cached_property
    def pad_id(self) -> int:
        found = self._id_of("pad_token")
        return self.eos_id if found is None else found

    @functools.cached_property
    def special_ids(self) -> tuple[int, ...]:
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        given = [number for number in map(self._id_of, names) if number is not None]
        return tuple(sorted({*given, *self._control_ids, self.eos_id}))

    @property
    def _control_ids(self) -> Iterable[int]:
        if isinstance(self._backend, _SentencePieces):
            return self._backend.control_ids()
        added = self._backend.get_added_tokens_decoder()
        return [number for number, token in added.items() if token.special]

    @functools.cached_property
    def newline_id(self) -> int | None:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        for piece in ("<0x0A>", "Ċ", "\n"):  # of SentencePiece, of bytes, of characters
            if piece in vocabulary and self._backend.decode([vocabulary[piece]]) == "\n":
                return vocabulary[piece]
        return None

    @functools.cached_property
    def fingerprint(self) -> str:
        name = PIECES if (self.folder / PIECES).is_file() else SENTENCES
        digest = hashlib.sha256((self.folder / name).read_bytes())
        digest.update(repr((self.bos_id, self.eos_id)).encode())
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of the text; texts of special tokens become those, none is added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without special tokens."""
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise DataError(
                f"a token id is 0..{self.vocab_size - 1}; got {min(ids)}..{max(ids)}. "
                "Decode with the tokenizer that the ids were made with."
            )
        return self._backend.decode(ids, skip_special_tokens=True)

    @functools.cached_property
    def chat_template(self) -> str | None:
        """The program that writes a chat; None where the folder has none."""
        if (self.folder / TEMPLATE).is_file():
            return (self.folder / TEMPLATE).read_text(encoding="utf-8")
        found = self._settings.get("chat_template")
        if isinstance(found, list):  # several by name
            return {one["name"]: one["template"] for one in found}.get("default")
        return found

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """A chat as the model was trained to read it, up to where it begins to speak.

        Raises:
          DataError: there is no template, or it refuses these messages.
        """
        if self.chat_template is None:
            raise DataError(f"a chat needs a template; {self.folder} has none. Use another form.")
        special = {
            name: self._special(name)
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if self._special(name) is not None
        }
        try:
            return _compiled(self.chat_template).render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **special,
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template of {self.folder} refuses: {error}") from error


class _SentencePieces:
    """SentencePiece with the few members of a `tokenizers.Tokenizer` that are used here."""

    @dataclasses.dataclass(frozen=True)
    class Encoded:
        ids: list[int]

    def __init__(self, file: Path):
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))

    def token_to_id(self, text: str) -> int | None:
        found = self._model.piece_to_id(text)
        return found if self._model.id_to_piece(found) == text else None

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        del with_added_tokens
        return {self._model.id_to_piece(n): n for n in range(self._model.get_piece_size())}

    def control_ids(self) -> list[int]:
        model = self._model
        is_none = (model.is_control, model.is_unknown)
        return [n for n in range(model.get_piece_size()) if any(test(n) for test in is_none)]

    def encode(self, text: str, add_special_tokens: bool = False) -> "_SentencePieces.Encoded":
        del add_special_tokens
        return self.Encoded(self._model.encode(text))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        del skip_special_tokens  # control pieces have no text
        return self._model.decode(list(ids))


@functools.lru_cache
def _compiled(template: str) -> jinja2.Template:
    """In the sandbox, with the functions that `transformers` gives a template."""

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
