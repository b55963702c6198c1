import numpy as np
import pytest

from data import packing
from data.errors import DataError


def some_documents(lengths):
    total = sum(lengths)
    tokens = np.arange(1, total + 1)
    return packing.Documents(tokens, np.ones(total, bool), np.array(lengths, int))


def test_packing_by_hand():
    windows = packing.pack(some_documents([2, 3, 1, 5, 1]), 5, pad_id=0)
    np.testing.assert_array_equal(
        windows.tokens, [[1, 2, 3, 4, 5], [6, 0, 0, 0, 0], [7, 8, 9, 10, 11], [12, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        windows.segment_ids, [[1, 1, 2, 2, 2], [1, 0, 0, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        windows.is_counted,
        [[0, 1, 0, 1, 1], [0] * 5, [0, 1, 1, 1, 1], [0] * 5],
        "the first token of a document is not predicted",
    )
    np.testing.assert_array_equal(
        packing.positions(windows.segment_ids),
        [[0, 1, 0, 1, 2], [0] * 5, [0, 1, 2, 3, 4], [0] * 5],
    )


def test_every_document_is_somewhere_whole_and_in_order():
    rng = np.random.default_rng(0)
    documents = some_documents(rng.integers(1, 20, 500).tolist())
    windows = packing.pack(documents, 24, pad_id=0)
    found = [
        row[ids == segment].tolist()
        for row, ids in zip(windows.tokens, windows.segment_ids)
        for segment in range(1, ids.max() + 1)
    ]
    wanted = np.split(documents.tokens, documents.starts[1:])
    assert found == [document.tolist() for document in wanted]
    assert (windows.tokens[windows.segment_ids == 0] == 0).all()


@pytest.mark.parametrize("lengths", [[3, 7], []])
def test_too_long_or_no_documents_are_refused(lengths):
    with pytest.raises(DataError, match="window of 6 tokens"):
        packing.pack(some_documents(lengths), 6, pad_id=0)


def test_concatenate():
    parts = [packing.pack(some_documents(lengths), 4, pad_id=0) for lengths in ([4, 2], [1, 1])]
    joined = packing.concatenate(parts)
    assert len(joined) == 3
    np.testing.assert_array_equal(joined.segment_ids[2], [1, 2, 0, 0])
