"""Weighted mixtures of rows that lie in memory: grain moves row numbers, not rows."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import grain
import numpy as np
from jaxtyping import Int

Batch = TypeVar("Batch")


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
