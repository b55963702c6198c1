"""The linear form in plain JAX against float64, on hard inputs, and with its parts broken."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import taylor_attention as taylor
from kernels.taylor_attention import features, xla

GRID = [
    (order, width)
    for order in range(9)
    for width in (4, 8, 16, 32, 64)
    if taylor.num_features(width, order) <= taylor.MAX_FEATURES
]
LENGTHS = (1, 2, 63, 257, 1000)
COVER = [
    (0, 16, 63),
    (1, 64, 257),
    (2, 16, 1000),
    (2, 64, 63),
    (3, 16, 63),
    (4, 8, 257),
    (5, 8, 2),
    (6, 4, 257),
    (7, 4, 63),
    (8, 4, 257),
    (8, 4, 1),
]


def oracle(query, key, value, cotangent, coefficients, scale, log_decay=None):
    """Output and gradients [B, T, N, *] in float64 numpy, by hand."""
    query, key, value, cotangent = (
        np.asarray(x, np.float64).swapaxes(1, 2) for x in (query, key, value, cotangent)
    )
    polynomial = np.polynomial.Polynomial(np.asarray(coefficients, np.float64))
    x = scale * query @ key.swapaxes(-1, -2)
    age = np.arange(x.shape[-1])[:, None] - np.arange(x.shape[-1])
    mask = (age >= 0).astype(np.float64)
    if log_decay is not None:
        mask = mask * np.exp(np.asarray(log_decay, np.float64)[:, None, None] * np.maximum(age, 0))
    weight = polynomial(x) * mask
    total = weight.sum(-1, keepdims=True)
    out = weight @ value / total
    sums_bar = cotangent / total
    weight_bar = sums_bar @ value.swapaxes(-1, -2) - (sums_bar * out).sum(-1, keepdims=True)
    x_bar = scale * weight_bar * mask * polynomial.deriv()(x)
    gradients = x_bar @ key, x_bar.swapaxes(-1, -2) @ query, weight.swapaxes(-1, -2) @ sums_bar
    return [x.swapaxes(1, 2) for x in (out, *gradients)]


def attend_vjp(*arrays, **settings):
    """Output and gradients, compiled anew at every call."""

    def run(query, key, value, cotangent):
        attend = functools.partial(taylor.taylor_attention, **settings)
        out, vjp = jax.vjp(attend, query, key, value)
        return out, *vjp(cotangent)

    return jax.jit(run)(*arrays)


def error(got, want):
    want = np.asarray(want, np.float64)
    return np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)


def assert_accurate(got, want, out_tolerance=5e-6, gradient_tolerance=2e-5):
    for name, g, w in zip(("out", "query", "key", "value"), got, want, strict=True):
        tolerance = out_tolerance if name == "out" else gradient_tolerance
        # Some gradients vanish (of order 0, of one token): compare those with the largest input.
        if np.abs(w).max() < 1e-9:
            assert np.abs(np.asarray(g)).max() < 1e-5, name
        else:
            assert error(g, w) <= tolerance, name


def setting(order):
    """Coefficients and the largest score at which they may be used."""
    if order % 2:
        coefficients = taylor.taylor_coefficients(order)
        return coefficients, 0.8 * taylor.positive_radius(coefficients)
    return taylor.minimax_coefficients(order, 2.0), 2.0


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def check(order, width, length):
    rng = np.random.default_rng(length + 100 * order + width)
    coefficients, scale = setting(order)
    arrays = (
        unit(rng, 1, length, 2, width),
        unit(rng, 1, length, 2, width),
        rng.normal(size=(1, length, 2, 16)),
        rng.normal(size=(1, length, 2, 16)),
    )
    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    got = attend_vjp(*arrays, coefficients=coefficients, scale=scale, implementation="xla")
    assert_accurate(got, oracle(*arrays, coefficients, scale))


@pytest.mark.parametrize(("order", "width", "length"), COVER)
def test_float32_is_near_float64(order, width, length):
    check(order, width, length)


@pytest.mark.soak
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("order", "width"), GRID)
def test_float32_is_near_float64_everywhere(order, width, length):
    check(order, width, length)


def hard_inputs(name, rng, length, width):
    query, key = unit(rng, 1, length, 2, width), unit(rng, 1, length, 2, width)
    if name == "aligned":
        key = query
    elif name == "anti-aligned":
        key = -query
    elif name == "duplicate keys":
        key = np.repeat(key[:, :1], length, axis=1)
    elif name == "one-hot":  # the backward pass divides by entries of these
        query, key = (np.eye(width)[rng.integers(0, width, (1, length, 2))] for _ in range(2))
    elif name == "zero and tiny":
        query = query * rng.choice([0.0, 1e-30, 1e-12, 1.0], size=query.shape)
        key = key * rng.choice([0.0, 1e-30, 1e-12, 1.0], size=key.shape)
    return query, key


HARD = ("aligned", "anti-aligned", "duplicate keys", "one-hot", "zero and tiny")


@pytest.mark.parametrize(("order", "width"), [(2, 16), (8, 4)])
def test_hard_inputs_are_no_less_accurate(order, width):
    rng = np.random.default_rng(0)
    coefficients, scale = setting(order)
    queries, keys = zip(*(hard_inputs(name, rng, 150, width) for name in HARD))
    arrays = [jnp.asarray(np.concatenate(x), jnp.float32) for x in (queries, keys)]
    arrays += [jnp.asarray(rng.normal(size=(len(HARD), 150, 2, 8)), jnp.float32) for _ in range(2)]
    got = attend_vjp(*arrays, coefficients=coefficients, scale=scale, implementation="xla")
    for row, name in enumerate(HARD):
        lane = slice(row, row + 1)
        assert all(np.isfinite(x[lane]).all() for x in got), name
        want = oracle(*(x[lane] for x in arrays), coefficients, scale)
        assert_accurate([x[lane] for x in got], want)


@pytest.mark.parametrize(("order", "width"), [(2, 16), (8, 4)])
def test_bfloat16_is_no_less_accurate_than_the_quadratic_form(order, width):
    rng = np.random.default_rng(1)
    coefficients, scale = setting(order)
    arrays = (
        unit(rng, 1, 300, 2, width),
        unit(rng, 1, 300, 2, width),
        *rng.normal(size=(2, 1, 300, 2, 16)),
    )
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    want = oracle(*arrays, coefficients, scale)
    linear, quadratic = (
        attend_vjp(*arrays, coefficients=coefficients, scale=scale, implementation=name)
        for name in ("xla", "reference")
    )
    for one, other, exact in zip(linear, quadratic, want, strict=True):
        assert one.dtype == jnp.bfloat16
        assert error(one, exact) <= 1.25 * error(other, exact)


def test_the_future_changes_no_bit_of_the_past():
    rng = np.random.default_rng(2)
    query, key, value = (jnp.asarray(rng.normal(size=(1, 40, 2, 8)), jnp.float32) for _ in "qkv")
    attend = jax.jit(
        functools.partial(
            taylor.taylor_attention,
            coefficients=taylor.taylor_coefficients(2),
            chunk_size=16,
            implementation="xla",
        )
    )
    want = attend(query, key, value)
    for start in (1, 15, 16, 37):
        changed = attend(*(x.at[:, start:].multiply(-3) for x in (query, key, value)))
        np.testing.assert_array_equal(changed[:, :start], want[:, :start])
        assert (changed[:, start:] != want[:, start:]).any()


def test_rematerialised_gradients_are_the_same():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(1, 40, 2, 8)), jnp.float32)
    attend = lambda x: taylor.taylor_attention(  # noqa: E731
        x, x, x, coefficients=taylor.taylor_coefficients(2), implementation="xla"
    ).sum()
    want, got = (jax.jit(jax.grad(f))(x) for f in (attend, jax.checkpoint(attend)))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.devices(8)
def test_eight_devices_equal_one():
    for layout in ("batch and heads", "sequence"):
        check_eight_devices(layout)


def check_eight_devices(layout):
    rng = np.random.default_rng(4)
    coefficients, log_decay = taylor.taylor_coefficients(2), jnp.asarray([-0.1, -0.01])
    arrays = [jnp.asarray(rng.normal(size=(4, 64, 2, 6)), jnp.float32) for _ in range(4)]
    spec, auto = jax.sharding.PartitionSpec, jax.sharding.AxisType.Auto
    attend = functools.partial(
        taylor.taylor_attention, coefficients=coefficients, chunk_size=4, implementation="xla"
    )

    if layout == "sequence":
        mesh = jax.make_mesh((8,), ("sequence",), axis_types=(auto,))
        in_specs = (*[spec(None, "sequence")] * 3, spec())
        out_specs = in_specs[0]

        def local(query, key, value, log_decay):
            state = taylor.state_before(key, value, "sequence", order=2, log_decay=log_decay)
            return attend(query, key, value, log_decay=log_decay, initial_state=state)

    else:
        mesh = jax.make_mesh((4, 2), ("batch", "heads"), axis_types=(auto,) * 2)
        in_specs = (*[spec("batch", None, "heads")] * 3, spec("heads"))
        out_specs = in_specs[0]

        def local(query, key, value, log_decay):
            return attend(query, key, value, log_decay=log_decay)

    run = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs)

    @jax.jit
    def out_and_gradients(*arrays):
        out, vjp = jax.vjp(lambda *qkv: run(*qkv, log_decay), *arrays[:3])
        return out, *vjp(arrays[3])

    got = out_and_gradients(*arrays)
    want = oracle(*arrays, coefficients, 1 / math.sqrt(6), log_decay)
    assert_accurate(got, want)


def without(**replaced):
    """`_Lanes.factors` whose factors lack something."""
    original = xla._Lanes.factors
    return lambda self, *arguments: original(self, *arguments)._replace(**replaced)


def ones(width, order):
    """`multinomials` without them."""
    degrees = [math.comb(width + n - 1, n) for n in range(order + 1)]
    return np.ones(sum(degrees)), np.repeat(np.arange(order + 1), degrees)


MUTATIONS = {
    "nothing": None,
    "the multiplicities": (features, "multinomials", ones),
    "the exponents of the slope": (
        features,
        "_exponents",
        lambda width, order, kept=features._exponents: np.minimum(kept(width, order), 1),
    ),
    "the mask": (xla._Lanes, "factors", without(visible=jnp.ones((1, 1, 1), bool))),
    "the decay inside a chunk": (xla._Lanes, "factors", without(pair=None)),
    "the decay of what is read": (xla._Lanes, "factors", without(query=None)),
    "the decay of what is added": (xla._Lanes, "factors", without(key=None)),
    "the decay of the state": (xla._Lanes, "factors", without(state=None)),
}


@pytest.mark.parametrize("dropped", MUTATIONS)
def test_dropping_a_part_is_noticed(dropped, monkeypatch):
    rng = np.random.default_rng(5)
    arrays = [jnp.asarray(rng.normal(size=(1, 21, 2, 5)), jnp.float32) for _ in range(4)]
    settings = {"coefficients": taylor.minimax_coefficients(4, 2.0), "scale": 0.3}
    log_decay = jnp.asarray([-0.2, -0.05])
    want = oracle(*arrays, *settings.values(), log_decay)
    if MUTATIONS[dropped] is not None:
        monkeypatch.setattr(*MUTATIONS[dropped])
    got = attend_vjp(*arrays, **settings, log_decay=log_decay, chunk_size=8, implementation="xla")
    if dropped == "nothing":
        assert_accurate(got, want)
    else:
        with pytest.raises(AssertionError):
            assert_accurate(got, want, 1e-3, 1e-3)
