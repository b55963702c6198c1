"""Checkpoint folders of `transformers`, in and out, without torch.

    model, params, tokenizer = huggingface.load("path/to/Llama-3.2-1B")
    huggingface.save("exported", model, params, tokenizer)

A folder holds config.json, safetensors (one file, or several and their index), and the files of a
tokenizer. Llama, Mistral, Qwen 2 and 3, GPT-NeoX (Pythia) and Nemotron are known
(`models.families`). Our value head lies beside them in `value_head.safetensors`, which others
ignore; a folder without one gets a fresh head.
"""

import dataclasses
import functools
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from data import folder_tokenizer
from data.errors import DataError
from data.tokenizer import Tokenizer
from models import families, sharding, tensor_files
from models.families import Tensor
from models.language_model import LanguageModel, Params
from models.transformer import TransformerConfig

CONFIG, VALUE_HEAD = "config.json", "value_head.safetensors"
DTYPES = ("float32", "bfloat16", "float16")
# Buffers that older versions wrote beside the parameters.
NO_PARAMETERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")
UNNAMED_POSITIONS = 4096


def is_folder(path: Path) -> bool:
    """Whether a checkpoint of this form lies there, complete or not."""
    file = path / CONFIG
    if not file.is_file():
        return False
    config = tensor_files.read_json(file)
    return "model_type" in config or "architectures" in config


def read_config(path: Path | str) -> TransformerConfig:
    """The network of a folder.

    Raises:
      DataError: none that is known, or one that this network cannot be.
    """
    file = Path(path) / CONFIG
    raw = tensor_files.read_json(file)
    family = families.by_architecture(raw, file)
    try:
        config = family.read(raw)
        if has_value_head(path):
            head = tensor_files.headers(Path(path) / VALUE_HEAD)
            config = dataclasses.replace(config, value_head_width=head["up.kernel"][-1])
        return config
    except KeyError as error:
        raise DataError(f"{file} or {VALUE_HEAD} lacks {error}. Fetch it again.") from error
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"{file} describes no model: {error}") from error


def longest_text(path: Path | str) -> int | None:
    """Positions that the model of a folder was trained on; None where it does not say."""
    return tensor_files.read_json(Path(path) / CONFIG).get("max_position_embeddings")


def has_value_head(path: Path | str) -> bool:
    """Whether a folder has a value head of ours."""
    return (Path(path) / VALUE_HEAD).is_file()


def load(
    path: Path | str, *, mesh: Mesh | None = None, dtype: str = "float32"
) -> tuple[LanguageModel, Params, Tokenizer | None]:
    """The model, its parameters and its tokenizer (None where the folder has none).

    Reads one tensor after another, so that no more than one lies in memory beside the parameters.

    Args:
      mesh: to lie on, as the training loop lays parameters out; None: the first device.
      dtype: of the parameters.

    Raises:
      DataError: an unknown architecture, missing, extra or misshapen tensors (with their names), a
        truncated file, a pickle, or a tokenizer of more tokens than the model.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise ValueError(f"parameters are one of {', '.join(DTYPES)}; got {dtype!r}.")
    model = LanguageModel(read_config(path))
    raw = tensor_files.read_json(path / CONFIG)
    expected = families.by_architecture(raw, path / CONFIG).tensors(model.config)
    stored = _checked(path, expected, tied=model.config.tie_embeddings)
    tokenizer = folder_tokenizer.load(path) if folder_tokenizer.is_in(path) else None
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            "a model has a logit for every token of its tokenizer; the tokenizer of "
            f"{path} has {tokenizer.vocab_size}, the model {model.config.vocab_size}. One of the "
            "two belongs to another model: fetch the folder again."
        )
    boxed = model.abstract_params()
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = jax.tree.map(lambda _: device, nn.unbox(boxed))
    else:
        places = sharding.param_shardings(boxed, mesh)
    trunk: dict[str, Any] = {}
    for name, array in tensor_files.read({name: stored[name] for name in expected}):
        for keys, part in _ours(expected[name], array, dtype):
            place = _at(places["trunk"], keys)
            *folders, last = keys
            inner = trunk
            for key in folders:
                inner = inner.setdefault(key, {})
            inner[last] = jax.device_put(part, place)
            del part
        del array
    value_head = _value_head(path, model, nn.unbox(boxed)["value_head"])
    value_head = jax.device_put(value_head, places["value_head"])
    return model, {"trunk": trunk, "value_head": value_head}, tokenizer


def save(
    path: Path | str,
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    dtype: str | None = None,
    longest_text_tokens: int | None = None,
    max_file_bytes: int = tensor_files.MAX_FILE_BYTES,
) -> None:
    """Writes a folder that `transformers` and `load` read. It appears complete or not at all.

    Args:
      dtype: of the written parameters; None: theirs.
      longest_text_tokens: what the folder says of the positions known to the model.

    Raises:
      ValueError: no architecture of `transformers` is this model. DataError: the folder exists.
    """
    path = Path(path)
    if path.exists():
        raise DataError(
            f"a checkpoint is written to a new folder; {path} exists. Name another one."
        )
    if model.config.num_attributes:
        raise ValueError(
            "a folder of transformers has no place for a reward head; got a model of "
            f"{model.config.num_attributes} attributes. Keep it as a checkpoint."
        )
    config, trunk = _with_plain_embeddings(model.config, params["trunk"])
    family, raw = families.of_config(config)
    dtype = dtype or str(trunk["embedding"].dtype)
    if dtype not in DTYPES:
        raise ValueError(f"parameters are one of {', '.join(DTYPES)}; got {dtype!r}.")
    positions = longest_text_tokens or UNNAMED_POSITIONS
    raw = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        "max_position_embeddings": positions,
        "use_cache": True,
        "bos_token_id": getattr(tokenizer, "bos_id", None),
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        **raw,
    }
    tensors = family.tensors(config)
    size = np.dtype(dtype).itemsize
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        tensor_files.write_json(partial / CONFIG, raw)
        tensor_files.write(
            partial,
            {name: functools.partial(_theirs, one, trunk, dtype) for name, one in tensors.items()},
            {name: size * math.prod(one.shape) for name, one in tensors.items()},
            max_file_bytes=max_file_bytes,
        )
        head = jax.tree_util.tree_flatten_with_path(jax.device_get(params["value_head"]))[0]
        named = {".".join(entry.key for entry in keys): leaf for keys, leaf in head}
        tensor_files.save(partial / VALUE_HEAD, named)
        if tokenizer is not None:
            folder_tokenizer.save(partial, tokenizer)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _checked(path: Path, expected: dict[str, Tensor], tied: bool) -> dict[str, tensor_files.Stored]:
    """What the files hold, if it is what the model needs."""
    stored = tensor_files.find(path)
    head = {"lm_head.weight", "embed_out.weight"} if tied else set()
    extra = [
        name
        for name in stored
        if name not in expected and name not in head and not name.endswith(NO_PARAMETERS)
    ]
    faults = {
        "missing": [name for name in expected if name not in stored],
        "not of this architecture": extra,
        "of another shape": [
            f"{name} {list(stored[name].shape)} for {list(one.shape)}"
            for name, one in expected.items()
            if name in stored and stored[name].shape != one.shape
        ],
    }
    said = [f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names]
    if said:
        raise DataError(
            f"the tensors of {path} are those of its {CONFIG}; {'; '.join(said)}. Fetch the folder "
            f"again, or correct {CONFIG}."
        )
    return stored


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _ours(tensor: Tensor, array: np.ndarray, dtype: str) -> Iterator[tuple[families.Path, Any]]:
    """The parameters in a tensor of a file: their paths and values."""
    parts = [array]
    if len(tensor.paths) > 1:  # by heads: the rows of query, key, value, then of the next head
        heads, head_dim = tensor.shapes[0][-2:]
        rows = array.reshape(heads, len(tensor.paths), head_dim, -1)
        parts = [rows[:, n].reshape(-1, rows.shape[-1]) for n in range(len(tensor.paths))]
    for path, shape, part in zip(tensor.paths, tensor.shapes, parts, strict=True):
        part = part.T if path[-1] == "kernel" else part
        yield path, np.array(part, dtype, order="C").reshape(shape)


def _theirs(tensor: Tensor, trunk: Params, dtype: str) -> np.ndarray:
    """The inverse of `_ours`."""
    parts = []
    for path, shape in zip(tensor.paths, tensor.shapes, strict=True):
        part = np.asarray(jax.device_get(_at(trunk, path))).astype(dtype)
        if path[-1] == "kernel":
            num_inputs = math.prod(shape[: families.num_inputs(path, shape)])
            part = part.reshape(num_inputs, -1).T
        parts.append(part)
    if len(parts) == 1:
        return parts[0].reshape(tensor.shape)
    heads, head_dim = tensor.shapes[0][-2:]
    rows = np.stack([part.reshape(heads, head_dim, -1) for part in parts], axis=1)
    return rows.reshape(tensor.shape)


def _at(tree: Any, keys: families.Path) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _value_head(path: Path, model: LanguageModel, abstract: Any) -> Any:
    if not has_value_head(path):
        return model.init_value_head(jax.random.key(0))
    whole = tensor_files.read_file(path / VALUE_HEAD)
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    found = []
    for keys, leaf in leaves:
        name = ".".join(entry.key for entry in keys)
        if name not in whole or whole[name].shape != leaf.shape:
            has = {name: list(array.shape) for name, array in whole.items()}
            raise DataError(
                f"{path / VALUE_HEAD} holds a value head for this model, with {name} of shape "
                f"{list(leaf.shape)}; got {has}. Delete the file to begin with a fresh head."
            )
        found.append(whole[name].astype(np.float32))
    return jax.tree_util.tree_unflatten(tree, found)


def _with_plain_embeddings(
    config: TransformerConfig, trunk: Params
) -> tuple[TransformerConfig, Params]:
    """A model whose embeddings are not scaled: the scale goes into them, and ties are cut."""
    if not config.scale_embeddings:
        return config, trunk
    table = trunk["embedding"]
    changed = {"embedding": table * config.width**0.5}
    if config.tie_embeddings:
        changed["unembed"] = {"kernel": table.T}
    config = dataclasses.replace(config, scale_embeddings=False, tie_embeddings=False)
    return config, {**trunk, **changed}
