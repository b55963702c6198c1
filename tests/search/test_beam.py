"""Beam search against a plain one over whole texts, and against greedy decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention, generate, language_model, transformer
from search import beam, token_model
from search.token_model import ActionConfig

EOS, NEWLINE, VOCAB = 1, 2, 7
SOFTMAX = transformer.TransformerConfig(
    vocab_size=VOCAB, width=16, num_layers=2, num_heads=2, head_dim=8
)
TAYLOR = dataclasses.replace(SOFTMAX, attention=attention.AttentionConfig(kind="taylor"))
PROMPTS = np.array([[3, 4, 0], [5, 6, 3], [4, 0, 0], [6, 6, 0]], np.int32)
LENGTHS = np.array([2, 3, 1, 2], np.int32)
WIDTHS = np.array([1, 2, 3, 4], np.int32)
PADDED = 16  # tokens, of every text that the plain search reads


def made(config, action):
    model = language_model.LanguageModel(config)
    params = jax.jit(model.init)(jax.random.key(6))
    # Sure of its tokens, so that it writes various texts, and not of its values.
    params["trunk"] = jax.tree.map(lambda x: 2 * x, params["trunk"])
    return token_model.TokenModel(model, action, EOS, NEWLINE), params


def padded(text):
    return np.array([text + [0] * (PADDED - len(text))], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, tokens):
    return model.outputs(params, tokens)


@functools.partial(jax.jit, static_argnums=0)
def candidates_of(dynamics, params, tokens, lengths):
    root = dynamics.start(params, tokens, lengths, jnp.zeros_like(lengths))
    return dynamics.propose(params, root)


@dataclasses.dataclass(frozen=True)
class Text:
    tokens: list[int]
    value: float
    ended: bool = False
    finished: bool = False

    @property
    def worth(self):
        return 0.0 if self.finished and not self.ended else self.value


def plain_search(dynamics, params, prompt, width, max_moves):
    """The same rules with one list of texts, each of which is read anew for every question."""
    c = dynamics.config

    def ask(text):
        out = jax.device_get(read(dynamics.model, params, padded(text)))
        return out.logits[0, len(text) - 1], float(out.value[0, len(text) - 1])

    stops = (EOS, NEWLINE) if c.kind == "step" else (EOS,)
    cost = len(prompt)
    kept = [Text(prompt, ask(prompt)[1])]
    for _ in range(max_moves):
        if all(text.finished for text in kept):
            break
        pool = []
        for text in kept:
            if text.finished:
                pool.append((text.ended + text.worth, text))
                continue
            length = np.array([len(text.tokens)], np.int32)
            state = jax.device_get(candidates_of(dynamics, params, padded(text.tokens), length))
            cost += int(state.evaluations[0]) - len(text.tokens)
            for n in np.flatnonzero(state.candidates.log_probs[0] > -np.inf).tolist():
                room = c.max_completion_tokens - (len(text.tokens) - len(prompt))
                opening = state.candidates.tokens[0, n, : state.candidates.lengths[0, n]]
                new = opening.tolist()[:room]
                while c.kind == "step" and new[-1] not in stops:
                    if len(new) == min(c.max_step_tokens, room):
                        break
                    new.append(int(np.argmax(ask(text.tokens + new)[0])))
                cost += len(new)
                whole = text.tokens + new
                failed = len(new) == room or (c.kind == "step" and new[-1] not in stops)
                ended = new[-1] == EOS
                child = Text(whole, ask(whole)[1], ended=ended, finished=ended or failed)
                pool.append((child.worth, child))
        pool.sort(key=lambda scored: -scored[0])
        kept = [text for _, text in pool[:width]]
    return sorted(kept, key=lambda text: -text.ended - text.worth), cost


ACTIONS = {
    "tokens": ActionConfig(kind="token", num_candidates=3, max_completion_tokens=5),
    "lines": ActionConfig(
        num_candidates=3, opening_tokens=2, max_step_tokens=4, max_completion_tokens=9
    ),
    "likely lines": ActionConfig(
        num_candidates=4,
        opening_tokens=1,
        max_step_tokens=4,
        max_completion_tokens=9,
        min_probability=0.15,
    ),
}


@pytest.mark.parametrize(
    ("config", "kind"),
    [(SOFTMAX, "tokens"), (SOFTMAX, "lines"), (SOFTMAX, "likely lines"), (TAYLOR, "lines")],
    ids=lambda value: value if isinstance(value, str) else value.attention.kind,
)
def test_a_beam_is_that_of_a_plain_search(config, kind):
    """Texts, values, order and forward passes, of rows of different widths in one program."""
    dynamics, params = made(config, ACTIONS[kind])
    found = jax.device_get(
        beam.search(dynamics, params, PROMPTS, LENGTHS, WIDTHS, capacity=4, max_moves=4)
    )
    num_ended = num_places = 0
    for row, width in enumerate(WIDTHS.tolist()):
        prompt = PROMPTS[row, : LENGTHS[row]].tolist()
        want, cost = plain_search(dynamics, params, prompt, width, max_moves=4)
        size = len(want)
        texts = [
            prompt + found.tokens[row, n, : found.lengths[row, n]].tolist() for n in range(size)
        ]
        assert texts == [text.tokens for text in want]
        assert found.ended[row, :size].tolist() == [text.ended for text in want]
        values = [text.worth for text in want]
        np.testing.assert_allclose(found.value[row, :size], values, atol=1e-5)
        assert np.all(found.value[row, size:] == -np.inf)
        assert int(found.evaluations[row]) == cost
        num_ended += sum(text.ended for text in want)
        num_places += size
    assert 0 < num_ended < num_places  # both kinds were there to be compared


@pytest.mark.parametrize("kind", ["token", "step"])
def test_a_beam_of_one_text_and_one_candidate_is_greedy(kind):
    """Only the likeliest of the candidates is more likely than min_probability."""
    longest = 10
    action = ActionConfig(
        kind=kind,
        num_candidates=2,
        opening_tokens=1,
        min_probability=0.999999,
        max_step_tokens=longest,
        max_completion_tokens=longest,
    )
    dynamics, params = made(SOFTMAX, action)
    prompts = np.random.default_rng(0).integers(3, VOCAB, (12, 3)).astype(np.int32)
    lengths = np.full(12, 3, np.int32)
    greedy = generate.generate(
        dynamics.model,
        params,
        jnp.asarray(prompts),
        jnp.asarray(lengths),
        max_new_tokens=longest,
        rng_key=jax.random.key(0),
        temperature=0.0,
        stop_tokens=(EOS,),
    )
    search = functools.partial(beam.search, dynamics, params, prompts, lengths)
    found = search(np.ones(12, np.int32), capacity=1, max_moves=longest)
    np.testing.assert_array_equal(found.lengths[:, 0], greedy.lengths)
    np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(found.evaluations, lengths + greedy.lengths)
    ended = np.asarray(found.ended[:, 0])
    assert ended.any() and not ended.all()
