import dataclasses
import json

import numpy as np
import pytest
from array_record.python import array_record_module

from data import records, search_record
from data.errors import DataError
from tests.data import synthetic_records

RECORD = synthetic_records.random_record(0)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard-00000.arrayrecord"
    records.write_shard(path, [synthetic_records.random_record(seed) for seed in range(4)])
    return path


def changed(record=RECORD, position=None, leaf=None, tree=None, **fields):
    """The record with some fields of itself or of its first parts replaced."""
    for name, change in (("positions", position), ("leaves", leaf), ("trees", tree)):
        if change:
            first, *others = getattr(record, name)
            fields[name] = (dataclasses.replace(first, **change), *others)
    return dataclasses.replace(record, **fields)


def test_records_come_back_and_bytes_repeat(tmp_path):
    games = [synthetic_records.random_record(seed) for seed in range(8)]
    games.append(synthetic_records.solved_record())
    games.append(changed(outcome=None, leaf={"outcome": None}, trees=(), prompt="é\u2028\n"))
    paths = [tmp_path / name / "a.arrayrecord" for name in ("one", "other")]
    for path in paths:
        records.write_shard(path, games)
        assert records.read_shard(path) == games
        assert list(records.read_folder(path.parent)) == games
    for one, other in zip(*(sorted(path.parent.iterdir()) for path in paths), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_payload_is_plain_json(shard):
    reader = array_record_module.ArrayRecordReader(str(shard))
    fields = [json.loads(payload) for payload in reader.read_all()]
    assert [game["seed"] for game in fields] == [0, 1, 2, 3]
    assert set(fields[0]) == {field.name for field in dataclasses.fields(records.SearchRecord)}
    assert fields[0]["positions"][0]["weights"] == list(RECORD.positions[0].weights)


def test_arrays_and_numpy_numbers_become_plain():
    position = RECORD.positions[0]
    numpy_position = {
        "offset": np.int64(position.offset),
        "weights": np.array(position.weights, np.float64),
        "visits": np.array(position.visits),
        "root_value": np.float32(0.5),
    }
    record = changed(
        position=numpy_position,
        prompt_tokens=np.array(RECORD.prompt_tokens),
        outcome=np.float64(RECORD.outcome),
        seed=np.int32(RECORD.seed),
    )
    assert synthetic_records.rounded(record) == changed(position={"root_value": 0.5})


def test_floats_have_six_digits():
    record = synthetic_records.rounded(changed(position={"root_value": 0.12345678}))
    assert record.positions[0].root_value == 0.123457
    assert records.to_json(record) == records.to_json(synthetic_records.rounded(record))


INCONSISTENT = {
    "too few weights": changed(position={"weights": (1.0,)}),
    "too many visits": changed(position={"visits": (1,) * 9}),
    "too few priors": changed(position={"prior": ()}),
    "offset after the end": changed(position={"offset": 99}),
    "offset before the start": changed(position={"offset": -1}),
    "infinite weight": changed(
        position={"weights": (float("inf"),) * len(RECORD.positions[0].weights)}
    ),
    "no number as value": changed(position={"root_value": float("nan")}),
    "text as value": changed(position={"root_value": "0.5"}),
    "outcome": changed(outcome=0.5),
    "leaf outcome": changed(leaf={"outcome": 2}),
    "negative token": changed(prompt_tokens=(1, -1)),
    "fractional token": changed(completion_tokens=(0.5,) * len(RECORD.completion_tokens)),
    "token is true": changed(prompt_tokens=(True,)),
    "tokens missing": changed(prompt_tokens=None),
    "text missing": changed(prompt=None),
    "settings": changed(settings=[]),
    "short tree column": changed(tree={"visits": (1,)}),
    "root with parent": changed(tree={"parent": (0, *RECORD.trees[0].parent[1:])}),
    "parent after child": changed(tree={"parent": (-1, 5, *RECORD.trees[0].parent[2:])}),
    "second root": changed(tree={"parent": (-1, -1, *RECORD.trees[0].parent[2:])}),
    "tree missing": changed(trees=RECORD.trees[:1]),
    "older schema": changed(schema_version=0),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_inconsistent_records_are_not_written(name, tmp_path):
    with pytest.raises(DataError):
        records.write_shard(tmp_path / "a.arrayrecord", [RECORD, INCONSISTENT[name]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"schema_version": 1}',
        records.to_json(RECORD)[:-9],
        records.to_json(RECORD).replace(b'"seed"', b'"sead"'),
        records.to_json(RECORD).replace(b'"visits"', b'"hits"'),
        records.to_json(RECORD).replace(b'"settings"', b'"extra":1,"settings"'),
    ],
)
def test_foreign_payloads_are_refused(payload):
    with pytest.raises(DataError):
        records.from_json(payload)


def refused(path, *words):
    """Reading refuses: one line that names the file and holds these words."""
    for read in (records.read_shard, lambda path: list(records.read_folder(path.parent))):
        with pytest.raises(DataError) as error:
            read(path)
        message = str(error.value)
        assert path.name in message and "\n" not in message
        for word in words:
            assert word in message


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_shards_are_refused(shard, share):
    contents = shard.read_bytes()
    shard.write_bytes(contents[: int(len(contents) * share)])
    refused(shard, "sha256", "--resume")


def test_any_flipped_bit_is_refused(shard):
    contents = shard.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(contents), 20):
        torn = bytearray(contents)
        torn[place] ^= 1 << rng.integers(8)
        shard.write_bytes(torn)
        refused(shard, "sha256", "--resume")


def test_missing_files_are_refused(shard):
    sidecar = records.sidecar_path(shard)
    contents = sidecar.read_text()
    sidecar.unlink()
    refused(shard, "sidecar", "--resume")
    for broken in ("", "{", "[]", "null", '{"count": 4}'):
        sidecar.write_text(broken)
        refused(shard, "sidecar", "--resume")
    sidecar.write_text(contents)
    shard.unlink()
    refused(shard, "--resume")


def rewrite_sidecar(shard, **changes):
    sidecar = records.sidecar_path(shard)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | changes))


def test_other_schemas_are_refused(shard):
    rewrite_sidecar(shard, schema_version=records.SCHEMA_VERSION + 1)
    refused(shard, "schema version 1; got 2", "Update this code")
    rewrite_sidecar(shard, schema_version=0)
    refused(shard, "got 0", "Run the search again")


def test_another_count_is_refused(shard):
    rewrite_sidecar(shard, count=5)
    refused(shard, "must hold 5 records; got 4")


def test_a_newer_record_in_an_old_shard_is_refused(shard, monkeypatch):
    monkeypatch.setattr(search_record, "SCHEMA_VERSION", 2)
    records.write_shard(shard, [changed(schema_version=2)])
    monkeypatch.undo()
    rewrite_sidecar(shard, schema_version=1)
    refused(shard, "schema version 1; got 2")


def test_other_files_are_no_shards(tmp_path, shard):
    (tmp_path / ".later.arrayrecord.partial").write_bytes(b"a write that was cut off")
    (tmp_path / "notes.txt").write_text("")
    assert len(list(records.read_folder(tmp_path))) == 4
    with pytest.raises(DataError, match="Rename"):
        records.write_shard(tmp_path / "a.json", [])
    for empty in (tmp_path / "absent", tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="Run the search first"):
            list(records.read_folder(empty))


def test_a_failed_write_leaves_the_old_shard(shard, monkeypatch):
    before = records.read_shard(shard)

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(records.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        records.write_shard(shard, [RECORD])
    assert records.read_shard(shard) == before


def test_empty_shards_are_whole(tmp_path):
    records.write_shard(tmp_path / "a.arrayrecord", [])
    assert records.read_shard(tmp_path / "a.arrayrecord") == []


def test_summary_counts():
    solved = synthetic_records.solved_record()
    lost = changed(solved, outcome=0.0, leaves=())
    games = [solved, lost, changed(solved, problem_id="other", outcome=None, leaves=())]
    assert records.summary(games) == {
        "games": 3,
        "checked": 2,
        "solved": 1,
        "solved_share": 0.5,
        "problems": 2,
        "solved_problems": 1,
        "positions": 9,
        "leaves": 2,
        "solved_leaves": 1,
        "tree_nodes": 0,
        "completion_tokens": 3 * len(solved.completion_tokens),
    }
    assert records.summary([])["solved_share"] == 0
