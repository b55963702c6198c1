"""The device mesh `(data, fsdp, tensor)`, and which axis of an array lies on which part of it.

Parameters name their axes ("embed", "heads", ...; see `LanguageModel.abstract_params`); one table
maps names to mesh axes. Batches are split over `data` and `fsdp`. jit does the rest: no part of
the model knows how many devices there are.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

logger = logging.getLogger(__name__)

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
LOGICAL_RULES = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices each mesh axis has; their product is the number of devices."""

    data: int | None = None
    """Copies of the model that each see other rows; None takes all devices that are left."""
    fsdp: int = 1
    """Parts that parameters and optimizer moments are cut into; also splits the batch."""
    tensor: int = 1
    """Parts that heads, MLP units and vocabulary are cut into."""


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """The mesh over all devices, or over `devices`.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data = config.data
    if data is None:
        data = len(devices) // (config.fsdp * config.tensor)
    shape = (data, config.fsdp, config.tensor)
    if math.prod(shape) != len(devices):
        raise ValueError(
            "mesh axes must multiply to the number of devices; got "
            f"data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} "
            f"for {len(devices)} devices. Change mesh.data, mesh.fsdp or mesh.tensor."
        )
    return Mesh(
        np.asarray(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(boxed_params: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Sharding of every parameter, from the logical axis names of `abstract_params()`.

    An axis that its mesh axis does not divide is replicated; one line of the log says which.
    """

    def one(path, box) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = [LOGICAL_RULES.get(axis) for axis in box.names]
        return _sharding(name, box.value.shape, axes, mesh)

    return jax.tree_util.tree_map_with_path(one, boxed_params, is_leaf=_is_box)


def shardings_like_params(tree: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of a tree that holds copies of the parameter tree, such as optimizer moments.

    A leaf whose path ends in the path of a parameter lies as that parameter does, any other leaf
    (a step count) on every device.
    """
    by_path = {
        _keys(path): sharding
        for path, sharding in jax.tree_util.tree_flatten_with_path(shardings)[0]
    }

    def one(path, leaf) -> NamedSharding:
        keys = _keys(path)
        suffixes = (keys[start:] for start in range(len(keys)))
        found = next((by_path[suffix] for suffix in suffixes if suffix in by_path), None)
        return replicated(mesh) if found is None or not leaf.shape else found

    return jax.tree_util.tree_map_with_path(one, tree)


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Rows split over the data and fsdp axes; arrays that do not divide are replicated."""

    def one(path, array) -> NamedSharding:
        name = "batch/" + jax.tree_util.keystr(path, simple=True, separator="/")
        return _sharding(name, np.shape(array), [BATCH_AXES], mesh)

    return jax.tree_util.tree_map_with_path(one, batch)


def _sharding(
    name: str, shape: tuple[int, ...], axes: list, mesh: Mesh | AbstractMesh
) -> NamedSharding:
    kept = []
    for size, axis in zip(shape, axes, strict=False):
        names = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(mesh.shape[name] for name in names)
        if size % parts:
            logger.warning(
                "%s %s: %d is not divisible by %s=%d; replicated", name, shape, size, axis, parts
            )
            axis = None
        kept.append(axis)
    return NamedSharding(mesh, PartitionSpec(*kept))


def _is_box(leaf: Any) -> bool:
    return hasattr(leaf, "names")


def _keys(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)
