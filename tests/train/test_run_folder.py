import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.transformer import TransformerConfig
from train import config_json, run_folder
from train.errors import ConfigError, DataError

MODEL = TransformerConfig(vocab_size=8, width=16, num_layers=1, num_heads=2, head_dim=8)
WIDER = dataclasses.replace(MODEL, width=32)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_folder_says_what_it_is(tmp_path):
    folder = run_folder.prepare(tmp_path / "runs" / "a", MODEL, command="python -m train a")
    assert config_json.decode(run_folder.read_json(folder / "config.json")) == MODEL
    assert (folder / "command.txt").read_text() == "python -m train a\n"
    environment = run_folder.read_json(folder / "environment.json")
    assert environment["packages"]["jax"] == sys.modules["jax"].__version__
    assert environment["cpu_cores"] >= 1
    assert str(Path.home()) not in json.dumps(environment)
    assert list(tmp_path.glob("runs/*")) == [folder], "temporary files are left"


def test_resume_keeps_everything_and_adds_the_command(tmp_path):
    folder = run_folder.prepare(tmp_path / "a", MODEL, command="first", resume=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    run_folder.prepare(folder, MODEL, command="second", resume=True)
    assert (folder / "metrics.jsonl").read_text() == "{}\n"
    assert (folder / "command.txt").read_text() == "first\nsecond\n"


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        (MODEL, {}, "--resume to continue"),
        (WIDER, {}, "width: 16 -> 32"),
        (WIDER, {"resume": True}, "--resume needs the same config"),
    ],
)
def test_an_existing_run_is_refused_and_untouched(tmp_path, config, flags, said):
    folder = run_folder.prepare(tmp_path / "a", MODEL, command="first")
    before = files(folder)
    with pytest.raises(ConfigError, match=said):
        run_folder.prepare(folder, config, **flags)
    assert files(folder) == before


def test_overwrite_starts_again_and_with_resume_only_when_the_config_differs(tmp_path):
    folder = run_folder.prepare(tmp_path / "a", MODEL)
    (folder / "old").touch()
    run_folder.prepare(folder, MODEL, resume=True, overwrite=True)
    assert (folder / "old").exists()
    run_folder.prepare(folder, WIDER, resume=True, overwrite=True)
    assert not (folder / "old").exists()
    (folder / "old").touch()
    run_folder.prepare(folder, WIDER, overwrite=True)
    assert not (folder / "old").exists()


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="left alone"):
        run_folder.prepare(tmp_path, MODEL, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ConfigError, match="is a file"):
        run_folder.prepare(tmp_path / "thesis.tex", MODEL, overwrite=True)


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
    run_folder.write_json(tmp_path / "a.json", {"x": [1, "é"]})
    with pytest.raises(ValueError, match="Out of range"):
        run_folder.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert run_folder.read_json(tmp_path / "a.json") == {"x": [1, "é"]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_write_json_cleans_up_after_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        run_folder.write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_read_json_names_a_missing_or_torn_file(tmp_path):
    with pytest.raises(DataError, match="missing: .*none.json"):
        run_folder.read_json(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"torn.json is not JSON"):
        run_folder.read_json(tmp_path / "torn.json")


@dataclass(frozen=True, kw_only=True)
class _Value:
    value: object


def test_configs_hash_by_their_content():
    assert config_json.sha256(MODEL) != config_json.sha256(WIDER)
    assert config_json.sha256(_Value(value=1)) == config_json.sha256(_Value(value=1.0))
    assert config_json.sha256(_Value(value=1)) != config_json.sha256(_Value(value="1"))
    assert config_json.sha256(_Value(value={"a": 1, "b": 2})) == config_json.sha256(
        _Value(value={"b": 2, "a": 1})
    )
    code = "import tests.train.test_run_folder as t; print(t.config_json.sha256(t.MODEL))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=run_folder.REPOSITORY_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.strip() == config_json.sha256(MODEL), "differs in another process"


@pytest.mark.parametrize("value", [[1], {1}, {1: 2}, float("inf"), Path("a"), len, int])
def test_a_value_that_would_not_come_back_is_refused(value):
    with pytest.raises(ConfigError, match=r"at config\.inner\.value"):
        config_json.encode({"inner": _Value(value=value)})


@pytest.mark.parametrize("name", ["this:X", "train.nowhere:X", "train.errors", "os:stat"])
def test_reading_a_config_makes_only_our_dataclasses(name):
    with pytest.raises(ConfigError, match="names dataclasses of"):
        config_json.decode({"class": name})
    assert "this" not in sys.modules, "a file made us import a module"


def test_a_config_of_another_version_is_refused():
    payload = config_json.encode(MODEL) | {"colour": "red"}
    with pytest.raises(ConfigError, match="colour"):
        config_json.decode(payload)
