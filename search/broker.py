"""The queue between a distributed search and its workers: Celery, over files or over a server.

What stands in the queue is only a number: the batch to play. Everything else is in the run folder,
which the driver and all workers see. So a broker may lose messages or deliver them twice: the
driver sends again what nobody plays (`search.ledger`), and a batch that is there is not played.

    RUN/queue/broker.json   URL and queue of this run, readable by its owner only
    RUN/queue/messages/     with "files": one file per message
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.errors import DataError
from train import run_folder
from train.errors import ConfigError

try:
    import celery
    import kombu
    import kombu.exceptions
    from kombu.transport import filesystem
    from kombu.utils.json import dumps
except ModuleNotFoundError as error:  # pragma: no cover
    raise ConfigError(
        f"a distributed search needs the extra `cluster`; got {error}. Install it: "
        "pip install -c constraints.txt -e '.[cluster]'."
    ) from error

FILES = "files"  # the broker of one machine, or of a shared disk: no server
TASK = "search.play_batch"
FOLDER = "queue"

# A batch that was taken and not acknowledged goes back to the queue after this time at Redis. It is
# long, since the ledger knows earlier and better what is lost.
VISIBILITY_SECONDS = 48 * 3600


class Unreachable(Exception):
    """The broker does not answer (now)."""


class _Channel(filesystem.Channel):
    """kombu's, but a message appears under its name when it is whole: a half-written one, taken at
    once by a worker, would end that worker.
    """

    def _put(self, queue, payload, **_):  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{uuid.uuid1().time:020d}_{uuid.uuid4().hex}"
        partial = folder / f".{name}"
        partial.write_text(dumps(payload))
        partial.replace(folder / f"{name}.{queue}.msg")


class Transport(filesystem.Transport):
    """Messages as files of one folder."""

    Channel = _Channel


class Queue:
    """The queue of one run."""

    def __init__(self, folder: Path, url: str, name: str):
        """folder: of the run. name: of the queue at the broker."""
        self.url, self.name = url, name
        if url == FILES:
            at = folder / FOLDER
            options: dict[str, Any] = {
                "data_folder_in": str(at / "messages"),
                "data_folder_out": str(at / "messages"),
                "control_folder": str(at / "control"),
                # Taking a message is a rename within one file system: one worker gets it.
                "store_processed": True,
                "processed_folder": str(at / "taken"),
                "polling_interval": 0.2,
            }
            for option in ("data_folder_in", "control_folder", "processed_folder"):
                Path(options[option]).mkdir(parents=True, exist_ok=True)
            where = {"broker_url": "filesystem://", "broker_transport": "search.broker:Transport"}
        else:
            options = {"visibility_timeout": VISIBILITY_SECONDS, "socket_connect_timeout": 5}
            where = {"broker_url": url}
        self.app = celery.Celery("search", set_as_current=False)
        self.app.conf.update(
            **where,
            broker_transport_options=options,
            broker_connection_retry_on_startup=True,
            broker_connection_max_retries=None,
            task_default_queue=name,
            task_ignore_result=True,
            task_publish_retry=False,  # the driver's loop comes back
            task_acks_late=True,  # with prefetch 1: a worker that plays holds no second batch
            worker_prefetch_multiplier=1,
            worker_enable_remote_control=False,
            worker_hijack_root_logger=False,
            worker_redirect_stdouts=False,
        )

    def send(self, numbers: Sequence[int]) -> None:
        """Puts batches at the end of the queue.

        Raises:
          Unreachable: the broker did not take all of them.
        """

        def publish(connection):
            for number in numbers:
                self.app.send_task(TASK, args=[number], connection=connection)

        self._ask(publish)

    def waiting(self) -> int:
        """Messages that nobody has taken.

        Raises:
          Unreachable: the broker does not answer.
        """
        return self._ask(self._declare).message_count

    def clear(self) -> None:
        """Takes all messages out of the queue. Raises: as `waiting`."""

        def purge(connection):
            self._declare(connection)
            connection.default_channel.queue_purge(queue=self.name)

        self._ask(purge)

    def delete(self) -> None:
        """Leaves nothing of the queue at the broker. Raises: as `waiting`."""
        self.clear()
        self._ask(lambda connection: connection.default_channel.queue_delete(queue=self.name))

    def _declare(self, connection: kombu.Connection) -> Any:
        return connection.default_channel.queue_declare(
            queue=self.name, durable=True, auto_delete=False
        )

    def _ask(self, question: Callable[[kombu.Connection], Any]) -> Any:
        with self.app.connection_for_write() as connection:
            errors = (kombu.exceptions.KombuError, OSError)
            errors += connection.connection_errors + connection.channel_errors
            try:
                connection.ensure_connection(max_retries=1, interval_start=0)
                return question(connection)
            except errors as error:
                raise Unreachable(" ".join(str(error).split())) from error


def create(folder: Path, url: str) -> Queue:
    """The queue of a run that is driven from here; empty, whatever an earlier driver left there.

    Raises:
      ConfigError: the broker cannot be reached, or it is none that Celery knows.
    """
    at = folder / FOLDER / "broker.json"
    try:
        name = f"search-{uuid.uuid4().hex}"
        if at.exists() and run_folder.read_json(at)["url"] == url:
            name = run_folder.read_json(at)["name"]  # workers of an earlier driver listen to it
        queue = Queue(folder, url, name)
        queue.clear()
    except (Unreachable, DataError, KeyError, ValueError, ImportError) as error:
        raise ConfigError(
            "a distributed search needs a broker that answers; got --broker "
            f"{without_password(url)} ({error}). Start the server, correct the URL "
            '(redis://HOST:PORT/0), or use "files", which needs no server.'
        ) from error
    at.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(f"{at}.new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:  # a URL may hold a password: for the owner's eyes only
        json.dump({"url": url, "name": name}, file)
    os.replace(f"{at}.new", at)
    return queue


def find(folder: Path) -> Queue | None:
    """The queue of a run that some driver has created, None as long as there is none."""
    try:
        found = run_folder.read_json(folder / FOLDER / "broker.json")
        return Queue(folder, found["url"], found["name"])
    except (DataError, OSError):
        return None


def remove(folder: Path, queue: Queue) -> None:
    """Deletes the queue of a run that is over."""
    with contextlib.suppress(Unreachable):  # it ends with its server
        queue.delete()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def without_password(url: str) -> str:
    """The URL as it may be printed."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
