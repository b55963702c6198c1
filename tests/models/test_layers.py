"""The parts of a block against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models import attention, attention_sums, layers
from models import cache as caches
from models.attention import AttentionConfig
from models.transformer import TransformerConfig
from models.view import View, causal_age


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_rms_norm_is_its_formula():
    x, scale = normal(0, (2, 5)), normal(1, (5,))
    got = layers.RMSNorm().apply({"params": {"scale": scale}}, x)
    want = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["swiglu", "relu_squared"])
def test_mlp_is_its_formula(kind):
    x = normal(0, (3, 4))
    mlp = layers.Mlp(mlp_width=6, kind=kind, dtype="float32")
    params = nn.unbox(mlp.init(jax.random.key(1), x)["params"])
    up, down = params["up"]["kernel"], params["down"]["kernel"]
    if kind == "swiglu":
        gate = x @ params["gate"]["kernel"]
        hidden = gate / (1 + np.exp(-gate)) * (x @ up)
    else:
        assert set(params) == {"up", "down"}
        hidden = np.maximum(x @ up, 0) ** 2
    np.testing.assert_allclose(mlp.apply({"params": params}, x), hidden @ down, atol=1e-5)


def test_rotation_keeps_length_and_depends_on_the_difference_of_positions():
    query, key = normal(0, (1, 1, 6)), normal(1, (1, 1, 6))

    def score(query_position, key_position):
        q = layers.rotate(query, jnp.asarray([query_position]), 100.0)
        k = layers.rotate(key, jnp.asarray([key_position]), 100.0)
        np.testing.assert_allclose(jnp.linalg.norm(q), jnp.linalg.norm(query), rtol=1e-5)
        return float(jnp.vdot(q, k))

    assert score(9, 4) == pytest.approx(score(5, 0), abs=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_rotation_by_hand():
    x = jnp.asarray([[[1.0, 0.0]]])  # one pair, frequency 1: a turn by the position in radians
    got = layers.rotate(x, jnp.asarray([2]), 10_000.0)
    np.testing.assert_allclose(got[0, 0], [np.cos(2), np.sin(2)], atol=1e-6)


def test_softmax_attention_is_that_of_jax():
    query = normal(0, (2, 1, 7, 4, 6))
    own = caches.KeyValues(key=normal(1, (2, 1, 7, 2, 6)), value=normal(2, (2, 1, 7, 2, 6)))
    got = attention_sums.softmax_attention(query, [(own, causal_age(7))])[:, 0]
    want = jax.nn.dot_product_attention(query[:, 0], own.key[:, 0], own.value[:, 0], is_causal=True)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(
    ("radius", "raw", "largest"),
    [(1.5, 100.0, 1.5), (1.5, -2.0, 0.75), (None, 0.0, 2.0), (None, np.log(3.0), 6.0),
     (1.5, None, 1.5)],
)  # fmt: skip
def test_the_temperature_is_the_score_of_equal_directions(monkeypatch, radius, raw, largest):
    # With a radius: radius * sigmoid(raw + 2); without one: sqrt(head_dim) * exp(raw).
    seen = []

    def record(query, key, value, **_):
        seen.append(jnp.einsum("btnh,btnh->btn", query, key) / np.sqrt(4))
        return value, jnp.ones(value.shape[:-1])

    monkeypatch.setattr(attention.taylor, "taylor_attention_sums", record)
    config = AttentionConfig(
        kind="taylor",
        normalize_query_key=True,
        radius=radius,
        learn_temperature=raw is not None,
    )
    layer = attention.Attention(config, 1, 1, 4, 10_000.0, "float32")
    x = normal(0, (1, 1, 3, 8))
    inputs = (x, View(positions=jnp.arange(3)[None, None], age=causal_age(3)))
    params = nn.unbox(layer.init(jax.random.key(0), *inputs)["params"])
    params["key"] = params["query"]
    assert ("temperature" in params) == (raw is not None)
    if raw is not None:
        params["temperature"] = jnp.asarray([raw])
    layer.apply({"params": params}, *inputs)
    np.testing.assert_allclose(seen[-1], largest, rtol=1e-5)


def test_unit_length():
    x = attention.unit_length(normal(0, (5, 3)))
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1.0, rtol=1e-5)
    assert not np.isnan(attention.unit_length(jnp.zeros((1, 3)))).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "taylor", "order": 1}, "negative weights"),
        ({"kind": "taylor", "order": 3, "normalize_query_key": True}, "negative weights"),
        ({"kind": "taylor", "order": 3, "normalize_query_key": True, "radius": 1.6}, "negative"),
        ({"kind": "taylor", "order": 9}, r"0\.\.8"),
        ({"kind": "taylor", "coefficients": "minimax"}, "bounded range"),
        ({"kind": "taylor", "radius": 1.0}, "normalize_query_key=True"),
        ({"normalize_query_key": True, "radius": -1.0}, "positive"),
        ({"normalize_query_key": True, "learn_temperature": False}, "is the radius"),
    ],
)
def test_unsafe_attention_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AttentionConfig(**settings)


def test_a_radius_leaves_room_for_the_rounding_of_the_dtype():
    nearly_1 = AttentionConfig(kind="taylor", order=1, normalize_query_key=True, radius=0.999)
    shape = {"vocab_size": 8, "width": 8, "num_layers": 1, "num_heads": 4, "head_dim": 4}
    TransformerConfig(attention=nearly_1, **shape)
    with pytest.raises(ValueError, match="in bfloat16.*up to 0.980"):
        TransformerConfig(attention=nearly_1, dtype="bfloat16", **shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 5}, "even head_dim"),
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 64, "attention": AttentionConfig(kind="taylor", order=4)}, "features"),
    ],
)
def test_impossible_shapes_are_refused(settings, message):
    shape = {"vocab_size": 8, "width": 8, "num_layers": 1, "num_heads": 4, "head_dim": 4}
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**(shape | settings))
