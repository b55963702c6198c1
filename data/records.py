"""Files of search records: what search writes and training reads.

A shard is an ArrayRecord file with one UTF-8 JSON object per game (`data.search_record`), so
anything can read it. Beside it lies `<shard>.json` with its count, schema version and SHA-256,
written last: a shard without it was never finished.
"""

import hashlib
import json
import os
import pathlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator

from array_record.python import array_record_module

from data import record_text, search_record
from data.errors import DataError
from data.search_record import (
    SCHEMA_VERSION,
    Leaf,
    Position,
    SearchRecord,
    Tokens,
    Tree,
    from_json,
    to_json,
)
from data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "SCHEMA_VERSION",
    "SUFFIX",
    "Leaf",
    "Position",
    "SearchRecord",
    "Tokens",
    "Tree",
    "commit",
    "from_json",
    "read_folder",
    "read_for_training",
    "read_shard",
    "shards_of",
    "sidecar_path",
    "summary",
    "to_json",
    "write_shard",
]

SUFFIX = ".arrayrecord"

Path = str | os.PathLike[str]


def write_shard(path: Path, records: Iterable[SearchRecord]) -> None:
    """Writes a shard and its sidecar so that a crash leaves either both whole or a refused file."""
    path = pathlib.Path(path)
    if path.suffix != SUFFIX:
        raise DataError(f"a record shard ends in {SUFFIX}; got {path}. Rename it.")
    payloads = [to_json(record) for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()
    commit(partial, path)

    contents = {
        "count": len(payloads),
        "schema_version": search_record.SCHEMA_VERSION,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    sidecar = sidecar_path(path)
    partial = sidecar.with_name(f".{sidecar.name}.partial")
    partial.write_text(json.dumps(contents) + "\n", "utf-8")
    commit(partial, sidecar)


def commit(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a finished file its name, surely on the disk."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def sidecar_path(path: Path) -> pathlib.Path:
    return pathlib.Path(f"{path}.json")


def read_shard(path: Path) -> list[SearchRecord]:
    """All records of a shard.

    Raises:
      DataError: if the shard or its sidecar is missing, torn, changed or of another schema.
    """
    path = pathlib.Path(path)
    sidecar = sidecar_path(path)
    again = f"Delete {path.name} and {sidecar.name} and run the search again with --resume."
    try:
        contents = json.loads(sidecar.read_text("utf-8"))
        count, version, sha256 = (contents[k] for k in ("count", "schema_version", "sha256"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"a record shard needs a whole sidecar; got {sidecar}: {error}. {again}"
        ) from error
    if version != search_record.SCHEMA_VERSION:
        raise DataError(search_record.version_message(f"{path}: a record shard", version))
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"a sidecar stands beside its shard; got {path}: {error}. {again}"
        ) from error
    if found != sha256:
        raise DataError(
            f"a record shard must have the bytes that were written; got {path} with sha256 "
            f"{found[:12]}..., written with {str(sha256)[:12]}.... {again}"
        )
    payloads = _payloads(path)
    if len(payloads) != count:
        raise DataError(f"{path} must hold {count} records; got {len(payloads)}. {again}")
    try:
        return [from_json(payload) for payload in payloads]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _payloads(path: pathlib.Path) -> list[bytes]:
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        return reader.read_all() if reader.num_records() else []
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"a record shard is an ArrayRecord file; got {path}: {error}. "
            "Delete it and its sidecar and run the search again."
        ) from error


def shards_of(path: Path) -> list[pathlib.Path]:
    """The shard itself, or all shards of a folder in the order of their names.

    A run folder stands for the folder `records` in it.

    Raises:
      DataError: if there is none.
    """
    path = pathlib.Path(path)
    if path.suffix == SUFFIX:
        return [path]
    if (path / "config.json").exists() and (path / "records").is_dir():
        path /= "records"
    shards = set(path.glob(f"*{SUFFIX}"))
    shards |= {sidecar.with_suffix("") for sidecar in path.glob(f"*{SUFFIX}.json")}
    if not shards:
        raise DataError(
            f"a record folder holds shards named *{SUFFIX}; got {path} without any. "
            "Run the search first, or correct the path."
        )
    return sorted(shards)


def read_folder(folder: Path) -> Iterator[SearchRecord]:
    """All records of all shards of a folder (or of one shard), in the order of the file names.

    Raises:
      DataError: if there is no shard, or as `read_shard`.
    """
    for path in shards_of(folder):
        yield from read_shard(path)


def read_for_training(folder: Path, tokenizer: Tokenizer | None = None) -> Iterator[SearchRecord]:
    """As `read_folder`, for whatever learns from records: the test split is refused.

    Args:
      tokenizer: of the model that learns. Records of another one are given in its tokens, as far as
        they can be (`record_text.retokenize`); a warning counts what is left out. None gives the
        tokens as they are.

    Raises:
      DataError: a record is of the split "test", or cannot be given in these tokens, or as
        `read_folder`.
    """
    had: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for record in read_folder(folder):
        if record.split == "test":
            raise DataError(
                f"nothing learns from records of the test split; got {record.problem_id} in "
                f"{folder}. Search the problems of another split."
            )
        if tokenizer is None or _is_in_tokens_of(record, tokenizer):
            yield record
            continue
        own = record_text.tokenizer_of(record)
        other = record_text.retokenize(record, own, tokenizer)
        had += _sizes(record)
        left_out += _sizes(record) - _sizes(other)
        yield other
    if left_out:
        parts = ", ".join(f"{count} of {had[what]} {what}" for what, count in left_out.items())
        warnings.warn(
            f"{folder}: {parts} have no place in the tokens of the other tokenizer and are left "
            "out (see data.record_text.retokenize)",
            stacklevel=2,
        )


def _is_in_tokens_of(record: SearchRecord, tokenizer: Tokenizer) -> bool:
    if record.tokenizer is None:
        return record_text.is_written_with(record, tokenizer)
    return load_tokenizer(record.tokenizer).fingerprint == tokenizer.fingerprint


def _sizes(record: SearchRecord) -> Counter[str]:
    return Counter(
        {
            "positions": len(record.positions),
            "candidates": sum(len(position.candidates) for position in record.positions),
            "leaves": len(record.leaves),
            "tree nodes": sum(len(tree.parent) for tree in record.trees),
        }
    )


def summary(records: Iterable[SearchRecord]) -> dict[str, float]:
    """Counts that tell at a glance what some records hold, and the share of solved games."""
    counts = dict.fromkeys(
        ("games", "checked", "solved", "problems", "solved_problems", "positions"), 0
    )
    counts |= dict.fromkeys(("leaves", "solved_leaves", "tree_nodes", "completion_tokens"), 0)
    problems, solved = set(), set()
    for record in records:
        problems.add(record.problem_id)
        if record.outcome == 1:
            solved.add(record.problem_id)
        counts["games"] += 1
        counts["checked"] += record.outcome is not None
        counts["solved"] += record.outcome == 1
        counts["positions"] += len(record.positions)
        counts["leaves"] += len(record.leaves)
        counts["solved_leaves"] += sum(leaf.outcome == 1 for leaf in record.leaves)
        counts["tree_nodes"] += sum(len(tree.parent) for tree in record.trees)
        counts["completion_tokens"] += len(record.completion_tokens)
    counts |= {"problems": len(problems), "solved_problems": len(solved)}
    return counts | {"solved_share": counts["solved"] / max(counts["checked"], 1)}
