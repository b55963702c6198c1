"""Sampling: exactly the distribution it names, whatever shares the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tokenizer import load_tokenizer
from models import generate
from tests import reading

TOKENS = jax.random.randint(jax.random.key(1), (3, 8), 0, 23)
LENGTHS = jnp.asarray([3, 8, 5])
KEY = jax.random.key(7)


def numpy_distribution(logits, temperature, top_k, top_p, min_p=None):
    """The probabilities to draw with, by sorting and looping."""
    logits = np.asarray(logits, np.float64) / temperature
    order = sorted(range(logits.size), key=lambda v: (-logits[v], v))
    order = order[:top_k] if top_k else order
    weights = np.exp(logits[order] - logits.max())
    weights /= weights.sum()
    kept, mass = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if min_p and weight < min_p * weights[0]:
            break
        kept.append(token)
        mass += weight
        if top_p and mass >= top_p:
            break
    probabilities = np.zeros(logits.size)
    probabilities[kept] = np.exp(logits[kept] - logits.max())
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, None, None, None),
        (0.5, None, None, None),
        (1.0, 3, None, None),
        (1.0, None, 0.6, None),
        (1.7, 6, 0.7, None),
        (0.7, None, None, 0.1),
    ],
)
def test_draws_follow_the_distribution(temperature, top_k, top_p, min_p):
    logits = 1.5 * jax.random.normal(jax.random.key(3), (12,))
    draw = jax.jit(
        jax.vmap(
            lambda key: generate.sample_token(
                key, logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
            )
        )
    )
    num_draws = 20_000
    counts = np.bincount(draw(jax.random.split(KEY, num_draws)), minlength=12)
    want = numpy_distribution(logits, temperature, top_k, top_p, min_p)
    assert not counts[want == 0].any()
    expected = num_draws * want[want > 0]
    chi_square = np.sum((counts[want > 0] - expected) ** 2 / expected)
    freedom = max(1, expected.size - 1)
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)  # five standard deviations


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, None, None), (4, None, None), (23, None, None), (None, 0.01, None), (None, 0.9, None),
        (5, 0.5, None), (None, None, 0.1), (4, None, 0.2), (None, None, 1.0),
    ],
)  # fmt: skip
def test_kept_tokens_are_exactly_those_of_the_definition(seed, top_k, top_p, min_p):
    # Whole numbers: many ties, which go to the smaller id.
    logits = jax.random.randint(jax.random.key(seed), (23,), -2, 3).astype(jnp.float32)
    kept = np.isfinite(generate.filter_logits(logits, top_k=top_k, top_p=top_p, min_p=min_p))
    want = numpy_distribution(logits, 1.0, top_k, top_p, min_p) > 0
    np.testing.assert_array_equal(kept, want)


def test_top_p_of_one_keeps_all():
    assert np.isfinite(generate.filter_logits(jnp.zeros(7), top_p=1.0)).all()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("softmax", {"temperature": 0.0}),
        ("softmax", {"temperature": 0.8, "top_k": 9, "top_p": 0.7}),
        ("taylor", {"temperature": 0.8}),
        ("minimax", {"top_k": 4}),
    ],
    ids=str,
)
def test_cached_sampling_equals_reading_the_whole_text_again(build_model, kind, settings):
    model, params = build_model(kind)
    got = generate.generate(
        model, params, TOKENS, LENGTHS, max_new_tokens=5, rng_key=KEY, **settings
    )
    forward = jax.jit(model.forward)
    for row, length in enumerate(LENGTHS.tolist()):
        text = jnp.zeros((1, 13), jnp.int32).at[0, :length].set(TOKENS[row, :length])
        for step in range(5):
            logits = forward(params, text)[0, length + step - 1]
            key = jax.random.fold_in(jax.random.fold_in(KEY, row), step)
            token = int(generate.sample_token(key, logits, **settings))
            assert got.tokens[row, step] == token
            want = jax.nn.log_softmax(logits)[token]
            assert got.log_probs[row, step] == pytest.approx(float(want), abs=1e-5)
            text = text.at[0, length + step].set(token)
    assert got.lengths.tolist() == [5, 5, 5]


def test_a_row_does_not_depend_on_the_rest_of_the_batch(build_model):
    model, params = build_model()
    run = lambda tokens, lengths, keys: generate.generate(  # noqa: E731
        model, params, tokens, lengths, max_new_tokens=6, rng_key=keys, stop_tokens=(1, 2, 3)
    )
    keys = jax.vmap(lambda b: jax.random.fold_in(KEY, b))(jnp.arange(3))
    together = run(TOKENS, LENGTHS, KEY)
    order = jnp.asarray([2, 0, 1])
    shuffled = run(TOKENS[order], LENGTHS[order], keys[order])
    np.testing.assert_array_equal(shuffled.tokens, together.tokens[order])
    wider = jnp.pad(TOKENS[2:], ((0, 0), (0, 8)), constant_values=9)
    alone = run(wider, LENGTHS[2:], keys[2:])
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[2])
    np.testing.assert_allclose(alone.log_probs[0], together.log_probs[2], atol=1e-5)
    assert len({tuple(row) for row in np.asarray(together.tokens).tolist()}) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_forbidden_token_is_never_drawn_and_the_others_share_its_probability(
    build_model, temperature
):
    model, params = build_model()
    settings = {"max_new_tokens": 6, "rng_key": KEY, "temperature": temperature}
    free = generate.generate(model, params, TOKENS, LENGTHS, **settings)
    forbidden = tuple(sorted({*np.asarray(free.tokens[:, 0]).tolist(), 0}))
    got = generate.generate(model, params, TOKENS, LENGTHS, forbidden_tokens=forbidden, **settings)
    assert not np.isin(got.tokens, forbidden).any()
    for row, length in enumerate(LENGTHS.tolist()):
        logits = reading.read(model, params, TOKENS[row, :length])[0][-1]
        log_p = reading.log_softmax(np.delete(logits, forbidden))
        others = np.delete(np.arange(23), forbidden).tolist()
        want = log_p[others.index(int(got.tokens[row, 0]))]
        assert got.log_probs[row, 0] == pytest.approx(float(want), abs=1e-5)


def test_texts_hold_no_special_tokens_and_no_ids_that_the_tokenizer_lacks(build_model):
    tokenizer = load_tokenizer("game24")
    model, params = build_model(vocab_size=tokenizer.vocab_size + 40)
    # A model that would say nothing but padding and ids beyond the vocabulary.
    favourites = jnp.array([0, *range(tokenizer.vocab_size, tokenizer.vocab_size + 40)])
    params = jax.tree.map(lambda x: x, params)
    params["trunk"]["embedding"] = jnp.full_like(params["trunk"]["embedding"], 0.1)
    params["trunk"]["embedding"] = params["trunk"]["embedding"].at[favourites].set(5.0)
    for temperature in (0.0, 1.0):
        (completion,) = generate.generate_texts(
            model, params, tokenizer, ["4 5"], max_new_tokens=8, rng_key=KEY,
            temperature=temperature, stop_tokens=(),
        )  # fmt: skip
        assert all(0 < token < tokenizer.vocab_size for token in completion.tokens)


def test_stop_tokens_end_a_row_and_are_kept(build_model):
    model, params = build_model()
    settings = {"max_new_tokens": 8, "rng_key": KEY}
    free = generate.generate(model, params, TOKENS, LENGTHS, **settings)
    stops = (int(free.tokens[0, 2]), int(free.tokens[1, 5]))
    got = generate.generate(model, params, TOKENS, LENGTHS, stop_tokens=stops, **settings)
    for row in range(3):
        said = free.tokens[row].tolist()
        end = next((i + 1 for i, token in enumerate(said) if token in stops), 8)
        assert got.lengths[row] == end
        assert got.tokens[row].tolist() == said[:end] + [0] * (8 - end)
        np.testing.assert_array_equal(got.log_probs[row, end:], 0)
        np.testing.assert_allclose(got.log_probs[row, :end], free.log_probs[row, :end], atol=1e-6)
    assert int(got.lengths[0]) < 8


def test_it_ends_when_every_row_has_stopped(build_model):
    model, params = build_model()
    calls = []

    class Counting(type(model)):
        def decode(self, params, cache, token):
            jax.debug.callback(lambda: calls.append(1))
            return super().decode(params, cache, token)

    counting = Counting(model.config)
    every_token = tuple(range(23))
    got = generate.generate(
        counting, params, TOKENS, LENGTHS, max_new_tokens=5, rng_key=KEY, stop_tokens=every_token
    )
    jax.effects_barrier()
    assert got.lengths.tolist() == [1, 1, 1]
    assert not calls
    generate.generate(counting, params, TOKENS, LENGTHS, max_new_tokens=5, rng_key=KEY)
    jax.effects_barrier()
    assert len(calls) == 4  # the first token comes from the prefill


def test_texts_keep_their_order_and_samples_however_they_are_batched(build_model):
    tokenizer = load_tokenizer("game24")
    model, params = build_model(vocab_size=tokenizer.vocab_size)
    texts = ["4 5 6 10\n", "1 2", "3 4 6 12\n12 / 4 = 3 left 3 6 12\n", "1 2", "7"]
    batches = [
        generate.generate_texts(
            model, params, tokenizer, texts, max_new_tokens=4, rng_key=KEY, batch_size=size
        )
        for size in (2, 8)
    ]
    for one, other in zip(*batches, strict=True):
        assert one.tokens == other.tokens
        assert one.text == tokenizer.decode(list(one.tokens))
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
    assert batches[0][1].tokens != batches[0][3].tokens  # equal texts, other draws


def test_texts_stop_at_the_end_of_text_token(build_model):
    tokenizer = load_tokenizer("game24")
    model, params = build_model(vocab_size=tokenizer.vocab_size)
    # A model that says nothing but the end-of-text token.
    ended = jax.tree.map(jnp.zeros_like, params)
    ended["trunk"]["embedding"] = jnp.zeros_like(params["trunk"]["embedding"]).at[1].set(1.0)
    ended["trunk"]["embedding"] += 0.1
    ended["trunk"]["final_norm"]["scale"] = jnp.full((16,), 5.0)
    (completion,) = generate.generate_texts(
        model, ended, tokenizer, ["4 5"], max_new_tokens=4, rng_key=KEY, temperature=0.0
    )
    assert completion.tokens == (tokenizer.eos_id,)
    assert completion.text == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 24}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 0.0}, "min_p"),
        ({"stop_tokens": (23,)}, "stop_tokens"),
        ({"forbidden_tokens": (-1,)}, "forbidden_tokens"),
        ({"forbidden_tokens": tuple(range(23))}, "must leave a token"),
    ],
)
def test_wrong_settings_are_named(build_model, settings, message):
    model, params = build_model()
    settings = {"max_new_tokens": 2} | settings
    with pytest.raises(ValueError, match=message):
        generate.generate(model, params, TOKENS, LENGTHS, rng_key=KEY, **settings)


def test_an_empty_text_is_refused(build_model):
    tokenizer = load_tokenizer("game24")
    model, params = build_model(vocab_size=tokenizer.vocab_size)
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        generate.generate_texts(
            model, params, tokenizer, ["1 2", ""], max_new_tokens=2, rng_key=KEY
        )
