"""Preference and reward recipes in the one loop: what is learned, frozen, kept and refused."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import Experiment
from data.attributes import FIVE, AttributeSource
from data.chat_sources import ChatSource
from data.preferences import PreferenceSource
from models.lora import LoraConfig
from models.transformer import TransformerConfig
from train import checkpoints, loop, reward_model
from train.alignment import PreferenceConfig, RewardConfig
from train.errors import ConfigError, DataError, Preempted
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.stopping import StopFlag

MODEL = TransformerConfig(
    vocab_size=258, width=16, num_layers=1, num_heads=2, head_dim=8, value_head_width=8
)
WORDS = ("ab", "cd", "ef", "gh")


def optimizers(rate):
    return OptimizersConfig(policy=OptimizerConfig(peak_learning_rate=rate, warmup_steps=2))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Chats, pairs in which upper case is better, and grades: verbosity counts words."""
    folder = tmp_path_factory.mktemp("rows")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    chats = [
        {"prompt": f"{a}?", "response": answer}
        for a in WORDS
        for answer in (a, a.upper())
    ]  # fmt: skip
    pairs = [
        {"prompt": f"{a}?", "chosen": a.upper(), "rejected": a, "chosen_reward": 3.0,
         "rejected_reward": 1.0}
        for a in WORDS
    ]  # fmt: skip
    graded = [
        {"prompt": f"{a}?", "response": a * n, "verbosity": n - 1, "helpfulness": n % 2}
        for a in WORDS
        for n in range(1, 6)
    ]
    return {
        "chats": write("chats.jsonl", chats),
        "pairs": write("pairs.jsonl", pairs),
        "graded": write("graded.jsonl", graded),
    }


@pytest.fixture(scope="module")
def experiment(files):
    """`experiment(recipe="preference", ...)`: a minuscule run."""
    return functools.partial(
        Experiment,
        model=MODEL,
        tokenizer="bytes",
        optimizers=optimizers(1e-2),
        sequence_length_tokens=24,
        batch_size=4,
        train_steps=4,
        log_every_steps=1,
        eval_every_steps=4,
        eval_batches=2,
        save_every_steps=2,
    )


@pytest.fixture(scope="module")
def base(experiment, files, tmp_path_factory):
    """Fine-tuned on both kinds of answer."""
    folder = tmp_path_factory.mktemp("base")
    source = ChatSource(path=files["chats"], template="plain")
    loop.run(experiment(sources=(source,), train_steps=40, save_every_steps=20), folder)
    return str(folder)


@pytest.fixture(scope="module")
def preference_run(experiment, files, base):
    """`preference_run(kind="dpo", ...)`: an experiment on the pairs."""

    def make(train_steps=4, lora=None, learning_rate=1e-2, **fields):
        source = PreferenceSource(path=files["pairs"])
        config = {"sources": (source,), "validation_sources": (source,), "template": "plain"}
        return experiment(
            recipe="preference",
            preference=PreferenceConfig(**(config | fields)),
            initial_checkpoint=base,
            train_steps=train_steps,
            lora=lora,
            optimizers=optimizers(learning_rate),
        )

    return make


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dpo_run(preference_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    config = preference_run(train_steps=30)
    loop.run(config, folder)
    return config, folder


def test_dpo_learns_beside_a_frozen_reference(dpo_run):
    lines = log(dpo_run[1])
    steps = [line for line in lines if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["reward_gap/abs_err"] == pytest.approx(2.0, abs=1e-5)  # g of the rewards
    assert steps[-1]["loss"] < 0.4
    assert steps[-1]["rewards/accuracies"] == 1.0
    validation = [line for line in lines if "validation_preference_loss" in line]
    assert validation[0]["step"] == 0 and validation[-1]["step"] == 30
    assert validation[0]["validation_preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert validation[-1]["validation_rewards/margins"] > 0.5
    saved = checkpoints.read_metadata(checkpoints.find_step(dpo_run[1]))
    assert saved.template == "plain"
    _, _, params = checkpoints.load_params(dpo_run[1])
    assert set(params) == {"trunk", "value_head"}  # the reference is in no checkpoint


def test_preference_runs_resume_bit_for_bit(dpo_run, tmp_path):
    config, whole = dpo_run
    with pytest.raises(Preempted):
        loop.run(config, tmp_path, stop=StopFlag(deadline_seconds=0.0))
    loop.run(config, tmp_path, resume=True)
    found = [checkpoints.load_params(folder)[2] for folder in (tmp_path, whole)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_another_reference_is_another_run(dpo_run, base):
    config, folder = dpo_run
    other = dataclasses.replace(config, initial_checkpoint=f"{base}/checkpoints/20")
    with pytest.raises(ConfigError, match="resumes with the base_fingerprint it was saved with"):
        loop.run(other, folder, resume=True)
    with pytest.raises(ConfigError, match="compares with the model that the run began with"):
        loop.set_up(dataclasses.replace(config, initial_checkpoint=None))


def test_dpo_with_adapters_begins_at_log_two(preference_run, base):
    setup = loop.set_up(preference_run(lora=LoraConfig(rank=2)))
    frozen = setup.split.freeze(checkpoints.load_params(base)[2])
    trained = setup.split.init(jax.random.key(0))
    batch = next(setup.recipe.batches())

    @jax.jit
    def loss(trained, batch):
        return setup.recipe.loss_fn(setup.split.join(trained, frozen), batch, jax.random.key(0))[0]

    assert float(loss(trained, batch)) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.soak
def test_adapters_learn_preferences(preference_run, tmp_path):
    lora = LoraConfig(rank=2)
    loop.run(preference_run(train_steps=30, lora=lora, learning_rate=5e-2), tmp_path)
    assert log(tmp_path)[-1]["validation_preference_loss"] < 0.4


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["rpo_bwd_kl", "rpo_sq"])
def test_rpo_goes_to_the_gap_of_the_rewards(preference_run, kind, tmp_path):
    loop.run(preference_run(kind=kind, beta=0.2, eta=0.5, train_steps=40), tmp_path)
    steps = [line for line in log(tmp_path) if "loss" in line]
    assert steps[0]["reward_gap/target"] == pytest.approx(1.0)
    assert steps[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert steps[-1]["reward_gap/abs_err"] < 0.1 * steps[0]["reward_gap/abs_err"]


@pytest.mark.soak
def test_the_sft_term_keeps_chosen_answers_likely(preference_run, tmp_path):
    likely = {}
    for weight in (0.0, 1.0):
        folder = tmp_path / str(weight)
        loop.run(preference_run(train_steps=20, sft_weight=weight), folder)
        likely[weight] = log(folder)[-1]["validation_logps/chosen"]
    assert likely[1.0] > likely[0.0] + 0.1


def test_rewards_that_are_all_equal_are_refused(preference_run, tmp_path):
    row = {"prompt": "a?", "chosen": "A", "rejected": "a", "chosen_reward": 1, "rejected_reward": 1}
    path = tmp_path / "tied.jsonl"
    path.write_text(json.dumps(row) + "\n")
    sources = (PreferenceSource(path=str(path)),)
    with pytest.raises(DataError, match="all 1 pairs of .*tied.jsonl have equal rewards"):
        loop.set_up(preference_run(kind="rpo_sq", sources=sources))
    loop.set_up(preference_run(kind="dpo", sources=sources))


# ------------------------------------------------------------------------------------ rewards


@pytest.fixture(scope="module")
def reward_run(experiment, files):
    def make(train_steps=4, num_attributes=5, initial_checkpoint=None, **fields):
        source = AttributeSource(path=files["graded"])
        config = {"sources": (source,), "validation_sources": (source,), "template": "plain"}
        return experiment(
            recipe="reward",
            model=dataclasses.replace(MODEL, num_attributes=num_attributes),
            reward=RewardConfig(**(config | fields)),
            initial_checkpoint=initial_checkpoint,
            batch_size=20,
            train_steps=train_steps,
        )

    return make


@pytest.fixture(scope="module")
def rewarded(reward_run, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    loop.run(reward_run(train_steps=150, initial_checkpoint=base), folder)
    return folder


def test_a_reward_head_is_added_to_a_model_and_learns_grades(rewarded):
    lines = log(rewarded)
    assert lines[-1]["validation_absolute_error"] < 0.15
    judge = reward_model.load(rewarded)
    assert judge.attributes == FIVE
    prompts, answers = ["ab?", "ef?", "gh?"], ["abab", "ef", "gh" * 5]
    scores = judge.score_answers(prompts, answers, batch_size=2)
    np.testing.assert_allclose(scores[:, FIVE.index("verbosity")], [1.0, 0.0, 4.0], atol=0.5)
    np.testing.assert_allclose(scores[:, FIVE.index("helpfulness")], [0.0, 1.0, 1.0], atol=0.5)
    alone = [judge.score_answers([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(scores, alone, atol=1e-5)  # neither order nor batch matters


@pytest.mark.soak
def test_pairs_continue_a_regression_and_keep_its_head(reward_run, files, rewarded, tmp_path):
    pairs = (PreferenceSource(path=files["pairs"]),)
    config = reward_run(
        kind="scaled_bt", sources=(), validation_sources=(), pair_sources=pairs,
        validation_pair_sources=pairs, centring_weight=0.01, initial_checkpoint=str(rewarded),
        train_steps=20,
    )  # fmt: skip
    head = checkpoints.load_params(rewarded)[2]["reward_head"]["out"]["kernel"]
    state = loop._initial_state(config, loop.set_up(config), None)
    np.testing.assert_array_equal(state.params["reward_head"]["out"]["kernel"], head)
    loop.run(config, tmp_path)
    assert log(tmp_path)[-1]["validation_rewards/accuracies"] == 1.0
    assert log(tmp_path)[-1]["validation_pair_loss"] < 2 * math.log(2)  # m = 2, and x > 0


@pytest.mark.soak
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_rewards_are_read_off_the_end_or_averaged(reward_run, pool, tmp_path):
    loop.run(reward_run(pool=pool, num_attributes=9), tmp_path)
    judge = reward_model.load(tmp_path)
    assert judge.pool == pool
    tokens = jnp.array([[*judge.tokenizer.encode("ab?\nab"), judge.tokenizer.eos_id]])
    every = np.asarray(judge.model.outputs(judge.params, tokens).reward[0])
    want = every[-1] if pool == "last" else every.mean(0)
    np.testing.assert_allclose(judge.score_answers(["ab?"], ["ab"])[0], want, atol=1e-5)


def test_a_dead_head_stops_the_run(reward_run, tmp_path):
    with pytest.raises(ConfigError, match="reward_spread must stay above 50.0; at step 1 it is"):
        loop.run(reward_run(min_spread=50.0, validation_sources=()), tmp_path)


def test_unfit_configs_are_refused(reward_run, experiment, preference_run, rewarded, base):
    with pytest.raises(ConfigError, match='"regression" learns from sources'):
        reward_run(kind="bradley_terry")
    with pytest.raises(ConfigError, match="scalar is an attribute of the head.*got 'humor'"):
        loop.set_up(reward_run(scalar="humor"))
    with pytest.raises(ConfigError, match="got model.num_attributes=0"):
        reward_run(num_attributes=0)
    with pytest.raises(DataError, match="5 outputs .HelpSteer. or 9; got 3"):
        loop.set_up(reward_run(num_attributes=3))
    with pytest.raises(ConfigError, match='recipe "reward" and the field reward belong together'):
        experiment(recipe="reward")
    with pytest.raises(ConfigError, match="beta is more than 0"):
        preference_run(beta=0.0)
    with pytest.raises(ConfigError, match='is trained with recipe "reward"'):
        reward_model.load(base)
