"""Searches that are stopped and killed in the middle: the record files do not show it."""

import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from data import records, tokenizer
from models import language_model, transformer
from search import __main__ as command
from search import game, gumbel, self_play, snapshots, token_model
from tests.search.stopping import StopAfter
from train import checkpoints
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

TEXT = tokenizer.load_tokenizer("game24")
CONFIG = transformer.TransformerConfig(
    vocab_size=TEXT.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8, dtype="bfloat16"
)
ACTION = token_model.ActionConfig(
    num_candidates=4, opening_tokens=1, max_step_tokens=3, max_completion_tokens=9
)
SEARCH = gumbel.SearchConfig(action=ACTION, num_simulations=24, max_considered_actions=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    metadata = checkpoints.Metadata(
        model=CONFIG, tokenizer="game24", tokenizer_fingerprint=TEXT.fingerprint, data_hash=""
    )
    params = language_model.LanguageModel(CONFIG).init(jax.random.key(0))
    checkpoints.save_params(path / "params", params, metadata, dtype="float32")
    return str(path / "params")


def bytes_of(run_folder):
    return {path.name: path.read_bytes() for path in sorted((run_folder / "records").iterdir())}


@pytest.mark.parametrize("reuse_tree", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_search_that_is_stopped_in_the_middle_goes_on_there(tmp_path, checkpoint, reuse_tree):
    search = dataclasses.replace(SEARCH, reuse_tree=reuse_tree)
    config = self_play.SelfPlayConfig(
        checkpoint=checkpoint, search=search, limit=3, batch_size=2, slice_calls=2
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    self_play.run(config, whole, resume=False, stop=StopFlag())
    stops, in_the_middle = 0, 0
    while True:
        try:
            # Another slice length changes nothing.
            now = dataclasses.replace(config, slice_calls=2 + stops % 3)
            self_play.run(now, cut, resume=stops > 0, stop=StopAfter(4 + stops % 2))
            break
        except Preempted:
            stops += 1
            in_the_middle += len(list((cut / "unfinished").glob("*.npz")))
    assert stops >= 2 and in_the_middle >= 2
    assert bytes_of(whole) == bytes_of(cut)
    assert not (cut / "unfinished").exists()


def test_a_snapshot_of_other_games_is_refused(tmp_path, checkpoint):
    config = self_play.SelfPlayConfig(
        checkpoint=checkpoint, search=SEARCH, limit=1, batch_size=1, slice_calls=2
    )
    with pytest.raises(Preempted):
        self_play.run(config, tmp_path, resume=False, stop=StopAfter(3))
    (path,) = (tmp_path / "unfinished").iterdir()
    other = dataclasses.replace(config, search=dataclasses.replace(SEARCH, value_scale=0.5))
    with pytest.raises(DataError, match="of the same games"):
        self_play.run(other, tmp_path, resume=True, stop=StopFlag())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="no snapshot of games"):
        self_play.run(config, tmp_path, resume=True, stop=StopFlag())


def test_a_snapshot_is_read_as_it_was_written(tmp_path):
    position = records.Position(
        offset=0, candidates=((1, 2), (3,)), weights=(0.5, 0.25, 0.25), visits=(2, 1),
        root_value=0.5, prior=(0.5, 0.25),
    )  # fmt: skip
    tree = records.Tree(
        parent=(-1, 0), edge_tokens=((), (1, 2)), prior=(1.0, 0.5), visits=(2, 1),
        value=(0.5, 0.5), outcome=(None, 1.0), q=(0.5, 1.0),
    )  # fmt: skip
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.asarray(jax.numpy.full((2, 2), 1.5, jax.numpy.bfloat16)),
        np.array(True),
        np.zeros((0, 3), np.float32),
    ]
    snapshot = game.Snapshot(1, arrays, np.array([3, 4]), [[(position, tree)], []])
    snapshots.write(tmp_path / "a" / "b.npz", snapshot, "these")
    found = snapshots.read(tmp_path / "a" / "b.npz", "these")
    assert found.searched == snapshot.searched and found.move == 1
    np.testing.assert_array_equal(found.evaluations, snapshot.evaluations)
    for got, want in zip(found.arrays, arrays, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_array_equal(got, want)
    assert snapshots.read(tmp_path / "none.npz", "these") is None


def test_the_wall_clock_stops_a_search(tmp_path, checkpoint, monkeypatch):
    config = self_play.SelfPlayConfig(
        checkpoint=checkpoint,
        search=SEARCH,
        limit=1,
        batch_size=1,
        wall_clock_hours=0.5,
        slice_calls=1,
    )
    clock = itertools.count(0.0, 100.0)
    monkeypatch.setattr(self_play.time, "monotonic", lambda: next(clock))
    with pytest.raises(Preempted, match=r"wall clock of 0\.5 h"):
        self_play.run(config, tmp_path, resume=False, stop=StopFlag())
    with pytest.raises(ConfigError, match="more than 0 hours"):
        dataclasses.replace(config, wall_clock_hours=-1.0)


def test_slurm_jobs_have_four_hours(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    config = self_play.SelfPlayConfig(
        checkpoint=checkpoint, search=SEARCH, limit=1, batch_size=1, slice_calls=1
    )
    clock = itertools.count(0.0, 1000.0)
    monkeypatch.setattr(self_play.time, "monotonic", lambda: next(clock))
    with pytest.raises(Preempted, match="wall clock of 4 h"):
        self_play.run(config, tmp_path, resume=False, stop=StopFlag())


def killed_again_and_again(tmp_path, checkpoint, kills, seed, limit):
    """Processes of `python -m search`, each killed at a random time after its start of work; the
    files after a last run in this process against those of one that nobody disturbs."""
    arguments = [
        "game24_search", "--checkpoint", checkpoint,
        "--limit", str(limit), "--batch-size", "2", "--slice-calls", "1", "--save-minutes", "0",
        "--search.no-use-oracle", "--search.num-simulations", "24",
        "--search.action.num-candidates", "4", "--search.action.opening-tokens", "1",
        "--search.action.max-step-tokens", "3", "--search.action.max-completion-tokens", "9",
    ]  # fmt: skip
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    command.main([*arguments, "--run-folder", str(whole)])
    rng = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "search", *arguments, "--run-folder", str(folder), "--resume"],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        began, seen = time.time(), None
        while process.poll() is None and seen is None:
            fresh = [p for p in folder.glob("unfinished/*") if p.stat().st_mtime > began]
            seen = fresh[0] if fresh else None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM)))
        process.wait(60)
        assert seen is not None  # it was at work
    command.main([*arguments, "--run-folder", str(folder), "--resume"])
    assert bytes_of(whole) == bytes_of(folder)


def test_three_kills_leave_no_trace(tmp_path, checkpoint):
    killed_again_and_again(tmp_path, checkpoint, kills=3, seed=0, limit=4)


@pytest.mark.soak
def test_a_hundred_kills_leave_no_trace(tmp_path, checkpoint):
    for seed in range(10):
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed_again_and_again(folder, checkpoint, kills=10, seed=seed, limit=12)
