"""The driver's books: every batch is given out until it is there, and is there once."""

import dataclasses

import pytest

from data import records
from data.errors import DataError
from search import ledger
from tests.data import synthetic_records

NAMES = [f"shard-{number}-of-3{records.SUFFIX}" for number in range(3)]
GAMES = [[synthetic_records.random_record(n, nodes_per_tree=4)] for n in range(3)]
LEASE = 10.0


class Desk:
    """A ledger, a clock, and workers that one can have say anything."""

    def __init__(self, folder):
        self.now, self.folder = 0.0, folder
        (folder / "records").mkdir(exist_ok=True)
        self.books = ledger.Ledger(folder, NAMES, lease_seconds=LEASE, clock=lambda: self.now)
        self.beat = 0

    def says(self, name, batch=None, **fields):
        self.beat += 1
        status = ledger.Status(name=name, batch=batch, beat=self.beat, **fields)
        ledger.write_status(self.folder, status)

    def plays(self, name, batch):
        records.write_shard(self.folder / ledger.FOLDER / name / NAMES[batch], GAMES[batch])

    def look(self, num_waiting=0, after=0.0):
        """What is sent again after so many seconds."""
        self.now += after
        self.books.look()
        numbers = self.books.to_send(num_waiting)
        self.books.sent(numbers)
        return numbers


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def test_everything_is_sent_once_and_taken_over_once(desk):
    assert desk.look() == [0, 1, 2]
    for batch in (2, 0, 1):
        desk.says("a", batch)
        assert desk.look(after=1) == []
        desk.plays("a", batch)
        desk.says("a")
        assert desk.look(after=1) == []
        assert batch not in desk.books.left
    assert (desk.books.games, desk.books.left) == (3, [])
    assert list(records.read_folder(desk.folder / "records")) == [
        game for games in GAMES for game in games
    ]
    assert not list((desk.folder / ledger.FOLDER / "a").iterdir())
    assert Desk(desk.folder).look() == []  # another driver finds all of it


def test_a_silent_worker_loses_its_batch_and_may_still_bring_it(desk):
    desk.look()
    desk.says("a", 0)
    desk.says("b", 1)
    desk.look(num_waiting=1)
    for _ in range(3):  # b lives
        desk.says("b", 1)
        assert desk.look(1, after=4) == ([] if desk.now <= LEASE else [0])
    assert [status.name for status in desk.books.workers] == ["b"]
    desk.says("b", 1)
    assert desk.look(1, after=LEASE) == []  # sent again only once
    desk.says("c", 0)
    desk.plays("c", 0)
    desk.plays("a", 0)  # it was only slow
    desk.says("a", None)
    assert desk.look(after=1) == []
    assert desk.books.games == 1
    assert {status.name for status in desk.books.workers} == {"a", "b", "c"}


def test_a_batch_that_nobody_has_and_that_the_queue_has_lost_is_sent_again(desk):
    desk.look()
    assert desk.look(num_waiting=3, after=5 * LEASE) == []  # nobody has come for it yet
    assert desk.look(num_waiting=None, after=5 * LEASE) == []  # the broker does not answer
    assert desk.look(num_waiting=0, after=LEASE) == []
    assert desk.look(num_waiting=0, after=1) == [0, 1, 2]
    assert desk.look(num_waiting=0, after=1) == []


def test_a_worker_that_was_stopped_gives_its_batch_back_at_once(desk):
    desk.look()
    for i in range(2 * ledger.MOST_LOSSES):
        desk.says(f"w{i}", 1)
        assert desk.look(1, after=1) == []
        desk.says(f"w{i}", 1, has_ended=True)
        assert desk.look(1) == [1]
    assert desk.books.workers == []


def test_a_batch_that_ends_one_worker_after_the_other_ends_the_search(desk):
    desk.look()
    for i in range(ledger.MOST_LOSSES):
        desk.says(f"w{i}", 1, error="MemoryError: no room")
        assert desk.look(1) == [1]
    desk.says("last", 1, error="MemoryError: no room")
    with pytest.raises(DataError, match="batch 1 has lost 5 of them, the last one last: Memory"):
        desk.look(1)


def test_a_torn_shard_is_as_good_as_not_played(desk):
    desk.look()
    desk.says("a", 0)
    desk.look(1)
    desk.plays("a", 0)
    shard = desk.folder / ledger.FOLDER / "a" / NAMES[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    desk.says("a", 1)
    assert desk.look(1) == [0]
    assert desk.books.games == 0 and not shard.exists()


def test_speeds_are_of_finished_games():
    status = ledger.Status(name="a")
    assert status.nodes_per_second == status.games_per_second == 0.0
    status = dataclasses.replace(status, nodes=60, games=3, busy_seconds=1.5)
    assert (status.nodes_per_second, status.games_per_second) == (40.0, 2.0)
