import shutil

import pytest

from evaluation import __main__ as command
from evaluation.methods import Search
from train.errors import ConfigError, DataError


def test_options_become_the_standard_table():
    options = command.Options(simulations=(8, 32), compared=32, limit=5, baseline="runs/base")
    config = command.make_config("runs/x", options)
    assert (config.checkpoint, config.base_checkpoint) == ("runs/x", "runs/base")
    names = [method.name for method in config.methods]
    sampled = ["best-of-n-search-32", "best-of-n-search-32-min-p-0-05"]
    assert names[:5] == ["greedy", "search-8", "search-32", *sampled]
    assert "search-32-base-prior" in names
    assert all(method.limit == 5 and method.split == "test" for method in config.methods)
    ablated = command.make_config("runs/x", command.Options(ablation=True))
    oracles = [m for m in ablated.methods if isinstance(m, Search) and m.search.use_oracle]
    assert {method.split for method in oracles} == {"test", "train"}


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        ([], ConfigError, "usage"),
        (["--limit", "3"], ConfigError, "first argument"),
        (["nowhere"], DataError, "does not exist"),
        (["nowhere", "--simulatons", "5"], ConfigError, "Did you mean --simulations"),
        (["nowhere", "--simulations", "0"], ConfigError, "at least one simulation"),
        (["nowhere", "--search.action.num-candidates", "1"], ConfigError, "candidates"),
        (["nowhere", "--limit", "0"], ConfigError, "at least one problem"),
    ],
)
def test_bad_input_is_one_error_and_leaves_no_folder(argv, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        command.main(argv)
    assert not list(tmp_path.iterdir())


def test_a_model_that_trained_on_is_not_mixed_in_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(command.checkpoints, "read_metadata", lambda path: None)
    monkeypatch.setattr(command.report, "read", lambda path: None)
    monkeypatch.setattr(command.report, "show", lambda found: None)
    evaluated = []

    def run(config, folder, **_):
        evaluated.append((config.checkpoint, config.base_checkpoint))
        return folder / "report.json"

    monkeypatch.setattr(command.evaluation, "run", run)
    for name in ("model", "base"):
        (tmp_path / name / "checkpoints" / "5" / "params").mkdir(parents=True)
    arguments = [str(tmp_path / "model"), "--run-folder", str(tmp_path / "out"), "--resume"]
    arguments += ["--baseline", str(tmp_path / "base")]
    for _ in range(2):
        command.main(arguments)
    assert len(evaluated) == 2 and evaluated[0] == evaluated[1]
    for name in ("base", "model"):
        steps = tmp_path / name / "checkpoints"
        shutil.copytree(steps / "5", steps / "10")
        with pytest.raises(ConfigError, match=r"another config .*checkpoint: .*/5\" -> .*/10\""):
            command.main(arguments)
    assert len(evaluated) == 2


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("runs/tiny", "tiny"),
        ("/tmp/runs/circle/stages/04-learn", "tmp-circle-04-learn"),
        ("runs/tiny/checkpoints/200", "tiny-200"),
    ],
)
def test_the_run_folder_is_named_after_the_checkpoint(checkpoint, name):
    assert command._name_of(checkpoint) == name
