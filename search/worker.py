"""`python -m search.worker RUN_FOLDER`: plays batches of a distributed search until all are played.

The run is that of a `python -m search NAME --workers celery` on any machine that sees the folder;
it may be started before or after. As many workers as wanted come and go: SIGTERM, SIGUSR1, SIGHUP
and Ctrl-C save the batch that is being played, which another worker goes on with, and end with 75.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs import load
from train import config_json, run_folder
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

BEAT_SECONDS = 1.0
WAIT_SECONDS = 600.0  # for a driver: it may still be loading its problems


class Worker:
    """One process that plays. Its thread tells the driver that it lives, whatever it is doing."""

    def __init__(self, folder: Path, stop: StopFlag):
        """Loads the model of the run in `folder`, and waits for the driver if there is none yet.

        Raises:
          ConfigError: this is no search, or no driver has come. Preempted: stopped meanwhile.
          DataError: as `self_play.Player`.
        """
        from search import broker, ledger, self_play

        self.folder, self.stop, self._ledger = folder, stop, ledger
        config, self.queue = _wait_for_run(folder, stop)
        if not isinstance(config, self_play.SelfPlayConfig):
            raise ConfigError(
                f"a worker plays the batches of a search; {folder} is the run of a "
                f"{type(config).__name__}. Give the folder of a `python -m search` run."
            )
        self._summary = folder / self_play.SUMMARY
        self._unfinished = folder / self_play.UNFINISHED
        self._is_stopped = self_play.wall_clock(config, stop)
        name = f"{socket.gethostname().partition('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:4]}"
        self._status = ledger.Status(name=name)
        self._own_folder = folder / ledger.FOLDER / name
        self._lock = threading.Lock()
        self._player = self_play.Player(config)
        assert broker.TASK
        self._task = broker.TASK

    @property
    def is_over(self) -> bool:
        """Whether the driver has all it wants."""
        return self._summary.exists()

    def run(self) -> None:
        """Plays until all is played, or until it is stopped.

        Raises:
          Preempted: it was stopped. DataError: a batch could not be played.
        """
        import celery.worker.state
        from celery.worker import WorkController

        app = self.queue.app
        app.task(name=self._task)(self.play)
        # Celery's own program would take the signals for itself and fork processes.
        controller = WorkController(
            app=app,
            hostname=self._status.name,
            pool="solo",
            concurrency=1,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )

        def watch() -> None:
            while not is_ended.wait(BEAT_SECONDS):
                self._say()
                if self._is_stopped() or self.is_over or self._status.error:
                    celery.worker.state.should_stop = os.EX_OK  # after what it is playing

        is_ended = threading.Event()
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            controller.start()
        finally:
            is_ended.set()
            thread.join()
        if self.is_over:
            self._leave()
        elif self._status.error:
            raise DataError(self._status.error)
        elif self.stop.requested:
            self._say(has_ended=True)
            raise Preempted(
                f"stopped by {self.stop.requested}; what it was playing is saved for another worker"
            )
        else:
            raise DataError(f"the queue at {self.queue.url} has failed; see above. Start it again.")

    def play(self, number: int) -> None:
        """The task: plays a batch into this worker's folder, unless somebody has played it."""
        name = self._player.shard_name(number)
        if self.is_over or self._is_stopped() or self._ledger.is_played(self.folder, name):
            return
        self._say(batch=number)
        started = time.monotonic()
        try:
            games = self._player.play(number, self._unfinished, self._is_stopped)
            if games is None:
                return  # stopped: the batch stays ours until we say that we have ended
            self._player.write(number, games, self._own_folder)
        except Exception as error:
            self._say(error=f"batch {number}: {type(error).__name__}: {error}")
            raise
        self._say(
            batch=None,
            games=self._status.games + len(games),
            nodes=self._status.nodes + sum(one.nodes for one in games),
            busy_seconds=self._status.busy_seconds + time.monotonic() - started,
        )

    def _say(self, **changes: Any) -> None:
        with self._lock:
            beat = self._status.beat + 1
            self._status = dataclasses.replace(self._status, beat=beat, **changes)
            if not self.is_over:
                with contextlib.suppress(OSError):  # a full disk: the next beat tries again
                    self._ledger.write_status(self.folder, self._status)

    def _leave(self) -> None:
        shutil.rmtree(self._own_folder, ignore_errors=True)
        (self.folder / self._ledger.FOLDER / f"{self._status.name}.json").unlink(missing_ok=True)


def _wait_for_run(folder: Path, stop: StopFlag) -> tuple[Any, Any]:
    """Config and queue of the run."""
    from search import broker

    started = time.monotonic()
    while True:
        queue = broker.find(folder)
        if queue is not None:
            return config_json.decode(run_folder.read_json(folder / "config.json")), queue
        if stop.requested:
            raise Preempted(f"stopped by {stop.requested} before there was anything to play")
        if time.monotonic() - started > WAIT_SECONDS:
            raise ConfigError(
                f"a worker needs a search to work for; {folder} has none after {WAIT_SECONDS:g} s. "
                "Start `python -m search NAME --workers celery` with this --run-folder."
            )
        time.sleep(0.2)


@contextlib.contextmanager
def local(folder: Path, count: int) -> Iterator[list]:
    """So many workers as processes of this machine, which end with the block; their output lies in
    RUN/workers/local-N.log.
    """
    import subprocess
    import sys

    from search import ledger

    logs = folder / ledger.FOLDER
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    for i in range(count):
        with open(logs / f"local-{i}.log", "a") as log:
            command = [sys.executable, "-m", "search.worker", str(folder)]
            processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m search.worker", description=__doc__)
    parser.add_argument("run_folder", type=Path, help="of the search; every machine sees it")
    arguments = parser.parse_args(argv)
    with StopFlag() as stop:
        Worker(arguments.run_folder, stop).run()


if __name__ == "__main__":
    load.main("search.worker", main)
