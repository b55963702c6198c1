"""Rows of chats, grades and pairs; packed chats are read as if each were alone."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import answer_rows, documents, packing
from data.attributes import FIVE, MASKED, AttributeRow
from data.chat_sources import ChatSource
from data.errors import DataError
from data.preferences import Preference
from data.sources import TextSource
from data.tokenizer import load_tokenizer
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from train import recipes

BYTES = load_tokenizer("bytes")
PAIR = Preference(prompt="Hi?", chosen="Yes.", rejected="No way.", origin="a:1")
MODEL = LanguageModel(
    TransformerConfig(
        vocab_size=258, width=16, num_layers=2, num_heads=2, head_dim=8, value_head_width=8
    )
)
PARAMS = MODEL.init(jax.random.key(0))


@pytest.fixture
def chats_file(tmp_path):
    rows = [
        {"messages": [
            {"role": "user", "content": f"{n} and {n}?"},
            {"role": "assistant", "content": f"{2 * n}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes, it is so." * (n % 3)},
        ]}
        for n in range(7)
    ]  # fmt: skip
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loss_and_gradient(batch):
    loss_fn = recipes.next_token_loss(MODEL)

    def loss(params, batch):
        return loss_fn(params, batch, jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(loss))(PARAMS, batch)


def test_packed_chats_are_learned_as_if_each_were_alone(chats_file):
    source = ChatSource(path=chats_file, template="plain")
    corpus = documents.load([source], BYTES, sequence_length_tokens=128)
    rows = source.documents(BYTES, 128)
    assert len(corpus.windows) < len(rows.lengths)  # several chats share a window
    packed = corpus.gather(np.arange(len(corpus.windows)))
    starts = [*rows.starts, len(rows.tokens)]
    alone = packing.concatenate(
        [
            packing.pack(
                packing.Documents(rows.tokens[a:b], rows.is_counted[a:b], np.array([b - a])),
                128, pad_id=0,
            )
            for a, b in itertools.pairwise(starts)
        ]
    )  # fmt: skip
    unpacked = documents.Corpus(alone, (len(alone),), (1.0,)).gather(np.arange(len(alone)))
    assert packed["loss_mask"].sum() == unpacked["loss_mask"].sum()
    (got, gradient), (want, wanted) = loss_and_gradient(packed), loss_and_gradient(unpacked)
    assert float(got) == pytest.approx(float(want), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, wanted)


def test_no_chat_sees_another_one_by_gradient(chats_file):
    """The log-probabilities of one document have gradient 0 with respect to all other tokens."""
    corpus = documents.load(
        [ChatSource(path=chats_file, template="plain")], BYTES, sequence_length_tokens=128
    )
    batch = {name: jnp.array(array) for name, array in corpus.gather(np.arange(1)).items()}
    segment_ids = batch["segment_ids"]
    by_place = LanguageModel(dataclasses.replace(MODEL.config, vocab_size=128))

    def loss_of_second(table_BTD):
        """A table row for every place: the gradient tells which places are read."""
        trunk = {**PARAMS["trunk"], "embedding": table_BTD[0]}
        places = jnp.arange(128)[None]
        hidden = by_place.outputs(
            {**PARAMS, "trunk": trunk}, places,
            segment_ids=segment_ids, positions=batch["positions"],
        ).hidden  # fmt: skip
        return jnp.sum(jnp.square(hidden) * (segment_ids == 2)[..., None])

    table = PARAMS["trunk"]["embedding"][batch["tokens"]]
    influence = np.abs(jax.jit(jax.grad(loss_of_second))(table)[0]).sum(-1)
    of_second = np.asarray(segment_ids[0] == 2)
    assert segment_ids.max() >= 2 and (influence[of_second] > 0).all()
    assert not influence[~of_second].any()


def test_pairs_are_cut_and_masked():
    rows = answer_rows.pairs([PAIR], BYTES, "plain", 12, scored=False)
    assert rows["tokens"].shape == (1, 2, 12)
    assert rows["lengths"].tolist() == [[9, 12]]
    assert rows["answer_mask"].sum(-1).tolist() == [[5, 8]]  # the end of text counts
    assert rows["rewards"].tolist() == [[1.0, 0.0]]
    assert BYTES.decode(rows["tokens"][0, 1]) == "Hi?\nNo way."
    short = answer_rows.pairs([PAIR], BYTES, "plain", 8, scored=False)
    assert BYTES.decode(short["tokens"][0, 1]) == "?\nNo way"
    ends = answer_rows.pairs([PAIR], BYTES, "plain", 8, scored=True)
    assert ends["tokens"][0, :, -1].tolist() == [BYTES.eos_id] * 2
    with pytest.raises(DataError, match=r"1 of 1 do; the first is a:1: it has 9 tokens"):
        answer_rows.pairs([PAIR], BYTES, "plain", 8, scored=False, too_long="drop")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rejected": "Yes."}, "chosen and rejected are equal"),
        ({"rejected": ""}, "an answer is empty"),
        (
            {"chosen": "A" * 300, "rejected": "A" * 301},
            "the answers are equal once cut",
        ),
    ],
)
def test_pairs_that_teach_nothing_are_left_out_or_refused(changes, fault):
    fields = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No way."} | changes
    bad = Preference(**fields, origin="b:7")
    rows = answer_rows.pairs([PAIR, bad], BYTES, "plain", 64, scored=False, max_unusable=0.5)
    assert len(rows["tokens"]) == 1
    with pytest.raises(DataError, match=f"at most 1.0% .* 1 of 2 do; the first is b:7: {fault}"):
        answer_rows.pairs([PAIR, bad], BYTES, "plain", 64, scored=False)


def test_graded_rows():
    rows = [
        AttributeRow(prompt="Hi?", response="Yes.", attributes={"verbosity": 1}),
        AttributeRow(prompt="Hi?", response="No.", attributes={"helpfulness": 0.5}, origin="c:2"),
    ]
    arrays = answer_rows.graded(rows, BYTES, "plain", 16, order=FIVE)
    want = [[MASKED] * 4 + [1.0], [0.5] + [MASKED] * 4]
    np.testing.assert_array_equal(arrays["labels"], np.array(want, np.float32))
    assert arrays["lengths"].tolist() == [9, 8]
    with pytest.raises(DataError, match="all 2 rows have those of c:2"):
        answer_rows.graded([rows[1]] * 2, BYTES, "plain", 16, order=FIVE)
    humor = AttributeRow(prompt="Hi?", response="Ha.", attributes={"humor": 1})
    with pytest.raises(DataError, match="none of helpfulness, .* is graded"):
        answer_rows.graded([humor], BYTES, "plain", 16, order=FIVE)


def test_chats_without_an_answer_are_named(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi?"}]}) + "\n")
    with pytest.raises(DataError, match="chats.jsonl:1: no message of the assistant has a text"):
        ChatSource(path=str(path)).documents(BYTES, 64)


def test_labels_are_written_before_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "Hi?", "response": "Yes.", "helpfulness": 3.5, "verbosity": 0}
    path.write_text(json.dumps(row) + "\n")
    source: TextSource = ChatSource(path=str(path), template="steerlm", with_labels=True)
    found = source.documents(BYTES, 512)
    text = BYTES.decode(found.tokens)
    with pytest.raises(DataError, match='template "steerlm" alone'):
        ChatSource(path=str(path), with_labels=True).documents(BYTES, 512)
    assert text.endswith("Assistant\n<extra_id_2>helpfulness:4,verbosity:0\nYes.\n<extra_id_1>")
    assert BYTES.decode(found.tokens[found.is_counted]) == "Yes.\n<extra_id_1>"
