"""Weighted mixtures of rows that lie in memory: grain moves row numbers, not rows."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import grain
import numpy as np
from jaxtyping import Int

from data.errors import DataError

Batch = TypeVar("Batch")
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of arrays that share their first axis, source after source."""

    arrays: Arrays
    num_rows: tuple[int, ...]
    weights: tuple[float, ...]

    def gather(self, rows: Int[np.ndarray, " B"]) -> Arrays:
        """The batch of these rows."""
        return {name: array[rows] for name, array in self.arrays.items()}

    def add_to(self, digest: "hashlib._Hash") -> None:
        """Adds all that training can see of the rows to a hash."""
        digest.update(repr((self.num_rows, self.weights)).encode())
        for name, array in self.arrays.items():
            digest.update(repr((name, array.shape, array.dtype.str)).encode())
            digest.update(array.tobytes())

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows."""
        digest = hashlib.sha256()
        self.add_to(digest)
        return digest.hexdigest()

    def batches(
        self, *, batch_size: int, seed: int, host: int = 0, num_hosts: int = 1
    ) -> grain.MapDataset[Arrays]:
        """Endless batches; the arguments are those of `batched_rows`."""
        return batched_rows(
            self.num_rows,
            self.weights,
            self.gather,
            batch_size=batch_size,
            seed=seed,
            host=host,
            num_hosts=num_hosts,
        )


def join(sources: Sequence[Arrays], weights: Sequence[float]) -> Rows:
    """The rows of several sources, each with a weight.

    Raises:
      DataError: no source, or weights that are not positive.
    """
    if not sources or min(weights) <= 0:
        raise DataError(
            f"a mixture needs sources of positive weight; got weights {list(weights)}. "
            "Leave out the sources that shall not be used."
        )
    first = next(iter(sources[0]))
    return Rows(
        arrays={name: np.concatenate([rows[name] for rows in sources]) for name in sources[0]},
        num_rows=tuple(len(rows[first]) for rows in sources),
        weights=tuple(map(float, weights)),
    )


def batched_rows(
    num_rows: Sequence[int],
    weights: Sequence[float],
    gather: Callable[[Int[np.ndarray, " B"]], Batch],
    *,
    batch_size: int,
    seed: int,
    host: int = 0,
    num_hosts: int = 1,
) -> grain.MapDataset[Batch]:
    """Endless batches over the rows of several sources.

    Each source is shuffled anew every epoch; the sources are mixed by weight.

    Args:
      num_rows: rows per source; the sources are numbered through, one after another.
      weights: positive shares of the sources in the mixture.
      gather: makes a batch from its row numbers.
      batch_size: rows of a batch on this host.
      seed: the same seed gives the same batches.
      host: number of this host.
      num_hosts: each host takes every `num_hosts`-th row of the mixture, from row `host` on.
    """
    ends = np.cumsum(num_rows).tolist()
    shuffled = [
        grain.MapDataset.range(end - count, end).shuffle(seed=seed + i).repeat()
        for i, (end, count) in enumerate(zip(ends, num_rows, strict=True))
    ]
    rows = grain.MapDataset.mix(shuffled, weights)
    if num_hosts > 1:
        rows = rows[host::num_hosts]
    return rows.batch(batch_size, batch_fn=np.array).map(gather)


def iterate(batches: grain.MapDataset[Batch]) -> grain.IterDataset[Batch]:
    """The batches in order, prepared ahead by threads.

    Iterators have grain's `get_state` and `set_state`; a restored one continues with exactly the
    batches that the first would have given.
    """
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
