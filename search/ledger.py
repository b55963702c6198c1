"""Which batches of a distributed search are played, by whom, and which must be given out again.

Workers and driver meet in the run folder, and no clocks are compared:

    RUN/workers/NAME.json     what worker NAME does: its `Status`, with a count that grows
    RUN/workers/NAME/         shards it has played, until the driver has taken them over
    RUN/records/              every batch once

A worker whose count has not grown for a lease, on the driver's clock, is lost, and so is what it
played: the batch is sent again. A worker that was only slow may then finish it too; the batch is
the same, byte for byte, and the second one is thrown away.
"""

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data import records
from data.errors import DataError
from train import run_folder

FOLDER = "workers"
MOST_LOSSES = 4  # of one batch; a fifth worker would not live to see its end either


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """What a worker says of itself."""

    name: str
    beat: int = 0
    """Grows as long as the process lives."""
    batch: int | None = None
    """What it is playing."""
    games: int = 0
    """Played to the end, as are `nodes`, in so many `busy_seconds`."""
    nodes: int = 0
    busy_seconds: float = 0.0
    error: str | None = None
    """Why it could not play `batch`, and ended."""
    has_ended: bool = False
    """It was stopped, and saved what it was playing."""

    @property
    def nodes_per_second(self) -> float:
        return self.nodes / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def games_per_second(self) -> float:
        return self.games / self.busy_seconds if self.busy_seconds else 0.0


def write_status(folder: Path, status: Status) -> None:
    """Of a worker, for the driver. folder: of the run."""
    at = folder / FOLDER
    at.mkdir(exist_ok=True)
    run_folder.write_json(at / f"{status.name}.json", dataclasses.asdict(status))


def is_played(folder: Path, shard_name: str) -> bool:
    """Whether some worker has finished this batch of the run in `folder`."""
    sidecar = records.sidecar_path(shard_name).name
    places = [folder / "records" / sidecar, *folder.glob(f"{FOLDER}/*/{sidecar}")]
    return any(place.exists() for place in places)


class Ledger:
    """The books of the driver."""

    def __init__(
        self,
        folder: Path,
        shard_names: Sequence[str],
        *,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        """folder: of the run. shard_names: the file of every batch."""
        self.folder = folder
        self._numbers = {name: number for number, name in enumerate(shard_names)}
        self._lease, self._clock = lease_seconds, clock
        self.games = self.solved = self.checked = 0
        self._done: set[int] = set()
        self._losses: Counter[int] = Counter()
        self._heard: dict[str, tuple[Status, float]] = {}  # and when its count last grew
        self._quiet_since: dict[int, float] = {}  # sent, and not known to be in a worker
        for name, number in self._numbers.items():
            shard = folder / "records" / name
            if records.sidecar_path(shard).exists():
                self._count(number, records.read_shard(shard))

    @property
    def left(self) -> list[int]:
        """Batches that are not played."""
        return [number for number in self._numbers.values() if number not in self._done]

    @property
    def workers(self) -> list[Status]:
        """Those that live, by name."""
        alive = [status for status, at in self._heard.values() if not self._is_gone(status, at)]
        return sorted(alive, key=lambda status: status.name)

    def look(self) -> None:
        """Reads what the workers say, then takes over what they have played."""
        # In this order: a worker writes its shard before it says that it plays another batch.
        for path in sorted((self.folder / FOLDER).glob("*.json")):
            try:
                status = Status(**run_folder.read_json(path))
            except (DataError, OSError, TypeError):
                continue  # gone, or just being replaced on a slow disk
            known = self._heard.get(status.name)
            if known is None or known[0] != status:
                self._heard[status.name] = status, self._clock()
        for sidecar in sorted(self.folder.glob(f"{FOLDER}/*/*{records.SUFFIX}.json")):
            self._take_over(sidecar.with_suffix(""))

    def sent(self, numbers: Iterable[int]) -> None:
        """These batches are in the queue."""
        self._quiet_since |= dict.fromkeys(numbers, self._clock())

    def to_send(self, num_waiting: int | None) -> list[int]:
        """Batches that nobody plays and that are not in the queue.

        num_waiting: messages in the queue; None: not known.

        Raises:
          DataError: a batch has cost one worker after the other.
        """
        now, lost = self._clock(), set()
        for status, at in list(self._heard.values()):
            if self._is_gone(status, at):
                del self._heard[status.name]
                (self.folder / FOLDER / f"{status.name}.json").unlink(missing_ok=True)
                if status.batch is not None and status.batch not in self._done:
                    lost.add(status.batch)
                    if (
                        not status.has_ended
                    ):  # else it was stopped, and saved: no fault of the batch
                        self._note_loss(status.batch, status)
        played = {status.batch for status, _ in self._heard.values()}
        found = []
        for number in self.left:
            if number in played:
                self._quiet_since.pop(number, None)
            elif number in lost or number not in self._quiet_since:
                found.append(number)  # or never sent by this driver, or given up by its worker
            elif num_waiting != 0:
                self._quiet_since[number] = now
            elif now - self._quiet_since[number] > self._lease:
                found.append(number)  # the broker has lost it
        return found

    def wait_for_goodbyes(self, seconds: float) -> None:
        """Gives workers time to see that all is played; each deletes its own files."""
        until = time.monotonic() + seconds
        names = {status.name for status in self.workers}
        while time.monotonic() < until and any(
            (self.folder / FOLDER / f"{name}.json").exists() for name in names
        ):
            time.sleep(0.1)

    def clear(self) -> None:
        """Deletes what workers left, once all is played."""
        shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    def _is_gone(self, status: Status, heard_at: float) -> bool:
        is_silent = self._clock() - heard_at > self._lease
        return is_silent or status.has_ended or status.error is not None

    def _note_loss(self, number: int, status: Status) -> None:
        self._losses[number] += 1
        if self._losses[number] > MOST_LOSSES:
            raise DataError(
                f"a batch is played by a worker that lives; batch {number} has lost "
                f"{self._losses[number]} of them, the last one {status.name}: "
                f"{status.error or 'it was silent for a lease'}. Look into the output of the "
                "workers; a smaller batch_size needs less memory."
            )

    def _take_over(self, shard: Path) -> None:
        number = self._numbers.get(shard.name)
        try:
            if number is not None and number not in self._done:
                played = records.read_shard(shard)
                records.write_shard(self.folder / "records" / shard.name, played)
                self._count(number, played)
        except DataError:
            pass  # torn, by a kill or a full disk: as good as not played
        records.sidecar_path(shard).unlink(missing_ok=True)
        shard.unlink(missing_ok=True)

    def _count(self, number: int, played: Sequence[records.SearchRecord]) -> None:
        self._done.add(number)
        self.games += len(played)
        self.checked += sum(record.outcome is not None for record in played)
        self.solved += sum(record.outcome == 1 for record in played)
