import numpy as np
import pytest

from data import tokenizer
from data.errors import DataError

GAME24 = tokenizer.load_tokenizer("game24")


@pytest.mark.parametrize(
    "text", ["", "\n", "4 5 6 10\n", "10 - 4 = 6 left 5 6 6\n5 * 6 = 30", "\n\n0 / 99\n\n", "left"]
)
def test_canonical_text_comes_back(text):
    assert GAME24.decode(GAME24.encode(text)) == text


def test_random_ids_come_back():
    rng = np.random.default_rng(0)
    for _ in range(300):
        ids = rng.integers(2, GAME24.vocab_size, rng.integers(0, 20)).tolist()
        assert GAME24.encode(GAME24.decode(ids)) == ids


def test_ids_are_fixed():  # checkpoints depend on them
    assert GAME24.encode("\nleft = + - * / 0 99") == [2, 3, 4, 5, 6, 7, 8, 9, 108]
    assert (GAME24.vocab_size, GAME24.pad_id, GAME24.eos_id, GAME24.newline_id) == (109, 0, 1, 2)
    assert GAME24.fingerprint.startswith("7f97f367eff7")


def test_padding_and_end_give_no_text():
    assert GAME24.decode([0, 13, 1, 2, 0, 14, 1]) == "4\n5"
    assert GAME24.decode(np.array([13, 14])) == "4 5"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("4 100", "'100'"),
        ("4  5", "''"),
        (" 4", "''"),
        ("4 \n", "''"),
        ("04", "'04'"),
        ("-1", "'-1'"),
        ("<eos>", "'<eos>'"),
        ("<pad>", "'<pad>'"),
        ("4\t5", r"'4\\t5'"),
    ],
)
def test_other_text_is_refused_by_naming_the_word(text, word):
    with pytest.raises(DataError, match=word):
        GAME24.encode(text)


@pytest.mark.parametrize("ids", [[109], [-1], [5, 1000]])
def test_foreign_ids_are_refused(ids):
    with pytest.raises(DataError, match="0..108"):
        GAME24.decode(ids)


@pytest.mark.parametrize(
    "words",
    [(), ("a",), ("<eos>", "<pad>"), ("<pad>", "<eos>", "a b"), ("<pad>", "<eos>", "a", "a")],
)
def test_broken_vocabularies_are_refused(words):
    with pytest.raises(DataError, match="vocabulary"):
        tokenizer.WordTokenizer(words)


def test_fingerprint_tells_vocabularies_apart():
    other = tokenizer.WordTokenizer((*GAME24.words[:-2], "99", "98"))
    same = tokenizer.WordTokenizer(GAME24.words)
    assert other.fingerprint != GAME24.fingerprint == same.fingerprint
    assert tokenizer.WordTokenizer(("<pad>", "<eos>", "a")).newline_id is None


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'game24'"):
        tokenizer.load_tokenizer("game42")
    assert isinstance(GAME24, tokenizer.Tokenizer)


def test_bytes_encode_any_text():
    tokens = tokenizer.load_tokenizer("bytes")
    assert tokens.encode("a\né") == [2 + 97, tokens.newline_id, 2 + 0xC3, 2 + 0xA9]
    assert tokens.decode([tokens.pad_id, *tokens.encode("a\né"), tokens.eos_id]) == "a\né"
    assert tokens.decode([2 + 0xC3]) == "\ufffd"
    assert isinstance(tokens, tokenizer.Tokenizer)
    with pytest.raises(DataError, match=r"0\.\.257"):
        tokens.decode([258])


def test_symbols_are_counted_by_their_name():
    tokens = tokenizer.load_tokenizer("symbols-3")
    assert tokens.words == ("<pad>", "<eos>", "s0", "s1", "s2")
    assert tokens is tokenizer.load_tokenizer("symbols-3")
    with pytest.raises(DataError, match="symbols-N"):
        tokenizer.load_tokenizer("symbols-0")
