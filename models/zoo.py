"""Models by name, in the shapes that were published; `python -m models.zoo NAME --show`.

    python -m models.zoo llama3_8b --show --fsdp 8 --tensor 2 --context 8192

prints parameters, bytes per device of a mesh and FLOPs per token, and allocates nothing. Sources:
the config.json of each model; Nemotron-4: arXiv:2402.16819 and arXiv:2406.11704; Pythia:
arXiv:2304.01373.
"""

import argparse
import functools
import math
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AbstractMesh

from configs import load
from models import sharding
from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from train.errors import ConfigError

GIBIBYTE = 2**30


def _llama(vocab_size: int, num_layers: int, epsilon: float, **fields: Any) -> TransformerConfig:
    """32 heads of 128 channels on 8 key/value heads."""
    return TransformerConfig(
        vocab_size=vocab_size,
        width=4096,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_width=14336,
        norm_epsilon=epsilon,
        tie_embeddings=False,
        scale_embeddings=False,
        **fields,
    )


def _pythia(
    width: int, num_layers: int, num_heads: int, vocab_size: int = 50304
) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=vocab_size,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        mlp_width=4 * width,
        mlp="gelu",
        norm="layer",
        norm_epsilon=1e-5,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        parallel_residual=True,
        rotary_fraction=0.25,
        tie_embeddings=False,
        scale_embeddings=False,
    )


def _nemotron(
    width: int, num_layers: int, num_heads: int, head_dim: int, mlp_width: int
) -> TransformerConfig:
    return TransformerConfig(
        vocab_size=256_000,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=head_dim,
        mlp_width=mlp_width,
        mlp="relu_squared",
        norm="layer_plus_one",
        norm_epsilon=1e-5,
        rotary_fraction=0.5,
        tie_embeddings=False,
        scale_embeddings=False,
    )


ZOO: dict[str, TransformerConfig] = {
    "llama3_8b": _llama(128_256, 32, 1e-5, rope_base=500_000.0),
    "mistral_7b": _llama(32_000, 32, 1e-5, attention=AttentionConfig(window_tokens=4096)),
    "solar_10b": _llama(32_000, 48, 1e-5),
    "pythia_70m": _pythia(512, 6, 8),
    "pythia_160m": _pythia(768, 12, 12),
    "pythia_410m": _pythia(1024, 24, 16),
    "pythia_1b": _pythia(2048, 16, 8),
    "pythia_1_4b": _pythia(2048, 24, 16),
    "pythia_2_8b": _pythia(2560, 32, 32),
    "pythia_6_9b": _pythia(4096, 32, 32, vocab_size=50432),
    "pythia_12b": _pythia(5120, 36, 40, vocab_size=50688),
    "nemotron4_15b": _nemotron(6144, 32, 48, 128, 24_576),
    "nemotron4_340b": _nemotron(18_432, 96, 96, 192, 73_728),
}


@functools.cache
def _abstract(config: TransformerConfig) -> Any:
    return LanguageModel(config).abstract_params()


def num_parameters(config: TransformerConfig) -> int:
    """Of the policy network, as papers count them: without our value head."""
    trunk = _abstract(config)["trunk"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(trunk)))


def bytes_per_device(config: TransformerConfig, mesh: sharding.MeshConfig, dtype: str) -> int:
    """Of the parameters alone, on the fullest device of a mesh that need not exist."""
    shape = (mesh.data or 1, mesh.fsdp, mesh.tensor)
    boxed = _abstract(config)
    places = sharding.param_shardings(boxed, AbstractMesh(shape, sharding.MESH_AXES))
    sizes = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)), nn.unbox(boxed), places
    )
    return sum(jax.tree.leaves(sizes)) * jax.numpy.dtype(dtype).itemsize


def flops_per_token(config: TransformerConfig, context: int) -> int:
    """Forward, after `context` tokens: two for each number of a matrix, and what attention adds.

    Source: Kaplan et al., arXiv:2001.08361, table 1. Training takes three times that.
    """
    trunk = nn.unbox(LanguageModel(config).abstract_params())["trunk"]
    flat = jax.tree_util.tree_flatten_with_path(trunk)[0]
    matrices = sum(math.prod(leaf.shape) for path, leaf in flat if path[-1].key == "kernel")
    if config.tie_embeddings:
        matrices += config.vocab_size * config.width
    seen = min(context, config.attention.window_tokens or context)
    return 2 * matrices + 4 * config.num_layers * config.num_heads * config.head_dim * seen


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=f"one of {', '.join(ZOO)}")
    parser.add_argument(
        "--show", action="store_true", help="what this command does; may be left out"
    )
    for axis in sharding.MESH_AXES:
        parser.add_argument(f"--{axis}", type=int, default=1, help=f"devices of mesh.{axis} (1)")
    parser.add_argument("--context", type=int, default=4096, help="tokens before the next (4096)")
    parser.add_argument("--dtype", default="bfloat16", help="of the parameters (bfloat16)")
    arguments = parser.parse_args(argv)
    if arguments.name not in ZOO:
        raise ConfigError(f"a model is one of {', '.join(ZOO)}; got {arguments.name!r}.")
    config = ZOO[arguments.name]
    mesh = sharding.MeshConfig(data=arguments.data, fsdp=arguments.fsdp, tensor=arguments.tensor)
    each = bytes_per_device(config, mesh, arguments.dtype)
    flops = flops_per_token(config, arguments.context)
    print(config)
    print(f"parameters: {num_parameters(config):,}")
    print(
        f"parameters per device: {each / GIBIBYTE:.2f} GiB in {arguments.dtype}, on a mesh of "
        f"data={mesh.data}, fsdp={mesh.fsdp}, tensor={mesh.tensor}"
    )
    print(
        f"FLOPs per token after {arguments.context:,}: {flops / 1e9:.2f} G forward, "
        f"{3 * flops / 1e9:.2f} G in training"
    )


if __name__ == "__main__":
    load.main("models.zoo", main)
