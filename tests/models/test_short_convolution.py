"""The short convolution against its formula, and through branches whose slots are in any order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import cache as caches
from models.short_convolution import ShortConvolution
from models.view import View, causal_age

X = np.asarray(jax.random.normal(jax.random.key(0), (1, 1, 7, 2, 3)))
TAPS = np.asarray(jax.random.normal(jax.random.key(1), (3, 2, 3)))
CONVOLUTION = ShortConvolution(3, "heads")


def convolve(x, view, prefix=None, lane=None):
    return CONVOLUTION.apply({"params": {"taps": TAPS}}, jnp.asarray(x), view, prefix, lane)


def view_of(length, segment_ids=None):
    positions = jnp.arange(length)[None, None]
    return View(positions=positions, age=causal_age(length), segment_ids=segment_ids)


@pytest.mark.parametrize("segments", [None, [1, 1, 2, 2, 2, 2, 3]])
def test_each_token_mixes_with_those_before_it_in_its_document(segments):
    segment_ids = None if segments is None else jnp.asarray([segments])
    got, kept = convolve(X, view_of(7, segment_ids))
    np.testing.assert_array_equal(kept, X)
    for t in range(7):
        reach = [j for j in range(3) if t >= j]
        if segments:
            reach = [j for j in reach if segments[t - j] == segments[t]]
        want = sum(TAPS[j] * X[0, 0, t - j] for j in reach)
        np.testing.assert_allclose(got[0, 0, t], want, atol=1e-6)


def test_it_starts_with_the_variance_of_its_input():
    taps = ShortConvolution(4, "heads").init(
        jax.random.key(0), jnp.zeros((1, 1, 1, 40, 40)), view_of(1)
    )
    np.testing.assert_allclose(jnp.square(taps["params"]["taps"].value).sum(0).mean(), 1, atol=0.1)


@pytest.mark.parametrize("length", [1, 4])  # one row has fewer tokens than the convolution's reach
def test_a_branch_of_a_tree_finds_its_ancestors_by_age(length):
    """Tokens `length .. length+2` of X lie in slots 4, 1, 2 of a lane, beside others."""
    slots = [4, 1, 2]
    want, _ = convolve(X, view_of(7))
    before = jnp.zeros((1, 2, 2, 3)).at[:, 2 - min(length, 2) :].set(X[:, 0, :length][:, -2:])
    lane = jax.random.normal(jax.random.key(2), (1, 1, 5, 2, 3))  # branches of others
    for t, slot in enumerate(slots):
        age = jnp.full((5,), -1).at[jnp.asarray(slots[: t + 1])].set(jnp.arange(t, -1, -1))
        view = View(
            positions=jnp.full((1, 1, 1), length + t),
            age=age[None, None, None],
            prefix_length=jnp.asarray([length]),
            filled=jnp.asarray(slot),
        )
        got, lane = convolve(X[:, :, length + t : length + t + 1], view, before[:, None], lane)
        np.testing.assert_allclose(got[0, 0, 0], want[0, 0, length + t], atol=1e-6)
        np.testing.assert_array_equal(lane[:, :, slot], X[:, :, length + t])


def test_the_latest_tokens_of_ragged_rows():
    kept, new = jnp.asarray([[1, 2, 3]] * 4), jnp.asarray([[4, 5, 6, 7]] * 4)
    got = caches.latest((kept,), (new,), jnp.asarray([0, 1, 3, 4]))
    assert got[0].tolist() == [[1, 2, 3], [2, 3, 4], [4, 5, 6], [5, 6, 7]]
