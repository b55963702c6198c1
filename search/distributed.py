"""`python -m search NAME --workers celery`: the batches of a search, played by other processes.

The driver plays nothing: it puts the numbers of batches into a queue (`search.broker`), watches the
workers (`search.ledger`, `search.worker`) and sends again what has no result and nobody plays. The
records are those of a search in one process, byte for byte, so each can go on with the other's.
"""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import rich
import rich.console
import rich.live
import rich.table

from data import records
from search import broker, ledger, self_play, worker
from search.self_play import SelfPlayConfig
from train.errors import DataError
from train.pipeline_status import duration
from train.stopping import StopFlag

LOOK_SECONDS = 0.5
GOODBYE_SECONDS = 5.0
PRINT_SECONDS = 10.0  # between lines, where no terminal shows a live table


def run(
    config: SelfPlayConfig,
    run_folder: Path,
    *,
    resume: bool,
    stop: StopFlag,
    broker_url: str = broker.FILES,
    local_workers: int = 0,
    lease_seconds: float = 60.0,
    console: rich.console.Console | None = None,
) -> Path:
    """As `self_play.run`, by any number of workers.

    Args:
      broker_url: "files" in the run folder, or a server that Celery knows.
      local_workers: processes to start here; others may come from anywhere.
      lease_seconds: a worker that is silent for so long is lost.

    Raises:
      ConfigError: there are records already, without `resume`; or the broker does not answer.
      DataError: one worker after the other fails. Preempted: stopped, resumable; workers stay.
    """
    folder = run_folder / "records"
    if not resume:
        self_play.refuse_old_records(folder)
    _, numbers = self_play.load_problems(config)
    batches = self_play.batches_of(config, numbers)
    names = [self_play.shard_name(number, len(batches)) for number in range(len(batches))]
    num_games = sum(len(rows) for _, rows in batches)
    folder.mkdir(parents=True, exist_ok=True)
    (run_folder / self_play.SUMMARY).unlink(missing_ok=True)  # workers would go home
    books = ledger.Ledger(run_folder, names, lease_seconds=lease_seconds)
    queue = broker.create(run_folder, broker_url)
    is_stopped = self_play.wall_clock(config, stop)
    console = console or rich.get_console()
    console.print(self_play.forecast(config, num_games), highlight=False, soft_wrap=True)
    console.print(f"workers: python -m search.worker {run_folder}", highlight=False, soft_wrap=True)

    with (
        worker.local(run_folder, local_workers) as processes,
        Progress(books, num_games, console) as progress,
    ):
        while True:
            books.look()
            if not books.left:
                break
            if is_stopped():
                stop.raise_preempted(f"{len(books.left)} of {len(batches)} batches left")
            try:
                missing = books.to_send(queue.waiting())
                queue.send(missing)
                books.sent(missing)
                progress.trouble = ""
            except broker.Unreachable as error:
                progress.trouble = f"the broker does not answer ({error}); trying again"
            _refuse_dead(processes, run_folder)
            progress.show()
            time.sleep(LOOK_SECONDS)
        progress.show(is_last=True)
        _refuse_repetitions(folder, num_games)
        self_play.finish(run_folder)  # the workers go home
        books.wait_for_goodbyes(GOODBYE_SECONDS)
    books.clear()
    broker.remove(run_folder, queue)
    return folder


class Progress:
    """A live table on a terminal, else a line now and then."""

    def __init__(self, books: ledger.Ledger, num_games: int, console: rich.console.Console):
        self.trouble = ""
        self._books, self._num_games, self._console = books, num_games, console
        self._printed_at = float("-inf")
        self._live = None
        if console.is_terminal:
            self._live = rich.live.Live(
                get_renderable=self.table, console=console, refresh_per_second=1
            )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, *, is_last: bool = False) -> None:
        """Prints a line, if it is time."""
        now = time.monotonic()
        if self._live or not (is_last or now - self._printed_at >= PRINT_SECONDS):
            return
        self._printed_at = now
        workers = self._books.workers
        rates = ", ".join(f"{w.name} {w.nodes_per_second:,.0f}" for w in workers)
        line = f"search  {self.summary()}  workers: {rates or 'none yet'} nodes/s"
        if self.trouble:
            line = f"{line}  {self.trouble}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def summary(self) -> str:
        """Games done, solved, and the time left."""
        books = self._books
        solved = f"solved {books.solved}" if books.checked else "not checked"
        rate = sum(worker.games_per_second for worker in books.workers)
        left = duration((self._num_games - books.games) / rate) if rate else "unknown"
        return f"done {books.games}/{self._num_games} games  {solved}  time left {left}"

    def table(self) -> rich.table.Table:
        """All of it."""
        table = rich.table.Table(
            "worker", "batch", "games", "nodes/s",
            box=None, title=f"{self.summary()}  {self.trouble}".rstrip(), title_justify="left",
        )  # fmt: skip
        for one in self._books.workers:
            batch = "" if one.batch is None else str(one.batch)
            table.add_row(one.name, batch, f"{one.games}", f"{one.nodes_per_second:,.0f}")
        return table


def _refuse_dead(processes: Sequence[subprocess.Popen], run_folder: Path) -> None:
    """Nobody else is counted on where workers were started here."""
    codes = [process.poll() for process in processes]
    if codes and None not in codes:
        raise DataError(
            f"batches need a worker that lives; all {len(codes)} that were started here have ended "
            f"(exit codes {codes}). See {run_folder / ledger.FOLDER}/local-0.log, then --resume."
        )


def _refuse_repetitions(folder: Path, num_games: int) -> None:
    """Every game exactly once, as `search.merge` tells them apart.

    Raises:
      DataError: the records are not those of this run.
    """
    from search import merge

    found = len(merge.unique(merge.entries_of([folder])))
    written = sum(1 for _ in records.read_folder(folder))
    if not found == written == num_games:
        raise DataError(
            f"a search writes every game once; {folder} has {written} records of {found} games, "
            f"where {num_games} were to be played. Delete the run folder and search again."
        )
