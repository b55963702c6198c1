"""Where the commands that look at records find them: shards, folders of shards, run folders."""

import argparse
from collections.abc import Iterable, Iterator

from data import problems, record_text, records, tokenizer
from data.errors import DataError
from data.records import SearchRecord
from data.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser, *, num_records: str = "+") -> None:
    help_text = "shards, folders of shards, or run folders"
    parser.add_argument("records", nargs=num_records, help=help_text)
    parser.add_argument(
        "--check",
        metavar="PROBLEMS",
        help="problem set (such as game24) whose checker judges what was played without an oracle",
    )
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="of records that do not name theirs (found by itself)"
    )


def read(arguments: argparse.Namespace) -> Iterator[SearchRecord]:
    """All records that the arguments name, judged if they ask for it.

    Raises:
      DataError: as `records.read_shard`; or a problem is not in the set that judges.
    """
    checked = _Checked(arguments.check) if arguments.check else None
    for path in arguments.records:
        for record in records.read_folder(path):
            if checked:
                record = record_text.judge(
                    record, checked.of(record).verify, tokenizer_of(record, arguments.tokenizer)
                )
            yield record


def tokenizer_of(record: SearchRecord, name: str | None) -> Tokenizer:
    """The tokenizer of that name, or the one that the record names or fits.

    Raises:
      DataError: it does not fit the record.
    """
    if name is None:
        return record_text.tokenizer_of(record)
    found = tokenizer.load_tokenizer(name)
    if record_text.is_written_with(record, found):
        return found
    raise DataError(
        "the ids of a record decode to its texts with the tokenizer that it was searched with; "
        f"got {name!r} for {record.problem_id}. Name another one."
    )


def tokenizers_of(
    games: Iterable[SearchRecord], name: str | None
) -> Iterator[tuple[SearchRecord, Tokenizer | None]]:
    """Each game with its tokenizer; None where none is named and none of ours fits."""
    for game in games:
        try:
            yield game, tokenizer_of(game, name)
        except DataError:
            if name is not None:
                raise
            yield game, None


class _Checked:
    """The problems of a set by split and id, loaded split by split when they are asked for."""

    def __init__(self, problem_set: str):
        self._problem_set = problem_set
        self._splits: dict[str, dict[str, problems.Problem]] = {}

    def of(self, record: SearchRecord) -> problems.Problem:
        if record.split not in self._splits:
            found = problems.load_problems(self._problem_set, record.split)
            self._splits[record.split] = {problem.prompt.id: problem for problem in found}
        if record.problem_id not in self._splits[record.split]:
            raise DataError(
                f"records are judged by the problems they are of; got {record.problem_id}, which "
                f"is not in {self._problem_set} {record.split}. Leave --check out, or correct it."
            )
        return self._splits[record.split][record.problem_id]
