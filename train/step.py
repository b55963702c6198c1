"""One training step: `train_step(state, batch) -> (state, metrics)`, pure and jitted once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from models import sharding
from train import optimizers

Batch = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]
LossFn = Callable[[optimizers.Params, Batch, Array], tuple[Float[Array, ""], Metrics]]
JoinFn = Callable[[optimizers.Params, Any], optimizers.Params]


@struct.dataclass
class TrainState:
    """All that training carries from step to step.

    The same record, with the same fields, also holds shapes or shardings of the state.
    """

    params: Any
    """Trained parameters: {"trunk": ..., "value_head": ...}, or "adapters" for "trunk"."""
    opt_state: Any
    """Moments and step counts of both optimizers."""
    step: Any
    """Steps done, int32 []."""
    rng_key: Any
    """Key of all randomness in steps, []; step n uses `fold_in(rng_key, n)`."""
    frozen: Any = None
    """Parameters that no step changes, the base of adapters; None: all are trained."""


def all_trained(params: optimizers.Params, frozen: None) -> optimizers.Params:
    """The join of a state without frozen parameters."""
    assert frozen is None
    return params


def init_state(
    rng_key: Key[Array, ""],
    init_params: Callable[[Array], optimizers.Params],
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """Fresh state at step 0: one key makes the parameters, another drives the steps."""
    params_key, step_key = jax.random.split(rng_key)
    params = init_params(params_key)
    return TrainState(
        params=params,
        opt_state=optimizer.init(params),
        step=jnp.zeros((), jnp.int32),
        rng_key=step_key,
    )


def state_shardings(
    abstract_state: TrainState, boxed_params: Any, mesh: Mesh, boxed_frozen: Any = None
) -> TrainState:
    """Parameters by their logical names, moments as their parameters, the rest on every device."""
    params = sharding.param_shardings(boxed_params, mesh)
    return TrainState(
        params=params,
        opt_state=sharding.shardings_like_params(abstract_state.opt_state, params, mesh),
        step=sharding.replicated(mesh),
        rng_key=sharding.replicated(mesh),
        frozen=sharding.param_shardings(boxed_frozen, mesh),
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    join: JoinFn = all_trained,
) -> tuple[TrainState, Metrics]:
    """Gradient of the loss, one update of both optimizers.

    join: makes what `loss_fn` reads of the trained and the frozen parameters.

    Metrics are those of `loss_fn` on the parameters before the update, with `loss` and the
    gradient norm of each optimizer's parameters before clipping.
    """
    rng_key = jax.random.fold_in(state.rng_key, state.step)

    def loss_of(params):
        return loss_fn(join(params, state.frozen), batch, rng_key)

    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics = {"loss": loss, **metrics}
    for name, subtree in gradient.items():
        metrics[f"{name}_gradient_norm"] = optax.global_norm(subtree)
    state = dataclasses.replace(
        state,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        step=state.step + 1,
    )
    return state, metrics


def jit_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    join: JoinFn = all_trained,
) -> jax.stages.Wrapped:
    """`train_step` compiled: the state is donated and keeps its shardings, so that one executable
    serves every step.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, loss_fn=loss_fn, optimizer=optimizer, join=join)

    return jax.jit(
        step, in_shardings=(shardings, None), out_shardings=(shardings, None), donate_argnums=0
    )
