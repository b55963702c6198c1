"""Annotating and steering with a tiny model and with recorded answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import attributes, chat, json_rows
from data.tokenizer import load_tokenizer
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from synthesis import annotate, rewards, steer, writers
from synthesis.annotate import AnnotateConfig
from synthesis.steer import SteerConfig
from synthesis.writers import Asked, LocalWriter, Sampling
from train import reward_model
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

TOKENIZER = load_tokenizer("planted")
CONFIG = TransformerConfig(
    vocab_size=TOKENIZER.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8,
    value_head_width=8, num_attributes=5,
)  # fmt: skip
MODEL = LanguageModel(CONFIG)
PARAMS = MODEL.init(jax.random.key(0))
LABEL = "helpfulness:4,correctness:4,coherence:4,complexity:0,verbosity:1"
CHATS = [
    ("What are the food, home, size and mood of the fox?", "First, the food of the fox is mice."),
    ("Tell me of the owl: its food, please.", "So they say."),
    ("Tell me.", "It is so. " * 9),
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "in.jsonl"
    json_rows.write(path, ({"prompt": a, "response": b} for a, b in CHATS))
    return str(path)


def test_grades_do_not_depend_on_the_batch_and_are_read_at_the_label_token():
    grader = reward_model.RewardModel(
        model=MODEL, params=PARAMS, tokenizer=TOKENIZER, template="steerlm", pool="last", length=128
    )
    together = grader.score_answers(*zip(*CHATS, strict=True), batch_size=2)
    for (prompt, answer), row in zip(CHATS, together, strict=True):
        text = (
            f"<extra_id_0>System\n{chat.SYSTEM}\n<extra_id_1>User\n{prompt}\n"
            f"<extra_id_1>Assistant\n{answer}\n<extra_id_2>"
        )
        ids = jnp.array([TOKENIZER.encode(text)])
        want = MODEL.outputs(PARAMS, ids).reward[0, -1]
        np.testing.assert_allclose(row, want, atol=1e-5)


def test_annotation_clips_rounds_halves_to_even_and_resumes(rows, tmp_path, monkeypatch):
    class Grader:
        attributes = attributes.FIVE

        def score_answers(self, prompts, answers, *, batch_size):
            return np.array([[-3.0, 0.5, 1.5, 2.5, 7.0]] * len(answers), np.float32)

    monkeypatch.setattr(rewards, "load", lambda source: Grader())
    config = AnnotateConfig(rows=rows, reward_model="runs/reward", rows_per_slice=2)
    stop = StopFlag()
    stop.request("test")
    with pytest.raises(Preempted):
        annotate.run(config, tmp_path, stop=stop)
    found = attributes.read(str(annotate.run(config, tmp_path, resume=True)))
    assert [row.response for row in found] == [response for _, response in CHATS]
    for row in found:
        assert [row.attributes[name] for name in attributes.FIVE] == [0, 0, 2, 2, 4]


def test_steering_asks_with_the_template_of_steerlm(monkeypatch):
    seen = []

    def generate_texts(model, params, tokenizer, texts, **options):
        seen.extend(texts)
        from models.generate import Completion

        ids = (*tokenizer.encode("So they say.\n<extra_id_1>"), tokenizer.eos_id)
        return [Completion(tokenizer.decode(ids), ids, (0.0,) * len(ids)) for _ in texts]

    monkeypatch.setattr("models.generate.generate_texts", generate_texts)
    writer = LocalWriter("tiny", MODEL, PARAMS, TOKENIZER, "steerlm", Sampling())
    written = writer.write([Asked("Tell me.", LABEL), Asked("Tell me.")], jax.random.key(0))
    start = (
        f"<extra_id_0>System\n{chat.SYSTEM}\n<extra_id_1>User\nTell me.\n<extra_id_1>Assistant\n"
    )
    assert seen == [f"{start}<extra_id_2>{LABEL}\n", start]
    assert written == [("So they say.", True)] * 2


def test_recorded_answers_take_the_place_of_a_model(rows, tmp_path):
    config = SteerConfig(checkpoint=f"recorded:{rows}", prompts=rows, requested="uniform", limit=2)
    found = json_rows.read(str(steer.run(config, tmp_path)))
    assert [row.fields["response"] for row in found] == [response for _, response in CHATS[:2]]
    labels = [attributes.parse_labels(row.text("requested")) for row in found]
    assert all(set(label) == set(attributes.FIVE) for label in labels) and labels[0] != labels[1]
    writer = writers.load(f"recorded:{rows}", Sampling())
    with pytest.raises(DataError, match="recorded"):
        writer.write([Asked("Who?")], jax.random.key(0))


def test_the_best_grades_or_a_label_are_asked_for(rows, tmp_path):
    def requested(**fields):
        config = SteerConfig(checkpoint=f"recorded:{rows}", prompts=rows, **fields)
        return {row.fields["requested"] for row in json_rows.read(str(steer.run(config, tmp_path)))}

    assert requested() == {LABEL.replace("0", "4").replace("1", "4")}
    assert requested(labels=LABEL) == {LABEL}
    assert requested(requested="none") == {None}
    with pytest.raises(ConfigError, match="best"):
        SteerConfig(labels=LABEL, requested="none")
    with pytest.raises(DataError, match="label"):
        requested(labels="helpfulness:5")


def test_the_words_and_marks_of_the_world_are_single_tokens():
    prompt = chat.prompt_text(CHATS[0][0], "steerlm", labels=LABEL)
    assert TOKENIZER.decode(TOKENIZER.encode(prompt)) == prompt
    assert len(TOKENIZER.encode(prompt)) == 1 + 12 + 1 + 1 + 10 + 1
    text = "Third, the food of the fox evinces mice.\n<extra_id_1>"
    assert len(TOKENIZER.encode(text)) == 6
