import pytest

from data.errors import DataError
from data.listops import ListOpsSource
from data.tokenizer import load_tokenizer

LISTOPS = load_tokenizer("listops")


def texts(path, part, **fields):
    source = ListOpsSource(path=str(path), part=part, **fields)
    whole = source.documents(LISTOPS, 128)
    assert whole.is_counted.sum() == len(whole.lengths), "the value alone is counted"
    ends = whole.starts + whole.lengths
    assert whole.is_counted[ends - 1].all()
    return [LISTOPS.decode(whole.tokens[a:b]) for a, b in zip(whole.starts, ends, strict=True)]


@pytest.fixture
def file(tmp_path):
    lines = [f"{n}\t( ( [MAX {n} ) ( ( [MIN 9 ) {n} ] ) ) ]" for n in range(10)]
    lines += ["3\t3", *lines[1:8], "3\t3", "3\t3"]  # part validation and test repeat "3"
    path = tmp_path / "lists.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_expressions_lose_their_parentheses_and_repeats(file):
    train = texts(file, "train")
    assert train[2] == "[MAX 2 [MIN 9 2 ] ] = 2"
    assert train[-1] == "3 = 3" and len(train) == 9
    assert texts(file, "validation") == ["[MAX 8 [MIN 9 8 ] ] = 8"]
    assert texts(file, "test") == ["[MAX 9 [MIN 9 9 ] ] = 9"]


def test_long_expressions_are_left_out(file):
    assert texts(file, "train", max_tokens=3) == ["3 = 3"]


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(DataError, match="TAYLORZERO_DATA"):
        ListOpsSource(path="listops/nowhere.tsv").documents(LISTOPS, 128)
    (tmp_path / "other.txt").write_text("no tabs")
    with pytest.raises(DataError, match="line 1"):
        ListOpsSource(path=str(tmp_path / "other.txt")).documents(LISTOPS, 128)


def test_the_parts_of_the_real_file_share_no_expression(data_file):
    data_file("listops/test_d20s.tsv.xz")
    parts = [set(texts(ListOpsSource().path, part)) for part in ("train", "validation", "test")]
    assert all(parts) and len(set().union(*parts)) == sum(map(len, parts))
