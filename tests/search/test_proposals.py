"""Candidates: the k likeliest, or a sample without replacement, of all continuations."""

import functools
import itertools

import jax
import numpy as np
import pytest

from models import language_model, transformer
from search import proposals
from tests import reading

VOCAB, LENGTH, STOP = 4, 3, 1
CONFIG = transformer.TransformerConfig(
    vocab_size=VOCAB, width=16, num_layers=1, num_heads=2, head_dim=8
)
MODEL = language_model.LanguageModel(CONFIG)
PARAMS = jax.tree.map(lambda x: 2 * x, jax.jit(MODEL.init)(jax.random.key(0)))  # far from uniform
PROMPTS = np.array([[2, 3, 0], [3, 2, 2]], np.int32)
PROMPT_LENGTHS = np.array([2, 3], np.int32)


def continuations():
    """Every continuation of up to LENGTH tokens that ends at STOP or is LENGTH long."""
    for tokens in itertools.product(range(VOCAB), repeat=LENGTH):
        n = tokens.index(STOP) + 1 if STOP in tokens else LENGTH
        if all(t == 0 for t in tokens[n:]):
            yield tokens[:n]


@functools.cache
def exact_log_probs(row, forbidden=()):
    prompt = PROMPTS[row, : PROMPT_LENGTHS[row]].tolist()
    table = {}
    for tokens in continuations():
        if set(tokens) & set(forbidden):
            continue
        logits = reading.read(MODEL, PARAMS, prompt + list(tokens))[0].copy()
        logits[:, list(forbidden)] = -np.inf
        log_p = reading.log_softmax(logits)
        steps = range(len(tokens))
        table[tokens] = float(sum(log_p[len(prompt) - 1 + i, tokens[i]] for i in steps))
    return table


@functools.partial(jax.jit, static_argnames=("k", "forbidden"))
def candidates_of(tokens, lengths, rng_key, *, k, forbidden):
    out, cache = MODEL.prefill(PARAMS, tokens, lengths=lengths, capacity=3)
    return proposals.propose(
        MODEL,
        PARAMS,
        cache,
        out.at(lengths - 1).logits,
        num_candidates=k,
        num_tokens=LENGTH,
        stop_tokens=(STOP,),
        forbidden_tokens=forbidden,
        rng_key=rng_key,
    )


def propose(repeats=1, rng_key=None, k=7, forbidden=()):
    tokens, lengths = (np.repeat(x, repeats, axis=0) for x in (PROMPTS, PROMPT_LENGTHS))
    found, tokens_read = candidates_of(tokens, lengths, rng_key, k=k, forbidden=forbidden)
    propose.tokens_read = tokens_read.tolist()
    return found


def as_tuples(candidates, row):
    rows = zip(candidates.tokens[row], candidates.lengths[row], strict=True)
    return [tuple(np.asarray(tokens)[: int(n)].tolist()) for tokens, n in rows]


def test_without_noise_they_are_likely_ones_with_exact_probabilities():
    """A beam as wide as the tree is exact: k = all prefixes of length 2 and more."""
    k = 16
    found = propose(k=k)
    for row in range(2):
        want = exact_log_probs(row)
        names = as_tuples(found, row)
        assert len(set(names)) == k
        best = sorted(want, key=want.get, reverse=True)[:k]
        assert set(names) == set(best)
        np.testing.assert_allclose(found.log_probs[row], [want[n] for n in names], atol=1e-5)
        assert np.all(np.diff(found.log_probs[row]) <= 1e-6)
    np.testing.assert_array_equal(found.gumbel, 0.0)


@pytest.mark.parametrize("rng_key", [None, jax.random.key(5)], ids=["likeliest", "sampled"])
def test_forbidden_tokens_are_in_no_candidate_and_have_no_probability(rng_key):
    """The others share their probability. With 0 and 3 forbidden there are four continuations,
    "1", "21", "221" and "222", fewer than candidates; what is missing is absent."""
    found = propose(k=7, forbidden=(0, 3), rng_key=rng_key)
    for row in range(2):
        want = exact_log_probs(row, forbidden=(0, 3))
        there = np.flatnonzero(found.is_present[row])
        names = [as_tuples(found, row)[i] for i in there]
        assert sorted(names) == [(1,), (2, 1), (2, 2, 1), (2, 2, 2)]
        np.testing.assert_allclose(found.log_probs[row, there], [want[n] for n in names], atol=1e-5)
        np.testing.assert_allclose(np.exp(found.log_probs[row]).sum(), 1, atol=1e-5)
    assert np.all(np.isfinite(found.gumbel))
    assert propose.tokens_read == [2, 2]  # "2" and "22" were read; nothing that stopped


def test_a_lane_is_read_until_it_stops():
    """With k lanes and every beam kept, all k - 1 that go on are read, and their children."""
    propose(k=VOCAB)
    most = VOCAB - 1 + VOCAB
    assert all(VOCAB - 1 <= read <= most for read in propose.tokens_read)
    found = propose(k=2, forbidden=(0, 2, 3))  # nothing but a stop
    assert propose.tokens_read == [0, 0]
    np.testing.assert_array_equal(found.is_present, [[True, False]] * 2)


def test_unlikely_candidates_are_left_out_but_never_all():
    found = propose(k=16)
    cut = found.without_unlikely(0.05)
    np.testing.assert_array_equal(cut.is_present, np.exp(found.log_probs) >= 0.05)
    assert 1 < int(cut.is_present.sum()) < cut.is_present.size
    kept = np.asarray(cut.is_present)
    np.testing.assert_array_equal(cut.log_probs[kept], found.log_probs[kept])
    np.testing.assert_array_equal(found.without_unlikely(1.0).is_present.sum(axis=1), [1, 1])
    np.testing.assert_array_equal(found.without_unlikely(0.0).is_present, True)


def test_with_noise_they_are_a_sample_without_replacement():
    """Inclusion frequencies over 4,000 draws equal those of Gumbel-top-k over all continuations,
    the first is a sample of the model, and the reported noise has the mean of those that win."""
    draws, k = 4000, 3
    found = jax.device_get(propose(repeats=draws, rng_key=jax.random.key(1), k=k))
    rng = np.random.default_rng(0)
    for row in range(2):
        want = exact_log_probs(row)
        names = list(want)
        log_p = np.array([want[n] for n in names])
        noise = rng.gumbel(size=(200_000, len(names)))
        order = np.argsort(-(noise + log_p), axis=1)[:, :k]
        included = np.bincount(order.ravel(), minlength=len(names)) / len(noise)
        winners_noise = np.take_along_axis(noise, order, 1).mean(0)
        first, counts = np.zeros(len(names)), np.zeros(len(names))
        number = {name: i for i, name in enumerate(names)}
        rows = range(row * draws, (row + 1) * draws)
        for r in rows:
            numbers = [number[name] for name in as_tuples(found, r)]
            assert len(set(numbers)) == k
            first[numbers[0]] += 1
            counts[numbers] += 1
        deviation = np.sqrt(0.25 / draws)
        np.testing.assert_allclose(first / draws, np.exp(log_p), atol=4 * deviation)
        np.testing.assert_allclose(counts / draws, included, atol=4 * deviation)
        got_noise = found.gumbel[list(rows)].mean(0)
        np.testing.assert_allclose(got_noise, winners_noise, atol=0.1)
        scores = found.gumbel + found.log_probs
        assert np.all(np.diff(scores[list(rows)], axis=1) <= 1e-4)
