"""The training step: what it counts and learns, and that the mesh does not change the numbers."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from models import sharding
from models.language_model import LanguageModel
from models.sharding import MeshConfig
from models.transformer import TransformerConfig
from train import optimizers, recipes
from train import step as steps
from train.optimizers import OptimizerConfig, OptimizersConfig

MODEL = LanguageModel(
    TransformerConfig(vocab_size=32, width=16, num_layers=1, num_heads=2, head_dim=8, mlp_width=32)
)


def make_optimizer(kind="adamw"):
    policy = OptimizerConfig(kind=kind, peak_learning_rate=1e-2, weight_decay=0.1)
    value = OptimizerConfig(kind=kind, peak_learning_rate=1e-2)
    return optimizers.make_optimizer(OptimizersConfig(policy=policy, value=value), train_steps=10)


def hybrid_batch(seed: int, rows: int = 8, length: int = 12):
    rng = np.random.default_rng(seed)
    tokens = lambda *shape: rng.integers(0, 32, shape).astype(np.int32)  # noqa: E731
    weights = rng.dirichlet(np.ones(4), rows).astype(np.float32)
    return {
        "policy": {
            "tokens": tokens(rows, length),
            "lengths": rng.integers(1, length + 1, rows).astype(np.int32),
            "candidates": tokens(rows, 3, 4),
            "candidate_lengths": rng.integers(1, 5, (rows, 3)).astype(np.int32),
            "weights": weights,
        },
        "value": {
            "tokens": tokens(rows, length),
            "value_target": rng.integers(0, 2, (rows, length)).astype(np.float32),
            "value_mask": rng.integers(0, 2, (rows, length)).astype(np.float32),
        },
        "text": {
            "tokens": tokens(rows, length),
            "loss_mask": np.ones((rows, length), np.float32),
            "segment_ids": np.ones((rows, length), np.int32),
            "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        },
    }


def train(loss_fn, batches, mesh, optimizer=None):
    optimizer = optimizer or make_optimizer()
    abstract_state = jax.eval_shape(
        lambda: steps.init_state(jax.random.key(0), MODEL.init, optimizer)
    )
    shardings = steps.state_shardings(abstract_state, MODEL.abstract_params(), mesh)
    init = jax.jit(
        lambda key: steps.init_state(key, MODEL.init, optimizer), out_shardings=shardings
    )
    state = init(jax.random.key(0))
    train_step = steps.jit_train_step(loss_fn, optimizer, shardings)
    all_metrics = []
    for batch in batches:
        state, metrics = train_step(
            state, jax.device_put(batch, sharding.batch_shardings(batch, mesh))
        )
        all_metrics.append(metrics)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings  # compiled only once
    return state, all_metrics


def hybrid_loss(value_gradient_to_trunk=True):
    return recipes.hybrid_loss(
        MODEL, recipes.LossWeights(), value_gradient_to_trunk=value_gradient_to_trunk
    )


@pytest.mark.devices(8)
@pytest.mark.slow
def test_training_on_eight_devices_equals_one():
    for kind in ("adamw", "muon"):
        check_eight_devices(kind)


def check_eight_devices(kind):
    batches = [hybrid_batch(i) for i in range(3)]
    many = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    one = sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])
    optimizer = make_optimizer(kind)
    got, got_metrics = train(hybrid_loss(), batches, many, optimizer)
    want, want_metrics = train(hybrid_loss(), batches, one, optimizer)

    kernel = got.params["trunk"]["block_0"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, 16)  # really cut: [16, 32] over 2 x 2
    moments = got.opt_state.inner_states["policy"].inner_state[1]
    if kind == "muon":
        moments = moments.inner_states["muon"].inner_state
    moments = moments[0].mu
    assert moments["trunk"]["block_0"]["mlp"]["up"]["kernel"].sharding == kernel.sharding
    for got_step, want_step in zip(got_metrics, want_metrics, strict=True):
        for name, value in want_step.items():
            np.testing.assert_allclose(got_step[name], value, rtol=2e-5, err_msg=name)
    for path, leaf in jax.tree_util.tree_flatten_with_path(want.params)[0]:
        other = got.params
        for entry in path:
            other = other[entry.key]
        # Adam divides by the root of tiny second moments: rounding grows to about 1e-4 there.
        np.testing.assert_allclose(other, leaf, atol=5e-4, err_msg=str(path))


def test_hybrid_loss_falls_and_its_parts_add_up():
    batch = hybrid_batch(0)
    mesh = sharding.make_mesh(MeshConfig())
    _, metrics = train(hybrid_loss(), [batch] * 8, mesh)
    first, last = metrics[0], metrics[-1]
    parts = [
        "policy_loss_nats_per_position",
        "value_loss_nats_per_state",
        "text_loss_nats_per_token",
    ]
    np.testing.assert_allclose(first["loss"], sum(first[name] for name in parts), rtol=1e-6)
    for name in parts:
        assert last[name] < first[name], name


@pytest.mark.parametrize("reaches_trunk", [True, False])
def test_value_gradient_reaches_the_trunk_only_when_asked(reaches_trunk):
    batch = jax.tree.map(jnp.asarray, hybrid_batch(0))
    loss_fn = recipes.hybrid_loss(
        MODEL,
        recipes.LossWeights(policy=0.0, value=1.0, text=0.0),
        value_gradient_to_trunk=reaches_trunk,
    )
    gradient = jax.jit(jax.grad(lambda p: loss_fn(p, batch, jax.random.key(0))[0]))(
        jax.jit(MODEL.init)(jax.random.key(1))
    )
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["trunk"])) == reaches_trunk
    assert np.any(gradient["value_head"]["out"]["kernel"])


def test_loss_of_packed_documents_equals_that_of_separate_ones():
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 32, (1, 5)).astype(np.int32) for _ in range(2)]
    mask = np.array([[0, 1, 1, 1, 1]], np.float32)

    def batch(tokens, loss_mask, segment_ids, positions):
        return {
            "tokens": jnp.asarray(tokens),
            "loss_mask": jnp.asarray(loss_mask),
            "segment_ids": jnp.asarray(segment_ids, jnp.int32),
            "positions": jnp.asarray(positions, jnp.int32),
        }

    ones, places = np.ones((1, 5)), np.arange(5)[None]
    packed = batch(
        np.concatenate(texts, 1),
        np.concatenate([mask, mask], 1),
        np.concatenate([ones, 2 * ones], 1),
        np.concatenate([places, places], 1),
    )
    loss_fn = recipes.next_token_loss(MODEL)
    params, key = jax.jit(MODEL.init)(jax.random.key(0)), jax.random.key(0)
    alone = [loss_fn(params, batch(text, mask, ones, places), key)[0] for text in texts]
    loss, metrics = loss_fn(params, packed, key)
    np.testing.assert_allclose(loss, np.mean(alone), rtol=1e-6)
    assert metrics["num_tokens"] == 10


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(ValueError, match="must multiply to the number of devices"):
        sharding.make_mesh(MeshConfig(tensor=3), devices=jax.devices()[:1])


def test_an_axis_that_does_not_divide_is_replicated_and_named(caplog):
    """The same device twice will do: nothing is placed on it."""
    devices = np.array(jax.devices()[:1] * 2).reshape(1, 1, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
    odd = LanguageModel(
        TransformerConfig(vocab_size=33, width=16, num_layers=1, num_heads=2, head_dim=8)
    )
    with caplog.at_level(logging.WARNING):
        shardings = sharding.param_shardings(odd.abstract_params(), mesh)
    assert shardings["trunk"]["embedding"].spec == PartitionSpec(None, "fsdp")
    assert "trunk/embedding (33, 16): 33 is not divisible by tensor=2" in caplog.text
