"""`python -m train NAME --show`: what a config amounts to, without running anything."""

import json
import math
from typing import Any

import jax
import numpy as np

from data.tokenizer import Tokenizer
from models import quantized, sharding
from train import config_json, loop
from train import step as steps
from train.pipeline import Pipeline

MEBIBYTE = 2**20


def print_config(config: Any) -> None:
    """The resolved config of any command, and the stages of a pipeline."""
    print(json.dumps(config_json.encode(config), indent=2, ensure_ascii=False))
    if isinstance(config, Pipeline):
        print(f"{len(config.stages)} stages: {', '.join(stage.name for stage in config.stages)}")


def print_experiment(experiment: Any) -> None:
    """Size, mesh, memory and first batch of a training run."""
    setup = loop.set_up(experiment)
    batch = next(setup.recipe.batches())
    print_parameters(setup.abstract_state.params)
    if setup.abstract_state.frozen is not None:
        print_frozen(setup.abstract_state.frozen)
    print(f"mesh: {dict(setup.mesh.shape)} on {setup.mesh.devices.flat[0].platform}")
    print_memory(setup, batch)
    print_batch(batch, setup.tokenizer)


def print_parameters(params: dict[str, Any]) -> None:
    """Number of parameters under each top-level name."""
    counts = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(subtree))
        for name, subtree in params.items()
    }
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    print(f"parameters: {sum(counts.values()):,} ({parts})")


def print_frozen(frozen: Any) -> None:
    """Bytes of the base under adapters."""
    size = quantized.num_bytes(frozen) / MEBIBYTE
    print(f"frozen base: {size:.1f} MiB, in no checkpoint of this run")


def print_memory(setup: loop.Setup, batch: steps.Batch) -> None:
    """Bytes of one device, as the compiler plans them for one training step."""
    train_step = setup.jit_train_step()
    abstract_batch = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        batch,
        sharding.batch_shardings(batch, setup.mesh),
    )
    plan = train_step.lower(setup.abstract_state, abstract_batch).compile().memory_analysis()
    if plan is None:
        print("memory per device: unknown, this backend does not plan it")
        return
    state, working = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    print(
        f"memory per device: {(state + working) / MEBIBYTE:.1f} MiB (state and batch "
        f"{state / MEBIBYTE:.1f}, activations and gradients {working / MEBIBYTE:.1f})"
    )


def print_batch(batch: steps.Batch, tokenizer: Tokenizer) -> None:
    """Shapes of the first batch, and the text of its first row."""
    for path, array in jax.tree_util.tree_flatten_with_path(batch)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        print(f"batch {name}: {array.dtype}{list(array.shape)}")
        if name.endswith("tokens"):
            print(tokenizer.decode(np.asarray(array)[0]))
