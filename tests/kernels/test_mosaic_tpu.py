"""The TPU kernels: interpreted on a CPU against the quadratic form, lowered, and really compiled.

The quick interpreter runs the kernels' bodies as XLA; the TPU interpreter adds memory that begins
as NaN, two cores and a detector of races. `make test-tpu` compiles with libtpu for TPUs that need
not be there. Nothing here has run on a TPU.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels import taylor_attention as taylor
from kernels.taylor_attention import mosaic_tpu, mosaic_tpu_kernels

interpreted = functools.partial(pltpu.force_tpu_interpret_mode, True)  # the quick one


def run(function, *arguments):
    """jit without XLA's optimisations: an interpreted kernel is a large program that runs once."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


def assert_close(name, got, want, tolerance):
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    assert got.shape == want.shape, name
    error = np.abs(got - want).max() / max(1.0, np.abs(want).max())
    assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"  # NaN fails too


def inputs(order, width, value_width, heads, length, dtype="float32", *, packed, decays, state):
    """Differentiable arguments, and the others."""
    rng = np.random.default_rng(length + 100 * order)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    num_heads, kv_heads = heads
    num_features = taylor.num_features(width, order)
    arrays = {
        "query": normal(2, length, num_heads, width).astype(dtype),
        "key": normal(2, length, kv_heads, width).astype(dtype),
        "value": normal(2, length, kv_heads, value_width).astype(dtype),
        "coefficients": jnp.asarray(taylor.minimax_coefficients(order, 2.0), jnp.float32)
        * (1 + 0.1 * normal(num_heads, 1)),
    }
    if state:
        arrays["initial_state"] = taylor.TaylorState(
            numerator=normal(2, kv_heads, num_features, value_width),
            denominator=normal(2, kv_heads, num_features),
        )
    others = {}
    if packed:
        others["segment_ids"] = jnp.asarray(np.sort(rng.integers(0, 3, (2, length)), axis=1))
    if decays:
        others["log_decay"] = -jnp.asarray(rng.uniform(0.001, 0.1, kv_heads), jnp.float32)
    return arrays, others


def sums_and_gradients(implementation, arrays, others, chunk_size=None):
    """Both sums, the state, and all gradients for cotangents that are all different."""

    def both(arrays, others):
        attend = functools.partial(
            taylor.taylor_attention_sums,
            scale=0.5,
            return_state=True,
            chunk_size=chunk_size,
            implementation=implementation,
            **others,
        )
        out, vjp = jax.vjp(lambda arrays: attend(**arrays), arrays)
        cotangents = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), out)
        return out, vjp(cotangents)[0]

    out, gradients = run(both, arrays, others)
    names = ("numerator", "denominator", "state")
    return dict(zip(names, out)) | {f"gradient of {name}": g for name, g in gradients.items()}


def check_against_reference(arrays, others, tolerance, **settings):
    got = sums_and_gradients("mosaic_tpu", arrays, others, **settings)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
    want = sums_and_gradients("reference", wide, others)
    for name in want:
        for g, w in zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True):
            assert_close(name, g, w, tolerance)
    return got


@pytest.mark.parametrize(
    ("order", "width", "value_width", "heads", "length", "packed", "decays", "state"),
    [
        (0, 3, 5, (2, 2), 130, False, True, True),
        (1, 4, 5, (2, 1), 40, True, False, False),
        (2, 17, 7, (4, 2), 300, True, True, True),  # P = 171, three chunks, the last not full
        (8, 2, 5, (2, 1), 200, True, False, True),
        *(
            pytest.param(order, 3, 5, (2, 1), 200, True, True, True, marks=pytest.mark.soak)
            for order in range(3, 8)
        ),
    ],
)
def test_values_and_all_gradients_match_the_reference(
    order, width, value_width, heads, length, packed, decays, state
):
    arrays, others = inputs(
        order, width, value_width, heads, length, packed=packed, decays=decays, state=state
    )
    with interpreted():
        check_against_reference(arrays, others, 2e-6, chunk_size=128)


def test_bfloat16_input_keeps_a_float32_state():
    arrays, others = inputs(2, 4, 5, (2, 1), 140, "bfloat16", packed=True, decays=True, state=True)
    with interpreted():
        got = check_against_reference(arrays, others, 1e-2, chunk_size=128)
    assert {x.dtype for x in jax.tree.leaves(got["state"])} == {jnp.dtype(jnp.float32)}
    assert got["gradient of query"].dtype == jnp.bfloat16


def test_a_state_that_does_not_fit_is_split_by_value_columns(monkeypatch):
    arrays, others = inputs(2, 4, 20, (2, 1), 140, packed=False, decays=False, state=True)
    settings = {"head_dim": 4, "value_dim": 20, "order": 2, "num_groups": 2, "length": 140}
    settings |= {"chunk_size": 128, "dtype": jnp.dtype(jnp.float32)}
    whole = mosaic_tpu.make_plan(**settings).vmem_bytes()
    monkeypatch.setattr(mosaic_tpu, "vmem_budget_bytes", lambda: whole - 1)
    assert mosaic_tpu.make_plan(**settings).num_blocks == 2
    with interpreted():
        check_against_reference(arrays, others, 2e-6, chunk_size=128)


def test_memory_is_written_before_it_is_read_and_never_by_two_cores(capfd):
    strict = pltpu.InterpretParams(
        detect_races=True, num_cores_or_threads=2, uninitialized_memory="nan"
    )
    arrays, others = inputs(2, 2, 3, (2, 1), 140, packed=True, decays=True, state=True)
    with pltpu.force_tpu_interpret_mode(strict):
        check_against_reference(arrays, others, 2e-6, chunk_size=128)
    assert "RACE DETECTED" not in capfd.readouterr().out


def test_under_vmap_and_checkpoint():
    arrays, others = inputs(1, 3, 2, (2, 1), 20, packed=False, decays=True, state=True)
    twice = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), arrays)

    def gradient(implementation):
        def loss(arrays):
            attend = functools.partial(
                taylor.taylor_attention_sums, implementation=implementation, **others
            )
            return sum(jnp.sum(jnp.sin(x)) for x in jax.checkpoint(lambda a: attend(**a))(arrays))

        return run(jax.vmap(jax.grad(loss)), twice)

    with interpreted():
        got = gradient("mosaic_tpu")
    jax.tree.map(lambda g, w: assert_close("gradient", g, w, 2e-6), got, gradient("reference"))


@pytest.mark.devices(2)
def test_under_shard_map_over_batch_and_over_heads():
    arrays, _ = inputs(1, 3, 2, (2, 2), 20, packed=False, decays=False, state=False)
    attend = functools.partial(taylor.taylor_attention, chunk_size=128)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    want = attend(**arrays, implementation="reference")
    spec = jax.sharding.PartitionSpec
    for array_spec, coefficients_spec in (
        (spec("x"), spec()),
        (spec(None, None, "x"), spec("x")),
    ):
        sharded = jax.shard_map(
            lambda q, k, v, c: attend(q, k, v, coefficients=c, implementation="mosaic_tpu"),
            mesh=mesh,
            in_specs=(array_spec,) * 3 + (coefficients_spec,),
            out_specs=array_spec,
            check_vma=False,
        )
        with interpreted():
            assert_close("output", run(sharded, *arrays.values()), want, 2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("full", [False, True])
def test_lowers_for_tpu_without_one(dtype, full):
    arrays, others = inputs(4, 8, 16, (4, 2), 300, dtype, packed=full, decays=full, state=full)
    text = lowered(arrays, others).as_text()
    for kernel in ("sums", "query_gradient", "key_value_gradient"):
        assert f"taylor_attention_{kernel}" in text


def lowered(arrays, others, **sharding):
    """A program with all three kernels, for TPU."""

    def loss(arrays, others):
        *sums, state = taylor.taylor_attention_sums(
            **arrays, **others, return_state=True, implementation="mosaic_tpu"
        )
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves([sums, state]))

    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **sharding), (arrays, others)
    )
    return jax.jit(jax.grad(loss)).trace(*shapes).lower(lowering_platforms=("tpu",))


def test_the_wrong_platform_is_refused_when_the_program_is_lowered():
    arrays, _ = inputs(1, 3, 2, (2, 1), 20, packed=False, decays=False, state=False)
    attend = functools.partial(taylor.taylor_attention, implementation="mosaic_tpu")
    for call in (attend, jax.jit(attend)):
        with pytest.raises(NotImplementedError, match="runs on TPU.*lowered for cpu.*'xla'"):
            call(**arrays)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk_size": 8}, "multiple of 128 tokens; got chunk_size=8"),
        ({"dtype": jnp.dtype("float64")}, "got float64.*Cast"),
        ({"order": 4, "head_dim": 64}, r"MiB at order 4, H = 64 \(P = 814385\).*xla"),
    ],
)
def test_what_the_hardware_has_not_is_named(changed, message):
    settings = {"head_dim": 4, "value_dim": 20, "order": 2, "num_groups": 2, "length": 140}
    settings |= {"chunk_size": None, "dtype": jnp.dtype(jnp.float32)}
    with pytest.raises(NotImplementedError, match=message):
        mosaic_tpu.make_plan(**settings | changed)


def test_none_leaves_several_devices_to_xla(monkeypatch):
    x = jnp.zeros((1, 5, 1, 1, 4))
    arguments = (x, x[..., 0, :], x[..., 0, :], jnp.ones(3))
    assert mosaic_tpu.obstacle(*arguments) is None
    assert "P = 814385" in mosaic_tpu.obstacle(
        jnp.zeros((1, 5, 1, 1, 64)), *arguments[1:3], jnp.ones(5)
    )
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert "shard_map" in mosaic_tpu.obstacle(*arguments)


@pytest.mark.parametrize(("width", "order"), [(1, 0), (5, 1), (3, 2), (4, 4), (2, 8)])
def test_pieces_make_the_monomials_in_their_order(width, order):
    features = mosaic_tpu_kernels.make_features(width, order)
    x = np.random.default_rng(0).normal(size=width)
    lower = np.full(features.lower_rows, np.nan)
    lower[0] = 1
    if order:
        lower[features.inputs : features.inputs + width] = x
    made = np.full(features.count, np.nan)
    for piece in features.pieces:
        factor = 1 if piece.factor is None else x[piece.factor]
        rows = factor * lower[piece.source : piece.source + piece.count]
        made[piece.start : piece.start + piece.count] = rows
        if piece.own is not None:
            lower[piece.own : piece.own + piece.count] = rows
    want = taylor.features.monomials(jnp.asarray(x, jnp.float32)[:, None], order)[:, 0]
    np.testing.assert_allclose(made, want, rtol=1e-5)


LARGE = [(1, 128), (2, 128), (3, 32), (4, 16), (8, 8)]  # up to P = 12,870
SMALL = [(1, 8), (2, 16), (4, 8), (6, 4), (8, 4)]


def compiled(monkeypatch, topology, dtype, order, width):
    """All three kernels as machine code, within the memory that the plan estimates."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu: pip install -c constraints.txt -e '.[tpu]'")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # or libtpu waits for a TPU's metadata
    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    arrays, others = inputs(
        order, width, 128, (2, 1), 300, dtype, packed=True, decays=True, state=True
    )
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    return lowered(arrays, others, sharding=sharding).compile()


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("topology", "dtype", "order", "width"),
    [("v5e:2x2", "bfloat16", *case) for case in SMALL + LARGE]
    + [("v6e:2x2", "float32", *case) for case in SMALL + LARGE]
    + [("v5p:2x2x1", "float32", 2, 16), ("v5p:2x2x1", "bfloat16", 8, 8)]
    + [("tpu7x:2x2x1", "float32", 2, 16), ("tpu7x:2x2x1", "bfloat16", 8, 8)],
)
def test_compiles_for_tpu_within_the_estimated_memory(monkeypatch, topology, dtype, order, width):
    program = compiled(monkeypatch, topology, dtype, order, width)
    assert program.memory_analysis().generated_code_size_in_bytes > 100_000


@pytest.mark.tpu
def test_too_small_an_estimate_does_not_compile(monkeypatch):
    monkeypatch.setattr(mosaic_tpu.Plan, "vmem_bytes", lambda plan: 100_000)
    with pytest.raises(jax.errors.JaxRuntimeError, match="(?i)vmem"):
        compiled(monkeypatch, "v5e:2x2", "bfloat16", 2, 16)
