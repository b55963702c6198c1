"""`python -m search.export RECORDS... --to FILE.jsonl|FILE.parquet`: records for other programs.

`--rows games|positions|leaves`: what a row is. Rows hold text beside every run of token ids.
`python -m search.export --from FILE --to FOLDER` makes records of rows of games again.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from configs import load
from data import record_tables, records
from data.record_tables import Row
from search import record_sources
from train.errors import ConfigError

READERS = {".jsonl": record_tables.read_json_lines, ".parquet": record_tables.read_parquet}


def export(arguments: argparse.Namespace) -> None:
    """Writes the rows; a run cut off leaves no file of that name, or the whole old one."""
    path = Path(arguments.to)
    if path.suffix not in READERS:
        raise ConfigError(
            f"records are exported to a file named *.jsonl or *.parquet; got {path}. Rename it."
        )
    _refuse_existing(path, arguments.overwrite)
    without_text = 0

    def rows() -> Iterator[Row]:
        nonlocal without_text
        games = record_sources.read(arguments)
        for game, text in record_sources.tokenizers_of(games, arguments.tokenizer):
            without_text += text is None
            yield from record_tables.rows_of(game, arguments.rows, text)

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".parquet":
            count = record_tables.write_parquet(str(partial), rows(), arguments.rows)
        else:
            with open(partial, "wb") as file:
                count = sum(1 for _ in map(file.write, map(record_tables.to_json_line, rows())))
        records.commit(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{count:,} rows of {arguments.rows}: {path}")
    if without_text:
        print(
            f"{without_text:,} games name no tokenizer, and none of ours fits: the texts of their "
            "token runs are left out. Give --tokenizer NAME."
        )


def restore(arguments: argparse.Namespace) -> None:
    """Writes one shard of the records that were exported."""
    source = Path(arguments.source)
    if source.suffix not in READERS or not source.is_file():
        raise ConfigError(
            f"--from names an exported file, *.jsonl or *.parquet; got {source}. Correct the path."
        )
    folder = Path(arguments.to)
    if folder.suffix in (*READERS, records.SUFFIX) or folder.is_file():
        raise ConfigError(f"records go into a folder; got --to {folder}. Name a folder.")
    shard = folder / f"shard-00000-of-00001{records.SUFFIX}"
    others = set(folder.glob(f"*{records.SUFFIX}*")) - {shard, records.sidecar_path(shard)}
    if others:
        raise ConfigError(
            f"records come back into a folder without other records; {folder} holds "
            f"{min(others).name}. Name another folder."
        )
    _refuse_existing(shard, arguments.overwrite)
    records.write_shard(shard, READERS[source.suffix](str(source)))
    print(f"records: {shard}")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise ConfigError(
            f"nothing is overwritten unasked; {path} exists. Use --overwrite or another --to."
        )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m search.export", description=__doc__)
    record_sources.add_arguments(parser, num_records="*")
    parser.add_argument("--from", dest="source", metavar="FILE", help="rows of games to read back")
    parser.add_argument("--to", required=True, metavar="PATH", help="file, or folder with --from")
    parser.add_argument(
        "--rows", choices=["games", "positions", "leaves"], default="games", help="what a row is"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    arguments = parser.parse_args(argv)
    if bool(arguments.records) == bool(arguments.source):
        raise ConfigError(
            "an export reads records or, with --from, rows; got "
            f"{'both' if arguments.records else 'neither'}. Give one of them."
        )
    if arguments.source:
        restore(arguments)
    else:
        export(arguments)


if __name__ == "__main__":
    load.main("search.export", main)
