"""Texts as nodes: what an action appends, when a text is finished, and what the model then says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import tokenizer
from models import attention, language_model, transformer
from search import engine, gumbel, token_model
from train.errors import ConfigError

EOS, NEWLINE, VOCAB = 1, 2, 7
CONFIG = transformer.TransformerConfig(
    vocab_size=VOCAB, width=16, num_layers=2, num_heads=2, head_dim=8
)
MODEL = language_model.LanguageModel(CONFIG)
PARAMS = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(3)))
PROMPTS = np.array([[3, 4, 0], [5, 6, 3], [4, 0, 0]], np.int32)
LENGTHS = np.array([2, 3, 1], np.int32)


def start(action):
    dynamics = token_model.TokenModel(MODEL, action, EOS, NEWLINE)
    state = dynamics.start(PARAMS, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS), jnp.arange(3))
    return dynamics, state


def whole_text(state, row):
    return PROMPTS[row, : LENGTHS[row]].tolist() + state.tokens[row, : state.length[row]].tolist()


@pytest.mark.parametrize("kind", ["token", "step"])
@pytest.mark.parametrize("opening", [1, 2, None])
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
    for move in range(4):
        state = dynamics.propose(PARAMS, state, jax.random.key(move))
        before = state
        state = dynamics.act(PARAMS, state, jnp.array([0, 1, 2]))
        for row in range(3):
            text = whole_text(state, row)
            out = MODEL.outputs(PARAMS, jnp.array([text]))
            np.testing.assert_allclose(out.logits[0, -1], state.logits[row], atol=2e-5)
            np.testing.assert_allclose(out.value[0, -1], state.value[row], atol=1e-5)
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
    state = dynamics.propose(PARAMS, state)
    after = dynamics.act(PARAMS, state, jnp.zeros(3, jnp.int32))
    for row in range(3):
        text = PROMPTS[row, : LENGTHS[row]].tolist()
        text.append(int(state.candidates.tokens[row, 0, 0]))
        while text[-1] not in (EOS, NEWLINE) and len(text) < LENGTHS[row] + 5:
            text.append(int(jnp.argmax(MODEL.forward(PARAMS, jnp.array([text]))[0, -1])))
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
    propose, act, forward = (jax.jit(f) for f in (dynamics.propose, dynamics.act, MODEL.forward))
    lengths = []
    for _ in range(2):
        before = propose(PARAMS, state)
        state = act(PARAMS, before, jnp.array([0, 1, 2]))
        for row in range(3):
            text = whole_text(before, row)
            num_before = len(text)
            text.append(int(before.candidates.tokens[row, row, 0]))
            while text[-1] != EOS and len(text) < num_before + 4:
                padded = np.pad(np.array([text]), ((0, 0), (0, 16 - len(text))))
                probs = jax.nn.softmax(forward(PARAMS, padded)[0, len(text) - 1])
                if probs.max() <= forced_probability:
                    break
                text.append(int(jnp.argmax(probs)))
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
    only = jax.tree.map(jnp.zeros_like, PARAMS)  # all logits 0: greedily token 0, and any other
    written = []
    for _ in range(2):
        state = dynamics.propose(only, state)
        newline = jnp.argmax(state.candidates.tokens[:, :, 0] == NEWLINE, axis=1)
        state = dynamics.act(only, state, newline)
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
        state = dynamics.start(params, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS), jnp.arange(3))
        for move in range(3):
            state = dynamics.propose(params, state, jax.random.key(move))
            state = dynamics.act(params, state, jnp.zeros(3, jnp.int32))
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
    for move in range(4):
        state = dynamics.propose(PARAMS, state, jax.random.key(move))
        state = dynamics.act(PARAMS, state, jnp.ones(3, jnp.int32))
    assert np.all(np.asarray(state.length) <= 2) and bool(jnp.all(state.finished))
    assert bool(jnp.all(state.ended == (state.tokens[jnp.arange(3), state.length - 1] == EOS)))


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
    params = model.init(jax.random.key(1))
    action = token_model.ActionConfig(
        num_candidates=4, opening_tokens=1, max_step_tokens=3, max_completion_tokens=8
    )
    dynamics = token_model.TokenModel(model, action, EOS, NEWLINE)
    root = dynamics.start(params, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS), jnp.arange(3))
    result = engine.search(
        dynamics,
        params,
        root,
        jax.random.key(0),
        num_simulations=8,
        config=gumbel.SearchConfig(action=action, max_considered_actions=3),
    )
    texts, checked = result.tree.embeddings, 0
    for row in range(3):
        for node in range(9):
            if texts["finished"][row, node] or not result.tree.node_visits[row, node]:
                continue
            length = int(texts["length"][row, node])
            text = PROMPTS[row, : LENGTHS[row]].tolist()
            text += texts["tokens"][row, node, :length].tolist()
            value = model.outputs(params, jnp.array([text])).value[0, -1]
            np.testing.assert_allclose(result.tree.raw_values[row, node], value, atol=1e-5)
            checked += 1
    assert checked > 6
