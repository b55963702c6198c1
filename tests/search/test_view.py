"""The page of records: what is in it, and what it does in a browser (where there is one)."""

import base64
import dataclasses
import json
import re
import zlib

import pytest

from configs import load
from data import records
from search import view
from tests.data import synthetic_records
from tests.search import browser
from train.errors import EXIT_CONFIG, EXIT_OK

GAMES = [synthetic_records.random_record(seed) for seed in range(30)]
EVIL = "</script><img src=x onerror=alert(1)>{{data}}\n"
GAMES[7] = dataclasses.replace(GAMES[7], prompt=EVIL, tokenizer=None, problem_id="evil & <b>")
SOLVED = [i for i, game in enumerate(GAMES) if game.outcome == 1]


def content(page, name):
    packed = re.search(rf'id="{name}">([^<]*)<', page)[1]
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_the_page_holds_the_games_and_fetches_nothing():
    page = view.page(GAMES, title="runs <&>")
    assert page == view.page(iter(GAMES), title="runs <&>")
    index, chunks = content(page, "index"), [content(page, f"chunk-{i}") for i in range(2)]
    assert [len(chunk) for chunk in chunks] == [24, 6]
    rows = [dict(zip(index["columns"], row, strict=True)) for row in index["games"]]
    assert [row["answer"] for row in rows] == [game.completion for game in GAMES]
    assert [row["value"] for row in rows] == [game.positions[0].root_value for game in GAMES]
    assert index["statistics"]["games"] == 30
    move = chunks[0][0]["moves"][1]
    first = GAMES[0]
    assert move["tree"]["visits"] == list(first.trees[1].visits)
    assert move["tree"]["q"] == list(first.trees[1].q)
    words = synthetic_records.TOKENIZER
    said = [words.decode(edge) for edge in first.trees[1].edge_tokens]
    assert [text.strip("\n") for text in move["tree"]["text"]] == [
        text.strip("\n") for text in said
    ]
    assert move["candidates"]["weights"] == list(first.positions[1].weights)
    assert chunks[0][7]["moves"][0]["tree"]["text"][1].count("·") > 2  # ids: no tokenizer fits
    assert "<title>runs &lt;&amp;&gt; " in page
    addresses = set(re.findall(r"\w+://[^\s\"'<]*", page)) - {"http://www.w3.org/2000/svg"}
    assert not addresses
    assert not re.search(r"<(link|img|iframe)\b|<script[^>]*\bsrc|@import|url\(", page)
    assert "{{" not in page


def test_a_tree_ends_where_the_text_does():
    record = synthetic_records.solved_record()
    details = view.game_details(record, synthetic_records.TOKENIZER)
    assert [move["tree"] for move in details["moves"]] == [None] * 3
    late = dataclasses.replace(record, positions=record.positions[1:])
    assert view.game_details(late, None)["skipped"] == 1
    game = GAMES[0]
    tree = game.trees[0]
    ended = view.game_details(game, synthetic_records.TOKENIZER)["moves"][0]["ended"]
    assert ended == [i for i, outcome in enumerate(tree.outcome) if outcome is not None]


def test_the_command(tmp_path, monkeypatch, capsys):
    records.write_shard(tmp_path / "run" / "records" / "a.arrayrecord", GAMES[:3])
    out = tmp_path / "new" / "page.html"

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["view", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            load.main("search.view", view.main)
        return stopped.value.code, *capsys.readouterr()

    code, printed, _ = run(tmp_path / "run" / "records", "--out", out)
    assert (code, str(out) in printed) == (EXIT_OK, True)
    assert out.read_text() == view.page(GAMES[:3], title="run")
    code, _, error = run(tmp_path / "run" / "records", "--out", out)
    assert (code, "--overwrite" in error) == (EXIT_CONFIG, True)
    assert run(tmp_path / "run" / "records", "--out", out, "--overwrite", "--title", "T")[0] == 0
    assert "<title>T " in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of `GAMES`, open in a browser."""
    executable = browser.find()
    if executable is None:
        pytest.skip(f"needs a browser, one of {', '.join(browser.NAMES)}; install chromium")
    folder = tmp_path_factory.mktemp("view")
    view.write(folder / "page.html", view.page(GAMES, title="thirty games"))
    opened = browser.Browser(executable, folder / "profile")
    opened.size(1300, 800)
    opened.open(folder / "page.html", "document.documentElement.dataset.ready")
    yield opened
    opened.close()


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")


def click(page, selector):
    page.run(f"document.querySelector({json.dumps(selector)}).click()")
    page.run("new Promise(resolve => setTimeout(resolve, 60))")


def write_filter(page, words):
    page.run(f"byId('text').value = {json.dumps(words)}")
    page.run("byId('text').dispatchEvent(new Event('input')), applyFilters()")


def test_it_renders_expands_filters_and_listens_to_keys(page):
    # Renders: the list, the two answers, the tree of the first move with the played path marked.
    assert texts(page, "h1") == ["thirty games"]
    assert texts(page, ".row .prompt")[0].strip() == GAMES[0].prompt.strip()
    assert texts(page, ".searched pre") == [GAMES[0].completion]
    assert len(texts(page, ".moves button")) == len(GAMES[0].positions)
    tree = GAMES[0].trees[0]
    assert page.run("document.querySelectorAll('.node.chosen').length") == page.run(
        "shown.details.moves[0].chosen.length"
    )

    # Expands: all nodes, only the root's children, one node by a click and by the keys.
    page.press("e")
    assert len(texts(page, ".node")) == len(tree.parent)
    page.press("c")
    children = tree.parent.count(0)
    assert len(texts(page, ".node")) == 1 + children
    click(page, '.node[aria-expanded="false"]')
    opened = len(texts(page, ".node"))
    assert opened > 1 + children
    page.press("ArrowLeft")
    assert len(texts(page, ".node")) == 1 + children
    page.press("ArrowRight", "ArrowRight")
    assert len(texts(page, ".node")) == opened
    assert page.run("document.activeElement.ariaLevel") == "3"
    page.press("]")
    assert page.run("[...document.querySelectorAll('.moves button')].map(b => b.ariaSelected)")[
        :2
    ] == ["false", "true"]

    # Filters: by outcome, by text, by value.
    click(page, "#outcomes button[value=solved]")
    assert texts(page, "#count") == [f"{len(SOLVED)} of 30 games"]
    assert texts(page, ".searched pre") == [GAMES[SOLVED[0]].completion]
    click(page, "#outcomes button[value=all]")
    write_filter(page, GAMES[5].problem_id)
    same = [game for game in GAMES if GAMES[5].problem_id in game.problem_id]
    assert texts(page, "#count") == [f"{len(same)} of 30 games"]
    write_filter(page, "no such text")
    assert texts(page, "#count") == ["0 of 30 games"]
    assert "No game" in texts(page, "#game")[0]
    write_filter(page, "")
    page.run("byId('low').value = 0.5, byId('low').dispatchEvent(new Event('input')), 0")
    high = [game for game in GAMES if game.positions[0].root_value >= 0.5]
    assert 0 < len(high) < 30
    assert texts(page, "#count") == [f"{len(high)} of 30 games"]
    page.run("byId('low').value = 0, byId('low').dispatchEvent(new Event('input')), 0")

    # The next game, and text that looks like a page.
    page.run("select(games[0])")
    page.press("j")
    page.run("new Promise(resolve => setTimeout(resolve, 60))")
    assert texts(page, ".searched pre") == [GAMES[1].completion]
    page.run("select(games[7])")
    assert texts(page, ".problem") == [EVIL.strip()]
    assert page.run("document.querySelectorAll('img').length") == 0

    # The summary, light and dark, and nothing from elsewhere.
    page.press("s")
    assert page.run("document.querySelectorAll('#summary svg').length") == 4
    assert texts(page, ".counts b")[0] == "30"
    assert page.run("document.querySelectorAll('#games[hidden]').length") == 1
    colors = [page.run("getComputedStyle(document.body).backgroundColor")]
    page.press("t")
    colors.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(250, 249, 245)", "rgb(21, 23, 27)"]
    assert page.errors == []
    assert [address.partition(":")[0] for address in page.requested] == ["file"]
