"""The two optimizers: who owns what, and that a step of one cannot be seen by the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train import optimizers
from train.optimizers import OptimizerConfig, OptimizersConfig

PARAMS = {
    "trunk": {"embedding": jnp.ones((3, 2)), "dense": {"kernel": jnp.full((2, 2), 2.0)}},
    "value_head": {"out": {"kernel": jnp.full((2, 1), 3.0)}},
}


def gradients(trunk: float, value: float):
    constants = {"trunk": trunk, "value_head": value}
    return {
        name: jax.tree.map(lambda leaf, c=constants[name]: jnp.full_like(leaf, c), subtree)
        for name, subtree in PARAMS.items()
    }


def run_steps(optimizer, all_gradients, params=PARAMS):
    state = optimizer.init(params)
    for gradient in all_gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def both(policy: OptimizerConfig, value: OptimizerConfig, train_steps: int = 10):
    config = OptimizersConfig(policy=policy, value=value)
    return optimizers.make_optimizer(config, train_steps)


def assert_same_bits(got, want):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want
    )


CONSTANT = OptimizerConfig(peak_learning_rate=0.1, schedule="constant", weight_decay=0.1)
MUON = OptimizerConfig(kind="muon", peak_learning_rate=0.1, schedule="constant", clip_norm=None)
EVERY_SECOND = OptimizerConfig(
    peak_learning_rate=0.1, schedule="constant", weight_decay=0.1, accumulate_steps=2
)


def test_a_step_of_one_leaves_parameters_and_moments_of_the_other_bit_identical():
    optimizer = both(CONSTANT, EVERY_SECOND)  # at the first train step only the policy moves
    start = optimizer.init(PARAMS)
    params, state = run_steps(optimizer, [gradients(0.5, 0.5)])
    assert_same_bits(params["value_head"], PARAMS["value_head"])
    assert not np.array_equal(params["trunk"]["embedding"], PARAMS["trunk"]["embedding"])
    inner = lambda s: s.inner_states["value"].inner_state.inner_opt_state  # noqa: E731
    assert_same_bits(inner(state), inner(start))
    params, _ = run_steps(optimizer, [gradients(0.5, 0.5)] * 2)
    assert not np.array_equal(
        params["value_head"]["out"]["kernel"], PARAMS["value_head"]["out"]["kernel"]
    )


@pytest.mark.parametrize("config", [CONSTANT, MUON], ids=["adamw", "muon"])
@pytest.mark.parametrize("moved", ["trunk", "value_head"])
def test_no_gradient_of_one_group_reaches_the_other_through_clipping_or_moments(moved, config):
    other = {"trunk": "value_head", "value_head": "trunk"}[moved]
    optimizer = both(config, config)
    small = {"trunk": 0.1, "value_head": 0.1}
    huge = small | {moved: 1e6}
    quiet, quiet_state = run_steps(optimizer, [gradients(small["trunk"], small["value_head"])] * 3)
    loud, loud_state = run_steps(optimizer, [gradients(huge["trunk"], huge["value_head"])] * 3)
    assert_same_bits(loud[other], quiet[other])
    label = optimizers.OWNERS[other]
    assert_same_bits(loud_state.inner_states[label], quiet_state.inner_states[label])


def test_together_they_do_what_each_does_alone():
    value = OptimizerConfig(peak_learning_rate=0.3, warmup_steps=2, clip_norm=0.5, b2=0.9)
    all_gradients = [gradients(0.5, 0.7), gradients(-0.2, 0.1), gradients(0.3, 0.3)]
    together, _ = run_steps(both(CONSTANT, value), all_gradients)
    alone = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adam(lambda step: optimizers.learning_rate(value, step, 10), b1=0.9, b2=0.9),
    )
    own = [{"value_head": gradient["value_head"]} for gradient in all_gradients]
    want, _ = run_steps(alone, own, params={"value_head": PARAMS["value_head"]})
    np.testing.assert_allclose(
        together["value_head"]["out"]["kernel"], want["value_head"]["out"]["kernel"], rtol=1e-6
    )


MATRICES = {  # path -> shape, and how many leading axes are the input
    ("attention", "query", "kernel"): ((12, 2, 4), 1),
    ("attention", "out", "kernel"): ((2, 4, 12), 2),
    ("mlp", "down", "kernel"): ((24, 12), 1),
}
OTHERS = {
    ("embedding",): (7, 12),
    ("unembed", "kernel"): (12, 7),
    ("norm", "scale"): (12,),
    ("attention", "key_convolution", "taps"): (4, 2, 4),
}


def test_muon_turns_matrices_and_leaves_all_else_to_adamw():
    """Muon's update of a matrix [m, n] has equal singular values, and RMS 0.2 at full rank."""
    rng = np.random.default_rng(0)
    shapes = {path: shape for path, (shape, _) in MATRICES.items()} | OTHERS
    normal = lambda: _nested({p: rng.normal(size=s) for p, s in shapes.items()})  # noqa: E731
    params, gradient = {"trunk": normal()}, {"trunk": normal()}
    step = lambda config: run_steps(both(config, config), [gradient], params)[0]["trunk"]  # noqa: E731
    muon, adamw = step(MUON), step(dataclasses.replace(MUON, kind="adamw"))
    for path, (shape, num_inputs) in MATRICES.items():
        moved = np.asarray(_at(muon, path) - _at(params["trunk"], path)) / -0.1
        matrix = moved.reshape(np.prod(shape[:num_inputs]), -1)
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(max(matrix.shape)))
        # Five Newton-Schulz steps bring them near 1, not to it.
        assert singular.min() > 0.6 and singular.max() < 1.3, path
        own = np.linalg.svd(_at(gradient["trunk"], path).reshape(matrix.shape), full_matrices=False)
        alignment = np.sum(matrix * (own[0] @ own[2])) / np.linalg.norm(matrix)
        assert alignment / np.sqrt(min(matrix.shape)) > 0.97, path  # U V^T of the gradient
    for path in OTHERS:
        # optax gives this AdamW Nesterov's look-ahead: its first step is 1 / b1 as long.
        assert np.sign(_at(muon, path) - _at(params["trunk"], path)).tolist() == (
            np.sign(_at(adamw, path) - _at(params["trunk"], path)).tolist()
        ), path
        assert np.ptp(np.abs(_at(muon, path) - _at(params["trunk"], path))) < 1e-5, path


def _nested(flat):
    tree = {}
    for path, leaf in flat.items():
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = jnp.asarray(leaf, jnp.float32)
    return tree


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_weight_decay_leaves_embeddings_alone():
    params, _ = run_steps(both(CONSTANT, CONSTANT), [gradients(0.0, 0.0)])
    np.testing.assert_array_equal(params["trunk"]["embedding"], PARAMS["trunk"]["embedding"])
    np.testing.assert_allclose(params["trunk"]["dense"]["kernel"], 2.0 * (1 - 0.1 * 0.1))


def test_learning_rate_zero_freezes_a_group_without_keeping_moments():
    optimizer = both(CONSTANT, OptimizerConfig(peak_learning_rate=0.0, weight_decay=0.1))
    params, state = run_steps(optimizer, [gradients(1.0, 1.0)] * 2)
    assert_same_bits(params["value_head"], PARAMS["value_head"])
    assert not jax.tree.leaves(state.inner_states["value"])


def test_accumulation_takes_one_step_with_the_mean_gradient():
    accumulating = OptimizerConfig(peak_learning_rate=0.1, schedule="constant", accumulate_steps=2)
    plain = OptimizerConfig(peak_learning_rate=0.1, schedule="constant")
    split, _ = run_steps(both(accumulating, CONSTANT), [gradients(0.2, 0), gradients(0.6, 0)])
    whole, _ = run_steps(both(plain, CONSTANT), [gradients(0.4, 0)])
    np.testing.assert_allclose(
        split["trunk"]["dense"]["kernel"], whole["trunk"]["dense"]["kernel"], rtol=1e-6
    )


def test_a_parameter_that_no_optimizer_owns_is_named():
    with pytest.raises(ValueError, match="got critic_head which none owns"):
        optimizers.label_parameters({**PARAMS, "critic_head": {"kernel": jnp.ones(2)}})


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_schedule_rises_to_the_peak_and_ends_at_the_final_fraction(schedule, middle):
    config = OptimizerConfig(
        peak_learning_rate=1.0, warmup_steps=4, schedule=schedule, final_fraction=0.1
    )
    at = [float(optimizers.learning_rate(config, n, 24)) for n in (0, 1, 3, 4, 14, 24)]
    np.testing.assert_allclose(at, [0.25, 0.5, 1.0, 1.0, middle, 0.1], rtol=1e-6)


def test_runs_of_every_length_share_one_program():
    def program(train_steps):
        optimizer = both(MUON, dataclasses.replace(CONSTANT, schedule="cosine"), train_steps)
        state = optimizer.init(PARAMS)
        return jax.jit(optimizer.update).lower(gradients(1.0, 1.0), state, PARAMS).as_text()

    assert program(10) == program(1000)


def test_schedule_of_an_accumulating_optimizer_ends_with_the_run():
    config = OptimizerConfig(peak_learning_rate=1.0, schedule="linear", accumulate_steps=4)
    assert float(optimizers.learning_rate(config, 10, 40)) == 0.0


@pytest.mark.parametrize(
    "change", [{"peak_learning_rate": -1.0}, {"accumulate_steps": 0}, {"final_fraction": 2.0}]
)
def test_unusable_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        OptimizerConfig(**{"peak_learning_rate": 1.0, **change})
