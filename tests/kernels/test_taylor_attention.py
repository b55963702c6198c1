"""The linear form against the quadratic one, and both against numpy and their own invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import taylor_attention as taylor

ON_EVERY_PLATFORM = ("reference", "xla")


def assert_close(name, got, want, tolerance):
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    assert got.shape == want.shape, name
    error = np.abs(got - want).max() / max(1.0, np.abs(want).max())
    assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"  # NaN fails too


def inputs(length, *, order=2, heads=4, kv_heads=2, width=6, value_width=5, dtype="float32"):
    """Query, key, value, a state of three earlier keys, coefficients and segments."""
    rng = np.random.default_rng(length + 100 * order)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    query = normal(2, length, heads, width)
    key = normal(2, length, kv_heads, width)
    value = normal(2, length, kv_heads, value_width)
    earlier = normal(2, 3, kv_heads, width) / 2, normal(2, 3, kv_heads, value_width)
    state = jax.jit(taylor.fold)(empty(query, key, value, order), *earlier)
    coefficients = jnp.asarray(taylor.minimax_coefficients(order, 2.0), jnp.float32)
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, length)), axis=1))
    return query, key, value, state, coefficients, segments


def empty(query, key, value, order):
    return taylor.empty_state(
        batch_size=query.shape[0],
        num_kv_heads=key.shape[2],
        head_dim=query.shape[3],
        value_dim=value.shape[3],
        order=order,
    )


@functools.partial(jax.jit, static_argnames=("implementation", "chunk_size"))
def attend(
    query,
    key,
    value,
    state,
    coefficients,
    segments=None,
    log_decay=None,
    *,
    implementation,
    chunk_size=8,
):
    return taylor.taylor_attention(
        query,
        key,
        value,
        coefficients=coefficients,
        log_decay=log_decay,
        segment_ids=segments,
        initial_state=state,
        return_state=True,
        chunk_size=chunk_size,
        implementation=implementation,
    )


@functools.partial(jax.jit, static_argnames="implementation")
def attend_vjp(
    query, key, value, state, coefficients, segments, log_decay, cotangents, *, implementation
):
    run = lambda *a: attend(*a, segments, log_decay, implementation=implementation)  # noqa: E731
    out, vjp = jax.vjp(run, query, key, value, state, coefficients)
    return out, vjp(cotangents)


def numpy_attention(query, key, value, coefficients, segments, scale, log_decay=None):
    """Four loops in float64: nothing shared with the code under test."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros((*query.shape[:3], value.shape[-1]))
    group = query.shape[2] // key.shape[2]
    for b, t, n in np.ndindex(*query.shape[:3]):
        total = 0.0
        for s in range(t + 1):
            if segments[b, s] != segments[b, t]:
                continue
            x = scale * query[b, t, n] @ key[b, s, n // group]
            weight = sum(float(a) * x**i for i, a in enumerate(coefficients))
            if log_decay is not None:
                weight *= np.exp(float(log_decay[n // group]) * (t - s))
            out[b, t, n] += weight * value[b, s, n // group]
            total += weight
        out[b, t, n] /= total
    return out


DECAY = jnp.asarray([-0.3, -0.01])


@pytest.mark.parametrize("log_decay", [None, DECAY], ids=["", "decay"])
@pytest.mark.parametrize("implementation", ON_EVERY_PLATFORM)
def test_output_is_the_formula(implementation, log_decay):
    query, key, value, _, coefficients, segments = inputs(13, order=4)
    got = taylor.taylor_attention(
        query,
        key,
        value,
        coefficients=coefficients,
        scale=0.3,
        log_decay=log_decay,
        segment_ids=segments,
        chunk_size=4,
        implementation=implementation,
    )
    want = numpy_attention(
        query, key, value, np.asarray(coefficients), np.asarray(segments), 0.3, log_decay
    )
    assert_close("out", got, want, 2e-6)


@pytest.mark.parametrize(
    ("order", "heads", "length", "packed", "decays"),
    [
        (0, (2, 2), 8, False, False),
        (1, (2, 1), 21, False, False),  # 21 is not a whole number of chunks
        (2, (4, 2), 1, False, False),
        (2, (4, 2), 8, False, True),
        (2, (4, 2), 21, True, False),
        (2, (4, 2), 21, True, True),
        (3, (2, 2), 21, True, False),
        (4, (2, 1), 21, False, True),
        (8, (2, 1), 21, True, False),
    ],
)
def test_values_and_all_gradients_match_the_reference(order, heads, length, packed, decays):
    width = 2 if order == 8 else 6
    query, key, value, state, coefficients, segments = inputs(
        length, order=order, heads=heads[0], kv_heads=heads[1], width=width
    )
    if order % 2:  # keep the scores above the root
        query, key = 0.3 * query, 0.3 * key
        state = jax.tree.map(lambda x: 0.1 * x, state)
    segments = segments if packed else None
    rng = np.random.default_rng(7)
    cotangents = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        ((*query.shape[:3], value.shape[-1]), jax.tree.map(jnp.shape, state)),
        is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int),
    )
    log_decay = DECAY[: heads[1]] if decays else None
    arguments = (query, key, value, state, coefficients, segments, log_decay, cotangents)
    want, want_gradients = attend_vjp(*arguments, implementation="reference")
    got, got_gradients = attend_vjp(*arguments, implementation="xla")
    for name, g, w in zip(
        ("out", "numerator", "denominator"), jax.tree.leaves(got), jax.tree.leaves(want)
    ):
        assert_close(name, g, w, 1e-6)
    names = ("query", "key", "value", "state numerator", "state denominator", "coefficients")
    for name, g, w in zip(
        names, jax.tree.leaves(got_gradients), jax.tree.leaves(want_gradients), strict=True
    ):
        assert_close(f"gradient of {name}", g, w, 5e-6)


def test_gradient_of_the_reference_is_the_slope_of_the_formula():
    query, key, value, _, coefficients, segments = inputs(5)
    loss = lambda q, k, v: jnp.sum(  # noqa: E731
        jnp.sin(taylor.taylor_attention(q, k, v, coefficients=coefficients, scale=0.4))
    )
    gradients = jax.grad(loss, (0, 1, 2))(query, key, value)
    arrays = [np.asarray(x, np.float64) for x in (query, key, value)]
    one_text = np.zeros(segments.shape)
    slope_of = lambda a: np.sin(numpy_attention(*a, coefficients, one_text, 0.4)).sum()  # noqa: E731
    for which in range(3):
        for index in ((0, 2, 1, 3), (1, 4, 0, 0), (1, 0, 1, 2)):
            shifted = []
            for step in (1e-4, -1e-4):
                moved = [a.copy() for a in arrays]
                moved[which][index] += step
                shifted.append(slope_of(moved))
            assert gradients[which][index] == pytest.approx(
                (shifted[0] - shifted[1]) / 2e-4, abs=1e-5
            )


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 4e-3), ("float16", 5e-4)])
@pytest.mark.parametrize("implementation", ON_EVERY_PLATFORM)
def test_narrow_input_keeps_a_float32_state_and_its_own_output_dtype(
    implementation, dtype, tolerance
):
    query, key, value, state, coefficients, segments = inputs(21, dtype=dtype)
    out, after = attend(
        query, key, value, state, coefficients, segments, implementation=implementation
    )
    assert out.dtype == dtype
    assert after.numerator.dtype == after.denominator.dtype == jnp.float32
    wide = (x.astype(jnp.float32) for x in (query, key, value))
    want, _ = attend(*wide, state, coefficients, segments, implementation="reference")
    assert_close("out", out.astype(jnp.float32), want, tolerance)


@pytest.mark.parametrize("implementation", ON_EVERY_PLATFORM)
def test_no_gradient_flows_to_a_later_token_or_another_segment(implementation):
    query, key, value, *_, coefficients, _ = inputs(12)
    segments = jnp.asarray([[1] * 5 + [2] * 7, [1] * 12])

    @jax.jit
    @functools.partial(jax.jacrev, argnums=(0, 1, 2))
    def jacobian(query, key, value):
        out = taylor.taylor_attention(
            query,
            key,
            value,
            coefficients=coefficients,
            segment_ids=segments,
            chunk_size=4,
            implementation=implementation,
        )
        return out.sum((2, 3))  # [B, T]

    same_segment = np.asarray(segments[:, :, None] == segments[:, None, :])
    visible = np.tril(np.ones((12, 12), bool)) & same_segment
    for name, slope in zip(("query", "key", "value"), jacobian(query, key, value), strict=True):
        allowed = np.eye(12, dtype=bool) & same_segment if name == "query" else visible
        for row, other in ((0, 1), (1, 0)):
            seen = np.abs(np.asarray(slope[row, :, row])).sum((2, 3)) > 0  # [T, S]
            assert not seen[~allowed[row]].any(), name
            assert not np.asarray(slope[row, :, other]).any(), name
            if name == "value":
                assert seen[allowed[row]].all()


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 21, 64])
def test_result_does_not_depend_on_the_chunk_size(chunk_size):
    arguments = inputs(21, order=3)
    query, key, *rest = arguments
    arguments = (0.4 * query, 0.4 * key, *rest)
    want = attend(*arguments, implementation="xla", chunk_size=7)
    got = attend(*arguments, implementation="xla", chunk_size=chunk_size)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close("chunked", g, w, 1e-6)


@pytest.mark.parametrize("log_decay", [None, DECAY], ids=["", "decay"])
@pytest.mark.parametrize("implementation", ON_EVERY_PLATFORM)
def test_two_halves_and_single_steps_equal_the_whole(implementation, log_decay):
    query, key, value, state, coefficients, _ = inputs(11, order=4)
    run = functools.partial(
        attend, coefficients=coefficients, log_decay=log_decay, implementation=implementation
    )
    whole, last = run(query, key, value, state)
    first, middle = run(query[:, :6], key[:, :6], value[:, :6], state)
    assert_close("first half", first, whole[:, :6], 1e-6)
    second, end = run(query[:, 6:], key[:, 6:], value[:, 6:], middle)
    assert_close("second half", second, whole[:, 6:], 1e-6)
    assert_close("state", end.numerator, last.numerator, 1e-6)
    step = jax.jit(taylor.taylor_attention_step)
    for t in range(11):
        out, state = step(
            query[:, t],
            key[:, t],
            value[:, t],
            state,
            coefficients=coefficients,
            log_decay=log_decay,
        )
        assert_close(f"step {t}", out, whole[:, t], 3e-6)  # these scores leave the radius: up to
        # 1.5e-6 measured, by what a processor sums first
    assert_close("state", state.numerator, last.numerator, 1e-6)
    assert_close("state", state.denominator, last.denominator, 1e-6)


@pytest.mark.parametrize("implementation", ON_EVERY_PLATFORM)
def test_segments_equal_separate_texts(implementation):
    query, key, value, state, coefficients, _ = inputs(21)
    segments = jnp.asarray([[5] * 3 + [2] * 10 + [0] * 8] * 2)  # ids need not ascend
    packed, last = attend(
        query, key, value, state, coefficients, segments, implementation=implementation
    )
    begin = state
    for start, stop in ((0, 3), (3, 13), (13, 21)):
        part = slice(start, stop)
        alone, after = attend(
            query[:, part],
            key[:, part],
            value[:, part],
            begin,
            coefficients,
            implementation=implementation,
        )
        assert_close(f"segment at {start}", packed[:, part], alone, 1e-6)
        begin = empty(query, key, value, 2)  # the initial state belongs to the first segment
    assert_close("state of the last segment", last.numerator, after.numerator, 1e-6)
    assert_close("state of the last segment", last.denominator, after.denominator, 1e-6)


@pytest.mark.parametrize("implementation", ON_EVERY_PLATFORM)
def test_grouped_heads_equal_repeated_keys(implementation):
    query, key, value, *_ = inputs(9)
    per_head = jax.random.uniform(jax.random.key(0), (4, 3), minval=0.5)
    run = functools.partial(
        taylor.taylor_attention, coefficients=per_head, implementation=implementation, chunk_size=4
    )
    repeated = run(query, jnp.repeat(key, 2, axis=2), jnp.repeat(value, 2, axis=2))
    assert_close("grouped", run(query, key, value), repeated, 1e-6)
    alone = taylor.taylor_attention(
        query[:, :, 3:],
        key[:, :, 1:],
        value[:, :, 1:],
        coefficients=per_head[3],
        implementation=implementation,
    )
    assert_close("coefficients of head 3", run(query, key, value)[:, :, 3:], alone, 1e-6)


def test_sums_are_what_attention_divides():
    query, key, value, state, coefficients, segments = inputs(21)
    numerator, denominator, after = jax.jit(
        functools.partial(
            taylor.taylor_attention_sums, implementation="xla", return_state=True, chunk_size=8
        )
    )(query, key, value, coefficients=coefficients, segment_ids=segments, initial_state=state)
    want, last = attend(query, key, value, state, coefficients, segments, implementation="xla")
    assert_close("output", numerator / denominator[..., None], want, 1e-6)
    assert_close("state", after.numerator, last.numerator, 1e-6)


def test_a_decaying_state_is_folded_ragged_and_read_at_a_distance():
    query, key, value, _, coefficients, _ = inputs(10)
    lengths = (7, 9)
    mask = jnp.arange(10) < jnp.asarray(lengths)[:, None]  # a masked key ages nothing
    fold = jax.jit(functools.partial(taylor.fold, chunk_size=4))
    state = fold(empty(query, key, value, 2), key, value, mask, log_decay=DECAY)
    sums = jax.jit(taylor.query_state)(
        query, state, coefficients=coefficients, log_decay=DECAY, distance=jnp.arange(1, 11)
    )
    # The same with every key at hand: score, polynomial and decay in numpy.
    for b, t, n in np.ndindex(2, 10, 4):
        keys, values = (np.asarray(x[b, : lengths[b], n // 2], np.float64) for x in (key, value))
        x = keys @ np.asarray(query[b, t, n], np.float64) / np.sqrt(6)
        weight = np.polynomial.polynomial.polyval(x, np.asarray(coefficients, np.float64))
        age = t + lengths[b] - np.arange(lengths[b])  # the first query follows the last key
        weight = weight * np.exp(float(DECAY[n // 2]) * age)
        assert sums[0][b, t, n] == pytest.approx(weight @ values, abs=1e-5)
        assert sums[1][b, t, n] == pytest.approx(weight.sum(), abs=1e-5)


def test_reading_a_decaying_state_needs_the_distance():
    query, *_, state, coefficients, _ = inputs(3)
    with pytest.raises(ValueError, match="log_decay and distance go together"):
        taylor.query_state(query, state, coefficients=coefficients, log_decay=DECAY)


def test_more_features_than_the_linear_form_holds_are_refused():
    x = jnp.zeros((1, 3, 1, 64))
    run = functools.partial(
        taylor.taylor_attention, x, x, x, coefficients=taylor.taylor_coefficients(4)
    )
    with pytest.raises(ValueError, match=r"order 4 at head width H = 64 .* 814,385.*reference"):
        run(implementation="xla")
    assert run().shape == x.shape  # the quadratic form has no such limit


def test_high_minimax_order_is_softmax_attention():
    query, key, value, *_ = inputs(16, value_width=6)
    query, key = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    want = jax.nn.dot_product_attention(query, key, value, scale=2.0, is_causal=True)
    for order, tolerance in ((4, 1.2e-2), (6, 4e-4), (8, 6e-6)):
        got = taylor.taylor_attention(
            query, key, value, coefficients=taylor.minimax_coefficients(order, 2.0), scale=2.0
        )
        assert_close(f"order {order}", got, want, tolerance)


def test_query_state_and_explicit_keys_share_one_normaliser():
    query, key, value, _, coefficients, _ = inputs(10)
    whole = taylor.taylor_attention(query, key, value, coefficients=coefficients)
    state = taylor.fold(empty(query, key, value, 2), key[:, :6], value[:, :6])
    numerator, denominator = taylor.query_state(query[:, 6:], state, coefficients=coefficients)
    repeated_key, repeated_value = (jnp.repeat(x[:, 6:], 2, axis=2) for x in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query[:, 6:], repeated_key) / np.sqrt(6)
    weights = jnp.tril(taylor.polynomial(scores, coefficients))
    numerator += jnp.einsum("bnts,bsne->btne", weights, repeated_value)
    denominator += jnp.einsum("bnts->btn", weights)
    assert_close("shared", numerator / denominator[..., None], whole[:, 6:], 1e-6)


def test_fold_skips_masked_keys_of_ragged_rows():
    _, key, value, state, *_ = inputs(21)
    mask = jnp.arange(21) < jnp.asarray([[5], [17]])
    rubbish = jnp.where(mask[..., None, None], key, 1e3)
    folded = taylor.fold(state, rubbish, value, mask, chunk_size=4)
    for row, length in enumerate((5, 17)):
        want = taylor.fold(
            jax.tree.map(lambda x, row=row: x[row : row + 1], state),
            key[row : row + 1, :length],
            value[row : row + 1, :length],
        )
        assert_close("numerator", folded.numerator[row], want.numerator[0], 1e-6)
        assert_close("denominator", folded.denominator[row], want.denominator[0], 1e-6)
    assert folded.denominator[:, 0, 0].tolist() == [3 + 5, 3 + 17]  # it counts the keys


def test_vmap_over_an_extra_axis():
    query, key, value, *_, coefficients, _ = inputs(9)
    run = functools.partial(
        taylor.taylor_attention, coefficients=coefficients, implementation="xla", chunk_size=4
    )
    stacked = jax.vmap(run)(*(jnp.stack([x, 2 * x]) for x in (query, key, value)))
    assert_close("first", stacked[0], run(query, key, value), 1e-6)
    assert_close("second", stacked[1], run(2 * query, 2 * key, 2 * value), 1e-6)


def test_state_is_a_tree_with_the_batch_axis_first():
    state = inputs(5)[3]
    assert [x.shape[:2] for x in jax.tree.leaves(state)] == [(2, 2), (2, 2)]
    assert state.numerator.shape == (2, 2, taylor.num_features(6, 2), 5)


def test_a_missing_implementation_is_chosen_by_the_crossover(monkeypatch):
    seen = []

    def record(name):
        def run(query, key, value, **kwargs):
            seen.append(name)
            numerator = jnp.zeros((*query.shape[:-1], value.shape[-1]))
            return (numerator, numerator[..., 0]), None

        return run

    monkeypatch.setattr(
        "kernels.taylor_attention.api.IMPLEMENTATIONS", {n: record(n) for n in ("reference", "xla")}
    )
    crossover = taylor.crossover_length(4, 4, 1)
    # C + (4P(E+1) + 2P) / (H + E + p) with P = C(5, 1) = 5
    assert crossover == 128 + (4 * 5 * 5 + 2 * 5) / 9
    for length in (int(crossover), int(crossover) + 1):
        x = jnp.zeros((1, length, 1, 4))
        taylor.taylor_attention(x, x, x, coefficients=taylor.taylor_coefficients(1))
    assert seen == ["reference", "xla"]


GOOD = {"query": (2, 5, 4, 6), "key": (2, 5, 2, 6), "value": (2, 5, 2, 3)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query": (2, 5, 24)}, "query.*key.*value"),
        ({"key": (2, 4, 2, 6)}, "agree"),
        ({"value": (2, 5, 1, 3)}, "agree"),
        ({"key": (2, 5, 2, 4)}, "one width H"),
        ({"query": (2, 5, 3, 6)}, "multiple"),
        ({"coefficients": np.ones((10,))}, r"p in 0\.\.8"),
        ({"coefficients": np.ones((3, 3))}, "one row per query head"),
        ({"implementation": "fast"}, "implementation must be one of"),
        ({"chunk_size": 0}, "at least 1"),
        ({"log_decay": np.zeros(4)}, r"log_decay must be \[K\]"),
        ({"log_decay": np.asarray([0.0, 0.1])}, "not be positive"),
        ({"segment_ids": jnp.zeros((2, 4), jnp.int32)}, "segment_ids"),
        ({"dtype": jnp.int32}, "floating point"),
        (
            {
                "initial_state": taylor.empty_state(
                    batch_size=2, num_kv_heads=2, head_dim=6, value_dim=3, order=3
                )
            },
            "state must be",
        ),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    dtype = changed.pop("dtype", jnp.float32)
    arrays = {n: jnp.zeros(changed.pop(n, shape), dtype) for n, shape in GOOD.items()}
    settings = {"coefficients": taylor.taylor_coefficients(2)} | changed
    with pytest.raises(ValueError, match=message):
        taylor.taylor_attention(**arrays, **settings)


def test_a_state_of_other_heads_is_refused_by_fold():
    state = taylor.empty_state(batch_size=1, num_kv_heads=1, head_dim=6, value_dim=3, order=2)
    with pytest.raises(ValueError, match="no order"):
        taylor.fold(state, jnp.zeros((1, 2, 1, 5)), jnp.zeros((1, 2, 1, 3)))
