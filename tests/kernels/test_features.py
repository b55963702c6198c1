"""Features, polynomial and coefficient vectors against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.taylor_attention import features

ORDERS = range(9)


@pytest.mark.parametrize("order", ORDERS)
def test_features_multiply_to_the_polynomial(order):
    rng = np.random.default_rng(order)
    query, key = (jnp.asarray(rng.uniform(-1, 1, (3, 5)), jnp.float32) for _ in range(2))
    coefficients = jnp.asarray(rng.normal(size=order + 1), jnp.float32)  # of any sign
    phi_query = jax.jit(features.query_features)(query, coefficients)
    phi_key = jax.jit(features.key_features, static_argnums=1)(key, order)
    assert phi_key.shape == (features.num_features(3, order), 5) == phi_query.shape
    want = sum(
        np.float64(a) * np.float64(query.T @ key) ** n for n, a in enumerate(coefficients.tolist())
    )
    np.testing.assert_allclose(phi_query.T @ phi_key, want, atol=1e-5)


def test_monomials_of_degree_three_by_hand():
    x = jnp.asarray([[2.0], [3.0]])
    want = [1, 2, 3, 4, 6, 9, 8, 12, 18, 27]  # 1 | x y | xx xy yy | xxx xxy xyy yyy
    assert features.monomials(x, 3)[:, 0].tolist() == want


def test_each_head_may_have_its_own_coefficients():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))  # two heads
    rows = jnp.asarray([[1.0, 0.5, 0.2], [0.3, 2.0, 0.7]])
    together = features.query_features(x, rows)
    for head in range(2):
        np.testing.assert_array_equal(together[head], features.query_features(x[head], rows[head]))


@pytest.mark.parametrize("order", ORDERS)
def test_polynomial_is_horner_of_the_coefficients(order):
    x = jnp.linspace(-2, 2, 31)
    coefficients = features.taylor_coefficients(order)
    want = np.polynomial.polynomial.polyval(np.asarray(x, np.float64), coefficients)
    np.testing.assert_allclose(features.polynomial(x, coefficients), want, atol=2e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_taylor_coefficients_are_those_of_exp(order):
    want = [1 / math.factorial(n) for n in range(order + 1)]
    np.testing.assert_allclose(features.taylor_coefficients(order), want, rtol=1e-15)


@pytest.mark.parametrize(
    ("order", "radius", "bound"),
    [(2, 1.0, 0.040), (4, 1.0, 5.1e-4), (4, 2.0, 0.015), (6, 2.0, 3.6e-4), (8, 4.0, 0.0020)],
)
def test_minimax_error_is_as_documented(order, radius, bound):
    x = np.linspace(-radius, radius, 10_001)
    fit = np.polynomial.polynomial.polyval(x, features.minimax_coefficients(order, radius))
    assert np.abs(fit / np.exp(x) - 1).max() <= bound


@pytest.mark.parametrize("radius", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("order", ORDERS)
def test_minimax_is_optimal_because_its_error_alternates(order, radius):
    # Chebyshev: a fit is best if and only if its error reaches its maximum with alternating signs
    # at order + 2 points.
    x = radius * np.cos(np.linspace(np.pi, 0, 20_001))
    coefficients = features.minimax_coefficients(order, radius)
    error = np.polynomial.polynomial.polyval(x, coefficients) / np.exp(x) - 1
    extreme = error[np.abs(error) >= np.abs(error).max() * (1 - 1e-3) - 1e-13]
    assert 1 + np.count_nonzero(np.diff(np.sign(extreme))) >= order + 2


@pytest.mark.parametrize("order", [0, 2, 4, 6, 8])
def test_even_orders_are_positive_everywhere(order):
    x = np.linspace(-60, 60, 24_001)
    for coefficients in (
        features.taylor_coefficients(order),
        *(features.minimax_coefficients(order, radius) for radius in (0.5, 1.0, 2.0, 4.0, 8.0)),
    ):
        assert np.polynomial.polynomial.polyval(x, coefficients).min() > 0
        assert features.positive_radius(coefficients) == math.inf


@pytest.mark.parametrize(("order", "root"), [(1, 1.0), (3, 1.5961), (5, 2.1806), (7, 2.7590)])
def test_odd_taylor_orders_are_positive_up_to_their_root(order, root):
    coefficients = features.taylor_coefficients(order)
    assert features.positive_radius(coefficients) == pytest.approx(root, abs=1e-4)
    assert np.polynomial.polynomial.polyval(-root - 1e-3, coefficients) < 0


def test_no_weight_is_positive_where_the_constant_is_not():
    assert features.positive_radius(np.asarray([0.0, 0.0, 1.0])) == 0.0


@pytest.mark.parametrize("order", [-1, 9])
def test_an_order_outside_the_range_is_refused(order):
    with pytest.raises(ValueError, match=r"0\.\.8"):
        features.taylor_coefficients(order)
    with pytest.raises(ValueError, match=r"0\.\.8"):
        features.minimax_coefficients(order, 1.0)


@pytest.mark.parametrize("radius", [0.0, -1.0, 17.0])
def test_a_radius_outside_the_range_is_refused(radius):
    with pytest.raises(ValueError, match="radius"):
        features.minimax_coefficients(2, radius)
