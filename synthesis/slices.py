"""Many items, worked on slice by slice, each of which is kept: what a stop or a kill cannot undo.

RUN/rows.jsonl             all rows, written when every slice is done
RUN/rows/inputs.json       what the slices were made of
RUN/rows/part-00012.jsonl  the rows of one slice
"""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data import files, json_rows
from train import config_json, run_folder
from train.errors import DataError
from train.stopping import StopFlag

Item = TypeVar("Item")
Row = dict[str, Any]


def run(
    items: Sequence[Item],
    work: Callable[[Sequence[Item], int], Sequence[Row]],
    path: Path,
    *,
    slice_size: int,
    resume: bool,
    stop: StopFlag | None,
) -> list[Row]:
    """Rows of all items, in their order, which are also written to `path`.

    The rows are the same whether the work was interrupted or not, if those of a slice depend on the
    slice and its number alone.

    Args:
      items: what JSON can write; slices that were made of other items are refused.
      work: `work(slice, number)`, the rows of one slice; as many as it likes.
      slice_size: items of a slice.
      resume: keep the slices that are there.

    Raises:
      Preempted: `stop` was requested; every finished slice is kept.
      DataError: there are slices of other items.
    """
    folder = path.with_suffix("")
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _check_inputs(folder / "inputs.json", items, slice_size)
    starts = range(0, len(items), slice_size)
    parts = [folder / f"part-{number:05d}.jsonl" for number in range(len(starts))]
    for number, (start, part) in enumerate(zip(starts, parts, strict=True)):
        if part.exists():
            continue
        if stop is not None and stop.requested:
            stop.raise_preempted(f"slice {number} of {len(parts)} of {path.stem}")
        json_rows.write(part, work(items[start : start + slice_size], number))
    rows = [row for part in parts for row in files.read_json_lines(str(part), fields=())]
    json_rows.write(path, rows)
    return rows


def _check_inputs(path: Path, items: Sequence[Any], slice_size: int) -> None:
    made_of = {
        "items": len(items),
        "slice_size": slice_size,
        "sha256": config_json.sha256_of_json(json.loads(json.dumps(list(items)))),
    }
    if not path.exists():
        run_folder.write_json(path, made_of)
        return
    before = run_folder.read_json(path)
    if before != made_of:
        raise DataError(
            f"work is resumed on the items it began with; {path.parent} was made of {before}, now "
            f"there are {made_of}. Restore the items, or use --overwrite to begin again."
        )
