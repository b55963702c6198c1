"""A tokenizer of one's own: byte-level BPE (arXiv:1508.07909) learned from chats.

RUN/tokenizer.json, tokenizer_config.json    a folder that `data.tokenizer.load_tokenizer` reads

A stage of a pipeline with the command "tokenizer"; later stages have tokenizer="stage:NAME". Any
text can be encoded, and comes back byte for byte.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data import chat, folder_tokenizer
from data.chat_sources import ChatSource
from data.errors import DataError

EOS, PAD = "<|endoftext|>", "<|pad|>"
MARKS = ("<|im_start|>", "<|im_end|>", chat.SYSTEM_START, chat.TURN_START, chat.LABELS_START)
"""Marks of chat templates: one token each, which a model can write."""
SMALLEST = 256 + 2 + len(MARKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What a tokenizer is learned from, and how many tokens it has."""

    sources: tuple[ChatSource, ...]
    """Chats, of which all messages are read."""
    vocab_size: int = 2048
    """Tokens: bytes, two special tokens, the marks of chat templates, and merges."""

    def __post_init__(self):
        if self.vocab_size < SMALLEST:
            raise DataError(
                f"a byte-level tokenizer has {SMALLEST} tokens or more; got {self.vocab_size}."
            )


def run(config: TokenizerConfig, run_folder: Path, /, *, resume: bool, stop: Any) -> Path:
    """Learns the tokenizer; returns its folder.

    Raises:
      DataError: an unreadable source.
    """
    del resume, stop  # it takes seconds, and is done anew
    texts = [
        message["content"]
        for source in config.sources
        for messages in source.chats()[0]
        for message in messages
    ]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(MARKS),
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(MARKS))
    run_folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(run_folder / folder_tokenizer.PIECES))
    settings = {"eos_token": EOS, "pad_token": PAD}
    (run_folder / folder_tokenizer.SETTINGS).write_text(json.dumps(settings) + "\n")
    return run_folder
