"""The page of evaluations: what is in it, and what it does in a browser (where there is one)."""

import base64
import json
import re
import zlib

import pytest

from data.errors import DataError
from evaluation import asking, view
from tests.search import browser
from train.errors import ConfigError

EVIL = "</script><img src=x onerror=alert(1)>{{data}}\n"


def sample(n, right, **fields):
    return asking.Sample(
        **{
            "id": f"mmlu/{n}", "category": ("anatomy", "law")[n % 2], "shown": f"question {n}?",
            "prompt_hash": "", "response": [[-1.5, True], [-2.0, False]],
            "scores": {"accuracy": float(right)}, "tokens": 1.0, **fields,
        }
    )  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    """Two runs of five questions: the first has 0 and 2 right, the second 0 and 1."""
    found = []
    for name, right in (("one", (0, 2)), ("two", (0, 1))):
        folder = tmp_path / name
        samples = [sample(n, n in right) for n in range(4)] + [sample(4, False, shown=EVIL)]
        asking.write_samples(folder / "samples" / "mmlu.jsonl", samples)
        answer = {
            "id": "gsm8k/test/0", "prompt": "2 and 2?", "completion": f"#### {name}",
            "correct": name == "one",
        }  # fmt: skip
        (folder / "samples" / "gsm8k-test-greedy.jsonl").write_text(json.dumps(answer) + "\n")
        found.append((name, folder))
    place = tmp_path / "one" / "mt_bench"
    for file, row in {
        "question.jsonl": {"question_id": 81, "category": "writing", "turns": ["First?", "Next?"]},
        "model_answer/m.jsonl": {
            "question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["A", "B"]}]},
        "model_judgment/j_single.jsonl": {
            "question_id": 81, "model": "m", "turn": 2, "score": 7, "judgment": "Good [[7]]"},
    }.items():  # fmt: skip
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(json.dumps(row) + "\n")
    return found


def content(page, name):
    packed = re.search(rf'id="{name}">([^<]*)<', page)[1]
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_the_page_holds_all_answers_and_fetches_nothing(runs):
    page = view.page(runs, title="a <&> b")
    assert page == view.page(runs, title="a <&> b")
    index, chunk = content(page, "index"), content(page, "chunk-0")
    assert index["runs"] == ["one", "two"]
    verdicts = {row[1]: row[4] for row in index["questions"]}
    assert verdicts["mmlu/0"] == [1, 1] and verdicts["mmlu/2"] == [1, 0]
    assert verdicts["gsm8k/test/0"] == [1, 0] and verdicts["81, turn 2"] == [None, None]
    details = dict(zip(verdicts, chunk, strict=True))
    assert details["gsm8k/test/0"]["answers"][1]["response"] == "#### two"
    judged = details["81, turn 2"]
    assert judged["shown"] == "First?\n\nNext?" and judged["answers"][1] is None
    assert judged["answers"][0]["response"] == "B"
    assert judged["answers"][0]["judgment"] == "Good [[7]]"
    assert "<title>a &lt;&amp;&gt; b · evaluation" in page and "{{" not in page
    assert not re.search(r"<(link|img|iframe)\b|<script[^>]*\bsrc|@import|url\(", page)


def test_the_command_says_what_is_missing(runs, tmp_path):
    out = tmp_path / "page.html"
    view.main([str(folder) for _, folder in runs] + ["--out", str(out)])
    before = out.read_text()
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        view.main([str(runs[0][1]), "--out", str(out)])
    assert out.read_text() == before
    with pytest.raises(DataError, match="no samples"):
        view.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "other.html")])


@pytest.mark.slow
@pytest.mark.skipif(browser.find() is None, reason="needs Chromium: apt install chromium")
def test_a_browser_filters_and_shows(runs, tmp_path):
    out = tmp_path / "page.html"
    out.write_text(view.page(runs, title="runs"), "utf-8")
    page = browser.Browser(browser.find(), tmp_path / "profile")
    try:
        page.open(out, "document.querySelector('#game .prompt')")
        assert page.run("at('count').textContent") == "7 questions"
        page.run("at('outcome').value = 'differ'; filter()")
        assert page.run("state.found.map((one) => one.id)") == ["gsm8k/test/0", "mmlu/1", "mmlu/2"]
        page.run(
            "at('task').value = 'mmlu'; fillCategories(); at('category').value = 'law'; filter()"
        )
        assert page.run("state.found.map((one) => one.id)") == ["mmlu/1"]
        page.run(
            "at('outcome').value = 'all'; at('category').value = ''; at('text').value = 'onerror'"
        )
        page.run("filter()")
        page.run("show()")
        assert page.run("document.querySelector('#game .prompt').textContent") == EVIL
        assert page.run("document.querySelectorAll('#game .run').length") == 2
        page.run("at('text').value = 'next?'; at('task').value = ''; filter()")
        page.run("show()")
        assert page.run("document.querySelector('#game .judgment').textContent") == "Good [[7]]"
        assert page.errors == [] and all(url.startswith("file:") for url in page.requested)
    finally:
        page.close()
