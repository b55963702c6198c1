"""The reference of a preference loss: the model that the run began with.

A run with adapters needs no second copy: the reference is the model with its adapters off. A run
that trains everything keeps the first parameters as {"reference": ...} in `TrainState.frozen`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from models import lora
from train.optimizers import Params

NAME = "reference"


def with_frozen_copy(split: lora.Split) -> lora.Split:
    """A split that keeps the first parameters beside the trained ones; with adapters, as it is."""
    if split.boxed_frozen is not None:
        return split
    return dataclasses.replace(
        split,
        boxed_frozen={NAME: split.boxed},
        join=lambda trained, frozen: trained | (frozen or {}),
        # A copy: the trained parameters are donated to every step.
        freeze=lambda params: {NAME: {name: _copy(params[name]) for name in split.boxed}},
    )


def policy_and_reference(params: Params) -> tuple[Params, Params]:
    """The model in training and the one it began with, out of joined parameters."""
    if NAME not in params:
        return params, lora.reference_params(params)
    return {name: leaf for name, leaf in params.items() if name != NAME}, params[NAME]


def _copy(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
