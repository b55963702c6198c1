"""Search records as rows of plain columns, for programs that know nothing of this one.

    games      the fields of the record, and beside every run of tokens its text
    positions  one searched position: the text before it, its candidates and what became of them
    leaves     one finished text and its outcome

A game's row gives its record back, whatever texts stand beside (`game_of_row`).
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from data import record_text, search_record
from data.errors import DataError
from data.search_record import SearchRecord
from data.tokenizer import Tokenizer

Kind = Literal["games", "positions", "leaves"]
Row = dict[str, Any]

_GAMES_PER_GROUP = 500


def rows_of(game: SearchRecord, kind: Kind, text: Tokenizer | None) -> Iterator[Row]:
    """The rows of one game; without a tokenizer the texts of runs are null."""
    if kind == "games":
        yield _game_row(game, text)
    elif kind == "positions":
        yield from _position_rows(game, text)
    else:
        yield from _leaf_rows(game, text)


def _game_row(game: SearchRecord, text: Tokenizer | None) -> Row:
    row = search_record.to_fields(game)
    for i, position in enumerate(game.positions):
        row["positions"][i]["candidate_texts"] = (
            record_text.candidate_texts(game, position, text) if text else None
        )
        if game.trees:
            tree = game.trees[i]
            row["trees"][i]["edge_texts"] = (
                record_text.edge_texts(game, position, tree, text) if text else None
            )
    for leaf in row["leaves"]:
        leaf["text"] = text.decode(leaf["tokens"]) if text else None
    return row


def game_of_row(row: Row) -> SearchRecord:
    """The record of a row of a game, exactly.

    Raises:
      DataError: if it is no such row.
    """
    try:
        fields = {name: value for name, value in row.items() if value is not None}
        fields["outcome"] = row["outcome"]
        fields["positions"] = [_without(part, "candidate_texts") for part in row["positions"]]
        fields["trees"] = [_without(part, "edge_texts") for part in row["trees"]]
        fields["leaves"] = [_without(part, "text") for part in row["leaves"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"a row of a game has the columns of a record; got none of {error}. "
            "Export with --rows games to get records back."
        ) from error
    return search_record.from_fields(fields)


def _without(part: Row, name: str) -> Row:
    """Without the texts, and without optional columns that hold nothing."""
    return {
        key: value for key, value in part.items() if key != name and (key, value) != ("q", None)
    }


def _of_game(game: SearchRecord) -> Row:
    return {
        "problem_id": game.problem_id,
        "split": game.split,
        "seed": game.seed,
        "game": game.game,
        "tokenizer": game.tokenizer,
        "prompt": game.prompt,
        "prompt_tokens": list(game.prompt_tokens),
    }


def _position_rows(game: SearchRecord, text: Tokenizer | None) -> Iterator[Row]:
    fields = search_record.to_fields(game)["positions"]
    for move, (position, row) in enumerate(zip(game.positions, fields, strict=True)):
        before = game.completion_tokens[: position.offset]
        yield _of_game(game) | {
            "game_outcome": game.outcome,
            "move": move,
            "before": text.decode(before) if text else None,
            "before_tokens": list(before),
            "candidate_texts": record_text.candidate_texts(game, position, text) if text else None,
            **row,
        }


def _leaf_rows(game: SearchRecord, text: Tokenizer | None) -> Iterator[Row]:
    for leaf in game.leaves:
        yield _of_game(game) | {
            "text": text.decode(leaf.tokens) if text else None,
            "tokens": list(leaf.tokens),
            "outcome": leaf.outcome,
        }


# -------------------------------------------------------------------------------- JSON lines


def to_json_line(row: Row) -> bytes:
    return (
        json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    )


def read_json_lines(path: str) -> Iterator[SearchRecord]:
    """The records of exported rows of games.

    Raises:
      DataError: naming the first line that is not one.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"got a {type(row).__name__}, not an object")
                yield game_of_row(row)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {error}") from error


# ----------------------------------------------------------------------------------- Parquet

_TOKENS = pa.list_(pa.int32())
_GAME_COLUMNS = {
    "problem_id": pa.string(), "split": pa.string(), "seed": pa.int64(), "game": pa.int64(),
    "tokenizer": pa.string(), "prompt": pa.string(), "prompt_tokens": _TOKENS,
}  # fmt: skip
_POSITION = {
    "offset": pa.int32(), "candidates": pa.list_(_TOKENS), "weights": pa.list_(pa.float64()),
    "visits": pa.list_(pa.int64()), "root_value": pa.float64(), "prior": pa.list_(pa.float64()),
    "candidate_texts": pa.list_(pa.string()),
}  # fmt: skip
_LEAF = {"tokens": _TOKENS, "outcome": pa.float64(), "text": pa.string()}
_TREE = {
    "parent": pa.list_(pa.int32()), "edge_tokens": pa.list_(_TOKENS),
    "prior": pa.list_(pa.float64()), "visits": pa.list_(pa.int64()),
    "value": pa.list_(pa.float64()), "outcome": pa.list_(pa.float64()),
    "q": pa.list_(pa.float64()), "edge_texts": pa.list_(pa.string()),
}  # fmt: skip

SCHEMAS: dict[Kind, pa.Schema] = {
    "games": pa.schema(
        _GAME_COLUMNS
        | {
            "completion": pa.string(),
            "completion_tokens": _TOKENS,
            "outcome": pa.float64(),
            "settings": pa.string(),  # JSON: its fields are those of a config and may be any
            "positions": pa.list_(pa.struct(_POSITION)),
            "leaves": pa.list_(pa.struct(_LEAF)),
            "trees": pa.list_(pa.struct(_TREE)),
            "schema_version": pa.int32(),
        }
    ),
    "positions": pa.schema(
        _GAME_COLUMNS
        | {"game_outcome": pa.float64(), "move": pa.int32(), "before": pa.string()}
        | {"before_tokens": _TOKENS}
        | _POSITION
    ),
    "leaves": pa.schema(_GAME_COLUMNS | _LEAF),
}


def write_parquet(path: str, rows: Iterable[Row], kind: Kind) -> int:
    """Writes a Parquet file with nested columns, a part at a time; returns the number of rows."""
    count = 0
    with pyarrow.parquet.ParquetWriter(path, SCHEMAS[kind], compression="zstd") as writer:
        waiting: list[Row] = []
        for row in rows:
            count += 1
            if "settings" in row:
                row = row | {"settings": json.dumps(row["settings"], ensure_ascii=False)}
            waiting.append(row)
            if len(waiting) == _GAMES_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(waiting, SCHEMAS[kind]))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, SCHEMAS[kind]))
    return count


def read_parquet(path: str) -> Iterator[SearchRecord]:
    """The records of exported rows of games.

    Raises:
      DataError: if it is no such file.
    """
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"rows of games are read from a Parquet file; got {path}: {error}."
        ) from error
    if file.schema_arrow.names != SCHEMAS["games"].names:
        raise DataError(
            f"records come back from rows of games; got {path} with the columns "
            f"{file.schema_arrow.names}. Export with --rows games."
        )
    for batch in file.iter_batches(_GAMES_PER_GROUP):
        for row in batch.to_pylist():
            yield game_of_row(row | {"settings": json.loads(row["settings"])})
