"""Records in the tokens of another tokenizer."""

import dataclasses
import warnings

import pytest

from data import hybrid, record_text, records, tokenizer
from data.errors import DataError
from tests.data import synthetic_records

WORDS = tokenizer.load_tokenizer("game24")
BYTES = tokenizer.load_tokenizer("bytes")
RECORDS = [synthetic_records.random_record(seed) for seed in range(6)]
RECORDS.append(synthetic_records.solved_record())


@dataclasses.dataclass(frozen=True)
class Pieces(tokenizer.ByteTokenizer):
    """Bytes, but some strings are one token: the longest that fits, as in byte-pair encodings."""

    pieces: tuple[str, ...] = ()
    fingerprint: str = "pieces"

    def encode(self, text):
        ids, place = [], 0
        ordered = sorted(self.pieces, key=lambda piece: -len(piece))
        while place < len(text):
            piece = next((p for p in ordered if text.startswith(p, place)), None)
            if piece:
                ids.append(258 + self.pieces.index(piece))
            else:
                ids += super().encode(text[place])
            place += len(piece or " ")
        return ids

    def decode(self, ids):
        plain = []
        for i in ids:
            plain += super().encode(self.pieces[i - 258]) if i >= 258 else [i]
        return super().decode(plain)


def texts(record, text):
    """All that a record says, as text, and its numbers."""
    positions = []
    for i, position in enumerate(record.positions):
        tree = record.trees[i] if record.trees else None
        edges = tree and record_text.edge_texts(record, position, tree, text)
        positions.append(
            (
                text.decode(record.completion_tokens[: position.offset]),
                record_text.candidate_texts(record, position, text),
                dataclasses.replace(position, offset=0, candidates=()),
                edges,
                tree and dataclasses.replace(tree, edge_tokens=()),
            )
        )
    leaves = [
        (text.decode(leaf.tokens), leaf.tokens[-1] == text.eos_id, leaf.outcome)
        for leaf in record.leaves
    ]
    return record.prompt, record.completion, record.outcome, positions, leaves


@pytest.mark.parametrize("record", RECORDS)
def test_bytes_say_all_that_words_said_and_words_come_back(record):
    other = record_text.retokenize(record, WORDS, BYTES)
    assert other.prompt_tokens == tuple(BYTES.encode(record.prompt))
    assert other.completion_tokens == (*BYTES.encode(record.completion), BYTES.eos_id)
    assert texts(other, BYTES) == texts(record, WORDS)
    back = record_text.retokenize(other, BYTES, WORDS)
    assert back == dataclasses.replace(record, tokenizer=None)
    assert records.from_json(records.to_json(other)).positions[0].offset == 0


def test_texts_of_runs_stand_in_their_context():
    before = tuple(WORDS.encode("4 5 6 10\n10 -"))
    runs = [tuple(WORDS.encode(text)) for text in ("4 = 6", "\n", "")]
    assert record_text.runs_in_context(WORDS, before, runs) == [" 4 = 6", "\n", ""]
    half = tuple(BYTES.encode("é"))
    assert record_text.runs_in_context(BYTES, half[:1], [half[1:]]) == [None]
    assert record_text.runs_in_context(BYTES, (), [half[:1], half]) == [None, "é"]


def test_what_stands_inside_a_token_is_left_out():
    """The token "\\n5" reaches over the end of the first line of the solved game of 4 5 6 10."""
    record = synthetic_records.solved_record()
    other = record_text.retokenize(record, WORDS, Pieces(pieces=("6\n5",)))
    pieces = Pieces(pieces=("6\n5",))
    assert pieces.decode(other.completion_tokens) == record.completion
    assert [position.root_value for position in other.positions] == [0.5, 0.5]
    offsets = [pieces.decode(other.completion_tokens[: p.offset]) for p in other.positions]
    assert offsets == ["", "10 - 4 = 6 left 5 6 6\n5 * 6 = 30 left 6 30\n"]
    # Here it is a candidate that begins inside a token: "6 - 5", in the place of "5 * 6".
    other = record_text.retokenize(record, WORDS, Pieces(pieces=("6\n6",)))
    assert [len(position.candidates) for position in other.positions] == [2, 1, 2]
    assert other.positions[1].weights == (0.75, 0.25)
    assert BYTES.decode(other.positions[1].candidates[0]) == "5 * 6 = 30 left 6 30\n"


def test_the_weight_of_a_candidate_that_is_left_out_joins_the_rest():
    record = synthetic_records.solved_record()
    no_plus = tokenizer.WordTokenizer(tuple("plus" if w == "+" else w for w in WORDS.words))
    other = record_text.retokenize(record, WORDS, no_plus)
    first, second, third = other.positions
    assert [len(p.candidates) for p in other.positions] == [1, 2, 1]  # "6 + 4", "30 + 6" are lost
    assert first.weights == third.weights == (0.75, 0.25)
    assert (first.visits, first.prior) == ((12,), (0.25,))
    assert second == record.positions[1]
    assert (len(record.leaves), len(other.leaves)) == (2, 1)
    no_minus = tokenizer.WordTokenizer(tuple(word for word in WORDS.words if word != "-"))
    with pytest.raises(DataError, match="which the other one of 108 tokens cannot"):
        record_text.retokenize(record, WORDS, no_minus)


def test_candidates_stay_disjoint():
    """As texts, "4 * 1" goes on in "4 * 13", and two token runs may be one text."""
    run = {text: tuple(WORDS.encode(text)) for text in ("4 * 1", "4 * 13", "4 + 1")}
    position = records.Position(
        offset=0,
        candidates=tuple(run.values()),
        weights=(0.5, 0.25, 0.125, 0.125),
        visits=(3, 2, 1),
        root_value=0.5,
        prior=(0.1, 0.2, 0.3),
    )
    record = dataclasses.replace(synthetic_records.solved_record(), positions=(position,))
    (moved,) = record_text.retokenize(record, WORDS, BYTES).positions
    assert list(map(BYTES.decode, moved.candidates)) == ["4 * 13", "4 + 1"]
    assert moved.weights == (0.25, 0.125, 0.625)
    pieces = Pieces(pieces=("10",))
    twice = dataclasses.replace(
        position,
        candidates=((258,), tuple(BYTES.encode("10")), tuple(BYTES.encode("5"))),
        offset=0,
    )
    as_pieces = dataclasses.replace(
        record_text.retokenize(record, WORDS, pieces), positions=(twice,)
    )
    (moved,) = record_text.retokenize(as_pieces, pieces, BYTES).positions
    assert list(map(BYTES.decode, moved.candidates)) == ["10", "5"]
    assert moved.weights == (0.75, 0.125, 0.125)
    assert moved.visits == (5, 1)
    assert moved.prior == pytest.approx((0.3, 0.3))


def test_a_tree_loses_a_node_and_what_is_below_it():
    record = synthetic_records.random_record(3)
    first = record.trees[0]
    said = " ".join(WORDS.decode(edge) for edge in first.edge_tokens[1:]).split()
    doomed = next(word for word in said if word not in record.prompt.split() and word.isdigit())
    words = tuple("gone" if word == doomed else word for word in WORDS.words)
    start = records.Position(
        offset=0, candidates=(), weights=(1.0,), visits=(), root_value=0.5, prior=()
    )
    fitting = dataclasses.replace(
        record, completion="", completion_tokens=(), positions=(start,), trees=(first,), leaves=()
    )
    other = record_text.retokenize(fitting, WORDS, tokenizer.WordTokenizer(words))
    (tree,) = other.trees
    lost = set()
    for node, parent in enumerate(first.parent):
        text = WORDS.decode(first.edge_tokens[node]).split()
        if parent in lost or (node and doomed in text):
            lost.add(node)
    kept = [node for node in range(len(first.parent)) if node not in lost]
    assert 0 < len(lost) < len(first.parent)
    assert tree.q == tuple(first.q[node] for node in kept)
    assert tree.edge_tokens == tuple(first.edge_tokens[node] for node in kept)
    assert [kept[p] for p in tree.parent[1:]] == [first.parent[node] for node in kept[1:]]


def test_the_tokenizer_is_named_or_recognised():
    record = RECORDS[0]
    assert record_text.tokenizer_of(record) is WORDS
    assert record_text.tokenizer_of(dataclasses.replace(record, tokenizer=None)) is WORDS
    with pytest.raises(DataError, match="do not with 'bytes'"):
        record_text.tokenizer_of(dataclasses.replace(record, tokenizer="bytes"))
    with pytest.raises(DataError, match="'bytes' or 'game24' or 'grade_school' or 'listops'"):
        record_text.tokenizer_of(dataclasses.replace(record, tokenizer=None, prompt="?"))
    with pytest.raises(DataError, match="Name another one"):
        record_text.retokenize(record, BYTES, WORDS)


def test_training_is_served_in_its_own_tokens(tmp_path):
    records.write_shard(tmp_path / "a.arrayrecord", RECORDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(records.read_for_training(tmp_path)) == RECORDS
        assert list(records.read_for_training(tmp_path, WORDS)) == RECORDS
        served = list(records.read_for_training(tmp_path, BYTES))
    assert [texts(game, BYTES) for game in served] == [texts(game, WORDS) for game in RECORDS]
    with pytest.warns(UserWarning, match=r"of 21 positions, .* candidates .*left out"):
        served = list(records.read_for_training(tmp_path, Pieces(pieces=("6\n5", "+ 4"))))
    assert len(served) == len(RECORDS)


def test_another_model_learns_the_same_texts(tmp_path):
    records.write_shard(tmp_path / "a.arrayrecord", RECORDS)

    def rows(text, **shapes):
        config = hybrid.HybridConfig(
            records=(hybrid.RecordSource(path=str(tmp_path)),), text_batch=0, label_once=False,
            value_from="outcome", **shapes,
        )  # fmt: skip
        corpus = hybrid.load(config, [], text, sequence_length_tokens=32)
        policy, value = corpus.policy.arrays, corpus.value.arrays
        said = [
            (
                text.decode(policy["tokens"][row, : policy["lengths"][row]].tolist()),
                [text.decode(run.tolist()) for run in policy["candidates"][row]],
                policy["weights"][row].tolist(),
            )
            for row in range(len(policy["tokens"]))
        ]
        known = {
            (text.decode(value["tokens"][row, : end + 1].tolist()), value["value_target"][row, end])
            for row, end in zip(*value["value_mask"].nonzero())
        }
        return said, known

    words = rows(WORDS)
    assert len(words[0]) == sum(len(record.positions) for record in RECORDS)
    assert rows(BYTES, prefix_tokens=99, candidate_tokens=40, path_tokens=99) == words
