import itertools

import numpy as np
import pytest

from data import documents
from data.errors import DataError
from data.synthetic import InductionHeadsSource, RecallSource, SelectiveCopyingSource
from data.tokenizer import FIRST_SYMBOL, load_tokenizer

SMALL = {
    "copying": SelectiveCopyingSource(num_documents=40, context_tokens=12, num_data_tokens=3),
    "induction": InductionHeadsSource(num_documents=40, context_tokens=12),
    "recall": RecallSource(num_documents=40, context_tokens=16, num_pairs=3, num_symbols=16),
}


def rows_of(source):
    """Symbols, numbered from 0, and whether they count: one row per document."""
    whole = source.documents(load_tokenizer("symbols-16"), 64)
    shape = (source.num_documents, -1)
    return whole.tokens.reshape(shape) - FIRST_SYMBOL, whole.is_counted.reshape(shape)


def test_copying_asks_for_the_data_in_its_order():
    for tokens, is_counted in zip(*rows_of(SMALL["copying"]), strict=True):
        assert len(tokens) == 1 + 12 + 1 + 3
        context, answer = tokens[1:13], tokens[14:]
        assert tokens[0] == tokens[13] == 1 and 1 not in context
        assert [symbol for symbol in context if symbol != 0] == list(answer)
        assert list(np.flatnonzero(is_counted)) == [14, 15, 16]


def test_induction_asks_for_what_followed_the_trigger():
    places = set()
    for tokens, is_counted in zip(*rows_of(SMALL["induction"]), strict=True):
        assert len(tokens) == 12 + 1
        first, second = np.flatnonzero(tokens == 0)
        assert second == 11 and tokens[12] == tokens[first + 1]
        assert list(np.flatnonzero(is_counted)) == [12]
        places.add(int(first))
    assert places == set(range(10)), "anywhere that leaves room for a token between"


def test_recall_asks_every_key_once_for_its_value():
    for tokens, is_counted in zip(*rows_of(SMALL["recall"]), strict=True):
        assert len(tokens) == 16 + 1
        keys, values = tokens[0:6:2], tokens[1:6:2]
        assert len(set(keys)) == len(set(values)) == 3 and max(keys) < 8 <= min(values)
        answers = np.flatnonzero(is_counted)
        assert all(answers % 2 == 1) and answers.min() > 6
        pairs = dict(zip(keys, values, strict=True))
        assert sorted(tokens[answers - 1]) == sorted(keys)
        assert [pairs[key] for key in tokens[answers - 1]] == list(tokens[answers])


def test_recall_asks_soon_by_a_power_law():
    """With one pair, P(place g) = (g + 1)^-0.99 / sum."""
    source = RecallSource(num_documents=4000, context_tokens=18, num_pairs=1, num_symbols=16)
    answers = rows_of(source)[1].argmax(axis=1)
    share = np.bincount((answers - 3) // 2, minlength=8) / 4000
    wanted = np.arange(1, 9) ** -0.99
    np.testing.assert_allclose(share, wanted / wanted.sum(), atol=0.02)


@pytest.mark.parametrize("name", SMALL)
def test_equal_seeds_give_equal_documents_and_other_seeds_none_of_them(name):
    def texts(seed, count=300):
        make = type(SMALL[name])
        fields = {"num_symbols": 200} if name == "recall" else {}
        source = make(num_documents=count, seed=seed, **fields)
        whole = source.documents(load_tokenizer("symbols-200"), 300)
        return [row.tobytes() for row in whole.tokens.reshape(count, -1)]

    assert texts(0) == texts(0)
    for one, other in itertools.combinations((0, 100, 200), 2):
        assert not set(texts(one)) & set(texts(other))


def test_short_documents_share_a_window():
    short = InductionHeadsSource(num_documents=8, context_tokens=15)
    windows = documents.load(
        (short,), load_tokenizer("symbols-16"), sequence_length_tokens=64
    ).windows
    assert len(windows) == 2 and windows.is_counted.sum() == 8 and windows.segment_ids.max() == 4


def test_impossible_tasks_are_refused():
    tokenizer = load_tokenizer("symbols-16")
    for source in (
        RecallSource(num_documents=1, context_tokens=16, num_pairs=5, num_symbols=16),
        RecallSource(num_documents=1, context_tokens=64, num_pairs=9, num_symbols=16),
        SelectiveCopyingSource(num_documents=1, context_tokens=4, num_data_tokens=5),
        InductionHeadsSource(num_documents=1, context_tokens=2),
        InductionHeadsSource(num_documents=1, num_symbols=17),
    ):
        with pytest.raises(DataError):
            source.documents(tokenizer, 64)
