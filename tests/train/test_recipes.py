"""Learning from search records, through the same loop and checkpoints as plain text."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import records
from data.documents import LegalPlaySource
from data.hybrid import HybridConfig, RecordSource
from data.tokenizer import load_tokenizer
from models.language_model import LanguageModel
from tests.data import synthetic_records
from train import checkpoints, loop
from train.errors import ConfigError, DataError, Preempted
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.stopping import StopFlag

TOKENIZER = load_tokenizer("game24")


@pytest.fixture(scope="module")
def hybrid_experiment(minuscule, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    games = [synthetic_records.random_record(seed) for seed in range(4)]
    records.write_shard(folder / "a.arrayrecord", [synthetic_records.solved_record(), *games])

    def make(**changes):
        fields = {
            "recipe": "hybrid",
            "hybrid": HybridConfig(
                records=(RecordSource(path=str(folder)),),
                policy_batch=8,
                value_batch=8,
                text_batch=8,
                num_candidates=4,
                path_tokens=40,
            ),
            "optimizers": OptimizersConfig(
                policy=OptimizerConfig(peak_learning_rate=1e-2),
                value=OptimizerConfig(peak_learning_rate=1e-2),
            ),
            "validation_sources": (),
        }
        return minuscule(**(fields | changes))

    return make


@pytest.fixture(scope="module")
def trained(hybrid_experiment, tmp_path_factory):
    experiment, folder = hybrid_experiment(), tmp_path_factory.mktemp("run")
    loop.run(experiment, folder)
    return experiment, folder


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_all_parts_of_the_hybrid_loss_fall(trained):
    lines = log(trained[1])
    for name in (
        "policy_divergence_nats_per_position",
        "value_loss_nats_per_state",
        "text_loss_nats_per_token",
    ):
        assert lines[-1][name] < lines[0][name], name


def test_text_is_held_out_beside_a_hybrid_run(hybrid_experiment, tmp_path):
    held_out = (LegalPlaySource(num_plays=40, seed=1),)
    loop.run(hybrid_experiment(validation_sources=held_out, train_steps=3), tmp_path)
    lines = [line for line in log(tmp_path) if "validation_text_loss_nats_per_token" in line]
    assert [line["step"] for line in lines] == [0, 3]


def test_a_checkpoint_knows_what_was_trained(trained, hybrid_experiment, minuscule):
    """So that a search can warn of a value that never learned, and of texts that are too long."""
    saved = checkpoints.read_metadata(checkpoints.find_step(trained[1]))
    assert (saved.has_trained_value, saved.longest_text_tokens) == (True, 32 + 12)  # and one move
    text = loop.set_up(minuscule()).metadata
    assert (text.has_trained_value, text.longest_text_tokens) == (False, 32)
    on_from_another = loop.set_up(minuscule(initial_checkpoint="elsewhere")).metadata
    assert on_from_another.has_trained_value is None
    frozen = OptimizersConfig(policy=OptimizerConfig(peak_learning_rate=1e-2))
    assert loop.set_up(hybrid_experiment(optimizers=frozen)).metadata.has_trained_value is False


def test_hybrid_training_resumes_bit_for_bit(trained, tmp_path):
    experiment, folder = trained
    with pytest.raises(Preempted):
        loop.run(experiment, tmp_path, stop=StopFlag(deadline_seconds=0.0))
    assert checkpoints.find_step(tmp_path).name == "0"
    loop.run(experiment, tmp_path, resume=True)
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoints.load_params(tmp_path)[2],
        checkpoints.load_params(folder)[2],
    )


def test_search_of_one_game_is_learned_by_heart(hybrid_experiment, tmp_path):
    """The improved policy becomes the policy, and the value tells the good end from the bad."""
    records.write_shard(tmp_path / "r" / "a.arrayrecord", [synthetic_records.solved_record()])
    experiment = hybrid_experiment(
        hybrid=HybridConfig(
            records=(RecordSource(path=str(tmp_path / "r")),),
            policy_batch=8, value_batch=8, text_batch=0, num_candidates=4, value_from="outcome",
        ),
        optimizers=OptimizersConfig(
            policy=OptimizerConfig(peak_learning_rate=2e-2),
            value=OptimizerConfig(peak_learning_rate=2e-2),
        ),
        train_steps=150, save_every_steps=150,
    )  # fmt: skip
    loop.run(experiment, tmp_path / "run")
    config, _, params = checkpoints.load_params(tmp_path / "run")
    model, game = LanguageModel(config), synthetic_records.solved_record()
    first = game.positions[0]
    width = max(map(len, first.candidates))
    branches = np.array([[*c, *[0] * (width - len(c))] for c in first.candidates], np.int32)
    log_probs = jax.jit(model.score_branches)(
        params,
        jnp.array([game.prompt_tokens]),
        jnp.array([len(game.prompt_tokens)]),
        jnp.array([branches]),
        jnp.array([[len(c) for c in first.candidates]]),
    )
    np.testing.assert_allclose(np.exp(log_probs.sum(-1))[0], [0.75, 0.125], atol=0.05)
    outputs = jax.jit(model.outputs)
    good, bad = (
        float(outputs(params, jnp.array([[*game.prompt_tokens, *leaf.tokens]])).value[0, -1])
        for leaf in game.leaves
    )
    assert good > 0.8
    assert bad < 0.2


def test_a_frozen_policy_stays_bit_identical_while_the_value_learns(hybrid_experiment, tmp_path):
    experiment = hybrid_experiment(
        optimizers=OptimizersConfig(
            policy=OptimizerConfig(peak_learning_rate=0.0),
            value=OptimizerConfig(peak_learning_rate=1e-2, weight_decay=0.1),
        ),
        save_every_steps=3,
    )
    loop.run(experiment, tmp_path)
    early, late = (
        checkpoints.load_params(tmp_path / "checkpoints" / step)[2] for step in ("3", "6")
    )
    jax.tree.map(np.testing.assert_array_equal, early["trunk"], late["trunk"])
    assert not np.array_equal(
        early["value_head"]["up"]["kernel"], late["value_head"]["up"]["kernel"]
    )


def test_records_of_another_run_are_another_run(trained, hybrid_experiment, tmp_path):
    _experiment, folder = trained
    records.write_shard(tmp_path / "a.arrayrecord", [synthetic_records.solved_record()])
    other = hybrid_experiment(
        hybrid=HybridConfig(
            records=(RecordSource(path=str(tmp_path)),),
            policy_batch=8, value_batch=8, text_batch=8, num_candidates=4, path_tokens=40,
            value_from="outcome",
        )
    )  # fmt: skip
    with pytest.raises(ConfigError, match="resumes with the data_hash it was saved with"):
        loop.run(other, folder, resume=True)


def test_a_missing_records_folder_is_named(hybrid_experiment, tmp_path):
    experiment = hybrid_experiment(
        hybrid=HybridConfig(records=(RecordSource(path=str(tmp_path / "nowhere")),))
    )
    with pytest.raises(DataError, match="nowhere"):
        loop.run(experiment, tmp_path / "run")


def test_the_recipe_and_its_config_belong_together(minuscule):
    with pytest.raises(ConfigError, match='recipe "hybrid" and the field hybrid belong together'):
        minuscule(recipe="hybrid")
