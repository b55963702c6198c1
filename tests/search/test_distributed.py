"""A search by several processes, some of which are killed, gives the records of one process."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
import rich.console

from data import tokenizer
from models import language_model, transformer
from search import gumbel, self_play, token_model
from train import checkpoints, run_folder
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag

pytest.importorskip("celery", reason="needs the extra `cluster`")
from search import broker, distributed, ledger, slurm_job, worker
from train import slurm

TEXT = tokenizer.load_tokenizer("game24")
MODEL = transformer.TransformerConfig(
    vocab_size=TEXT.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8
)
ACTION = token_model.ActionConfig(
    num_candidates=4, opening_tokens=1, max_step_tokens=3, max_completion_tokens=9
)
CONFIG = self_play.SelfPlayConfig(
    search=gumbel.SearchConfig(action=ACTION, num_simulations=24),  # an oracle is not cached
    limit=10,
    batch_size=2,
    slice_calls=1,
    save_minutes=0.0,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    metadata = checkpoints.Metadata(
        model=MODEL, tokenizer="game24", tokenizer_fingerprint=TEXT.fingerprint, data_hash=""
    )
    params = language_model.LanguageModel(MODEL).init(jax.random.key(0))
    checkpoints.save_params(path / "params", params, metadata, dtype="float32")
    return dataclasses.replace(CONFIG, checkpoint=str(path / "params"))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """Files of the same search in one process."""
    folder = run_folder.prepare(tmp_path_factory.mktemp("whole") / "run", config)
    self_play.run(config, folder, resume=False, stop=StopFlag())
    return files_of(folder)


def files_of(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    mine = ("config.json", "environment.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name not in mine}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Redis:
    """A server of a test, that writes down what it is told, and can be killed."""

    def __init__(self, folder):
        if shutil.which("redis-server") is None:
            pytest.skip("needs redis-server; install the package redis-server")
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process = None

    def start(self):
        options = ["--port", self.port, "--bind", "127.0.0.1", "--dir", self.folder]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with open(self.folder / "log", "a") as log:
            command = ["redis-server", *map(str, options)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            assert self.process.poll() is None
            time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path_factory):
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


def playing(folder):
    """Process id -> batch, of the workers that play."""
    found = {}
    for path in folder.glob(f"{ledger.FOLDER}/*.json"):
        with contextlib.suppress(Exception):
            status = ledger.Status(**run_folder.read_json(path))
            if status.batch is not None:
                found[int(status.name.split("-")[-2])] = status.batch
    return found


def search_while(harm, config, folder, *, local_workers=2, **options):
    """Runs a distributed search; `harm(folder)` goes on beside it."""
    thread = threading.Thread(target=harm, args=(folder,), daemon=True)
    thread.start()
    distributed.run(
        config,
        run_folder.prepare(folder, config),
        resume=False,
        stop=StopFlag(),
        local_workers=local_workers,
        lease_seconds=3.0,
        **options,
    )
    thread.join(10)
    assert not thread.is_alive()


def kill_one(folder, signals=(signal.SIGKILL,)):
    """Ends workers in the middle of a batch, one after the other."""
    killed = set()
    for number in signals:
        while not (found := playing(folder).keys() - killed):
            time.sleep(0.01)
        killed.add(min(found))
        os.kill(min(found), number)


def test_two_workers_one_killed_write_the_bytes_of_one_process(config, whole, tmp_path):
    search_while(kill_one, config, tmp_path / "run")
    assert files_of(tmp_path / "run") == whole


@pytest.mark.slow
def test_so_they_do_with_redis_killed_too(config, whole, tmp_path, redis):
    def harm(folder):
        kill_one(folder, [signal.SIGTERM])
        redis.kill()
        time.sleep(0.5)
        redis.start()

    search_while(harm, config, tmp_path / "run", broker_url=redis.url)
    assert files_of(tmp_path / "run") == whole


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["files", "redis"])
def test_sixteen_workers_eight_killed_and_the_broker_too(config, tmp_path, request, kind):
    """Two minutes each."""
    more = dataclasses.replace(config, limit=160)
    self_play.run(more, tmp_path / "whole", resume=False, stop=StopFlag())
    server = request.getfixturevalue("redis") if kind == "redis" else None

    def harm(folder):
        kill_one(folder, [signal.SIGKILL] * 4)
        if server:
            server.kill()
            time.sleep(3)
            server.start()
        kill_one(folder, [signal.SIGKILL, signal.SIGTERM] * 2)

    url = server.url if server else broker.FILES
    search_while(harm, more, tmp_path / "run", local_workers=16, broker_url=url)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_a_stopped_driver_goes_on_and_one_process_can_take_over(config, whole, tmp_path):
    """Without any worker: what another driver finds is only what lies in the folder."""
    folder = run_folder.prepare(tmp_path / "run", config)
    stop = StopFlag(deadline_seconds=0.7)
    with pytest.raises(Preempted, match="5 of 5 batches left"):
        distributed.run(config, folder, resume=False, stop=stop, local_workers=0)
    queue = broker.find(folder)
    assert queue.waiting() == 5
    player = self_play.Player(config)
    for number, name in ((3, "a"), (0, "b")):
        games = player.play(number, folder / self_play.UNFINISHED, lambda: None)
        player.write(number, games, folder / ledger.FOLDER / name)
    stop = StopFlag(deadline_seconds=0.7)
    with pytest.raises(Preempted, match="3 of 5 batches left"):
        distributed.run(config, folder, resume=True, stop=stop)
    assert broker.find(folder).name == queue.name  # workers still listen to it
    assert queue.waiting() == 3
    self_play.run(config, folder, resume=True, stop=StopFlag())
    found = files_of(folder)
    assert {name: found[name] for name in whole} == whole


def test_workers_that_cannot_start_end_the_search_with_a_reason(config, tmp_path):
    folder = run_folder.prepare(tmp_path / "run", config)
    (folder / "config.json").write_text('"not a search"')
    with pytest.raises(DataError, match=r"exit codes \[2\]\)\. See .*local-0\.log"):
        distributed.run(config, folder, resume=False, stop=StopFlag(), local_workers=1)
    log = (folder / ledger.FOLDER / "local-0.log").read_text()
    assert "search.worker: a worker plays the batches of a search" in log


def test_a_broker_that_does_not_answer_is_one_line(config, tmp_path):
    folder = run_folder.prepare(tmp_path / "run", config)
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    with pytest.raises(ConfigError, match="needs a broker that answers; got") as error:
        distributed.run(config, folder, resume=False, stop=StopFlag(), broker_url=url)
    assert "secret" not in str(error.value)
    with pytest.raises(ConfigError, match="needs a broker that answers"):
        broker.create(folder, "carrier-pigeon://coop")


def test_messages_are_taken_once_and_in_order(tmp_path):
    queue = broker.create(tmp_path, broker.FILES)
    assert oct((tmp_path / "queue" / "broker.json").stat().st_mode)[-3:] == "600"
    queue.send([3, 1, 2])
    assert broker.find(tmp_path).waiting() == 3
    taken = []
    with queue.app.connection_for_read() as connection:
        for _ in range(3):
            message = connection.default_channel.basic_get(queue.name, no_ack=True)
            taken.append(message.decode()[0][0] if message else None)
    assert taken == [3, 1, 2]
    queue.send([5])
    assert broker.create(tmp_path, broker.FILES).waiting() == 0  # a new driver sends all itself
    broker.remove(tmp_path, queue)
    assert not list(tmp_path.iterdir())


def test_a_worker_without_a_search_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "WAIT_SECONDS", 0.3)
    with pytest.raises(ConfigError, match="needs a search to work for"):
        worker.Worker(tmp_path, StopFlag())
    with pytest.raises(Preempted, match="before there was anything to play"):
        worker.Worker(tmp_path, StopFlag(deadline_seconds=0.0))


def test_progress_tells_games_speeds_and_the_time_left(tmp_path):
    names = [self_play.shard_name(n, 2) for n in range(2)]
    books = ledger.Ledger(tmp_path, names, lease_seconds=9.0)
    (tmp_path / "records").mkdir()
    console = rich.console.Console(width=200, record=True)
    progress = distributed.Progress(books, 4, console)
    progress.show()
    for name, games in (("a", 2), ("b", 1)):
        status = ledger.Status(name=name, games=games, nodes=1000 * games, busy_seconds=2.0)
        ledger.write_status(tmp_path, status)
    books.look()
    books.games, books.checked, books.solved = 1, 1, 1
    progress.show()  # too early for a second line
    progress.trouble = "the broker does not answer"
    progress.show(is_last=True)
    assert console.export_text().splitlines() == [
        "search  done 0/4 games  not checked  time left unknown  workers: none yet nodes/s",
        "search  done 1/4 games  solved 1  time left 2.0 s  workers: a 1,000, b 500 nodes/s  "
        "the broker does not answer",
    ]
    console.print(progress.table())
    assert [line.split() for line in console.export_text().splitlines()[-2:]] == [
        ["a", "2", "1,000"], ["b", "1", "500"],
    ]  # fmt: skip


def test_the_slurm_job_starts_broker_driver_and_workers(repository_root):
    text = slurm_job.script(
        "game24_search",
        ["--limit", "6", "--search.num-simulations=9", "--resume", "--run-folder", "elsewhere"],
        Path("runs/big"),
        slurm.SlurmConfig(partition="gpu", gpus=1, nodes=2, setup=("module load cuda",)),
        workers=16,
    )
    text = text.replace(sys.executable, "python").replace(str(repository_root), "/REPOSITORY")
    assert text == (repository_root / "tests" / "golden" / "search.sbatch").read_text()
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
