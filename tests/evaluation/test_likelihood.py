"""Log-likelihoods in batches that share what texts have in common, against the plain sum."""

import collections
import functools

import jax
import numpy as np
import pytest

from data import tokenizer
from evaluation import likelihood, tasks
from evaluation.likelihood import Request
from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.transformer import TransformerConfig

VOCAB = 40


@functools.cache
def build(kind):
    config = TransformerConfig(
        vocab_size=VOCAB, width=16, num_layers=2, num_heads=2, head_dim=8,
        attention=AttentionConfig(kind=kind),
    )  # fmt: skip
    model = LanguageModel(config)
    return model, jax.jit(model.init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.forward(params, tokens)


def logits_of(model, params, text):
    """What stands after a text does not change what is said of it."""
    padded = np.zeros((1, 128), np.int32)
    padded[0, : len(text)] = text
    return np.asarray(forward(model, params, padded))[0, : len(text)]


def plainly(model, params, request, longest):
    """One text at a time, as the docstrings say it."""
    context, continuation = map(list, request)
    text = (context + continuation)[-(longest + 1) :]
    logits = logits_of(model, params, text[:-1])[-len(continuation) :]
    log_probs = jax.nn.log_softmax(logits)[np.arange(len(continuation)), continuation]
    return float(log_probs.sum()), bool((logits.argmax(-1) == continuation).all())


def random_requests(rng, shared=()):
    """Questions of several choices, some after a common beginning, some of one token."""
    requests = []
    for length in (3, 9, 14, 6):
        context = (*shared, *rng.integers(0, VOCAB, length).tolist())
        requests += [
            Request(context, tuple(rng.integers(0, VOCAB, width).tolist()))
            for width in rng.integers(1, 5, rng.integers(1, 5))
        ]
    return requests


@pytest.mark.parametrize("kind", ["softmax", "taylor"])
def test_likelihoods_are_those_of_texts_read_alone(kind):
    rng = np.random.default_rng(0)
    begin = tuple(rng.integers(0, VOCAB, 70).tolist())
    requests = [*random_requests(rng), *random_requests(rng, begin)]
    requests.append(Request(begin[:9], tuple(rng.integers(0, VOCAB, 1).tolist())))
    order = rng.permutation(len(requests))
    requests = [requests[n] for n in order]
    model, params = build(kind)
    found = likelihood.Reader(model, params).score(requests, longest_tokens=200)
    prefixes = {batch.prefix for batch in likelihood.plan(requests, longest_tokens=200)}
    assert prefixes == {(), begin}
    for request, got in zip(requests, found, strict=True):
        want, is_greedy = plainly(model, params, request, 200)
        np.testing.assert_allclose(got.log_prob, want, atol=1e-4)
        assert got.is_greedy == is_greedy


def test_a_greedy_continuation_is_known_and_long_texts_lose_their_beginning():
    model, params = build("softmax")
    rng = np.random.default_rng(1)
    requests = []
    for longest in (1, 3):
        context = rng.integers(0, VOCAB, 12).tolist()
        continuation = []
        for _ in range(longest):
            logits = logits_of(model, params, (context + continuation)[-6:])
            continuation.append(int(logits[-1].argmax()))
        requests.append(Request(tuple(context), tuple(continuation)))
    reader = likelihood.Reader(model, params)
    (one, _) = reader.score(requests, longest_tokens=6)
    assert one.is_greedy and one.log_prob == pytest.approx(
        plainly(model, params, requests[0], 6)[0], abs=1e-5
    )
    whole, cut = reader.score([requests[1]] * 2, longest_tokens=6)
    assert whole == cut
    assert cut.log_prob == pytest.approx(plainly(model, params, requests[1], 6)[0], abs=1e-5)
    assert abs(cut.log_prob - plainly(model, params, requests[1], 100)[0]) > 1e-3


def test_a_plan_keeps_to_its_tokens_and_answers_everything_once():
    rng = np.random.default_rng(2)
    begin = tuple(range(30)) * 3
    requests = [r for _ in range(20) for r in random_requests(rng, begin)]
    requests += [r for _ in range(20) for r in random_requests(rng)]
    batches = likelihood.plan(requests, longest_tokens=200, batch_tokens=512)
    counts = collections.Counter(number for batch in batches for number in batch.requests)
    assert counts == collections.Counter(range(len(requests)))
    for batch in batches:
        rows, width, lanes, longest = batch.shape
        assert rows >= len(batch.texts) and rows == likelihood.padded(len(batch.texts))
        assert all(len(text.context) <= width and text.longest <= longest for text in batch.texts)
        assert len(batch.texts) * (width + lanes * longest * (longest > 1)) <= 512
    assert len({batch.shape for batch in batches}) < len(batches) / 2
    assert batches == likelihood.plan(requests, longest_tokens=200, batch_tokens=512)


@pytest.mark.parametrize(
    "request_", [Request((), (1,)), Request((1,), ()), Request((1,), (1,) * 9)]
)
def test_a_request_that_cannot_be_read_is_refused(request_):
    with pytest.raises(ValueError, match="in request 1. Cut it"):
        likelihood.plan([Request((1,), (1,)), request_], longest_tokens=8)


def test_windows_score_every_token_once_after_as_many_as_fit():
    ids = tuple(range(10, 20))
    found = tasks.windows(ids, 1, 4)
    assert [r.continuation for r in found] == [ids[:4], ids[4:8], ids[8:]]
    assert [r.context for r in found] == [(1,), (13,), (15, 16, 17)]
    assert tasks.windows(ids, 1, 10) == [Request((1,), ids)]


def test_a_pair_is_encoded_together_and_spaces_belong_to_the_continuation():
    text = tokenizer.load_tokenizer("bytes")
    (one, other) = tasks.encode_pairs(text, "Q: why? ", ("A", " B"))
    assert one.context == other.context == tuple(text.encode("Q: why?"))
    assert one.continuation == tuple(text.encode(" A"))
    assert other.continuation == tuple(text.encode("  B"))
    assert tasks.encode_pair(text, "", "A") == Request((text.eos_id,), tuple(text.encode("A")))
