"""Checkpoints of a training are evaluated as they appear; the best one is kept."""

import functools
import json

import jax
import pytest

from data import tokenizer
from evaluation import report, run, watch
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from train import checkpoints
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

TEXT = tokenizer.load_tokenizer("game24")
CONFIG = TransformerConfig(
    vocab_size=TEXT.vocab_size, width=8, num_layers=1, num_heads=1, head_dim=8
)
SCORES = {10: 0.5, 20: 0.75, 30: 0.75, 40: 0.25}


@functools.cache
def params_of(step):
    return jax.jit(LanguageModel(CONFIG).init)(jax.random.key(step))


def save(training, step):
    metadata = checkpoints.Metadata(
        model=CONFIG, tokenizer="game24", tokenizer_fingerprint=TEXT.fingerprint, data_hash=""
    )
    path = training / "checkpoints" / str(step)
    checkpoints.save_params(path, params_of(step), metadata, dtype="float32")
    (path / "train_state").mkdir()
    return path


@pytest.fixture
def evaluated(monkeypatch):
    """Steps that were evaluated; each gets its score."""
    steps = []

    def pretend(config, place, *, resume, stop):
        step = int(config.checkpoint.rpartition("/")[2])
        steps.append(step)
        row = report.Row(
            task="game24", split="test", stage="", method="greedy", metric="accuracy",
            score=SCORES[step], low=0.0, high=1.0, n=4, simulations=None, use_oracle=False,
            use_value=False, forward_passes_per_problem=1.0, seconds_per_problem=None, settings={},
        )  # fmt: skip
        return report.write(place / "report", report.make([row], place))

    monkeypatch.setattr(run, "run", pretend)
    return steps


def test_the_best_of_all_checkpoints_is_kept_and_none_is_evaluated_twice(tmp_path, evaluated):
    training, folder = tmp_path / "training", tmp_path / "watch"
    folder.mkdir()
    for step in (10, 20):
        save(training, step)
    options = watch.Options(table="greedy", every_seconds=0.01, last_step=20)
    best = watch.watch(training, options, folder, stop=StopFlag())
    assert evaluated == [10, 20] and not (best / "train_state").exists()
    save(training, 30)
    save(training, 40)
    options = watch.Options(table="greedy", every_seconds=0.01, last_step=40)
    watch.watch(training, options, folder, stop=StopFlag())
    assert evaluated == [10, 20, 30, 40]
    kept = checkpoints.params_fingerprint(checkpoints.load_params(best)[2])
    assert kept == checkpoints.params_fingerprint(params_of(20))  # of equal ones the first
    lines = (folder / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"] for line in lines] == list(SCORES.values())
    lower = watch.Options(table="greedy", lower_is_better=True)
    assert watch._best([json.loads(line) for line in lines], lower)["step"] == 40


def test_a_watch_ends_when_asked_to_and_says_what_is_missing(tmp_path, evaluated):
    folder = tmp_path / "watch"
    folder.mkdir()
    with pytest.raises(Preempted, match="0 checkpoints"):
        watch.watch(tmp_path, watch.Options(), folder, stop=StopFlag(deadline_seconds=0.1))
    save(tmp_path, 10)
    options = watch.Options(table="greedy", metric="loss")
    with pytest.raises(ConfigError, match="got 'loss', there are accuracy"):
        watch.watch(tmp_path, options, folder, stop=StopFlag())
    with pytest.raises(DataError, match="does not exist"):
        watch.main([str(tmp_path / "nowhere"), "--run-folder", str(tmp_path / "out")])
