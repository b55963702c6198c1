import dataclasses
import shutil

import pytest

from evaluation import __main__ as command
from evaluation.methods import Beam, BestOfN, Greedy, Search
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


def test_greedy_decoding_can_be_measured_alone():
    options = command.Options(table="greedy", max_completion_tokens=300, limit=5)
    (only,) = command.make_config("runs/x", options).methods
    assert only == Greedy(limit=5, max_completion_tokens=300)
    both = command.make_config("runs/x", dataclasses.replace(options, baseline="runs/base"))
    assert [method.name for method in both.methods] == ["greedy", "greedy-base"]


@pytest.mark.parametrize("longest", [None, 300])
def test_one_option_says_how_long_every_text_may_be(longest):
    options = command.Options(
        table="curves", max_completion_tokens=longest, baseline="runs/base", ablation=True
    )
    for method in command.make_config("runs/x", options).methods:
        match method:
            case Search():
                found = method.search.action.max_completion_tokens
            case Beam():
                found = method.action.max_completion_tokens
            case _:
                found = method.max_completion_tokens
        assert found == (longest or options.search.action.max_completion_tokens)


def test_curves_match_every_search():
    config = command.make_config("runs/x", command.Options(table="curves", simulations=(8, 32)))
    names = [method.name for method in config.methods]
    variants = ("plan", "reuse", "puct", "rollout", "8-leaves")
    assert names == [
        "greedy", "search-8", "search-32", "search-50", "beam-1", "beam-2", "beam-4", "beam-8",
        "beam-16", "best-of-n-search-8", "best-of-n-search-32", "best-of-n-search-50",
        "beam-64-search-50",
        *(f"search-{n}-{variant}" for variant in variants for n in (8, 32, 50)),
        *(f"search-{n}-{oracle}" for oracle in ("oracle", "plan-oracle") for n in (8, 32, 50)),
        *(f"search-{n}-tokens" for n in (8, 32, 50)),
        "best-of-n-search-50-min-p-0-05",
    ]  # fmt: skip
    sampled = [method for method in config.methods if isinstance(method, BestOfN)]
    assert ["chance" in method.choices for method in sampled] == [False, False, True, False]
    assert all("majority" in method.choices for method in sampled[:3])


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
    assert command.evaluation.name_of(checkpoint) == name
