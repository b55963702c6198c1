"""Losses against plain numpy in float64, and gradients against finite differences of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.losses import search
from train.losses.next_token import next_token


def finite_differences(function, x, step=1e-5):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[index] = step
        gradient[index] = (function(x + nudge) - function(x - nudge)) / (2 * step)
    return gradient


def numpy_next_token(logits, tokens, mask):
    total = count = 0.0
    for b, t in np.ndindex(tokens.shape):
        if t and mask[b, t]:
            row = np.asarray(logits[b, t - 1], np.float64)
            total -= row[tokens[b, t]] - np.log(np.sum(np.exp(row - row.max()))) - row.max()
            count += 1
    return total / count


def test_next_token_and_its_gradient_match_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 4))
    tokens = rng.integers(0, 4, (2, 5))
    mask = np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], np.float32)
    ids, counted = jnp.asarray(tokens), jnp.asarray(mask)
    loss = lambda x: next_token(x, ids, counted)  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits, jnp.float32))
    reference = lambda x: numpy_next_token(x, tokens, mask)  # noqa: E731
    np.testing.assert_allclose(value, reference(logits), rtol=1e-6)
    np.testing.assert_allclose(gradient, finite_differences(reference, logits), atol=1e-6)


def test_next_token_of_a_confident_bfloat16_model_is_exact_and_of_an_empty_batch_is_zero():
    logits = jnp.zeros((1, 2, 3), jnp.bfloat16).at[0, 0, 1].set(100.0)
    ones = jnp.ones((1, 2), jnp.float32)
    assert float(next_token(logits, jnp.array([[0, 1]]), ones)) == 0.0
    assert float(next_token(logits, jnp.array([[0, 2]]), ones)) == 100.0
    gradient = jax.grad(lambda x: next_token(x, jnp.array([[0, 2]]), 0 * ones))(logits)
    assert not np.any(gradient)


def numpy_policy_loss(log_probs, weights, is_present):
    total = positions = 0.0
    for row, row_weights, row_present in zip(log_probs, weights, is_present, strict=True):
        rest = 1.0
        for log_prob, weight, present in zip(row, row_weights, row_present, strict=False):
            if present:
                rest -= np.exp(log_prob)
                total -= weight * log_prob
        if row_weights[-1] > 0:
            total -= row_weights[-1] * np.log(rest)
        positions += row_weights.sum() > 0
    return total / positions


POLICY_CASES = {
    "all candidates present": ([[0.2, 0.3, 0.1]], [[0.5, 0.2, 0.1, 0.2]], [[1, 1, 1]]),
    "absent candidates": ([[0.2, 0.3, 1.0]], [[0.5, 0.2, 0.0, 0.3]], [[1, 1, 0]]),
    "a candidate without weight": ([[0.2, 1e-30]], [[0.9, 0.0, 0.1]], [[1, 1]]),
    "a weight at an absent one": ([[0.2, 0.3, 0.5]], [[0.5, 0.2, 0.1, 0.2]], [[1, 1, 0]]),
    "nothing left": ([[0.6, 0.3999]], [[0.6, 0.4, 0.0]], [[1, 1]]),
    "little left, and wanted": ([[0.6, 0.399]], [[0.5, 0.4, 0.1]], [[1, 1]]),
    "a padded position": ([[0.2, 0.3], [1.0, 1.0]], [[0.5, 0.3, 0.2], [0, 0, 0]], [[1, 1], [0, 0]]),
}


@pytest.mark.parametrize("case", POLICY_CASES)
def test_policy_loss_and_its_gradient_match_numpy(case):
    probs, weights, is_present = (np.array(part, np.float64) for part in POLICY_CASES[case])
    log_probs, is_present = np.log(probs), is_present.astype(bool)

    def loss(x):
        arrays = jnp.asarray(weights, jnp.float32), jnp.asarray(is_present)
        return search.policy_loss(x, *arrays)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(log_probs, jnp.float32))
    reference = lambda x: numpy_policy_loss(x, weights, is_present)  # noqa: E731
    np.testing.assert_allclose(value, reference(log_probs), rtol=3e-5)
    want = finite_differences(reference, log_probs, step=1e-6)
    np.testing.assert_allclose(gradient, want, rtol=2e-3, atol=1e-5)


def test_policy_loss_is_smallest_and_its_divergence_zero_at_the_target():
    weights = jnp.array([[0.5, 0.3, 0.2]])
    present = jnp.ones((1, 2), bool)
    loss = lambda x: search.policy_loss(x, weights, present)  # noqa: E731
    at_target, divergence = loss(jnp.log(weights[:, :2]))
    np.testing.assert_allclose(divergence, 0.0, atol=1e-6)
    gradient = jax.grad(lambda x: loss(x)[0])(jnp.log(weights[:, :2]))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    elsewhere, divergence = loss(jnp.log(jnp.array([[0.4, 0.3]])))
    assert elsewhere > at_target and divergence > 0.01


@pytest.mark.parametrize("total", [1.0, 1.0 + 1e-6])  # rounding can bring a sum beyond 1
def test_policy_that_lost_its_rest_mass_has_a_finite_gradient_that_gives_it_back(total):
    log_probs = jnp.log(jnp.array([[0.5 * total, 0.5 * total]]))
    weights, present = jnp.array([[0.45, 0.45, 0.1]]), jnp.ones((1, 2), bool)
    value, gradient = jax.value_and_grad(lambda x: search.policy_loss(x, weights, present)[0])(
        log_probs
    )
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert np.all(gradient > 0)  # going down the gradient makes the candidates less probable


def test_policy_loss_of_positions_without_candidates_is_finite():
    value, gradient = jax.value_and_grad(
        lambda x: search.policy_loss(x, jnp.array([[0.0, 0.0, 1.0]]), jnp.zeros((1, 2), bool))[0]
    )(jnp.zeros((1, 2)))
    assert float(value) == 0.0 and not np.any(gradient)


def test_log1mexp_keeps_its_digits_on_both_ends():
    x = np.array([-50.0, -20.0, -1.0, -0.5, -1e-2, -1e-5])
    want = np.where(x > -1, np.log(-np.expm1(x)), np.log1p(-np.exp(x)))
    np.testing.assert_allclose(search.log1mexp(jnp.asarray(x, jnp.float32)), want, rtol=1e-6)


def test_value_loss_and_its_gradient_match_numpy_and_stay_finite():
    logits = np.array([[-2.0, 0.5, 30.0], [3.0, 0.0, -1.0]])
    target = np.array([[0.0, 1.0, 1.0], [0.25, 1.0, 0.0]])
    mask = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])

    def reference(x):
        v = 1 / (1 + np.exp(-x))
        per_state = -(target * np.log(v) + (1 - target) * np.log(1 - v))
        return np.sum(np.where(mask > 0, per_state, 0.0)) / mask.sum()

    arrays = [jnp.asarray(a, jnp.float32) for a in (logits, target, mask)]
    value, gradient = jax.value_and_grad(search.value_loss)(*arrays)
    np.testing.assert_allclose(value, reference(logits), rtol=1e-6)
    np.testing.assert_allclose(gradient, finite_differences(reference, logits), atol=1e-6)
    certain_and_wrong = search.value_loss(*(jnp.array([[x]]) for x in (200.0, 0.0, 1.0)))
    assert float(certain_and_wrong) == 200.0
