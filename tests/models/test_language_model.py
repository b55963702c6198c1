"""Every way of reading a text gives the same numbers, for every kind of attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import cache as caches
from models.attention import AttentionConfig
from models.language_model import LanguageModel

TOLERANCE = 3e-6  # the largest difference measured is 1e-6
TOKENS = jax.random.randint(jax.random.key(1), (3, 12), 0, 23)
LENGTHS = jnp.asarray([3, 8, 5])
ROWS = jnp.arange(3)


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(model, params, tokens, **options):
    """`model.outputs`, compiled once for all tests."""
    return model.outputs(params, tokens, **options)


def assert_same_outputs(got, want, tolerance=TOLERANCE):
    for name in ("logits", "value_logits", "hidden"):
        np.testing.assert_allclose(
            getattr(got, name), getattr(want, name), atol=tolerance, rtol=0, err_msg=name
        )


@pytest.fixture(scope="module")
def whole(model_and_params):
    """What the model says about TOKENS when it reads them at once."""
    model, params = model_and_params
    return outputs_of(model, params, TOKENS)


@pytest.fixture(scope="module")
def prefilled(model_and_params):
    """Outputs and cache of ragged prompts, the first LENGTHS tokens of each row."""
    model, params = model_and_params
    run = jax.jit(lambda p: model.prefill(p, TOKENS[:, :8], lengths=LENGTHS, capacity=12))
    return run(params)


def test_prefill_and_decode_of_ragged_rows_equal_the_whole(model_and_params, whole, prefilled):
    model, params = model_and_params
    out, cache = prefilled
    for row, length in enumerate(LENGTHS.tolist()):
        first = jax.tree.map(lambda x, row=row, length=length: x[row, :length], (out, whole))
        assert_same_outputs(*first)
    decode = jax.jit(model.decode)
    for step in range(4):
        out, cache = decode(params, cache, TOKENS[ROWS, LENGTHS + step])
        assert_same_outputs(out, whole.at(LENGTHS + step))
    assert cache.length.tolist() == (LENGTHS + 4).tolist()


def test_extend_by_pieces_equals_the_whole(model_and_params, whole, prefilled):
    model, params = model_and_params
    _, cache = prefilled
    pieces = jnp.asarray([4, 1, 3])
    following = TOKENS[ROWS[:, None], LENGTHS[:, None] + jnp.arange(4)]  # row 1: one, then rubbish
    out, cache = jax.jit(model.extend)(params, cache, following, pieces)
    last = out.at(pieces - 1)
    assert_same_outputs(last, whole.at(LENGTHS + pieces - 1))
    after = LENGTHS + pieces
    out, _ = jax.jit(model.decode)(params, cache, TOKENS[ROWS, after])
    assert_same_outputs(out, whole.at(after))


def test_lanes_equal_separate_texts(model_and_params, prefilled):
    model, params = model_and_params
    _, cache = prefilled
    branches = jax.random.randint(jax.random.key(5), (3, 2, 3), 0, 23)
    lanes = model.empty_lanes(3, 2, 3)
    branch = jax.jit(model.branch)
    seen = []
    for step in range(3):
        out, lanes = branch(params, cache, lanes, branches[:, :, step])
        seen.append(out)
    assert int(lanes.filled) == 3
    decode = jax.jit(model.decode)
    for lane in range(2):
        alone = cache
        for step in range(3):
            want, alone = decode(params, alone, branches[:, lane, step])
            got = jax.tree.map(lambda x, lane=lane: x[:, lane], seen[step])
            assert_same_outputs(got, want)


def test_reordered_lanes_continue_their_parents(model_and_params, prefilled):
    model, params = model_and_params
    _, cache = prefilled
    branch = jax.jit(model.branch)
    one = jnp.asarray([[1, 2], [3, 4], [5, 6]])
    _, lanes = branch(params, cache, model.empty_lanes(3, 2, 2), one)
    parents = jnp.asarray([[1, 1], [0, 0], [1, 0]])
    got, _ = branch(params, cache, caches.reorder(lanes, parents), one)
    chosen = jnp.take_along_axis(one, parents, axis=1)
    _, lanes = branch(params, cache, model.empty_lanes(3, 2, 2), chosen)
    want, _ = branch(params, cache, lanes, one)
    assert_same_outputs(got, want)


def test_scored_branches_are_the_log_probabilities_of_whole_texts(model_and_params):
    model, params = model_and_params
    branches = jax.random.randint(jax.random.key(3), (3, 2, 3), 0, 23)
    branch_lengths = jnp.asarray([[3, 1], [2, 0], [3, 2]])
    scored = jax.jit(model.score_branches)(params, TOKENS[:, :8], LENGTHS, branches, branch_lengths)
    forward = jax.jit(model.forward)
    for lane in range(2):
        texts = TOKENS.at[ROWS[:, None], LENGTHS[:, None] + jnp.arange(3)].set(branches[:, lane])
        log_probs = jax.nn.log_softmax(forward(params, texts))
        for row, length in enumerate(LENGTHS.tolist()):
            for i in range(3):
                want = log_probs[row, length - 1 + i, branches[row, lane, i]]
                want = want if i < branch_lengths[row, lane] else 0.0
                assert scored[row, lane, i] == pytest.approx(float(want), abs=TOLERANCE)


def test_packed_documents_equal_separate_ones(model_and_params):
    model, params = model_and_params
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.asarray([[*range(5), *range(4), *range(3)]])
    options = {"segment_ids": segments, "positions": positions}
    packed = outputs_of(model, params, TOKENS[:1], **options)
    for start, stop in ((0, 5), (5, 9)):
        alone = outputs_of(model, params, TOKENS[:1, start:stop])
        assert_same_outputs(jax.tree.map(lambda x, s=start, e=stop: x[:, s:e], packed), alone)


def test_rows_do_not_see_each_other(model_and_params, whole):
    model, params = model_and_params
    others = TOKENS.at[1:].set(0)
    changed = outputs_of(model, params, others)
    np.testing.assert_array_equal(changed.logits[0], whole.logits[0])
    np.testing.assert_array_equal(changed.value_logits[0], whole.value_logits[0])


def test_no_gradient_flows_to_a_later_token(kind, build_model):
    model, params = build_model(kind, tie_embeddings=False)
    tokens = jnp.arange(6)[None]  # each token once, so a row of the table is a position

    def hidden_at_every_step(table):
        changed = {**params, "trunk": {**params["trunk"], "embedding": table}}
        out = model.outputs(changed, tokens)
        return jnp.stack([out.hidden.sum(-1)[0], out.value_logits[0]])

    slope = jax.jit(jax.jacrev(hidden_at_every_step))(params["trunk"]["embedding"])
    seen = np.abs(slope[..., :6, :]).sum(-1) > 0  # [2, T, S]
    np.testing.assert_array_equal(seen, np.stack([np.tril(np.ones((6, 6), bool))] * 2))


def test_grouped_heads_equal_repeated_heads(kind, build_model):
    model, params = build_model(kind)
    full = LanguageModel(dataclasses.replace(model.config, num_kv_heads=4))
    shared_names = {"key", "value", "key_convolution", "value_convolution"}
    repeat = lambda path, x: (  # noqa: E731
        jnp.repeat(x, 2, axis=1) if shared_names & {p.key for p in path} else x
    )
    repeated = jax.tree_util.tree_map_with_path(repeat, params)
    assert repeated["trunk"]["block_0"]["attention"]["key"]["kernel"].shape == (16, 4, 4)
    assert_same_outputs(outputs_of(full, repeated, TOKENS), outputs_of(model, params, TOKENS))


def test_a_taylor_cache_has_one_size_and_no_limit(build_model):
    model, params = build_model("taylor")
    small, large = (model.empty_cache(1, capacity) for capacity in (2, 200))
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, large)
    assert small.layers[0].past.numerator.shape == (1, 2, 15, 4)  # 15 = C(4 + 2, 2) features
    prefill = jax.jit(functools.partial(model.prefill, capacity=2))
    _, cache = prefill(params, TOKENS[:1, :2], lengths=jnp.asarray([2]))
    out, _ = jax.jit(model.extend)(params, cache, TOKENS[:1, 2:], jnp.asarray([10]))
    want = outputs_of(model, params, TOKENS[:1])
    assert_same_outputs(out, jax.tree.map(lambda x: x[:, 2:], want))


def test_a_prompt_beyond_the_capacity_is_refused(build_model):
    model, params = build_model()
    with pytest.raises(ValueError, match="capacity=4 < 12"):
        model.prefill(params, TOKENS, lengths=LENGTHS, capacity=4)


@pytest.mark.parametrize("stop", [False, True])
def test_the_value_loss_reaches_the_trunk_only_if_it_may(build_model, stop):
    model, params = build_model()
    loss = lambda p: model.outputs(p, TOKENS, stop_value_gradient=stop).value.sum()  # noqa: E731
    slopes = jax.jit(jax.grad(loss))(params)
    largest = {n: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(slopes[n])) for n in slopes}
    assert largest["value_head"] > 0
    assert (largest["trunk"] == 0) == stop


def test_without_a_rotary_base_positions_mean_nothing(build_model):
    moved = 7 + 3 * jnp.arange(12) * jnp.ones((3, 1), jnp.int32)
    for base, equal in ((None, True), (100.0, False)):
        model, params = build_model("taylor", rope_base=base)
        logits = [outputs_of(model, params, TOKENS, positions=p).logits for p in (None, moved)]
        assert bool(jnp.array_equal(*logits)) is equal


def test_a_normalised_output_keeps_its_size_when_values_shrink(build_model):
    """As they do in the mean over a long text; without it the output shrinks with them."""
    for normalize, tolerance in ((True, 1e-4), (False, None)):
        attention = AttentionConfig(kind="taylor", order=4, normalize_output=normalize)
        model, params = build_model(attention=attention)
        small = jax.tree.map(lambda x: x, params)
        for layer in ("block_0", "block_1"):
            small["trunk"][layer]["attention"]["value"]["kernel"] *= 0.1
        logits, others = (outputs_of(model, p, TOKENS).logits for p in (params, small))
        change = jnp.abs(logits - others).max()
        assert change < tolerance if tolerance else change > 0.1


def test_value_is_a_probability(build_model):
    model, params = build_model()
    out = outputs_of(model, params, TOKENS)
    want = 1 / (1 + np.exp(-np.asarray(out.value_logits)))
    np.testing.assert_allclose(out.value, want, rtol=1e-6)


@pytest.mark.parametrize("attention", ["softmax", "taylor"])
def test_remat_changes_no_gradient(build_model, attention):
    model, params = build_model(attention)
    lean = LanguageModel(dataclasses.replace(model.config, remat=True))
    slopes = [
        jax.jit(jax.grad(lambda p, m=m: jnp.square(m.forward(p, TOKENS)).mean()))(params)
        for m in (model, lean)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *slopes)


def test_bfloat16_activations_keep_float32_logits_and_parameters(kind, build_model):
    model, params = build_model(kind)
    narrow, fresh = build_model(kind, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    out, want = (outputs_of(m, params, TOKENS) for m in (narrow, model))
    assert out.logits.dtype == out.value_logits.dtype == jnp.float32
    assert out.hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.logits, want.logits, atol=0.15)


@pytest.mark.parametrize("attention", ["softmax", "minimax"])
@pytest.mark.parametrize("tied", [False, True])
def test_abstract_parameters_name_every_axis(build_model, tied, attention):
    model, params = build_model(attention, tie_embeddings=tied)
    boxed = model.abstract_params()
    is_box = lambda x: hasattr(x, "names")  # noqa: E731
    leaves = jax.tree.leaves(boxed, is_leaf=is_box)
    assert all(len(x.names) == x.value.ndim for x in leaves)
    shapes = jax.tree.map(lambda x: x.value.shape, boxed, is_leaf=is_box)
    assert shapes == jax.tree.map(jnp.shape, params)
    assert ("unembed" in params["trunk"]) != tied


def test_tied_logits_are_products_with_the_embedding(build_model):
    model, params = build_model()
    out = outputs_of(model, params, TOKENS)
    want = out.hidden @ params["trunk"]["embedding"].T
    np.testing.assert_allclose(out.logits, want, atol=1e-5)
