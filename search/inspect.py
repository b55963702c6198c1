"""`python -m search.inspect FILE|FOLDER...`: what some records hold; needs no model.

`--problem ID` prints the games of one problem, each with its trees.
"""

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence

from configs import load
from data import record_statistics, record_text
from data.errors import DataError
from data.record_statistics import Share, Statistics
from data.records import Position, SearchRecord, Tree
from data.tokenizer import Tokenizer
from search import record_sources

BAR_CHARACTERS = 32


def overview(stats: Statistics) -> Iterator[str]:
    """The lines of a summary."""
    yield f"games        {stats.games:,} of {stats.problems:,} problems ({', '.join(stats.splits)})"
    yield f"solved       {percentage(stats.solved)}"
    yield f"  problems   {percentage(stats.problems_solved)}"
    yield f"  found      {percentage(stats.found)}  (the game or a finished text of its search)"
    if stats.greedy.of:
        yield (
            f"  greedy     {percentage(stats.greedy)}  (likeliest path, where the tree has its "
            f"end; search there {percentage(stats.solved_beside_greedy)})"
        )
    yield f"positions    {stats.positions:,}"
    yield f"candidates   {stats.candidates:,}"
    yield f"leaves       {stats.leaves:,}, {stats.solved_leaves:,} of them right"
    yield f"tree nodes   {stats.tree_nodes:,}"
    yield (
        f"tokens       {stats.prompt_tokens:,} of prompts, {stats.completion_tokens:,} of "
        f"completions, {stats.mean_tokens:.1f} a game"
    )
    if stats.depth:
        yield ""
        yield "depth: tree nodes by moves below their root"
        yield from bars([str(d) for d in range(len(stats.depth))], stats.depth)
    if stats.visits:
        yield ""
        yield f"visits of {'tree nodes' if stats.depth else 'candidates'}"
        labels = [
            f"{2**i}" if not i else f"{2**i}-{2 ** (i + 1) - 1}" for i in range(len(stats.visits))
        ]
        yield from bars(labels, stats.visits)
    if stats.brier is not None:
        yield ""
        yield f"value of a position against the end of its game; Brier score {stats.brier:.4f}"
        filled = [b for b in stats.calibration if b.solved.of]
        labels = [f"{b.low:.1f}-{b.high:.1f}" for b in filled]
        texts = [f"{b.mean_value:.2f} said, solved {percentage(b.solved)}" for b in filled]
        yield from bars(labels, [b.solved.share or 0 for b in filled], texts, largest=1)


def percentage(share: Share) -> str:
    """Such as: 12.5% (4-32), 2 of 16."""
    if share.share is None or share.low is None or share.high is None:
        return "not checked"
    return (
        f"{100 * share.share:.1f}% ({100 * share.low:.0f}-{100 * share.high:.0f}), "
        f"{share.num:,} of {share.of:,}"
    )


def bars(
    labels: Sequence[str],
    numbers: Sequence[float | int],
    texts: Sequence[str] | None = None,
    *,
    largest: float | int | None = None,
) -> Iterator[str]:
    """Horizontal bars of block characters, to an eighth of one."""
    largest = largest or max(numbers, default=0) or 1
    width = max(map(len, labels), default=0)
    for i, (label, number) in enumerate(zip(labels, numbers, strict=True)):
        eighths = round(8 * BAR_CHARACTERS * number / largest)
        bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        yield f"  {label:>{width}}  {bar:<{BAR_CHARACTERS}}  {texts[i] if texts else f'{number:,}'}"


# --------------------------------------------------------------------------- one game as text


def game_lines(game: SearchRecord, text: Tokenizer | None, *, width: int) -> Iterator[str]:
    """One game: its texts, and a table of candidates and a tree per position."""
    number = "" if game.game is None else f", game {game.game}"
    yield f"{game.problem_id}  ({game.split}, seed {game.seed}{number}): {_verdict(game.outcome)}"
    yield from ("  | " + line for line in (game.prompt + game.completion).splitlines())
    for move, position in enumerate(game.positions):
        yield ""
        yield f"move {move + 1}, after {position.offset} tokens: value {position.root_value:.3f}"
        yield "   visits  prior  weight  candidate"
        texts = (
            record_text.candidate_texts(game, position, text)
            if text
            else [None] * len(position.visits)
        )
        rows = zip(
            position.visits,
            position.prior,
            position.weights,
            texts,
            position.candidates,
            strict=False,
        )
        for visits, prior, weight, said, tokens in rows:
            yield f"  {visits:7} {prior:6.3f} {weight:7.3f}  {_shown(said, tokens)}"
        yield f"  {'':7} {'':6} {position.weights[-1]:7.3f}  all else"
        if game.trees:
            yield "   visits  prior      q"
            for line in tree_lines(game, move, game.trees[move], position, text):
                yield line if len(line) <= width else line[: width - 1] + "…"


def tree_lines(
    game: SearchRecord, move: int, tree: Tree, position: Position, text: Tokenizer | None
) -> Iterator[str]:
    """A tree, the most visited children first; ● are played, ○ the likeliest path."""
    texts = (
        record_text.edge_texts(game, position, tree, text) if text else [None] * len(tree.parent)
    )
    children = record_statistics.children_of(tree)
    chosen = set(record_statistics.chosen_path(game, move))
    greedy = set(record_statistics.greedy_path(tree))
    qs = record_statistics.q_values(game, tree)
    waiting = [(0, "", "")]
    while waiting:
        node, stem, below = waiting.pop()
        q = qs[node]
        worth = "     -" if q is None else f"{q:6.3f}"
        mark = "●" if node in chosen else "○" if node in greedy else " "
        said = _shown(texts[node], tree.edge_tokens[node]) if node else "·"
        ends = "" if tree.outcome[node] is None else f"  [{_verdict(tree.outcome[node])}]"
        yield f"  {tree.visits[node]:7} {tree.prior[node]:6.3f} {worth} {mark} {stem}{said}{ends}"
        ordered = sorted(children[node], key=lambda child: (tree.visits[child], -child))
        for i, child in enumerate(ordered):  # the last is popped first
            joint, line = ("└ ", "  ") if i == 0 else ("├ ", "│ ")
            waiting.append((child, below + joint, below + line))


def _shown(text: str | None, tokens: Sequence[int]) -> str:
    if text is None:
        return "tokens " + " ".join(map(str, tokens))
    return text.strip("\n").replace("\n", " ⏎ ") or "(end)"


def _verdict(outcome: float | None) -> str:
    return "not checked" if outcome is None else "right" if outcome else "wrong"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m search.inspect", description=__doc__)
    record_sources.add_arguments(parser)
    parser.add_argument("--problem", metavar="ID", help="print the games of this problem")
    arguments = parser.parse_args(argv)
    games = record_sources.read(arguments)
    if arguments.problem is None:
        print("\n".join(overview(record_statistics.statistics(games))))
        return
    print_problem(games, arguments.problem, arguments.tokenizer)


def print_problem(games: Iterable[SearchRecord], problem_id: str, tokenizer: str | None) -> None:
    """Raises DataError where no game is of that problem."""
    width = max(shutil.get_terminal_size((120, 40)).columns, 60)
    played = [game for game in games if game.problem_id == problem_id]
    if not played:
        raise DataError(
            f"--problem names one that was played; got {problem_id!r}, of which there is no "
            "record. Look at the ids of the records."
        )
    for i, (game, text) in enumerate(record_sources.tokenizers_of(played, tokenizer)):
        print("\n".join(["", ""][: 2 * min(i, 1)] + list(game_lines(game, text, width=width))))


if __name__ == "__main__":
    load.main("search.inspect", main)
