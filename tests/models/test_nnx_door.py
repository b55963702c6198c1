"""An NNX model enters where a `LanguageModel` does: split into a plain tree, merged when called."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from models import generate
from models.language_model import ModelOutputs


class MeanOfEmbeddings(nnx.Module):
    """Next token from the mean of all embeddings so far."""

    def __init__(self, vocab_size: int, width: int, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocab_size, width, rngs=rngs)
        self.out = nnx.Linear(width, vocab_size, rngs=rngs)
        self.value = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, total, count):
        hidden = jnp.tanh(total / count)
        return ModelOutputs(
            logits=self.out(hidden), value_logits=self.value(hidden)[..., 0], hidden=hidden
        )


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class NnxModel:
    """The pure functions of `LanguageModel` around an NNX graph; parameters are a plain dict."""

    config: Config
    graph: Any

    def _merge(self, params):
        return nnx.merge(self.graph, nnx.State(params))

    def outputs(self, params, tokens):
        module = self._merge(params)
        totals = jnp.cumsum(module.embed(tokens), axis=1)
        return module(totals, 1.0 + jnp.arange(tokens.shape[1])[:, None])

    def prefill(self, params, tokens, *, lengths, capacity):
        module = self._merge(params)
        kept = (jnp.arange(tokens.shape[1]) < lengths[:, None])[..., None]
        total = jnp.sum(module.embed(tokens) * kept, axis=1)
        return self.outputs(params, tokens), (total, lengths[:, None])

    def decode(self, params, cache, token):
        module = self._merge(params)
        total, count = cache
        cache = (total + module.embed(token), count + 1)
        return module(*cache), cache


def nnx_model():
    module = MeanOfEmbeddings(11, 6, rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    return module, NnxModel(Config(11), graph), nnx.to_pure_dict(state)


TOKENS = jax.random.randint(jax.random.key(0), (2, 5), 0, 11)


def test_an_nnx_model_is_sampled_from():
    _, model, params = nnx_model()
    lengths = jnp.asarray([5, 2])
    got = generate.generate(
        model, params, TOKENS, lengths, max_new_tokens=3, rng_key=jax.random.key(1), temperature=0.0
    )
    outputs = jax.jit(model.outputs)
    for row, length in enumerate((5, 2)):
        text = TOKENS[row : row + 1, :length]
        for step in range(3):
            best = jnp.argmax(outputs(params, text).logits[0, -1])
            assert got.tokens[row, step] == best
            text = jnp.append(text, best[None, None], axis=1)


def test_an_nnx_model_is_trained_as_a_plain_tree():
    module, model, params = nnx_model()
    total = module.embed(TOKENS[:, :1])
    np.testing.assert_allclose(
        model.outputs(params, TOKENS[:, :1]).logits, module(total, 1.0).logits, atol=1e-6
    )
    optimizer = optax.adam(0.05)

    def loss_fn(params):
        logits = model.outputs(params, TOKENS[:, :-1]).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()

    @jax.jit
    def step(params, state):
        loss, slopes = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(20):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
