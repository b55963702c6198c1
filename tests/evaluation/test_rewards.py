"""Reports of reward models: by hand where the judge is known, and whole with a trained one."""

import dataclasses
import json
import math

import numpy as np
import pytest

from configs import commands, load
from configs.base import Experiment
from data.attributes import FIVE, AttributeSource
from data.preferences import PreferenceSource
from data.tokenizer import load_tokenizer
from evaluation import report, rewards, statistics
from evaluation.rewards import GradedSet, PairSet, RewardEvaluation, RewardModelRuns
from models.transformer import TransformerConfig
from train import loop, reward_model
from train.alignment import RewardConfig
from train.errors import ConfigError
from train.optimizers import OptimizerConfig, OptimizersConfig


@dataclasses.dataclass
class Judge:
    """Grades an answer by its number of "good", whatever the attribute."""

    length: int = 30
    tokenizer: object = load_tokenizer("bytes")
    template: str = "plain"
    attributes: tuple = FIVE

    def score_answers(self, prompts, answers):
        assert len(prompts) == len(answers)
        return np.array([[answer.count("good") + 0.5 * n for n in range(5)] for answer in answers])


PAIRS = [
    {"prompt": "a?", "chosen": "good", "rejected": "bad, bad, bad"},
    {"prompt": "b?", "chosen": "good good!", "rejected": "good"},
    {"prompt": "c?", "chosen": "very long text, this one", "rejected": "good"},
    {"prompt": "d?", "chosen": "same.", "rejected": "tied"},
    {"prompt": "e?", "chosen": "equal", "rejected": "equal"},
]
GRADED = [
    {"prompt": "a?", "response": f"It is {'good ' * n}.", "helpfulness": n, "verbosity": 4 - n}
    for n in range(5)
]


@pytest.fixture
def sets(tmp_path):
    for name, rows in (("pairs", PAIRS), ("graded", GRADED)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = PairSet(name="pairs", source=PreferenceSource(path=str(tmp_path / "pairs.jsonl")))
    graded = GradedSet(name="graded", source=AttributeSource(path=str(tmp_path / "graded.jsonl")))
    return pairs, graded


def evaluation(sets, *checkpoints):
    pairs, graded = sets
    model = RewardModelRuns(name="judge", checkpoints=checkpoints)
    return RewardEvaluation(task="toy", models=(model,), pairs=(pairs,), graded=(graded,))


def test_a_report_by_hand(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(reward_model, "load", lambda path: Judge())
    path = rewards.run(evaluation(sets, "a", "b"), tmp_path / "run", resume=False, stop=None)
    found = report.read(path)
    rows = {(row.split, row.method, row.metric): row for row in found.rows}
    by_length = rows["pairs", rewards.LENGTH_RULE, "accuracy"]
    judged = rows["pairs", "judge", "accuracy"]
    assert (by_length.score, by_length.n) == (0.75, 4)  # equal answers are no pair
    assert judged.score == 0.5  # two right, one wrong, and a tie is wrong
    assert judged.settings["scores"] == [0.5, 0.5]
    (test,) = found.comparisons
    assert (test.only_first, test.only_second, test.p_values) == ((1, 1), (2, 2), (1.0, 1.0))
    assert rows["graded, helpfulness", "judge", rewards.PEARSON].score == pytest.approx(1.0)
    assert rows["graded, helpfulness", "judge", rewards.ERROR].score == 0.0
    verbosity = rows["graded, verbosity", "judge", rewards.PEARSON]
    assert verbosity.score == pytest.approx(-1.0)
    assert rows["graded, verbosity", "judge", rewards.ERROR].score == np.mean([2, 0, 2, 4, 6])
    assert rows["graded, verbosity", rewards.MEAN_RULE, rewards.ERROR].score == 1.2
    assert (path.parent / "scores.png").stat().st_size > 1000


def test_intervals_of_correlations():
    """Fisher's interval at r = 0.5, n = 28: tanh(0.5493 -+ 0.3920)."""
    low, high = statistics.fisher_interval(0.5, 28)
    assert (low, high) == (
        pytest.approx(math.tanh(0.549306 - 0.391993), abs=1e-5),
        pytest.approx(math.tanh(0.549306 + 0.391993), abs=1e-5),
    )
    assert statistics.pearson(np.ones(4), np.arange(4.0)) == 0.0


def test_a_trained_model_is_judged_as_a_stage(sets, tmp_path):
    source = dataclasses.replace(sets[1].source)
    experiment = Experiment(
        model=TransformerConfig(
            vocab_size=258, width=16, num_layers=1, num_heads=2, head_dim=8, value_head_width=8,
            num_attributes=5,
        ),
        tokenizer="bytes",
        recipe="reward",
        reward=RewardConfig(sources=(source,), template="plain"),
        optimizers=OptimizersConfig(policy=OptimizerConfig(peak_learning_rate=1e-2)),
        sequence_length_tokens=32,
        batch_size=5,
        train_steps=2,
    )  # fmt: skip
    loop.run(experiment, tmp_path / "model")
    config = evaluation(sets, str(tmp_path / "model"))
    path = commands.COMMANDS["rewards"](config, tmp_path / "run", resume=False, stop=None)
    rows = report.read(path).rows
    judged = next(row for row in rows if (row.method, row.metric) == ("judge", "accuracy"))
    assert judged.forward_passes_per_problem > 10
    assert set(judged.settings["rewards_by_seed"][0]) == {"correlation_with_length", "share_cut"}


def test_names_and_sets_are_checked(sets):
    with pytest.raises(ConfigError, match="models of different names and held-out answers"):
        RewardEvaluation(task="toy", models=(), pairs=sets[:1])
    twice = (RewardModelRuns(name=rewards.LENGTH_RULE, checkpoints=("a",)),)
    with pytest.raises(ConfigError, match="Name them apart"):
        RewardEvaluation(task="toy", models=twice, pairs=sets[:1])


@pytest.mark.parametrize("name", ["sft", "dpo", "rpo", "steerlm", "reward_real"])
def test_configs_are_found(name):
    load.find(name)
