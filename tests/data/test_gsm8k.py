import json
import lzma

import pytest

from data import documents, files, gsm8k, math500, problems, tokenizer
from data.errors import DataError

BYTES = tokenizer.load_tokenizer("bytes")


def test_splits_are_disjoint_and_whole(data_file):
    for name in gsm8k.FILES.values():
        data_file(name)
    rows = {name: gsm8k.split(name) for name in gsm8k.SPLITS}
    assert {name: len(some) for name, some in rows.items()} == {
        "train": 6975, "validation": 498, "test": 1319,
    }  # fmt: skip
    questions = [row.question for some in rows.values() for row in some]
    assert len(set(questions)) == len(questions) == 8792
    assert rows["validation"][1].id == "gsm8k/train/29"
    assert rows["validation"][1] == gsm8k.train_row(29)


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k_flexible"])
def test_gsm8k_is_a_problem_set(data_file, name):
    data_file(gsm8k.FILES["test"])
    loaded = problems.load_problems(name, "test")
    assert loaded[0].prompt.id == "gsm8k/test/0" and loaded[0].prompt.text.endswith("market?\n")
    assert loaded[0].verify("#### $18.00") and not loaded[0].verify("#### 19")
    assert loaded[0].verify("It is 18") == (name == "gsm8k_flexible")


def test_math500_is_a_problem_set(data_file):
    data_file(math500.FILE)
    loaded = problems.load_problems("math500", "test")
    assert len(loaded) == len({one.prompt.id for one in loaded}) == 500
    assert loaded[0].prompt.id == "math500/test/precalculus/807.json"
    assert loaded[0].verify("so $\\boxed{(3, \\pi/2)}$") and not loaded[0].verify("$(3, \\pi/2)$")


def test_the_rest_of_math_is_split_as_gsm8k_is(tmp_path, monkeypatch):
    rows = [
        {"problem": f"{n}+0?", "answer": str(n), "unique_id": f"train/algebra/{n}.json"}
        for n in range(30)
    ]
    (tmp_path / "math").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "math" / "math500_train.jsonl.xz").write_bytes(lzma.compress(text.encode()))
    monkeypatch.setenv("TAYLORZERO_DATA", str(tmp_path))
    math500._rows.cache_clear()
    sizes = {name: len(problems.load_problems("math500", name)) for name in ("train", "validation")}
    assert sizes == {"train": 28, "validation": 2}
    held_out = problems.load_problems("math500", "validation")[1]
    assert held_out.prompt.id == "math500/train/algebra/29.json"
    assert held_out.prompt.text == "29+0?\n" and held_out.verify("\\boxed{29}")
    with pytest.raises(DataError, match="split of math500"):
        problems.load_problems("math500", "dev")
    math500._rows.cache_clear()


def test_missing_files_are_named_with_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TAYLORZERO_DATA", str(tmp_path))
    monkeypatch.setattr(files, "find", lambda name: None)
    for module in (gsm8k._file, math500._rows):
        module.cache_clear()
    for name, file in [("gsm8k", "gsm8k/test.jsonl"), ("math500", "math/math500_test.jsonl")]:
        with pytest.raises(DataError, match=f"{file}.*Put it there, set TAYLORZERO_DATA"):
            problems.load_problems(name, "test")
    with pytest.raises(DataError, match="split of gsm8k"):
        problems.load_problems("gsm8k", "dev")


def test_torn_files_are_named_with_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"question": "a\u2028b", "answer": "#### 1"}, ensure_ascii=False)
    path.write_text(good + "\n", encoding="utf-8")
    (row,) = files.read_json_lines(str(path), fields=("question", "answer"))
    assert row["question"] == "a\u2028b"
    for bad in ('{"question": "b"}', '{"question": "b", "ans', "[]", ""):
        path.write_text(f"{good}\n{bad}\n", encoding="utf-8")
        with pytest.raises(DataError, match="line 2"):
            files.read_json_lines(str(path), fields=("question", "answer"))
    with pytest.raises(DataError, match="ends with ####"):
        _ = gsm8k.Row("gsm8k/train/0", "How many?", "many").gold


def test_the_source_counts_the_solutions(monkeypatch):
    rows = (gsm8k.Row("a", "What?", "1+1 = <<1+1=2>>2\n#### 2"), gsm8k.Row("b", "Ö?", "#### 3"))
    monkeypatch.setattr(gsm8k, "split", lambda name: rows if name == "train" else ())
    corpus = documents.load([gsm8k.Gsm8kSource()], BYTES, sequence_length_tokens=64)
    window = corpus.windows.tokens[0]
    counted = BYTES.decode(window[corpus.windows.is_counted[0]])
    assert counted == rows[0].answer + rows[1].answer
    assert gsm8k.without_calculator(rows[0].answer) == "1+1 = 2\n#### 2"
