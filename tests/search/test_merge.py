"""Every game once, whatever the shards; killed at any moment."""

import dataclasses
import itertools
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from data import records
from data.errors import DataError
from search import merge
from tests.data import synthetic_records
from train.errors import ConfigError

GAMES = [
    dataclasses.replace(synthetic_records.random_record(seed, nodes_per_tree=4), seed=seed % 3)
    for seed in range(12)
]
GAMES += [dataclasses.replace(game, game=1, outcome=None) for game in GAMES[:3]]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(merge, "GAMES_PER_SHARD", 4)


def write(folder, *shards):
    for i, games in enumerate(shards):
        records.write_shard(folder / f"s{i}.arrayrecord", games)
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_game_is_once_and_the_order_of_the_inputs_does_not_matter(tmp_path):
    inputs = [
        write(tmp_path / "a", GAMES[:7], GAMES[5:9]),
        write(tmp_path / "b", GAMES[8:], GAMES[:1]),
        write(tmp_path / "c", GAMES[3:4] * 3, []),
    ]
    want = None
    for i, order in enumerate(itertools.permutations(inputs)):
        into = tmp_path / str(i)
        assert merge.merge(order, into) == len(GAMES)
        want = want or files(into)
        assert files(into) == want
    merged = list(records.read_folder(into))
    assert len(merged) == len(GAMES) and all(game in merged for game in GAMES)
    assert len(want) == 1 + 2 * 4  # 15 games, 4 to a shard
    assert sorted(map(merge.identity_of, merged)) == list(map(merge.identity_of, merged))
    assert merge.merge([into, *inputs], tmp_path / "again") == len(GAMES)
    assert files(tmp_path / "again") == want
    assert not list(tmp_path.glob(".*"))


def test_records_that_do_not_say_which_game_they_are_differ_by_their_content(tmp_path):
    game = dataclasses.replace(GAMES[0], game=None)
    other = dataclasses.replace(game, outcome=None)
    folders = [write(tmp_path / "a", [game, other]), write(tmp_path / "b", [other])]
    assert merge.merge(folders, tmp_path / "out") == 2


def test_two_records_of_one_game_are_an_error_that_names_both(tmp_path):
    changed = dataclasses.replace(GAMES[4], completion_tokens=GAMES[4].completion_tokens[:-1])
    folders = [write(tmp_path / "a", GAMES[:6]), write(tmp_path / "b", [GAMES[7], changed])]
    with pytest.raises(DataError) as error:
        merge.merge(folders, tmp_path / "out")
    message = str(error.value)
    assert GAMES[4].problem_id in message
    assert f"{tmp_path}/a/s0.arrayrecord (record 4)" in message
    assert f"{tmp_path}/b/s0.arrayrecord (record 1)" in message
    assert not (tmp_path / "out").exists()
    other_settings = dataclasses.replace(changed, settings={"num_simulations": 5})
    folders[1] = write(tmp_path / "c", [other_settings])
    assert merge.merge(folders, tmp_path / "out") == 7


def test_a_torn_shard_is_refused(tmp_path):
    folder = write(tmp_path / "a", GAMES)
    shard = folder / "s0.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DataError, match="sha256"):
        merge.merge([folder], tmp_path / "out")
    records.sidecar_path(shard).unlink()
    with pytest.raises(DataError, match="sidecar"):
        merge.merge([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked_and_a_merge_is_not_made_twice(tmp_path, monkeypatch):
    a, b = write(tmp_path / "a", GAMES[:5]), write(tmp_path / "b", GAMES[5:])
    into = tmp_path / "out"
    merge.merge([a], into)
    before = files(into)
    with pytest.raises(ConfigError, match="--overwrite"):
        merge.merge([a, b], into)
    assert files(into) == before
    assert merge.merge([a, b, into], into, overwrite=True) == len(GAMES)
    both = files(into)
    with monkeypatch.context() as patched:
        patched.setattr(records, "write_shard", None)
        assert merge.merge([b, a], into) == len(GAMES)
    next(into.glob("*.arrayrecord")).unlink()  # no longer this merge
    with pytest.raises(ConfigError):
        merge.merge([b, a], into)
    assert merge.merge([b, a], into, overwrite=True) == len(GAMES)
    assert files(into) == both
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_a_killed_merge_goes_on_where_it_was(tmp_path, monkeypatch):
    folders = [write(tmp_path / "a", GAMES[:9]), write(tmp_path / "b", GAMES[4:])]
    merge.merge(folders, tmp_path / "whole")
    into = tmp_path / "out"
    write_shard, commit = records.write_shard, records.commit
    for num_written in range(8):  # four shards of two files
        left = iter(range(num_written))

        def crash(partial, path, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            commit(partial, path)

        monkeypatch.setattr(records, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            merge.merge(folders, into)
        assert not into.exists()
        monkeypatch.undo()
        monkeypatch.setattr(merge, "GAMES_PER_SHARD", 4)
        written: list = []
        monkeypatch.setattr(
            records,
            "write_shard",
            lambda *shard, written=written: (written.append(shard), write_shard(*shard)),
        )
        merge.merge(folders, into)
        assert len(written) == 4 - num_written // 2
        assert files(into) == files(tmp_path / "whole")
        shutil.rmtree(into)


def test_a_kill_while_the_old_folder_is_replaced_loses_nothing(tmp_path, monkeypatch):
    a, b = write(tmp_path / "a", GAMES[:5]), write(tmp_path / "b", GAMES[5:])
    merge.merge([a, b], tmp_path / "whole")
    replace = type(tmp_path).replace

    def crash(path, target):
        if path.name == ".a.merging":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        merge.merge([a, b], a, overwrite=True)
    assert not a.exists()
    monkeypatch.setattr(type(tmp_path), "replace", replace)
    assert merge.merge([a, b], a, overwrite=True) == len(GAMES)
    assert files(a) == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "whole"]


def test_leftovers_of_another_merge_are_not_taken_over(tmp_path):
    a, b = write(tmp_path / "a", GAMES[:5]), write(tmp_path / "b", GAMES[5:])
    merge.merge([b], tmp_path / "whole")
    merge.merge([a], tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.merging")
    merge.merge([b], tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_the_command(tmp_path, repository_root):
    folders = [str(write(tmp_path / name, GAMES)) for name in "ab"]
    command = [sys.executable, "-m", "search.merge", *folders, "--into", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=repository_root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"15 games: {tmp_path}/out\n")
    assert len(list(records.read_folder(tmp_path / "out"))) == 15


@pytest.mark.soak
def test_a_merge_killed_at_any_moment_ends_with_the_same_bytes(tmp_path, repository_root):
    games = [dataclasses.replace(game, seed=n) for n in range(150) for game in GAMES]
    folders = [write(tmp_path / "a", games[:1500]), write(tmp_path / "b", games[1000:])]
    command = [sys.executable, "-m", "search.merge", *map(str, folders), "--into"]
    started = time.monotonic()
    subprocess.run([*command, tmp_path / "whole"], cwd=repository_root, check=True)
    seconds = time.monotonic() - started
    rng = np.random.default_rng(0)
    for number in range(30):
        into = tmp_path / f"out{number % 10}"
        existed = into.exists()
        process = subprocess.Popen([*command, into, "--overwrite"], cwd=repository_root)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        process.kill()
        process.wait()
        assert not existed or files(into) == files(tmp_path / "whole")
        if number % 3 == 2:
            subprocess.run([*command, into, "--overwrite"], cwd=repository_root, check=True)
            assert files(into) == files(tmp_path / "whole")
