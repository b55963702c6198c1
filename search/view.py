"""`python -m search.view RECORDS... [--out FILE.html]`: one page to look at searches with.

Pick a game, see the tree of each of its moves, the path that was played and the model's likeliest
one, and the run in four drawings. The page needs no server and fetches nothing: the records are in
it as deflated JSON, in parts that are read when they are looked at.
"""

import argparse
import base64
import dataclasses
import html
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from configs import load
from data import record_statistics, record_text, records
from data.records import Position, SearchRecord, Tree
from data.tokenizer import Tokenizer
from search import record_sources
from train.errors import ConfigError

PAGE = Path(__file__).resolve().parent / "page"
SCRIPTS = ("data.js", "tree.js", "game.js", "charts.js", "main.js")
GAMES_PER_CHUNK = 24
COLUMNS = (
    "id", "split", "seed", "game", "prompt", "answer", "outcome", "value", "greedy", "skipped",
    "tokens",
)  # fmt: skip


def page(games: Iterable[SearchRecord], *, title: str, tokenizer: str | None = None) -> str:
    """The page of some games. Equal games give equal bytes.

    Args:
      tokenizer: see `record_sources.tokenizer_of`; where there is none, token ids stand for texts.
    """
    played = list(games)
    index = {
        "columns": COLUMNS,
        "games": [_index_row(game) for game in played],
        "games_per_chunk": GAMES_PER_CHUNK,
        "statistics": dataclasses.asdict(record_statistics.statistics(played)),
    }
    details = (
        game_details(game, text) for game, text in record_sources.tokenizers_of(played, tokenizer)
    )
    parts = [part("index", index)]
    for i in itertools.count():
        if not (chunk := list(itertools.islice(details, GAMES_PER_CHUNK))):
            break
        parts.append(part(f"chunk-{i}", chunk))
    return filled(PAGE / "view.html", title, [PAGE / name for name in SCRIPTS], parts)


def filled(page_file: Path, title: str, scripts: Iterable[Path], parts: Iterable[str]) -> str:
    """A page in one file: its HTML with the style of all pages, its scripts and its data."""
    fillings = {
        "title": html.escape(title),
        "style": (PAGE / "view.css").read_text("utf-8"),
        "script": "\n".join(script.read_text("utf-8") for script in scripts),
        "data": "\n".join(parts),
    }
    found = page_file.read_text("utf-8")
    for name in ("title", "style", "script", "data"):  # the data last: nothing in it is replaced
        found = found.replace("{{" + name + "}}", fillings[name])
    return found


def part(name: str, content: Any) -> str:
    """JSON that a page unpacks; base64 holds nothing that could end the element."""
    plain = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(zlib.compress(plain.encode(), 9)).decode()
    return f'<script type="application/octet-stream" id="{name}">{packed}</script>'


def _index_row(game: SearchRecord) -> list[Any]:
    """What the list and its filters need, in the order of `COLUMNS`."""
    first = game.positions[0] if game.positions else None
    return [
        game.problem_id,
        game.split,
        game.seed,
        game.game,
        game.prompt,
        game.completion,
        game.outcome,
        first.root_value if first else None,
        record_statistics.greedy_outcome(game),
        bool(first and first.offset),
        len(game.completion_tokens),
    ]


def game_details(game: SearchRecord, text: Tokenizer | None) -> dict[str, Any]:
    """The searched moves of a game, as the page shows them."""
    moves = []
    for move, position in enumerate(game.positions):
        tree = game.trees[move] if game.trees else None
        texts = record_text.candidate_texts(game, position, text) if text else None
        moves.append(
            {
                "value": position.root_value,
                "candidates": {
                    "text": _said(texts, position.candidates),
                    "prior": position.prior,
                    "weights": position.weights,
                    "visits": position.visits,
                },
                "tree": tree and _tree(game, position, tree, text),
                "chosen": record_statistics.chosen_path(game, move) if tree else [],
                "greedy": record_statistics.greedy_path(tree) if tree else [],
                "ended": _ended(tree, text) if tree else [],
            }
        )
    return {"moves": moves, "skipped": _moves_before(game)}


def _tree(
    game: SearchRecord, position: Position, tree: Tree, text: Tokenizer | None
) -> dict[str, Sequence[Any]]:
    texts = record_text.edge_texts(game, position, tree, text) if text else None
    return {
        "parent": tree.parent,
        "text": _said(texts, tree.edge_tokens),
        "prior": tree.prior,
        "visits": tree.visits,
        "q": record_statistics.q_values(game, tree),
        "value": tree.value,
        "outcome": tree.outcome,
    }


def _said(texts: Sequence[str | None] | None, runs: Sequence[tuple[int, ...]]) -> list[str]:
    """Texts, and the ids of runs that have none."""
    known = texts or [None] * len(runs)
    pairs = zip(known, runs, strict=True)
    return ["·".join(map(str, run)) if said is None else said for said, run in pairs]


def _ended(tree: Tree, text: Tokenizer | None) -> list[int]:
    """Nodes whose text is finished, as far as that can be told."""
    ends = (text.eos_id,) if text else ()
    return [
        node
        for node, edge in enumerate(tree.edge_tokens)
        if tree.outcome[node] is not None or (edge and edge[-1] in ends)
    ]


def _moves_before(game: SearchRecord) -> int:
    """Moves that were drawn before the first searched one: lines, if that is what moves are."""
    if not game.positions or not game.positions[0].offset:
        return 0
    searched = len(game.positions)
    return max(len(game.completion.splitlines()) - searched, 1)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(content, "utf-8")
    records.commit(partial, path)


def _titles(paths: Sequence[str]) -> Iterator[str]:
    """Names of the runs: of folders, without the `records` in them."""
    for path in map(Path, paths):
        parts = [part for part in path.resolve().parts if part != "records"]
        yield parts[-1].removesuffix(records.SUFFIX)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m search.view", description=__doc__)
    record_sources.add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/view.html"), metavar="FILE.html")
    parser.add_argument("--title", help="heading of the page (the names of the runs)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")
    arguments = parser.parse_args(argv)
    if arguments.out.exists() and not arguments.overwrite:
        raise ConfigError(
            f"nothing is overwritten unasked; {arguments.out} exists. Use --overwrite or another "
            "--out."
        )
    title = arguments.title or ", ".join(_titles(arguments.records))
    games = record_sources.read(arguments)
    write(arguments.out, page(games, title=title, tokenizer=arguments.tokenizer))
    size = arguments.out.stat().st_size / 1e6
    print(f"page: {arguments.out} ({size:.1f} MB); open it in a browser")


if __name__ == "__main__":
    load.main("search.view", main)
