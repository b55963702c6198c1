"""Small models of every kind of attention, shared by the tests of this folder."""

import functools

import jax
import pytest

from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.transformer import TransformerConfig

ATTENTION = {
    "softmax": AttentionConfig(),
    "taylor": AttentionConfig(kind="taylor"),
    "minimax": AttentionConfig(
        kind="taylor", order=3, coefficients="minimax", normalize_query_key=True, radius=2.0
    ),
}


@functools.cache
def build(kind="softmax", **changes):
    """(model, params): two layers, four heads on two key/value heads."""
    settings = {
        "vocab_size": 23,
        "width": 16,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "value_head_width": 8,
        "attention": ATTENTION[kind],
    }
    model = LanguageModel(TransformerConfig(**(settings | changes)))
    return model, jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def build_model():
    return build


@pytest.fixture(params=ATTENTION, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model_and_params(kind):
    return build(kind)
