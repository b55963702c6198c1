from data import files


def test_named_folder_comes_first(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setenv("TAYLORZERO_DATA", str(tmp_path))
    assert files.find("a.txt") == tmp_path / "a.txt"
    assert files.find("absent/b.txt") is None
    assert files.roots()[0] == tmp_path


def test_files_are_found_plain_or_compressed(tmp_path, monkeypatch):
    monkeypatch.setenv("TAYLORZERO_DATA", str(tmp_path))
    for name in ("a.jsonl", "b.jsonl.xz"):
        (tmp_path / name).touch()
    assert files.find("a.jsonl.xz") == tmp_path / "a.jsonl"
    assert files.find("b.jsonl") == tmp_path / "b.jsonl.xz"
    (tmp_path / "a.jsonl.xz").touch()
    assert files.find("a.jsonl.xz") == tmp_path / "a.jsonl.xz"


def test_without_the_variable_only_the_folder_beside_is_searched(monkeypatch):
    monkeypatch.delenv("TAYLORZERO_DATA", raising=False)
    assert files.roots() == (files.REPOSITORY_ROOT.parent / "shared" / "data",)
