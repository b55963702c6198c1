"""The loop: a run that is interrupted anywhere equals one that is not; bad runs end clearly."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from data.hybrid import HybridConfig
from data.tokenizer import load_tokenizer
from train import checkpoints, loop, metrics
from train.errors import ConfigError, Preempted
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.stopping import StopFlag


def logged(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in metrics.TIME_FIELDS}
        for line in lines
    ]


class StopAfter(StopFlag):
    """Asks to stop when it has been polled this often."""

    def __init__(self, num_polls):
        super().__init__()
        self._polls_left = num_polls

    @property
    def requested(self):
        if self._polls_left <= 0:
            self.request("test")
        self._polls_left -= 1
        return super().requested


@pytest.fixture(scope="module")
def whole(minuscule, tmp_path_factory):
    experiment = minuscule()
    folder = tmp_path_factory.mktemp("whole")
    final = loop.run(experiment, folder)
    assert final == folder / "checkpoints" / "6"
    return experiment, folder


@pytest.mark.parametrize("name", ["batch_size", "policy_batch", "value_batch", "text_batch"])
def test_every_batch_is_shared_evenly_by_the_mesh(minuscule, name):
    """The same device four times will do: nothing is placed on it."""
    devices = np.array(jax.devices()[:1] * 4).reshape(2, 2, 1)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))
    sizes = {"policy_batch": 4, "value_batch": 0, "text_batch": 12}
    make = lambda batch_size, **changed: minuscule(  # noqa: E731
        batch_size=batch_size, recipe="hybrid", hybrid=HybridConfig(records=(), **sizes | changed)
    )
    text = load_tokenizer("game24")
    loop._check(make(8), text, mesh)
    wrong = make(6) if name == "batch_size" else make(8, **{name: 6})
    with pytest.raises(ConfigError, match=f"{name} must be a multiple .* got 6 for 4"):
        loop._check(wrong, text, mesh)


def test_metrics_name_their_units_and_the_loss_falls(whole):
    _, folder = whole
    lines = logged(folder)
    train = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    assert set(train[0]) == {
        "step", "loss", "text_loss_nats_per_token", "num_tokens",
        "trunk_gradient_norm", "value_head_gradient_norm",
    }  # fmt: skip
    validation = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in validation] == [0, 3, 6]
    name = "validation_text_loss_nats_per_token"
    assert validation[-1][name] < validation[0][name]


def test_the_same_config_gives_the_same_run(whole, minuscule, tmp_path):
    _, folder = whole
    loop.run(minuscule(), tmp_path)
    assert logged(tmp_path) == logged(folder)


def test_another_seed_gives_another_run(whole, minuscule, tmp_path):
    _, folder = whole
    loop.run(minuscule(seed=1), tmp_path)
    assert logged(tmp_path)[1]["loss"] != logged(folder)[1]["loss"]


@pytest.mark.parametrize("num_polls", [1, 2, 3, 4, 7, 8, 9, 10])  # step 0, evaluations, between
def test_a_run_stopped_and_resumed_equals_the_whole_one_bit_for_bit(whole, tmp_path, num_polls):
    experiment, folder = whole
    with pytest.raises(Preempted, match=r"stopped by test at step \d of 6"):
        loop.run(experiment, tmp_path, stop=StopAfter(num_polls))
    loop.run(experiment, tmp_path, resume=True)
    assert logged(tmp_path) == logged(folder)
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoints.load_params(tmp_path)[2],
        checkpoints.load_params(folder)[2],
    )


def test_a_run_stopped_at_every_step_equals_the_whole_one(whole, tmp_path):
    experiment, folder = whole
    attempts = 0
    while attempts < 20:
        attempts += 1
        try:
            loop.run(experiment, tmp_path, resume=True, stop=StopAfter(4))
            break
        except Preempted:
            continue
    assert attempts > 3
    assert logged(tmp_path) == logged(folder)


def test_a_killed_run_continues_from_its_last_checkpoint(whole, tmp_path, monkeypatch):
    experiment, folder = whole
    write = metrics.MetricsFile.write

    def die_at_five(self, step, values, **times):
        write(self, step, values, **times)
        if step == 5:
            self._file.write('{"step": 6, "lo')
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.MetricsFile, "write", die_at_five)
        with pytest.raises(KeyboardInterrupt):
            loop.run(experiment, tmp_path)
    assert checkpoints.find_step(tmp_path).name == "4"
    loop.run(experiment, tmp_path, resume=True)
    assert logged(tmp_path) == logged(folder)


def test_a_finished_run_resumes_to_nothing(whole, tmp_path):
    experiment, folder = whole
    again = shutil.copytree(folder, tmp_path / "again")
    loop.run(experiment, again, resume=True)
    assert logged(again) == logged(folder)


def test_checkpoints_are_not_overwritten_without_resume(whole):
    experiment, folder = whole
    with pytest.raises(ConfigError, match="needs a folder without checkpoints.*has step 6"):
        loop.run(experiment, folder)


def test_training_starts_from_the_parameters_of_another_run(whole, minuscule, tmp_path):
    _, folder = whole
    experiment = minuscule(initial_checkpoint=str(folder), train_steps=1)
    loop.run(experiment, tmp_path)
    name = "validation_text_loss_nats_per_token"
    assert logged(tmp_path)[0][name] == logged(folder)[-1][name]
    other = dataclasses.replace(experiment.model, width=24)
    with pytest.raises(ConfigError, match="initial_checkpoint must have the model"):
        loop.run(dataclasses.replace(experiment, model=other), tmp_path / "other")


def test_divergence_ends_the_run_with_advice_and_saves_nothing_broken(minuscule, tmp_path):
    reckless = OptimizerConfig(peak_learning_rate=1e38, schedule="constant", clip_norm=None)
    experiment = minuscule(optimizers=OptimizersConfig(policy=reckless), save_every_steps=1)
    with pytest.raises(ConfigError, match="training must stay finite; at step .*Lower optim"):
        loop.run(experiment, tmp_path)
    _, _, params = checkpoints.load_params(tmp_path)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "game42"}, "Did you mean 'game24'"),
        ({"sequence_length_tokens": 8}, "Raise sequence_length_tokens"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    minuscule, tmp_path, change, message
):
    with pytest.raises(ValueError, match=message):
        loop.run(minuscule(**change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_logit_for_every_token_is_refused(minuscule):
    experiment = minuscule()
    small = dataclasses.replace(experiment.model, vocab_size=50)
    with pytest.raises(ConfigError, match=r"model\.vocab_size=50 for the 109 tokens"):
        loop.set_up(dataclasses.replace(experiment, model=small))


@pytest.mark.devices(2)
@pytest.mark.slow
def test_a_run_saved_on_one_device_resumes_on_two(minuscule, tmp_path):
    from models.sharding import MeshConfig

    devices = jax.devices()
    try:
        jax.devices = lambda *_: devices[:1]
        with pytest.raises(Preempted):
            loop.run(minuscule(), tmp_path, stop=StopAfter(6))
    finally:
        jax.devices = lambda *_: devices
    with pytest.raises(ConfigError, match="batch_size must be a multiple"):
        loop.set_up(minuscule(batch_size=7))
    two = minuscule(mesh=MeshConfig(data=1, fsdp=2))
    loop.run(two, tmp_path, resume=True)
    assert logged(tmp_path)[-1]["step"] == 6
