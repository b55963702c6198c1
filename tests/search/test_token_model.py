"""Texts as nodes: what an action appends, when a text is finished, and what the model then says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import tokenizer
from models import attention, language_model, transformer
from search import engine, gumbel, token_model
from tests import reading
from train.errors import ConfigError

EOS, NEWLINE, VOCAB = 1, 2, 7
CONFIG = transformer.TransformerConfig(
    vocab_size=VOCAB, width=16, num_layers=2, num_heads=2, head_dim=8
)
MODEL = language_model.LanguageModel(CONFIG)
PARAMS = jax.tree.map(lambda x: 2 * x, jax.jit(MODEL.init)(jax.random.key(3)))
PROMPTS = np.array([[3, 4, 0], [5, 6, 3], [4, 0, 0]], np.int32)
LENGTHS = np.array([2, 3, 1], np.int32)


def start(action):
    dynamics = token_model.TokenModel(MODEL, action, EOS, NEWLINE)
    return dynamics, jax.jit(dynamics.start)(PARAMS, PROMPTS, LENGTHS, np.arange(3))


def compiled(dynamics):
    """`propose` and `act`: a text grows by many calls of each."""
    return jax.jit(dynamics.propose), jax.jit(dynamics.act)


def whole_text(state, row):
    return PROMPTS[row, : LENGTHS[row]].tolist() + state.tokens[row, : state.length[row]].tolist()


@pytest.mark.parametrize(
    ("kind", "opening"),
    [
        ("token", 1),
        ("step", 2),
        ("step", None),
        pytest.param("token", 2, marks=pytest.mark.soak),
        pytest.param("token", None, marks=pytest.mark.soak),
        pytest.param("step", 1, marks=pytest.mark.soak),  # quick: it is completed greedily, below
    ],
)
def test_after_every_action_the_model_has_read_just_the_text(kind, opening):
    """Logits and values in a state are those of a fresh forward pass over its text."""
    action = token_model.ActionConfig(
        kind=kind,
        num_candidates=3,
        opening_tokens=opening,
        max_step_tokens=4,
        max_completion_tokens=10,
    )
    dynamics, state = start(action)
    propose, act = compiled(dynamics)
    for move in range(4):
        before = propose(PARAMS, state, jax.random.key(move))
        after = act(PARAMS, before, np.array([0, 1, 2]))
        before, state = jax.device_get((before, after))
        for row in range(3):
            text = whole_text(state, row)
            logits, value = reading.read(MODEL, PARAMS, text)
            np.testing.assert_allclose(logits[-1], state.logits[row], atol=2e-5)
            np.testing.assert_allclose(value[-1], state.value[row], atol=1e-5)
            new = state.tokens[row, before.length[row] : state.length[row]].tolist()
            if bool(before.finished[row]):
                assert not new
                continue
            n = int(before.candidates.lengths[row, row])
            chosen = before.candidates.tokens[row, row, :n].tolist()
            assert new[: len(chosen)] == chosen[: len(new)]
            closed = new[-1] in ((EOS,) if kind == "token" else (EOS, NEWLINE))
            assert bool(state.ended[row]) == (new[-1] == EOS)
            full = int(state.length[row]) == action.max_completion_tokens
            failed = full or (kind == "step" and not closed)
            assert bool(state.finished[row]) == (bool(state.ended[row]) or failed)
            assert len(new) <= (1 if kind == "token" else 4)
            assert int(state.evaluations[row]) == len(new)


def test_a_step_is_completed_greedily():
    action = token_model.ActionConfig(
        num_candidates=3, opening_tokens=1, max_step_tokens=5, max_completion_tokens=10
    )
    dynamics, state = start(action)
    propose, act = compiled(dynamics)
    state = propose(PARAMS, state)
    after = act(PARAMS, state, np.zeros(3, np.int32))
    for row in range(3):
        text = PROMPTS[row, : LENGTHS[row]].tolist()
        text.append(int(state.candidates.tokens[row, 0, 0]))
        while text[-1] not in (EOS, NEWLINE) and len(text) < LENGTHS[row] + 5:
            text.append(int(np.argmax(reading.read(MODEL, PARAMS, text)[0][-1])))
        assert whole_text(after, row) == text


@pytest.mark.parametrize("forced_probability", [0.3, 1.0])
def test_a_forced_run_goes_on_while_the_model_is_sure(forced_probability):
    """With 1 it is a token action; a run that is cut is no failure."""
    action = token_model.ActionConfig(
        kind="forced_run",
        num_candidates=3,
        max_step_tokens=4,
        max_completion_tokens=10,
        forced_probability=forced_probability,
    )
    dynamics, state = start(action)
    propose, act = compiled(dynamics)
    lengths = []
    for _ in range(2):
        before = propose(PARAMS, state)
        state = act(PARAMS, before, jnp.array([0, 1, 2]))
        for row in range(3):
            text = whole_text(before, row)
            num_before = len(text)
            text.append(int(before.candidates.tokens[row, row, 0]))
            while text[-1] != EOS and len(text) < num_before + 4:
                probs = np.exp(reading.log_softmax(reading.read(MODEL, PARAMS, text)[0][-1]))
                if probs.max() <= forced_probability:
                    break
                text.append(int(np.argmax(probs)))
            if bool(before.finished[row]):
                text = text[:num_before]
            assert whole_text(state, row) == text
            assert bool(state.finished[row]) == (text[-1] == EOS)
            lengths.append(len(text) - num_before)
    assert max(lengths) == (1 if forced_probability == 1 else 4)


@pytest.mark.parametrize(
    ("kind", "empty_line_ends"),
    [("token", True), ("step", True), ("forced_run", True), ("forced_run", False)],
)
def test_an_empty_line_ends_a_text_if_asked_for(kind, empty_line_ends):
    """Of a forced run, sure of everything, too: it does not write beyond it."""
    action = token_model.ActionConfig(
        kind=kind,
        num_candidates=VOCAB,
        opening_tokens=1,
        forced_probability=1e-6 if kind == "forced_run" else 1.0,
        max_step_tokens=4,
        max_completion_tokens=10,
        empty_line_ends=empty_line_ends,
    )
    dynamics, state = start(action)
    propose, act = compiled(dynamics)
    only = jax.tree.map(np.zeros_like, PARAMS)  # all logits 0: greedily token 0, and any other
    written = []
    for _ in range(2):
        state = propose(only, state)
        newline = np.argmax(np.asarray(state.candidates.tokens[:, :, 0]) == NEWLINE, axis=1)
        state = act(only, state, newline)
        written.append(state.tokens[0, : int(state.length[0])].tolist())
        if kind == "forced_run" and len(written) == 1:  # a run went on after the first line end
            assert written[0] == [NEWLINE, 0, 0, 0]
            state = dataclasses.replace(state, length=jnp.ones_like(state.length))
    assert written[1][:2] == [NEWLINE, NEWLINE]
    assert bool(state.ended.all()) == empty_line_ends
    assert len(written[1]) == (2 if empty_line_ends or kind != "forced_run" else 5)


def test_an_empty_line_needs_line_ends():
    words = tokenizer.load_tokenizer("symbols-5")
    action = token_model.ActionConfig(kind="token", num_candidates=2, empty_line_ends=True)
    with pytest.raises(ConfigError, match="need a newline token; got a tokenizer of 7 tokens"):
        token_model.for_tokenizer(MODEL, action, words)


@pytest.mark.parametrize("kind", ["token", "step"])
def test_a_forbidden_token_is_never_written(kind):
    """Not as an opening, and not where the model completes a line greedily."""
    action = token_model.ActionConfig(
        kind=kind,
        num_candidates=3,
        opening_tokens=1,
        max_step_tokens=5,
        max_completion_tokens=10,
    )
    free, _ = start(action)
    favourite = 6  # of a model that would write nothing else
    params = jax.tree.map(lambda x: x, PARAMS)
    params["trunk"]["embedding"] = (
        params["trunk"]["embedding"]
        .at[favourite]
        .set(3.0 * jnp.sign(params["trunk"]["embedding"][favourite]))
    )
    written = {}
    for name, dynamics in (
        ("free", free),
        ("bound", dataclasses.replace(free, forbidden_tokens=(favourite,))),
    ):
        state = jax.jit(dynamics.start)(params, PROMPTS, LENGTHS, np.arange(3))
        propose, act = compiled(dynamics)
        for move in range(3):
            state = propose(params, state, jax.random.key(move))
            state = act(params, state, np.zeros(3, np.int32))
        state = jax.device_get(state)
        written[name] = np.concatenate(
            [state.tokens[row, : state.length[row]] for row in range(3)]
        ).tolist()
    assert favourite in written["free"]
    assert favourite not in written["bound"]


def test_a_tokenizer_decides_what_is_never_written():
    text = tokenizer.load_tokenizer("game24")
    model = language_model.LanguageModel(dataclasses.replace(CONFIG, vocab_size=112))
    dynamics = token_model.for_tokenizer(model, token_model.ActionConfig(), text)
    assert dynamics.forbidden_tokens == (text.pad_id, 109, 110, 111)
    assert (dynamics.eos_id, dynamics.newline_id) == (text.eos_id, text.newline_id)


def test_a_text_has_no_room_beyond_its_limit():
    """The last opening is cut where the text must end, and the text is a failure."""
    action = token_model.ActionConfig(kind="token", num_candidates=3, max_completion_tokens=2)
    dynamics, state = start(action)
    propose, act = compiled(dynamics)
    for move in range(4):
        state = propose(PARAMS, state, jax.random.key(move))
        state = act(PARAMS, state, np.ones(3, np.int32))
    state = jax.device_get(state)
    assert np.all(state.length <= 2) and np.all(state.finished)
    assert np.all(state.ended == (state.tokens[np.arange(3), state.length - 1] == EOS))


def test_only_texts_that_were_asked_about_are_judged():
    dynamics, state = start(token_model.ActionConfig(num_candidates=2))
    state = dataclasses.replace(state, outcome=jnp.full(3, 0.25))
    asked = jnp.array([True, False, True])

    def verify(numbers, tokens, lengths, asked):
        assert isinstance(tokens, np.ndarray) and asked.tolist() == [True, False, True]
        return numbers / 2

    judged = jax.jit(lambda s: token_model.judge(s, verify, asked=asked).outcome)(state)
    np.testing.assert_allclose(judged, [0.0, 0.25, 1.0])
    assert dynamics.stop_tokens == (EOS, NEWLINE)


def test_a_search_over_taylor_states_reads_just_the_texts():
    """The fixed-size state of a Taylor model is stored per node like any cache: after a search,
    the value of every node's text is that of a fresh forward pass."""
    config = dataclasses.replace(CONFIG, attention=attention.AttentionConfig(kind="taylor"))
    model = language_model.LanguageModel(config)
    params = jax.jit(model.init)(jax.random.key(1))
    action = token_model.ActionConfig(
        num_candidates=4, opening_tokens=1, max_step_tokens=3, max_completion_tokens=8
    )
    dynamics = token_model.TokenModel(model, action, EOS, NEWLINE)

    root = jax.jit(dynamics.start)(params, PROMPTS, LENGTHS, np.arange(3))

    @jax.jit
    def search(params, root, rng_key):
        config = gumbel.SearchConfig(action=action, max_considered_actions=3)
        return engine.search(dynamics, params, root, rng_key, num_simulations=8, config=config)

    result = jax.device_get(search(params, root, jax.random.key(0)))
    texts, checked = result.tree.embeddings, 0
    for row in range(3):
        for node in range(9):
            if texts["finished"][row, node] or not result.tree.node_visits[row, node]:
                continue
            length = int(texts["length"][row, node])
            text = PROMPTS[row, : LENGTHS[row]].tolist()
            text += texts["tokens"][row, node, :length].tolist()
            value = reading.read(model, params, text)[1][-1]
            np.testing.assert_allclose(result.tree.raw_values[row, node], value, atol=1e-5)
            checked += 1
    assert checked > 6
