"""The Hopper kernels without a GPU: interpreted against the reference, and lowered for an H200."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import taylor_attention as taylor
from kernels.taylor_attention import (
    api,
    features,
    mosaic_gpu,
    mosaic_gpu_state,
    mosaic_gpu_tiles,
    reference,
)
from tests.kernels import gpu_interpreter


@pytest.mark.parametrize(
    ("head_dim", "order", "tile"),
    [(5, 0, 256), (5, 1, 64), (5, 2, 64), (3, 3, 32), (20, 2, 64), (8, 4, 256), (4, 8, 256)],
)
def test_every_monomial_has_one_slot_and_one_pair(head_dim, order, tile):
    plan = mosaic_gpu_tiles.plan(head_dim, order, tile, 2)
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, (head_dim, 1)), jnp.float32)
    factors = jax.jit(lambda x: (features.monomials(x, order), plan.left(x), plan.right(x)))(x)
    want, left, right = (np.asarray(f).ravel() for f in factors)
    want = np.append(want, 0.0)

    slots = np.zeros((plan.num_tiles, plan.tile))
    for run in plan.runs:
        for tile_, piece in itertools.product(range(run.count), run.pieces):
            number = run.first_tile + tile_
            a = run.left_of(number) + piece.left
            assert piece.right % 16 == piece.slot % 16 == piece.width % 16 == 0
            slots[number, piece.slot : piece.slot + piece.width] = (
                left[a] * right[piece.right : piece.right + piece.width]
            )
    weighed = plan.slot_feature < want.size - 1
    np.testing.assert_allclose(slots.ravel()[weighed], want[plan.slot_feature][weighed], rtol=1e-5)
    np.testing.assert_array_equal(plan.slot_feature[plan.feature_slot], np.arange(want.size - 1))

    pairs = np.outer(left, right).ravel()
    weighed = plan.pair_feature < want.size - 1
    np.testing.assert_allclose(pairs[weighed], want[plan.pair_feature][weighed], rtol=1e-5)
    np.testing.assert_array_equal(plan.pair_feature[plan.feature_pair], np.arange(want.size - 1))


@pytest.mark.parametrize("members", [0, 1, 2])
def test_prefix_is_the_recurrence_and_its_gradient(members):
    """With weights once per head, once per member of a group, or none (0)."""
    rng = np.random.default_rng(members)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    added, first, weights = normal(2, 3, 2, 64), normal(2, 2, 64), normal(2 * members, 2, 1)
    gates = jnp.asarray(rng.uniform(0, 1, (2, 3)) * (rng.random((2, 3)) < 0.8), jnp.float32)

    def recurrence(added, first):
        states, state = [], first
        for chunk in range(3):
            states.append(state)
            state = gates[:, chunk, None, None] * state + added[:, chunk]
        before = jnp.stack(states, 1)
        if members:
            repeated = jnp.repeat(before, members, axis=0)
            before = repeated * weights[:, None]
        return before, state

    want, pull_back = jax.vjp(recurrence, added, first)
    bars = jax.tree.map(lambda x: normal(*x.shape), want)
    weights = weights if members else None
    with gpu_interpreter.described_h200(), gpu_interpreter.interpreted():
        got = mosaic_gpu_state._prefix(added, first, gates, weights, jnp.float32)
        got_bars = mosaic_gpu_state._prefix_backward(*bars, gates, weights, jnp.float32)
        got, got_bars = jax.tree.map(np.asarray, (got, got_bars))
    for w, g in zip((*want, *pull_back(bars)), (*got, *got_bars), strict=True):
        np.testing.assert_allclose(g, w, atol=5e-6)


def inputs(*, batch=1, length, kv_heads, group, width, value_width, order, everything):
    """bfloat16 query, key, value; coefficients; with `everything` also state, decay and runs."""
    rng = np.random.default_rng(length)
    normal = lambda *s: jnp.asarray(rng.normal(size=s), jnp.bfloat16)  # noqa: E731
    query = normal(batch, length, kv_heads, group, width) / 2
    key, value = (
        normal(batch, length, kv_heads, width) / 2,
        normal(batch, length, kv_heads, value_width),
    )
    coefficients = taylor.minimax_coefficients(order, 2.0) * width ** (-np.arange(order + 1) / 2)
    state, options = None, {"log_decay_K": None, "runs": None}
    if everything:
        coefficients = coefficients * rng.uniform(0.5, 1.5, (kv_heads, group, order + 1))
        num_features = taylor.num_features(width, order)
        state = taylor.TaylorState(
            numerator=normal(batch, kv_heads, num_features, value_width).astype(jnp.float32),
            denominator=normal(batch, kv_heads, num_features).astype(jnp.float32),
        )
        runs = np.sort(rng.integers(0, 3, (batch, length)), axis=1)
        options = {
            "log_decay_K": jnp.asarray(-rng.uniform(0.001, 0.02, kv_heads), jnp.float32),
            "runs": jnp.asarray(runs - runs[:, :1], jnp.int32),
        }
    return (query, key, value, jnp.asarray(coefficients, jnp.float32), state), options


@functools.partial(jax.jit, static_argnums=(0, 3))
def outputs(implementation, arguments, options, gradients):
    """The sums and the state, and with `gradients` those of all arguments."""

    def run(query, key, value, coefficients, state):
        return implementation(
            query,
            key,
            value,
            coefficients=coefficients,
            initial_state=state,
            return_state=state is not None,
            chunk_size=128,
            precision=None,
            **options,
        )

    if not gradients:
        return run(*arguments)
    out, vjp = jax.vjp(run, *arguments)
    cotangents = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), x.dtype), out
    )
    return out, vjp(cotangents)


def check(shape, *, everything, gradients):
    # 16 columns at once: no piece of a tile begins and ends within them
    blocks = mosaic_gpu.BlockSizes(columns=16)
    implementation = functools.partial(mosaic_gpu.taylor_attention, blocks=blocks)
    arguments, options = inputs(**shape, everything=everything)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
    want = outputs(reference.taylor_attention, wide, options, gradients)
    with gpu_interpreter.described_h200(), gpu_interpreter.interpreted():
        got = outputs(implementation, arguments, options, gradients)
        got = jax.tree.map(np.asarray, got)  # computed before the contexts end
    for (path, w), g in zip(
        jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True
    ):
        w, g = (np.asarray(x, np.float64) for x in (w, g))
        error = np.abs(g - w).max() / max(np.abs(w).max(), 1e-30)  # order 0: some are all 0
        assert error <= 1e-2, f"{jax.tree_util.keystr(path)}: {error:.1e}"


SMALL = {"length": 200, "kv_heads": 1, "group": 2, "width": 4, "value_width": 6, "order": 2}


@pytest.mark.soak  # the gradients below are checked together with the values
def test_values_match_the_reference():
    check(SMALL, everything=True, gradients=False)


@pytest.mark.slow  # interpreting the kernels takes long
@pytest.mark.parametrize(
    ("changed", "everything"),
    [
        ({"group": 1}, True),
        *(
            pytest.param(changed, everything, marks=pytest.mark.soak)
            for changed in (
                {},
                {"length": 256, "group": 1, "width": 17},
                {"length": 300, "kv_heads": 2, "group": 1, "width": 20, "value_width": 70},
                *({"width": 3, "order": order} for order in (0, 1, 3, 4, 8)),
            )
            for everything in (False, True)
        ),
    ],
    ids=str,
)
def test_all_gradients_match_the_reference(changed, everything):
    check(SMALL | changed, everything=everything, gradients=True)


def lower(batch, length, kv_heads, group, width, value_width, order, *, gradient, sharding=None):
    """For an H200; all or nothing: every kernel of the call is lowered."""
    narrow = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=sharding)

    def loss(query, key, value):
        out = taylor.taylor_attention(
            query,
            key,
            value,
            coefficients=taylor.taylor_coefficients(order),
            implementation="mosaic_gpu",
        )
        return out.astype(jnp.float32).sum()

    shapes = [(kv_heads * group, width), (kv_heads, width), (kv_heads, value_width)]
    arguments = [narrow((batch, length, *shape)) for shape in shapes]
    function = jax.grad(loss, argnums=(0, 1, 2)) if gradient else loss
    with gpu_interpreter.described_h200():
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def test_the_goal_shape_lowers_for_an_h200():
    text = lower(1, 65_536, 8, 1, 64, 64, 2, gradient=False).as_text()
    # sums, prefix and read of the states, sums inside chunks; the normaliser has a prefix too
    assert text.count("@mosaic_gpu") == 5


@pytest.mark.parametrize(
    ("length", "width", "num_kernels"),
    [(4096, 16, 1), (8192, 64, 1), (4224, 16, 5), (8320, 64, 5)],
)
def test_a_short_text_is_one_chunk(length, width, num_kernels):
    """Order 2: 153 features up to 4,096 tokens, 2,145 up to 8,192; beyond it through states."""
    text = lower(1, length, 1, 1, width, 64, 2, gradient=False).as_text()
    assert text.count("@mosaic_gpu") == num_kernels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "order", "group", "value_width"),
    [
        (64, 2, 1, 64),
        (4, 4, 2, 128),
        *(
            pytest.param(*shape, marks=pytest.mark.soak)
            for shape in (
                (8, 4, 1, 64),
                (8, 4, 2, 128),
                (4, 8, 1, 128),
                (16, 2, 1, 64),
                (128, 2, 1, 128),
            )
        ),
    ],
)
def test_gradients_of_the_target_shapes_lower_for_an_h200(width, order, group, value_width):
    text = lower(1, 16_384, 4, group, width, value_width, order, gradient=True).as_text()
    # five forward; two slopes, sums, read and two prefixes backward; dq, dk and dv
    assert text.count("@mosaic_gpu") == 13


@pytest.mark.parametrize(("dtype", "chosen"), [("bfloat16", "mosaic_gpu"), ("float32", "xla")])
def test_a_hopper_gpu_takes_these_kernels_where_they_can(dtype, chosen, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    query = jnp.zeros((1, 8192, 1, 1, 16), dtype)
    key = query[:, :, 0]
    with gpu_interpreter.described_h200():
        assert api._choose(query, key, key, taylor.taylor_coefficients(2)) == chosen


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("width", "order", "value_width"), [(64, 2, 64), (8, 4, 128), (4, 8, 128), (16, 2, 128)]
)
def test_machine_code_for_hopper_keeps_the_tensor_cores_busy(
    width, order, value_width, monkeypatch, capfd
):
    """Compiled by ptxas, no GPU needed: nothing serialises the products, little is spilled."""
    device = gpu_interpreter.compilable_h100()
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    shape = (1, 2048, 2, 1, width, value_width, order)
    program = lower(*shape, gradient=True, sharding=jax.sharding.SingleDeviceSharding(device))
    program.compile()
    report = "".join(capfd.readouterr())
    assert report.count("Compiling entry function") >= 10  # equal kernels are compiled once
    assert not re.findall(r".*\(C75\d\d\).*", report)  # ptxas: "wgmma instructions are serialized"
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", report)]
    assert max(spills) <= 512


@pytest.mark.parametrize(
    ("dtype", "width", "order", "message"),
    [
        (jnp.float32, 8, 2, "bfloat16.*got float32"),
        (jnp.bfloat16, 512, 1, "up to 256 wide"),
        (jnp.bfloat16, 8, 8, "shared memory"),
    ],
)
def test_what_the_kernels_cannot_do_is_named(dtype, width, order, message):
    x = jnp.zeros((1, 128, 1, width), dtype)
    coefficients = taylor.taylor_coefficients(order)
    with gpu_interpreter.described_h200(), pytest.raises(NotImplementedError, match=message):
        taylor.taylor_attention(x, x, x, coefficients=coefficients, implementation="mosaic_gpu")


def test_another_platform_is_refused():
    x = jnp.zeros((1, 128, 1, 8), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="Hopper.*found a cpu.*'xla'"):
        taylor.taylor_attention(
            x, x, x, coefficients=taylor.taylor_coefficients(2), implementation="mosaic_gpu"
        )


def test_impossible_block_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        mosaic_gpu.BlockSizes(chunk=100)
    with pytest.raises(ValueError, match="features"):
        mosaic_gpu.BlockSizes(features=24)
    with pytest.raises(ValueError, match="columns"):
        mosaic_gpu.BlockSizes(columns=8)
