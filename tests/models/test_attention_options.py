"""Orders, short convolution, window and decay: every way of reading still gives the same numbers,
and these are those of the formula.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attention_sums
from models.attention import Attention, AttentionConfig
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from models.view import View, causal_age

BOUNDED = {"kind": "taylor", "normalize_query_key": True, "radius": 1.5}
OPTIONS = {
    "softmax, convolution, window": {"short_conv_width": 4, "window_tokens": 3},
    "order 0, convolution": {"kind": "taylor", "order": 0, "short_conv_width": 2},
    "order 1, window": BOUNDED | {"order": 1, "radius": 0.9, "window_tokens": 1},
    "order 2, all": BOUNDED
    | {"short_conv_width": 3, "window_tokens": 3, "decay": True, "normalize_output": True},
    "order 3, window": BOUNDED | {"order": 3, "window_tokens": 2},
    "order 4, decay": {"kind": "taylor", "order": 4, "decay": True},
    "order 5, minimax, wide window": BOUNDED
    | {"order": 5, "coefficients": "minimax", "window_tokens": 20, "decay": True},
    "order 8": {"kind": "taylor", "order": 8},
}
TOLERANCE = 4e-6
TOKENS = jax.random.randint(jax.random.key(1), (3, 9), 0, 23)
LENGTHS = jnp.asarray([2, 6, 4])  # of the prompts
BRANCHES = jax.random.randint(jax.random.key(2), (3, 2, 3), 0, 23)
ROWS = jnp.arange(3)
# The tests check numbers, not speed: compile fast.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def build(num_layers=2, **options):
    config = TransformerConfig(
        vocab_size=23,
        width=16,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        value_head_width=8,
        attention=AttentionConfig(**options),
    )
    model = LanguageModel(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)
    return model, params


@pytest.mark.parametrize("name", OPTIONS)
def test_every_way_of_reading_gives_the_same_numbers(name):
    # All options together in two layers, the others in one: half as much to trace.
    model, params = build(num_layers=2 if name == "order 2, all" else 1, **OPTIONS[name])

    place = LENGTHS[:, None] + jnp.arange(3)  # of the branches' tokens
    rows = ROWS[:, None]
    texts = jnp.stack([TOKENS.at[rows, place].set(BRANCHES[:, lane]) for lane in range(2)])
    second_document = jnp.pad(TOKENS[:, 5:8], ((0, 0), (0, 6)))

    @jit
    def readings(params):
        """reading -> (got, want)"""
        every_text = jnp.concatenate([TOKENS, second_document, *texts])
        out = model.outputs(params, every_text)
        whole, document, *branched = jnp.split(out.hidden, 4)
        log_probs = jax.nn.log_softmax(jnp.stack(jnp.split(out.logits, 4)[2:], axis=1))

        out, cache = model.prefill(params, TOKENS[:, :6], lengths=LENGTHS, capacity=9)
        found = {"prefill": (out.at(LENGTHS - 1).hidden, whole[ROWS, LENGTHS - 1])}
        pieces = jnp.asarray([2, 1, 2])  # row 1: one, then rubbish
        out, after = model.extend(params, cache, TOKENS[rows, place[:, :2]], pieces)
        found["extend"] = (out.at(pieces - 1).hidden, whole[ROWS, LENGTHS + pieces - 1])
        out, _ = model.decode(params, after, TOKENS[ROWS, LENGTHS + pieces])
        found["decode"] = (out.hidden, whole[ROWS, LENGTHS + pieces])

        def branch(lanes, token):
            out, lanes = model.branch(params, cache, lanes, token)
            return lanes, out.hidden

        _, seen = jax.lax.scan(branch, model.empty_lanes(3, 2, 3), jnp.moveaxis(BRANCHES, 2, 0))
        for lane in range(2):
            want = branched[lane][rows, place]
            found[f"lane {lane}"] = (jnp.moveaxis(seen[:, :, lane], 0, 1), want)

        # The same branches as two paths after each prompt, read in ragged pieces.
        paths, piece = model.empty_paths(cache, 2, 3), jnp.asarray([2, 1, 1, 2, 2, 1])
        tokens, every = BRANCHES.reshape(6, 3), jnp.arange(6)
        want = jnp.stack([text[rows, place] for text in branched], axis=1).reshape(6, 3, -1)
        out, paths = model.extend(params, paths, tokens[:, :2], piece)
        found["path"] = (out.at(piece - 1).hidden, want[every, piece - 1])
        after = tokens[every, piece]
        longer, long_paths = model.decode(params, paths, after)
        found["longer path"] = (longer.hidden, want[every, piece])
        lanes = model.empty_lanes(6, 2, 2)  # the first of two goes on as the path does
        out, lanes = model.branch(params, paths, lanes, jnp.stack([after, after - 1], axis=1))
        found["lane after a path"] = (out.hidden[:, 0], want[every, piece])
        out, _ = model.branch(params, paths, lanes, jnp.stack([tokens[:, 2]] * 2, axis=1))
        short = jnp.asarray([1, 2, 5])
        found["second token there"] = (out.hidden[short, 0], want[short, 2])
        first_of_two = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:])[:, :1], paths.layers)
        folded = model.fold(cache, first_of_two, piece[::2])
        out, _ = model.decode(params, folded, after[::2])
        found["decode after a fold"] = (out.hidden, want[ROWS * 2, piece[::2]])
        found["logits"] = (model.logits(params, longer.hidden), longer.logits)
        assert long_paths.layers[0].key_values.key.shape == (6, 3, 2, 4)

        all_of_them = jnp.full((3, 2), 3)
        scored = model.score_branches(params, TOKENS[:, :6], LENGTHS, BRANCHES, all_of_them)
        before = log_probs[rows[..., None], jnp.arange(2)[:, None], place[:, None] - 1]
        want = jnp.take_along_axis(before, BRANCHES[..., None], axis=-1)[..., 0]
        found["scores of branches"] = (scored, want)

        segments = jnp.asarray([[1] * 5 + [2] * 3 + [0]] * 3)
        positions = jnp.asarray([[*range(5), *range(3), 0]] * 3)
        packed = model.outputs(params, TOKENS, segment_ids=segments, positions=positions).hidden
        found["first document"] = (packed[:, :5], whole[:, :5])
        found["second document"] = (packed[:, 5:8], document[:, :3])
        return found

    for reading, (got, want) in readings(params).items():
        np.testing.assert_allclose(got, want, atol=TOLERANCE, rtol=0, err_msg=reading)


@pytest.mark.parametrize("options", ["order 2, all", "order 1, window", "order 4, decay"])
def test_weights_are_those_of_the_formula(options):
    """Against plain loops: exp in the window, the polynomial beyond it, times decay^age."""
    config = AttentionConfig(**OPTIONS[options] | {"short_conv_width": 0})
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(1, 1, 8, n, 4)).astype(np.float32) for n in (4, 2, 2))
    query, key = (0.7 * x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    query *= np.sqrt(4)  # scores are divided by it
    layer = Attention(config, 4, 2, 4, 1e4, "float32")
    view = View(positions=jnp.arange(8)[None, None], age=causal_age(8))
    own = attention_sums.KeyValues(key=jnp.asarray(key), value=jnp.asarray(value))
    attend = jit(lambda q: layer._attend(q, own, view, None, True))
    got = attend(jnp.asarray(query))[0, 0]
    for n in range(4):
        decay = 1 - 2.0 ** (-5 - n // 2) if config.decay else 1.0
        for t in range(8):
            scores = key[0, 0, : t + 1, n // 2] @ query[0, 0, t, n] / 2
            age = t - np.arange(t + 1)
            weights = np.polynomial.polynomial.polyval(scores, config.polynomial)
            weights = np.where(age < config.window_tokens, np.exp(scores), weights) * decay**age
            want = weights @ value[0, 0, : t + 1, n // 2] / weights.sum()
            np.testing.assert_allclose(got[t, n], want, atol=2e-6)


@pytest.mark.parametrize("seen", [3, 5])
def test_softmax_sees_its_window_only(seen):
    model, params = build(window_tokens=seen)
    changed = TOKENS.at[:, 0].set((TOKENS[:, 0] + 1) % 23)
    run = jit(lambda t: model.outputs(params, t).hidden)
    differs = np.any(np.asarray(run(changed) != run(TOKENS)), axis=(0, 2))
    reach = 2 * (seen - 1)  # two layers
    assert differs.tolist() == [t <= reach for t in range(9)]


@pytest.mark.parametrize("kind", ["softmax", "taylor"])
@pytest.mark.parametrize(("dtype", "num_exact"), [("float32", None), ("bfloat16", 2)])
def test_products_of_float32_models_are_exact_on_every_platform(kind, dtype, num_exact):
    """Not TF32 on a GPU, not bfloat16 passes on a TPU. Narrow models: only the value head's two."""
    options = {"kind": kind, "short_conv_width": 2}
    if kind == "taylor":
        options |= BOUNDED | {"window_tokens": 2}
    config = TransformerConfig(
        vocab_size=8, width=8, num_layers=1, num_heads=2, head_dim=4, dtype=dtype,
        tie_embeddings=kind == "softmax", attention=AttentionConfig(**options),
    )  # fmt: skip
    model = LanguageModel(config)
    tokens = jnp.zeros((1, 3), jnp.int32)

    def read(params):
        out, cache = model.prefill(params, tokens, lengths=jnp.asarray([3]), capacity=4)
        lanes = model.empty_lanes(1, 2, 1)
        return out, model.branch(params, cache, lanes, tokens[:, :2])

    jaxpr = jax.make_jaxpr(read)(jax.eval_shape(model.init, jax.random.key(0)))
    exact = [x == (jax.lax.Precision.HIGHEST,) * 2 for x in _precisions(jaxpr.jaxpr)]
    assert len(exact) > 10
    assert sum(exact) == (len(exact) if num_exact is None else 2 * num_exact)


def _precisions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _precisions(inner)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_conv_width": 1}, "at least 2 tokens"),
        ({"window_tokens": -1}, "number of tokens"),
        ({"kind": "taylor", "window_tokens": 4}, "normalize_query_key=False, radius=None"),
        ({"kind": "taylor", "window_tokens": 4, "normalize_query_key": True}, "such as 2.0"),
        (BOUNDED | {"window_tokens": 4, "radius": 17.0}, "at most 16.0"),
        ({"decay": True}, 'belongs to kind="taylor"'),
    ],
)
def test_unsafe_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**settings)
