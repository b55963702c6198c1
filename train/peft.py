"""Adapters to and from the folders of the library `peft`, for models of the Llama family.

    python -m train.peft export RUN FOLDER --base-model meta-llama/Meta-Llama-3-8B
    python -m train.peft import FOLDER BASE CHECKPOINT

    FOLDER/adapter_config.json          rank, alpha and the names of the layers
    FOLDER/adapter_model.safetensors    lora_A.weight [rank, in], lora_B.weight [out, rank]

Heads that were trained beside the adapters are not exported: `peft` has no place for them. An
imported checkpoint names BASE and is used like that of any run; `python -m train.export` merges.
"""

import argparse
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

from configs import load
from models import families, lora
from models.language_model import LanguageModel
from models.lora import LoraConfig
from train import checkpoints, run_folder
from train.errors import ConfigError, DataError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MODULES = {
    layer: name.removeprefix("model.layers.{}.")
    for layer, name in families.LLAMA_MODULES.items()
    if name.endswith("_proj")
}
# Settings of peft under which an adapter is something else than W + scale * A B. The values that
# stand here change nothing; a file from a later peft may lack some of them.
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "target_parameters": (None, []),
}


def export_adapters(source: Path, target: Path, *, base_model: str) -> None:
    """Writes the adapters of a run as a folder for `peft.PeftModel.from_pretrained`.

    Args:
      source: run folder or checkpoint with adapters. target: a folder that does not exist yet.
      base_model: name or folder of the base in Hugging Face's form, for the reader.

    Raises:
      ConfigError: the checkpoint has no adapters, or the target exists.
    """
    if target.exists():
        raise ConfigError(f"an export writes a new folder; {target} exists. Choose another one.")
    metadata, params = checkpoints.load_saved(source)
    if metadata.lora is None:
        raise ConfigError(
            f"only adapters are exported for peft; {source} holds a whole model. "
            "Train with --lora.rank, or write it whole with `python -m train.export`."
        )
    tensors = to_peft(params["adapters"])
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors})
    target.mkdir(parents=True)
    safetensors.numpy.save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    run_folder.write_json(
        target / CONFIG_FILE,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": metadata.lora.rank,
            "lora_alpha": metadata.lora.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": [name.removeprefix("base_model.model.") for name in modules],
        },
    )


def import_adapters(
    folder: Path, base: Path, target: Path, *, quantize_base: Any = None, tile_size: int = 64
) -> None:
    """Writes a checkpoint of the adapters in `folder`, on the checkpoint or run `base`.

    Raises:
      DataError: files are missing or broken, tensors missing, left over or of another shape.
      ConfigError: the target exists, or the adapters are of a kind that we do not have.
    """
    if target.exists():
        raise ConfigError(f"an import writes a new checkpoint; {target} exists. Choose another.")
    base_metadata = checkpoints.read_metadata(checkpoints.find_step(base))
    settings, tensors = _read(folder)
    config = dataclasses.replace(
        _lora_config(settings, tensors, folder), quantize_base=quantize_base, tile_size=tile_size
    )
    try:
        split = lora.split(LanguageModel(base_metadata.model), config)
    except ValueError as error:
        raise ConfigError(f"{folder} does not fit {base}: {error}") from error
    adapters = from_peft(tensors, nn.unbox(split.boxed["adapters"]), folder)
    _, _, params = checkpoints.load_params(base)
    heads = {name: params[name] for name in split.boxed if name != "adapters"}
    metadata = dataclasses.replace(base_metadata, lora=config)
    metadata = checkpoints.with_base(metadata, target.absolute().parent, base, params)
    checkpoints.save_params(target, {"adapters": adapters, **heads}, metadata, dtype="float32")


def to_peft(adapters: Any) -> dict[str, np.ndarray]:
    """Tensors by the names that peft gives them: transposed, float32."""
    return {
        _peft_name(path): np.ascontiguousarray(np.asarray(leaf, np.float32).T)
        for path, leaf in traverse_util.flatten_dict(adapters, sep="/").items()
    }


def from_peft(tensors: dict[str, np.ndarray], shapes: Any, folder: Path) -> Any:
    """The adapters of `shapes` out of peft's tensors.

    Raises:
      DataError: tensors are missing, left over or of another shape, all named.
    """
    wanted = {
        path: (_peft_name(path), leaf.shape)
        for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()
    }
    names = {name for name, _ in wanted.values()}
    wrong = [f"{name} is missing" for name in sorted(names - set(tensors))]
    wrong += [f"{name} has no place" for name in sorted(set(tensors) - names)]
    wrong += [
        f"{name} is {list(tensors[name].shape)} and should be {list(shape[::-1])}"
        for name, shape in wanted.values()
        if name in tensors and tensors[name].shape != shape[::-1]
    ]
    if wrong:
        raise DataError(
            f"adapters must fit their base tensor by tensor; in {folder} {'; '.join(wrong[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}. Give their own base."
        )
    flat = {
        path: jax.numpy.asarray(tensors[name].T, "float32") for path, (name, _) in wanted.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def _peft_name(path: str) -> str:
    """block_0/attention/query/lora_a -> base_model.model.model.layers.0.self_attn.q_proj..."""
    block, _, rest = path.partition("/")
    layer, _, name = rest.rpartition("/")
    number, matrix = block.removeprefix("block_"), {"lora_a": "lora_A", "lora_b": "lora_B"}[name]
    return f"base_model.model.model.layers.{number}.{MODULES[layer]}.{matrix}.weight"


def _lora_config(settings: dict, tensors: dict[str, np.ndarray], folder: Path) -> LoraConfig:
    """The config under which our adapters mean what peft's do."""
    strange = [
        f"{name}={settings[name]!r}"
        for name, plain in PLAIN.items()
        if name in settings and settings[name] not in plain
    ]
    if strange:
        raise ConfigError(
            f"adapters are read whose effect is W + alpha/rank A B alone; {folder} has "
            f"{', '.join(strange)}. Merge them with peft, and load the merged model."
        )
    ours = {module: layer for layer, module in MODULES.items()}
    pattern = r"base_model\.model\.model\.layers\.(\d+)\.(.+)\.lora_[AB]\.weight"
    matches = [re.fullmatch(pattern, name) for name in tensors]
    unknown = [
        name
        for name, match in zip(tensors, matches, strict=True)
        if match is None or match[2] not in ours
    ]
    if unknown or not tensors:
        raise DataError(
            "adapters of the Llama family stand beside the projections of its blocks; "
            f"{folder} has {', '.join(sorted(unknown)[:3]) or 'no tensor'}."
        )
    try:
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / CONFIG_FILE} must have the numbers r and lora_alpha."
        ) from error
    if settings.get("use_rslora"):
        alpha *= math.sqrt(rank)  # its scale is alpha / sqrt(rank)
    found = [(int(match[1]), ours[match[2]]) for match in matches if match]
    blocks, layers = ("|".join(sorted({str(x) for x in column})) for column in zip(*found))
    targets = rf"block_({blocks})/({layers})"  # of all pairs: one that is missing is named later
    return LoraConfig(rank=rank, alpha=alpha, targets=targets)


def _read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        pickled = " (a pickled adapter_model.bin can run code, and is not read)"
        hint = pickled if (folder / "adapter_model.bin").exists() else ""
        raise DataError(f"an adapter of peft has the file {weights}, which is missing{hint}.")
    settings = run_folder.read_json(folder / CONFIG_FILE)
    try:
        return settings, safetensors.numpy.load_file(weights)
    except Exception as error:
        raise DataError(f"{weights} cannot be read ({error}). Fetch or export it again.") from error


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.peft",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="adapters of a run -> a folder for peft")
    export.add_argument("source", type=Path, help="run folder or checkpoint with adapters")
    export.add_argument("target", type=Path, help="folder to write; must not exist")
    export.add_argument("--base-model", default="", help="name or folder of the base, for peft")
    imports = commands.add_parser("import", help="a folder of peft -> a checkpoint")
    imports.add_argument("folder", type=Path, help="folder with adapter_config.json")
    imports.add_argument("base", type=Path, help="run folder or checkpoint of the base")
    imports.add_argument("target", type=Path, help="checkpoint to write; must not exist")
    imports.add_argument("--quantize-base", choices=("nf4", "int8"), help="as in training")
    imports.add_argument("--tile-size", type=int, default=64, help="as in training")
    arguments = parser.parse_args(argv)
    if arguments.command == "export":
        export_adapters(arguments.source, arguments.target, base_model=arguments.base_model)
    else:
        import_adapters(
            arguments.folder,
            arguments.base,
            arguments.target,
            quantize_base=arguments.quantize_base,
            tile_size=arguments.tile_size,
        )
    print(arguments.target)


if __name__ == "__main__":
    load.main("train.peft", main)
