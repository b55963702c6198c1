"""The two optimizers, and which parameters each one owns.

The policy network (trunk and next-token head) and the value head each have an AdamW or Muon with
its own learning rate, schedule, clipping and step count. Nothing is shared: a step of one leaves
the parameters and the moments of the other bit for bit as they were.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float
from optax import contrib

from models import layers

Params = dict[str, Any]

# Who owns which top-level entry of the parameters. A new head is added here, or `label_parameters`
# refuses it: a parameter that no optimizer owns would silently never be trained.
OWNERS = {
    "trunk": "policy",
    "adapters": "policy",
    "reward_head": "policy",
    "value_head": "value",
}

# Decay pulls matrices towards zero. It leaves alone the scales of norms and biases (they set a
# level, not a function) and embeddings (a rare token would shrink at every step it is not seen).
UNDECAYED_NAMES = ("scale", "bias", "embedding")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One optimizer, with clipping, a schedule and accumulation."""

    kind: Literal["adamw", "muon"] = "adamw"
    """"adamw" (arXiv:1711.05101), or "muon": matrices move along their orthogonalised momentum, all
    else by AdamW. The two have steps of like size (RMS 0.2, arXiv:2502.16982, section 2.2)."""
    peak_learning_rate: float
    """Learning rate after the warm-up. 0 freezes the group: no step, no decay, no moments."""
    warmup_steps: int = 0
    """Optimizer steps in which the learning rate rises linearly from 0 to the peak."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the way from the peak to the end, after the warm-up."""
    final_fraction: float = 0.0
    """Learning rate at the end, as a part of the peak (0 to 1); "constant" does not use it."""
    weight_decay: float = 0.0
    """Decoupled decay per step, times the learning rate; never on norms, biases, embeddings, and
    with "muon" only on the matrices that it turns."""
    b1: float = 0.9
    """Decay of AdamW's running mean of gradients."""
    momentum: float = 0.95
    """Decay of Muon's running mean of gradients."""
    b2: float = 0.95
    """Decay of the running mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the squared mean."""
    clip_norm: float | None = 1.0
    """Largest norm of the group's gradient; None does not clip."""
    accumulate_steps: int = 1
    """Train steps whose mean gradient makes one optimizer step."""

    def __post_init__(self):
        if self.peak_learning_rate < 0:
            raise ValueError(
                f"peak_learning_rate must be 0 (frozen) or more; got {self.peak_learning_rate}"
            )
        if self.accumulate_steps < 1:
            raise ValueError(f"accumulate_steps must be 1 or more; got {self.accumulate_steps}")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction must be from 0 to 1; got {self.final_fraction}")


@dataclass(frozen=True, kw_only=True)
class OptimizersConfig:
    """One optimizer for the policy network, one for the value head."""

    policy: OptimizerConfig
    """Owns the trunk and the next-token head, or the adapters beside them."""
    value: OptimizerConfig = OptimizerConfig(peak_learning_rate=0.0)
    """Owns the value head. Frozen unless set: plain language modelling has no value labels."""
    value_gradient_to_trunk: bool = True
    """Whether the value loss also shapes the trunk, or only its own head."""


def learning_rate(
    config: OptimizerConfig, step: ArrayLike, train_steps: ArrayLike
) -> Float[Array, ""]:
    """Learning rate of a step of this optimizer, counted from 0.

    The schedule ends with the run: `train_steps` of the loop are `train_steps / accumulate_steps`
    steps of this optimizer.
    """
    own_steps = -(-jnp.asarray(train_steps) // config.accumulate_steps)
    after_warmup = jnp.asarray(step) - config.warmup_steps
    done = jnp.clip(after_warmup / jnp.maximum(1, own_steps - config.warmup_steps), 0.0, 1.0)
    left = {
        "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
        "linear": 1.0 - done,
        "constant": jnp.ones_like(done),
    }[config.schedule]
    end = 1.0 if config.schedule == "constant" else config.final_fraction
    # From 1/w and not from 0: a step with learning rate 0 would be a batch thrown away.
    warmed = jnp.minimum(1.0, (jnp.asarray(step) + 1) / max(1, config.warmup_steps))
    return config.peak_learning_rate * warmed * (end + (1.0 - end) * left)


class ScheduleState(NamedTuple):
    """step: of this optimizer, from 0. train_steps: of the run."""

    step: Array
    train_steps: Array


def scale_by_schedule(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """Times the learning rate. The length of the run is in the state, and not in the program: runs
    of every length share one that is compiled already (`train.compilation_cache`).
    """

    def init(params: Params) -> ScheduleState:
        del params
        return ScheduleState(step=jnp.zeros((), jnp.int32), train_steps=jnp.int32(train_steps))

    def update(updates, state, params=None):
        del params
        rate = learning_rate(config, *state)
        updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        return updates, state._replace(step=state.step + 1)

    return optax.GradientTransformation(init, update)


def label_parameters(params: Params) -> Params:
    """Names the owner ("policy" or "value") of every parameter; same tree as `params`.

    Raises:
      ValueError: a top-level entry has no owner.
    """
    unowned = sorted(set(params) - set(OWNERS))
    if unowned:
        raise ValueError(
            f"every parameter needs an optimizer; got {', '.join(unowned)} which none owns. "
            f"Add it to train.optimizers.OWNERS (known: {', '.join(OWNERS)})."
        )
    return {
        name: jax.tree.map(lambda _, owner=OWNERS[name]: owner, subtree)
        for name, subtree in params.items()
    }


def decayed_parameters(params: Params) -> Params:
    """True where weight decay applies; same tree as `params` (see UNDECAYED_NAMES)."""

    def is_decayed(path, _) -> bool:
        return not any(getattr(entry, "key", None) in UNDECAYED_NAMES for entry in path)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def matrix_axes(params: Params) -> Any:
    """Which axes of a parameter are the input and the output of a matrix, for Muon; None for one
    that is no matrix inside the network: norms, biases, taps, embeddings and what reads them out.
    """

    def axes(path, leaf) -> contrib.MuonDimensionNumbers | None:
        *_, layer, name = (getattr(entry, "key", "") for entry in path)
        if name != "kernel" or layer == "unembed" or leaf.shape[-1] == 1:
            return None
        num_inputs = layers.num_input_axes(layer, leaf.ndim)
        order = tuple(range(leaf.ndim))
        return contrib.MuonDimensionNumbers(order[:num_inputs], order[num_inputs:])

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(
    config: OptimizersConfig, train_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Both optimizers as one optax transformation over the whole parameter tree."""
    return optax.partition(
        {
            "policy": _optimizer(config.policy, train_steps),
            "value": _optimizer(config.value, train_steps),
        },
        label_parameters,
    )


def _optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    if not config.peak_learning_rate:
        return optax.set_to_zero()
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.kind == "muon":
        muon = contrib.muon(
            learning_rate=1.0,
            beta=config.momentum,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.epsilon,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=matrix_axes,
        )
        steps.append(muon)
    else:
        adamw = optax.adamw(
            learning_rate=1.0,
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decayed_parameters,
        )
        steps.append(adamw)
    optimizer = optax.chain(*steps, scale_by_schedule(config, train_steps))
    if config.accumulate_steps == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulate_steps).gradient_transformation()
