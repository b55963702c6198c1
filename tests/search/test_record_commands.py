"""`search.inspect` and `search.export` as a user meets them; none needs a model."""

import dataclasses
import json

import pyarrow.parquet
import pytest

from configs import load
from data import record_tables, record_text, records
from data.errors import DataError
from search import export, inspect
from tests.data import synthetic_records
from train.errors import EXIT_CONFIG, EXIT_DATA, EXIT_OK

WORDS = synthetic_records.TOKENIZER
GAMES = [synthetic_records.random_record(seed) for seed in range(4)]
GAMES += [
    synthetic_records.solved_record(),
    dataclasses.replace(GAMES[1], prompt="é\u2028\n", settings={"a": {"b": [1, 0.5, None]}}),
    dataclasses.replace(GAMES[2], outcome=None, positions=(), trees=(), leaves=(), game=7),
    dataclasses.replace(
        GAMES[3], trees=tuple(dataclasses.replace(t, q=()) for t in GAMES[3].trees)
    ),
]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "records" / "a.arrayrecord"
    records.write_shard(path, GAMES)
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(module, *arguments)` -> (exit code, what it printed, its errors)."""

    def run(module, *arguments):
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            load.main("command", module.main)
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_games_come_back_exactly(command, shard, tmp_path, suffix):
    file, folder = tmp_path / f"games.{suffix}", tmp_path / "again"
    code, out, _ = command(export, shard.parent, "--to", file)
    assert (code, out.splitlines()[0]) == (EXIT_OK, f"8 rows of games: {file}")
    assert "1 games name no tokenizer" in out
    assert command(export, "--from", file, "--to", folder)[0] == EXIT_OK
    (again,) = folder.glob("*.arrayrecord")
    assert records.read_shard(again) == GAMES
    for one, other in zip(records.read_shard(again), GAMES):
        assert records.to_json(one) == records.to_json(other)
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.partial"))


def test_rows_hold_the_texts_of_all_token_runs(command, shard, tmp_path):
    file = tmp_path / "games.jsonl"
    command(export, shard, "--to", file)
    row = json.loads(file.read_bytes().split(b"\n")[0])
    position, tree = row["positions"][1], row["trees"][1]
    before = WORDS.decode(GAMES[0].completion_tokens[: position["offset"]])
    for text, run in zip(position["candidate_texts"], position["candidates"]):
        after = WORDS.decode([*GAMES[0].completion_tokens[: position["offset"]], *run])
        assert before + text == after
    assert tree["edge_texts"] == record_text.edge_texts(
        GAMES[0], GAMES[0].positions[1], GAMES[0].trees[1], WORDS
    )
    assert row["leaves"][0]["text"] == WORDS.decode(row["leaves"][0]["tokens"])
    strange = json.loads(file.read_bytes().split(b"\n")[5])  # fits no tokenizer
    assert strange["positions"][0]["candidate_texts"] is strange["leaves"][0]["text"] is None


def test_parquet_has_nested_columns(command, shard, tmp_path):
    for kind in ("games", "positions", "leaves"):
        command(export, shard, "--to", tmp_path / f"{kind}.parquet", "--rows", kind)
        command(export, shard, "--to", tmp_path / f"{kind}.jsonl", "--rows", kind)
        table = pyarrow.parquet.read_table(tmp_path / f"{kind}.parquet")
        rows = (tmp_path / f"{kind}.jsonl").read_bytes().split(b"\n")[:-1]
        lines = [json.loads(row) for row in rows]
        assert table.num_rows == len(lines)
        if kind != "games":
            names = table.column_names
            assert table.to_pylist() == [{name: line.get(name) for name in names} for line in lines]
            assert all(set(line) <= set(names) for line in lines)
    games = pyarrow.parquet.read_table(tmp_path / "games.parquet")
    assert str(games.schema.field("positions").type).startswith(
        "list<element: struct<offset: int32"
    )
    positions = pyarrow.parquet.read_table(tmp_path / "positions.parquet").to_pylist()
    assert len(positions) == sum(len(game.positions) for game in GAMES)
    assert positions[1]["before"] == GAMES[0].completion.split("\n")[0] + "\n"
    assert positions[1]["game_outcome"] == GAMES[0].outcome


def test_an_export_overwrites_nothing_and_refuses_what_it_cannot_do(command, shard, tmp_path):
    file = tmp_path / "games.jsonl"
    file.write_text("mine")
    for arguments, message in (
        ((shard, "--to", file), "--overwrite"),
        ((shard, "--to", tmp_path / "games.csv"), "Rename"),
        ((shard, "--from", file, "--to", tmp_path / "x"), "got both"),
        (("--to", file), "got neither"),
        (("--from", tmp_path / "no.jsonl", "--to", tmp_path / "x"), "Correct the path"),
        (("--from", file, "--to", shard.parent), "without other records"),
        (("--from", file, "--to", tmp_path / "x.jsonl"), "Name a folder"),
    ):
        code, _, error = command(export, *arguments)
        assert (code, message in error) == (EXIT_CONFIG, True), error
    assert file.read_text() == "mine"
    code, _, error = command(export, "--from", file, "--to", tmp_path / "x")
    assert (code, f"{file}, line 1" in error) == (EXIT_DATA, True)
    assert not (tmp_path / "x").exists()
    command(export, shard, "--to", file, "--overwrite", "--rows", "leaves")
    code, _, error = command(export, "--from", file, "--to", tmp_path / "x")
    assert (code, "--rows games" in error) == (EXIT_DATA, True)
    shard.write_bytes(b"torn")
    before = file.read_bytes()
    assert command(export, shard, "--to", file, "--overwrite")[0] == EXIT_DATA
    assert file.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_a_changed_row_is_refused():
    row = next(record_tables.rows_of(GAMES[0], "games", WORDS))
    assert record_tables.game_of_row(row) == GAMES[0]
    for change in ({"positions": None}, {"extra": 1}, {"outcome": 0.5}, {"schema_version": 9}):
        with pytest.raises(DataError):
            record_tables.game_of_row(row | change)


def test_inspect_summarises(command, shard):
    code, out, _ = command(inspect, shard.parent)
    assert code == EXIT_OK
    solved = sum(game.outcome == 1 for game in GAMES)
    assert f"{solved:,} of 7" in out.splitlines()[1]
    assert "depth: tree nodes by moves below their root" in out
    assert "visits of tree nodes" in out and "█" in out
    assert f"games        8 of {len({game.problem_id for game in GAMES})} problems (train)" in out
    assert "Brier score" in out
    assert command(inspect, shard, shard.parent)[1].startswith("games        16 of")
    code, _, error = command(inspect, shard.parent / "nowhere")
    assert (code, error.count("\n")) == (EXIT_DATA, 1)


def test_inspect_prints_a_game_with_its_trees(command, shard):
    game = GAMES[0]
    code, out, _ = command(inspect, shard, "--problem", game.problem_id)
    assert code == EXIT_OK
    for text in (game.prompt.strip(), *game.completion.split("\n")):
        assert text in out
    edges = [WORDS.decode(edge).strip() for edge in game.trees[0].edge_tokens[1:]]
    assert all(edge in out for edge in edges)
    lines = out.splitlines()
    root = next(i for i, line in enumerate(lines) if line.endswith("·"))
    tree = [line for line in lines[root + 1 :] if "─" in line or "├" in line or "└" in line]
    assert sum("├" in line or "└" in line for line in tree) == sum(
        len(tree.parent) - 1 for tree in game.trees
    )
    strange = GAMES[5].problem_id  # the text of one of its games fits no tokenizer: ids are shown
    assert "tokens " in command(inspect, shard, "--problem", strange)[1]
    code, _, error = command(inspect, shard, "--problem", "game24/nothing")
    assert (code, "no record" in error) == (EXIT_DATA, True)


def test_bars_are_as_long_as_their_numbers():
    lines = list(inspect.bars(["a", "bb", "c"], [0, 8, 1]))
    assert [line.count("█") for line in lines] == [0, inspect.BAR_CHARACTERS, 4]
    assert lines[1].startswith("  bb  █") and lines[1].endswith("  8")


def test_games_without_an_oracle_are_judged_by_the_checker_of_their_problems(command, tmp_path):
    from data import problems

    problem = problems.load_problems("game24", "train")[0]
    numbers = problem.prompt.text
    solved = synthetic_records.solved_record()
    game = dataclasses.replace(
        solved,
        problem_id=problem.prompt.id,
        prompt=numbers,
        prompt_tokens=tuple(WORDS.encode(numbers)),
        outcome=None,
        leaves=tuple(dataclasses.replace(leaf, outcome=None) for leaf in solved.leaves),
    )
    records.write_shard(tmp_path / "a.arrayrecord", [game])
    assert "solved       not checked" in command(inspect, tmp_path)[1]
    assert "solved       0.0% (0-79), 0 of 1" in command(inspect, tmp_path, "--check", "game24")[1]
    judged = record_text.judge(game, lambda text: text == solved.completion, WORDS)
    assert (judged.outcome, [leaf.outcome for leaf in judged.leaves]) == (1.0, [1.0, 0.0])
    code, _, error = command(inspect, tmp_path, "--check", "game42")
    assert (code, "game24" in error) == (EXIT_DATA, True)
    other = dataclasses.replace(game, problem_id="game24/0-0-0-0")
    records.write_shard(tmp_path / "a.arrayrecord", [other])
    code, _, error = command(inspect, tmp_path, "--check", "game24")
    assert (code, "Leave --check out" in error) == (EXIT_DATA, True)
