"""A tokenizer that is learned here: complete, shorter than bytes, one token per mark."""

import json

import pytest

from data import train_tokenizer
from data.chat_sources import ChatSource
from data.errors import DataError
from data.tokenizer import load_tokenizer
from data.train_tokenizer import TokenizerConfig


def test_any_text_comes_back_and_marks_are_single_tokens(tmp_path):
    rows = [{"prompt": "What is water?", "response": "Water is water, of course."}] * 20
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ChatSource(path=str(tmp_path / "chats.jsonl"))
    config = TokenizerConfig(sources=(source,), vocab_size=280)
    folder = train_tokenizer.run(config, tmp_path / "tokenizer", resume=False, stop=None)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.vocab_size <= 280
    assert tokenizer.special_ids == tuple(sorted({tokenizer.eos_id, tokenizer.pad_id}))
    for text in ("Water is\n\n wet.", "naïve 水 \t x", "<|im_start|>user\nHi<|im_end|>\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("What is water?")) < 10
    for mark in train_tokenizer.MARKS:
        assert len(tokenizer.encode(mark)) == 1
    with pytest.raises(DataError, match="has 263 tokens or more; got 100"):
        TokenizerConfig(sources=(source,), vocab_size=100)
