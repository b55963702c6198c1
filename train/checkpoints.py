"""Checkpoints on disk; every call of orbax is in this file.

    RUN/checkpoints/STEP/
      params/       all that search and evaluation need, or adapters and the name of their base
      train_state/  optimizer moments, step, rng key
      batches/      position in the data, of every process
      metadata/     model, tokenizer and data they belong to (JSON)

A folder appears under its final name only when it is complete. One written under another model,
tokenizer or data is refused, never adapted.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn

from data import folder_tokenizer
from data import tokenizer as tokenizers
from models import huggingface, lora
from models.language_model import LanguageModel
from models.lora import LoraConfig
from models.transformer import TransformerConfig
from train import config_json
from train.errors import ConfigError, DataError
from train.step import TrainState

SCHEMA_VERSION = 1
BESIDE = "tokenizer"  # name of a tokenizer that lies in a folder of the checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a checkpoint belongs to."""

    model: TransformerConfig
    tokenizer: str
    tokenizer_fingerprint: str
    data_hash: str
    longest_text_tokens: int | None = None
    """Positions that training read; None: not known (older checkpoints)."""
    has_trained_value: bool | None = None
    """Whether the value head has learned; None: not known."""
    lora: LoraConfig | None = None
    """How adapters are joined to their base; None: the parameters are whole."""
    base_path: str | None = None
    """Checkpoint of that base, or of the reference of a preference loss, seen from the folder that
    holds this one."""
    base_fingerprint: str | None = None
    """`params_fingerprint` of that base."""
    template: str | None = None
    """How chats are written for it (`data.chat`); None: not known."""
    reward_pool: str | None = None
    """How rewards are read off (`models.heads.at_end`); None: it is no reward model."""
    schema_version: int = SCHEMA_VERSION


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the last save."""

    def __init__(self, folder: Path, metadata: Metadata, *, keep_checkpoints: int | None):
        """`folder` is made when absent; keep_checkpoints: the newest that stay (None: all)."""
        self.folder = Path(folder).absolute()
        self.metadata = metadata
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_checkpoints, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None when there is none."""
        return self._manager.latest_step()

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> None:
        """Saves in the background; returns once the arrays and the data position are copied.

        Call it after the step and before the next batch is taken: what the iterator has handed
        out counts as trained on.
        """
        if step == self.latest_step:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                train_state=ocp.args.StandardSave(_train_state(state)),
                batches=grain.checkpoint.CheckpointSave(batches),
                metadata=ocp.args.JsonSave(config_json.encode(self.metadata)),
            ),
        )

    def restore(self, abstract_state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """State of the newest checkpoint; puts `batches` at the position it had then.

        Args:
          abstract_state: shapes, dtypes and shardings to restore to; the mesh may differ from the
            one that saved.

        Raises:
          DataError: a file is missing or torn. ConfigError: model, tokenizer or data differ.
        """
        step = self.latest_step
        assert step is not None, "there is a checkpoint to restore"
        path = self.path(step)
        _refuse_another(read_metadata(path), self.metadata, path)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(abstract_state.params),
                    train_state=ocp.args.StandardRestore(_train_state(abstract_state)),
                    batches=grain.checkpoint.CheckpointRestore(batches),
                ),
            )
        except Exception as error:
            raise _unreadable(path, error) from error
        return TrainState(params=restored.params, **restored.train_state)


def find_step(path: Path | str) -> Path:
    """The newest checkpoint of a run folder or checkpoints folder, or the one that `path` is.

    Raises:
      DataError: there is none.
    """
    path = Path(path).absolute()
    if (path / "params").is_dir() or huggingface.is_folder(path):
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        raise DataError(
            "a checkpoint is a run folder, its checkpoints folder or one step in it, or a folder "
            "of transformers (config.json and safetensors); "
            f"got {path}, which {'holds none' if path.exists() else 'does not exist'}. "
            "Give the folder of a finished or interrupted `python -m train` run."
        )
    return folder / str(max(steps))


def steps_of(path: Path | str) -> list[Path]:
    """All checkpoints of a run, or the one that `path` is; the oldest first.

    Raises:
      DataError: there is none.
    """
    newest = find_step(path)
    if newest == Path(path).absolute():
        return [newest]
    steps = ocp.utils.checkpoint_steps(newest.parent)
    return [newest.parent / str(step) for step in sorted(steps)]


def name_step(path: Path | str) -> str:
    """The newest checkpoint there, by its own name (relative to this folder) and known to be ours.

    What is named so stays the same model when a run trains on: a config with this name can be
    compared when its run is resumed.
    """
    step_path = find_step(path)
    read_metadata(step_path)
    return os.path.relpath(step_path)


def read_metadata(step_path: Path) -> Metadata:
    """What the checkpoint in `step_path` belongs to.

    Raises:
      DataError: it is not one of ours, torn, or of a newer version of this code.
    """
    if huggingface.is_folder(step_path):
        return _metadata_of_folder(step_path)
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            raw = checkpointer.restore(step_path / "metadata")
    except Exception as error:
        raise _unreadable(step_path, error) from error
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"this code reads checkpoints of schema version {SCHEMA_VERSION}; got {version} in "
            f"{step_path}. Use the code that wrote it, or train again."
        )
    metadata = config_json.decode(raw)
    if metadata.tokenizer == BESIDE:
        folder = os.path.relpath(step_path / BESIDE)
        return dataclasses.replace(metadata, tokenizer=folder)
    return metadata


def _metadata_of_folder(path: Path) -> Metadata:
    """Of a folder of `transformers`, whose tokenizer is named by the folder.

    Raises:
      DataError: it has no tokenizer, or is no model of ours.
    """
    name = folder_tokenizer.name_in(path)
    return Metadata(
        model=huggingface.read_config(path),
        tokenizer=name,
        tokenizer_fingerprint=tokenizers.load_tokenizer(name).fingerprint,
        data_hash="",
        longest_text_tokens=huggingface.longest_text(path),
        has_trained_value=None if huggingface.has_value_head(path) else False,
    )


def load_params(path: Path | str) -> tuple[TransformerConfig, str, Any]:
    """Model, tokenizer name and float32 parameters, whatever dtype and mesh they were saved with.

    Adapters come merged into their base: every model that is used is a plain one.

    `path`: a run folder, its checkpoints folder (the newest step) or one step.

    Raises:
      DataError: nothing complete of ours lies there, or the base of adapters is gone or another.
      ConfigError: the tokenizer of that name is not the one the model was trained with.
    """
    metadata, params = load_saved(path)
    if metadata.lora is not None:
        base = _load_base(find_step(path), metadata)
        frozen = lora.frozen_params(base, metadata.lora)
        params = lora.merge(lora.join(params, frozen, metadata.lora), LanguageModel(metadata.model))
    return metadata.model, metadata.tokenizer, params


def load_saved(path: Path | str) -> tuple[Metadata, Any]:
    """What a checkpoint itself holds, in float32: all parameters, or adapters and heads.

    Raises: as `load_params`.
    """
    step_path = find_step(path)
    metadata = read_metadata(step_path)
    fingerprint = tokenizers.load_tokenizer(metadata.tokenizer).fingerprint
    if fingerprint != metadata.tokenizer_fingerprint:
        raise ConfigError(
            f"the tokenizer must be the one the model was trained with; {metadata.tokenizer!r} "
            f"now has fingerprint {fingerprint[:12]}, the checkpoint {step_path} was trained with "
            f"{metadata.tokenizer_fingerprint[:12]}. Restore that tokenizer or train again."
        )
    if huggingface.is_folder(step_path):
        return metadata, huggingface.load(step_path)[1]
    try:
        split = lora.split(LanguageModel(metadata.model), metadata.lora)
    except ValueError as error:
        raise ConfigError(f"{step_path} cannot be loaded: {error}") from error
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract_params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        nn.unbox(split.boxed),
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            params = checkpointer.restore(step_path / "params", abstract_params)
    except Exception as error:
        raise _unreadable(step_path, error) from error
    return metadata, params


def with_base(metadata: Metadata, folder: Path, base: Path | str, params: Any) -> Metadata:
    """Names the base of adapters: the newest checkpoint of `base`, which has these parameters.

    `folder` will hold the checkpoint with the adapters; where both move together, the name holds.
    """
    return dataclasses.replace(
        metadata,
        base_path=os.path.relpath(find_step(base), Path(folder).absolute()),
        base_fingerprint=params_fingerprint(params),
    )


def params_fingerprint(params: Any) -> str:
    """SHA-256 of all names, shapes, dtypes and bytes: equal for the same parameters only."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}".encode())
        digest.update(np.asarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


def _load_base(step_path: Path, metadata: Metadata) -> Any:
    """Parameters of the base that the adapters in `step_path` were trained on."""
    assert metadata.base_path is not None
    base = Path(os.path.normpath(step_path.parent / metadata.base_path))
    if not base.is_dir():
        raise DataError(
            f"adapters need the base they were trained on; {step_path} names {base}, which is "
            "not there. Put it back, or keep adapters whole: `python -m train.export` merges them."
        )
    _, _, params = load_params(base)
    found = params_fingerprint(params)
    if found != metadata.base_fingerprint:
        raise DataError(
            f"adapters need the base they were trained on; {base} now has fingerprint "
            f"{found[:12]}, {step_path} wants {str(metadata.base_fingerprint)[:12]}. "
            "Put that base back, or train the adapters again."
        )
    return params


def save_params(path: Path | str, params: Any, metadata: Metadata, *, dtype: str) -> None:
    """Writes a small checkpoint of parameters only, which `load_params` reads."""
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            Path(path).absolute(),
            ocp.args.Composite(
                params=ocp.args.StandardSave(cast),
                metadata=ocp.args.JsonSave(config_json.encode(metadata)),
            ),
        )
    for marker in Path(path).rglob("commit_success.txt"):
        marker.write_text("complete\n")  # orbax names the folder, which nobody else has


def _train_state(state: TrainState) -> dict[str, Any]:
    return {"opt_state": state.opt_state, "step": state.step, "rng_key": state.rng_key}


def _refuse_another(found: Metadata, wanted: Metadata, path: Path) -> None:
    for field in ("model", "tokenizer_fingerprint", "data_hash", "lora", "base_fingerprint"):
        theirs, ours = getattr(found, field), getattr(wanted, field)
        if theirs != ours:
            raise ConfigError(
                f"a run resumes with the {field} it was saved with; this run has {ours}, "
                f"{path} has {theirs}. Undo the change, or start afresh in another --run-folder."
            )


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return DataError(
        f"a checkpoint must be complete and written by `python -m train`; {path} cannot be read "
        f"({reason}). Delete that step to fall back to the one before, or train again."
    )
