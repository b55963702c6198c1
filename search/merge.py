"""`python -m search.merge FOLDER... --into FOLDER`: one record folder with every game once.

Two records are of the same game if problem, split, seed, settings and number of the game are equal.
Records that do not say which game of a problem they are (`game` is None: written before there was
that field) are of the same game only if they are equal as a whole.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import load
from data import records
from data.errors import DataError
from data.records import SearchRecord
from train import run_folder
from train.errors import ConfigError

GAMES_PER_SHARD = 1000
MANIFEST = "merge.json"


@dataclass(frozen=True, order=True)
class Entry:
    """One record of the inputs: what tells it from others, what it is, where it lies.

    identity: sorts games by split, problem, seed, settings and number. sha256: of the payload.
    """

    identity: tuple[str, str, int, str, int]
    sha256: str
    shard: Path
    number: int

    @property
    def place(self) -> str:
        return f"{self.shard} (record {self.number})"


def identity_of(record: SearchRecord) -> tuple[str, str, int, str, int]:
    settings = json.dumps(record.settings, sort_keys=True, ensure_ascii=False)
    game = -1 if record.game is None else record.game
    return record.split, record.problem_id, record.seed, settings, game


def merge(folders: Sequence[str | os.PathLike[str]], into: Path, *, overwrite: bool = False) -> int:
    """Merges record folders; returns the number of games.

    The bytes depend on the records alone, not on how they lie in folders and shards. All is written
    beside `into` and given its name at the end: a kill leaves the old folder or none, and the same
    call goes on with the finished shards. Where `into` is this merge already, nothing is done.

    Raises:
      DataError: a shard is torn, or two records of one game differ.
      ConfigError: `into` holds something else, without `overwrite`.
    """
    _recover(into)
    entries = unique(entries_of(folders))
    digest = hashlib.sha256(repr([(e.identity, e.sha256) for e in entries]).encode()).hexdigest()
    contents = {"games": len(entries), "games_per_shard": GAMES_PER_SHARD, "sha256": digest}
    if into.exists():
        if _manifest(into) == contents and _is_whole(into, len(entries)):
            return len(entries)
        if not overwrite:
            raise ConfigError(
                f"nothing is overwritten unasked; {into} holds something else than this merge. "
                "Use --overwrite or another --into."
            )
    staging = into.with_name(f".{into.name}.merging")
    if _manifest(staging) != contents:
        shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True, exist_ok=True)
    run_folder.write_json(staging / MANIFEST, contents)
    for name, group in _shards(entries):
        if not records.sidecar_path(staging / name).exists():
            records.write_shard(staging / name, _fetch(group))
    _replace(into, staging)
    return len(entries)


def entries_of(folders: Sequence[str | os.PathLike[str]]) -> Iterator[Entry]:
    """All records of the folders; of each only what tells it from the others stays in memory."""
    for folder in folders:
        for shard in records.shards_of(folder):
            for number, record in enumerate(records.read_shard(shard)):
                sha256 = hashlib.sha256(records.to_json(record)).hexdigest()
                yield Entry(identity_of(record), sha256, shard, number)


def unique(entries: Iterator[Entry]) -> list[Entry]:
    """One entry per game, in the order of their identities.

    Raises:
      DataError: two records of one game differ, naming both.
    """
    found: dict[tuple, Entry] = {}
    for entry in entries:
        numbered = entry.identity[-1] >= 0
        known = found.setdefault((entry.identity, "" if numbered else entry.sha256), entry)
        if known.sha256 != entry.sha256:
            split, problem, seed, _, game = entry.identity
            raise DataError(
                f"one game has one record; {problem} ({split}, seed {seed}, game {game}) has two "
                f"that differ with the same settings: in {known.place} and in {entry.place}. "
                "Played by two models, or not in the same batches? Leave one out, or give "
                "searches different seeds."
            )
    return sorted(found.values())


def _shards(entries: Sequence[Entry]) -> Iterator[tuple[str, Sequence[Entry]]]:
    starts = range(0, len(entries), GAMES_PER_SHARD)
    for i, start in enumerate(starts):
        name = f"shard-{i:05d}-of-{len(starts):05d}{records.SUFFIX}"
        yield name, entries[start : start + GAMES_PER_SHARD]


def _fetch(entries: Sequence[Entry]) -> list[SearchRecord]:
    """The records of some entries, reading each shard that holds some of them once."""
    wanted: dict[Path, list[int]] = {}
    for i, entry in enumerate(entries):
        wanted.setdefault(entry.shard, []).append(i)
    found: dict[int, SearchRecord] = {}
    for shard, places in wanted.items():
        games = records.read_shard(shard)
        found |= {i: games[entries[i].number] for i in places}
    return [found[i] for i in range(len(entries))]


def _manifest(folder: Path) -> object:
    try:
        return run_folder.read_json(folder / MANIFEST)
    except (DataError, OSError):
        return None


def _is_whole(folder: Path, num_games: int) -> bool:
    try:
        return sum(1 for _ in records.read_folder(folder)) == num_games
    except DataError:
        return False


def _replace(into: Path, staging: Path) -> None:
    """Gives the merge its name; what was there before is moved away first, then deleted."""
    if into.exists():
        into.replace(_replaced(into))
    staging.replace(into)
    _recover(into)


def _recover(into: Path) -> None:
    """After a kill between the steps of `_replace`: the old folder again, or the new one alone."""
    if _replaced(into).exists() and not into.exists():
        _replaced(into).replace(into)
    shutil.rmtree(_replaced(into), ignore_errors=True)


def _replaced(into: Path) -> Path:
    return into.with_name(f".{into.name}.replaced")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m search.merge", description=__doc__)
    parser.add_argument("folders", nargs="+", help="folders of shards, run folders, or shards")
    parser.add_argument("--into", required=True, type=Path, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace what --into holds")
    arguments = parser.parse_args(argv)
    count = merge(arguments.folders, arguments.into, overwrite=arguments.overwrite)
    print(f"{count:,} games: {arguments.into}")


if __name__ == "__main__":
    load.main("search.merge", main)
