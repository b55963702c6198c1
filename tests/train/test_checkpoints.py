"""Checkpoints: what is saved comes back, and nothing foreign, torn or altered is taken for it."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import checkpoints, loop
from train.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def finished(minuscule, tmp_path_factory):
    """A finished run of four steps, and its experiment; do not change it."""
    experiment = minuscule(train_steps=4, validation_sources=())
    folder = tmp_path_factory.mktemp("run")
    loop.run(experiment, folder)
    return experiment, folder


@pytest.fixture
def run_copy(finished, tmp_path):
    experiment, folder = finished
    return experiment, shutil.copytree(folder, tmp_path / "run")


def restore(setup, folder):
    batches = setup.recipe.batches()
    with checkpoints.Checkpoints(
        folder / "checkpoints", setup.metadata, keep_checkpoints=None
    ) as saved:
        return saved.restore(setup.abstract_state, batches), batches


def test_only_the_newest_are_kept(finished):
    _, folder = finished
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.parametrize("below", [".", "checkpoints", "checkpoints/4"])
def test_parameters_load_from_run_folder_checkpoints_folder_or_step(finished, below):
    experiment, folder = finished
    config, tokenizer, params = checkpoints.load_params(folder / below)
    assert (config, tokenizer) == (experiment.model, "game24")
    state, _ = restore(loop.set_up(experiment), folder)
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_an_earlier_step_can_be_chosen(finished):
    _, folder = finished
    early, late = (
        checkpoints.load_params(folder / "checkpoints" / step)[2]["trunk"]["embedding"]
        for step in ("2", "4")
    )
    assert not np.array_equal(early, late)


def test_a_saved_state_is_not_disturbed_by_the_steps_that_follow(minuscule, tmp_path):
    experiment = minuscule(train_steps=12, save_every_steps=1, keep_checkpoints=None)
    loop.run(dataclasses.replace(experiment, validation_sources=()), tmp_path / "a")
    once = dataclasses.replace(experiment, save_every_steps=12, validation_sources=())
    loop.run(once, tmp_path / "b")
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoints.load_params(tmp_path / "a")[2],
        checkpoints.load_params(tmp_path / "b")[2],
    )
    steps = [
        float(jnp.sum(jnp.abs(checkpoints.load_params(path)[2]["trunk"]["embedding"])))
        for path in (tmp_path / "a" / "checkpoints").iterdir()
    ]
    assert len(set(steps)) == 12


def test_parameters_alone_are_saved_small_and_load_as_float32(finished, tmp_path):
    experiment, folder = finished
    _, _, params = checkpoints.load_params(folder)
    metadata = checkpoints.read_metadata(folder / "checkpoints" / "4")
    checkpoints.save_params(tmp_path / "small", params, metadata, dtype="bfloat16")
    config, _, small = checkpoints.load_params(tmp_path / "small")
    assert config == experiment.model
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, small, rounded)


@pytest.mark.parametrize("what", ["missing", "empty", "foreign"])
def test_a_folder_without_a_checkpoint_is_one_clear_error(tmp_path, what):
    folder = tmp_path / "somewhere"
    if what != "missing":
        folder.mkdir()
    if what == "foreign":
        (folder / "checkpoints" / "best").mkdir(parents=True)
    with pytest.raises(DataError, match="a checkpoint is a run folder, its checkpoints folder or"):
        checkpoints.load_params(folder)


@pytest.mark.parametrize("torn", ["metadata", "params/d", "params/manifest.ocdbt"])
def test_a_torn_checkpoint_is_refused_with_its_path(run_copy, torn):
    _, folder = run_copy
    victim = folder / "checkpoints" / "4" / torn
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    with pytest.raises(DataError, match=r"must be complete.*checkpoints/4 cannot be read"):
        checkpoints.load_params(folder)


def test_a_checkpoint_of_a_newer_schema_is_refused(run_copy):
    _, folder = run_copy
    file = folder / "checkpoints" / "4" / "metadata" / "metadata"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(DataError, match="reads checkpoints of schema version 1; got 2"):
        checkpoints.load_params(folder)


def test_another_tokenizer_of_the_same_name_is_refused(run_copy):
    _, folder = run_copy
    step = folder / "checkpoints" / "4"
    fingerprint = checkpoints.read_metadata(step).tokenizer_fingerprint
    file = step / "metadata" / "metadata"
    file.write_text(file.read_text().replace(fingerprint, "0" * 64))
    with pytest.raises(ConfigError, match="tokenizer must be the one the model was trained with"):
        checkpoints.load_params(folder)


@pytest.mark.parametrize("field", ["model", "data_hash", "tokenizer_fingerprint"])
def test_a_run_does_not_resume_under_another_model_data_or_tokenizer(run_copy, field):
    experiment, folder = run_copy
    setup = loop.set_up(experiment)
    other = {"model": dataclasses.replace(experiment.model, rope_base=5.0)}.get(field, "0" * 64)
    setup = dataclasses.replace(
        setup, metadata=dataclasses.replace(setup.metadata, **{field: other})
    )
    with pytest.raises(ConfigError, match=f"resumes with the {field} it was saved with"):
        restore(setup, folder)


def test_an_unfinished_save_is_not_a_checkpoint(run_copy):
    experiment, folder = run_copy
    four = folder / "checkpoints" / "4"
    four.rename(folder / "checkpoints" / "4.orbax-checkpoint-tmp")
    assert checkpoints.find_step(folder).name == "2"
    state, _ = restore(loop.set_up(experiment), folder)
    assert int(state.step) == 2
