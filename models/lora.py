"""Low-rank adapters beside frozen kernels: LoRA (arXiv:2106.09685), QLoRA (arXiv:2305.14314).

    y = x W + (alpha / rank) (x A) B        A [in, rank] random, B [rank, out] zero at first

A run with adapters trains {"adapters": ..., heads} and leaves {"trunk": ...} as it is, perhaps
quantised. `join` makes of both the one tree that a `LanguageModel` reads, with A and B beside the
kernels; `reference_params` takes them out again, and `merge` adds their product to the kernels.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array

from models import layers, quantized
from models.language_model import LanguageModel

Params = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which projections get an adapter, and how the frozen base is kept."""

    rank: int = 8
    """Columns of A and rows of B."""
    alpha: float = 16.0
    """The adapter's product counts alpha / rank times."""
    targets: str = r"block_\d+/(attention|mlp)/\w+"
    """Regular expression for the whole path of a projection, such as block_0/attention/query (or
    key, value, out) and block_0/mlp/up (or gate, down)."""
    quantize_base: quantized.Kind | None = None
    """How the kernels of all blocks are kept: None as they are, "nf4" in 4.5 bits per weight, or
    "int8" in 8.5 (QLoRA; needs the extra hf)."""
    tile_size: int = 64
    """Inputs that share a scale in a quantised kernel; divides the inputs of every kernel."""

    def __post_init__(self):
        if self.rank < 1 or self.tile_size < 1 or not self.alpha > 0:
            raise ValueError(
                "an adapter has a positive rank, alpha and tile_size; got "
                f"rank={self.rank}, alpha={self.alpha}, tile_size={self.tile_size}."
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"targets is a regular expression; got {self.targets!r} ({error})."
            ) from error

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class Split:
    """Which parameters of a model are trained and which are frozen; without adapters, none."""

    init: Callable[[Array], Params]
    """Key -> fresh trained parameters."""
    boxed: Params
    """Shapes of the trained parameters, boxed with their logical axis names."""
    boxed_frozen: Params | None
    """The same of the frozen ones; None: all are trained."""
    join: Callable[[Params, Params | None], Params]
    """(trained, frozen) -> the parameters that the model reads."""
    freeze: Callable[[Params], Params] | None = None
    """Parameters to begin with -> the frozen ones."""


def split(model: LanguageModel, config: LoraConfig | None) -> Split:
    """What a run trains: everything, or adapters and the heads on the trunk.

    Raises:
      ValueError: no target, tiles that do not fit, or a quantised base without qwix.
    """
    boxed = model.abstract_params()
    if config is None:
        return Split(init=model.init, boxed=boxed, boxed_frozen=None, join=lambda p, _: p)
    boxed_adapters = jax.eval_shape(
        lambda: init_adapters(jax.random.key(0), boxed["trunk"], config)
    )

    def init(rng_key: Array) -> Params:
        adapters_key, model_key = jax.random.split(rng_key)
        adapters = nn.unbox(init_adapters(adapters_key, boxed["trunk"], config))
        return {"adapters": adapters, **_heads(model.init(model_key))}

    return Split(
        init=init,
        boxed={"adapters": boxed_adapters, **_heads(boxed)},
        boxed_frozen={"trunk": _quantized_boxes(boxed["trunk"], config)},
        join=lambda trained, frozen: join(trained, frozen, config),
        freeze=lambda params: frozen_params(params, config),
    )


def init_adapters(rng_key: Array, boxed_trunk: Params, config: LoraConfig) -> Params:
    """Fresh adapters of the targets, boxed with axis names: the tree of the trunk, with `lora_a`
    and `lora_b` in place of the kernel. A is uniform in +-1/sqrt(in), as in `peft`.
    """
    boxes = _target_kernels(boxed_trunk, config)
    init_a = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    adapters = {}
    for key, (path, box) in zip(jax.random.split(rng_key, len(boxes)), boxes.items(), strict=True):
        (num_in, num_out), (name_in, name_out) = _as_matrix(path, box)
        lora_a = init_a(key, (num_in, config.rank))
        lora_b = jnp.zeros((config.rank, num_out))
        adapters[f"{path}/lora_a"] = nn.LogicallyPartitioned(lora_a, (name_in, None))
        adapters[f"{path}/lora_b"] = nn.LogicallyPartitioned(lora_b, (None, name_out))
    return _nested(adapters)


def join(trained: Params, frozen: Params | None, config: LoraConfig) -> Params:
    """The parameters that the model reads: A and alpha/rank times B beside the kernels."""
    assert frozen is not None, "adapters have a base"
    adapters = {
        path: config.scale * leaf if path.endswith("/lora_b") else leaf
        for path, leaf in _flat(trained["adapters"]).items()
    }
    return {"trunk": _nested(_flat(frozen["trunk"]) | adapters), **_heads(trained)}


def reference_params(params: Params) -> Params:
    """Joined parameters with the adapters off: the model that the run began with, as preference
    losses want it. Heads on the trunk are those in training.
    """
    trunk = {
        path: leaf
        for path, leaf in _flat(params["trunk"]).items()
        if not path.endswith(("/lora_a", "/lora_b"))
    }
    return {"trunk": _nested(trunk), **_heads(params)}


def merge(params: Params, model: LanguageModel) -> Params:
    """Joined parameters as those of a plain model: W + (alpha / rank) A B in every kernel.

    A quantised kernel comes back as training saw it, dequantised.
    """
    shapes = kernels(model.abstract_params()["trunk"])
    flat = _flat(params["trunk"])
    for path, box in shapes.items():
        kernel = flat[f"{path}/kernel"]
        if quantized.is_quantized(kernel):
            kernel = quantized.dequantize(kernel).reshape(box.value.shape)
        if f"{path}/lora_a" in flat:
            lora_a, lora_b = flat.pop(f"{path}/lora_a"), flat.pop(f"{path}/lora_b")
            product = jnp.matmul(lora_a, lora_b, precision=jax.lax.Precision.HIGHEST)
            kernel = kernel + product.reshape(kernel.shape).astype(kernel.dtype)
        flat[f"{path}/kernel"] = kernel
    return {"trunk": _nested(flat), **_heads(params)}


def frozen_params(params: Params, config: LoraConfig) -> Params:
    """Of a base model's parameters those that a run with adapters reads and never changes."""
    if config.quantize_base is None:
        return {"trunk": params["trunk"]}
    flat = _flat(params["trunk"])
    for path, kernel in kernels(params["trunk"]).items():
        flat[f"{path}/kernel"] = _quantize(path, kernel, config)
    return {"trunk": _nested(flat)}


def kernels(trunk: Params) -> Params:
    """The kernels of all blocks by the path of their layer, such as "block_0/attention/query"."""
    return {
        path.removesuffix("/kernel"): leaf
        for path, leaf in _flat(trunk).items()
        if path.startswith("block_") and path.endswith("/kernel")
    }


def _target_kernels(trunk: Params, config: LoraConfig) -> Params:
    found = kernels(trunk)
    matching = {p: leaf for p, leaf in found.items() if re.fullmatch(config.targets, p)}
    if not matching:
        raise ValueError(
            "lora.targets must match the whole path of a projection; got "
            f"{config.targets!r}, and the model has {', '.join(sorted(found))}."
        )
    return matching


def _quantize(path: str, kernel: Any, config: LoraConfig) -> Any:
    assert config.quantize_base is not None
    num_inputs = layers.num_input_axes(path.rpartition("/")[2], kernel.ndim)
    return quantized.quantize(
        kernel, num_inputs, kind=config.quantize_base, tile_size=config.tile_size
    )


def _quantized_boxes(boxed_trunk: Params, config: LoraConfig) -> Params:
    """Shapes of `frozen_params`, boxed: levels and scales lie as the kernel's first input and
    first output axis do.
    """
    if config.quantize_base is None:
        return boxed_trunk
    flat = _flat(boxed_trunk)
    for path, box in kernels(boxed_trunk).items():
        _, names = _as_matrix(path, box)
        abstract = jax.eval_shape(lambda k, path=path: _quantize(path, k, config), box.value)
        flat[f"{path}/kernel"] = jax.tree.map(
            lambda leaf, names=names: nn.LogicallyPartitioned(leaf, names), abstract
        )
    return _nested(flat)


def _as_matrix(path: str, box: Any) -> tuple[tuple[int, int], tuple[str | None, str | None]]:
    """Sizes and axis names of inputs and outputs of a boxed kernel."""
    shape = box.value.shape
    num_inputs = layers.num_input_axes(path.rpartition("/")[2], len(shape))
    size = math.prod(shape[:num_inputs])
    return (size, box.value.size // size), (box.names[0], box.names[num_inputs])


def _heads(params: Params) -> Params:
    """What stands on the trunk."""
    return {name: leaf for name, leaf in params.items() if name not in ("trunk", "adapters")}


def _flat(tree: Params) -> Params:
    return traverse_util.flatten_dict(tree, sep="/")


def _nested(flat: Params) -> Params:
    return traverse_util.unflatten_dict(flat, sep="/")
