import pytest

from data import json_rows
from synthesis import slices
from train.errors import DataError, Preempted
from train.stopping import StopFlag


def double(part, number):
    return [{"value": 2 * item, "slice": number} for item in part]


def values(path):
    return [row.fields["value"] for row in json_rows.read(str(path))]


def test_an_interrupted_run_does_only_what_is_missing(tmp_path):
    path, done = tmp_path / "rows.jsonl", []
    stop = StopFlag()

    def until_the_second(part, number):
        done.append(number)
        if number == 1:
            stop.request("test")
        return double(part, number)

    arguments = {"slice_size": 2, "stop": stop}
    with pytest.raises(Preempted, match="slice 2 of 3"):
        slices.run(range(5), until_the_second, path, resume=False, **arguments)
    assert not path.exists() and done == [0, 1]

    def no_more_than_the_third(part, number):
        assert number == 2
        return double(part, number)

    arguments["stop"] = None
    rows = slices.run(range(5), no_more_than_the_third, path, resume=True, **arguments)
    assert values(path) == [row["value"] for row in rows] == [0, 2, 4, 6, 8]


def test_slices_of_other_items_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    slices.run([1, 2], double, path, slice_size=2, resume=False, stop=None)
    with pytest.raises(DataError, match="--overwrite"):
        slices.run([1, 3], double, path, slice_size=2, resume=True, stop=None)
    slices.run([1, 3], double, path, slice_size=2, resume=False, stop=None)
    assert values(path) == [2, 6]
