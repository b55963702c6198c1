"""What makes a search useless is said before its first step in one line, and nothing is written."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import load
from data.errors import DataError
from search import __main__ as command
from search import checks, gumbel, self_play, token_model
from train.errors import EXIT_CONFIG, ConfigError

ACTION = token_model.ActionConfig(num_candidates=4, opening_tokens=1, max_completion_tokens=26)
CONFIG = self_play.SelfPlayConfig(
    split="validation", limit=3, batch_size=2, search=gumbel.SearchConfig(action=ACTION)
)


def found(checkpoint, config=CONFIG, **action):
    search = dataclasses.replace(
        config.search, action=dataclasses.replace(config.search.action, **action)
    )
    return checks.check(dataclasses.replace(config, checkpoint=str(checkpoint), search=search))


def test_a_search_that_can_begin_is_left_alone(save_model):
    assert found(save_model()) == []


@pytest.mark.parametrize(
    ("has_trained_value", "use_value", "warns"),
    [(False, True, True), (False, False, False), (True, True, False), (None, True, False)],
)
def test_a_value_head_that_never_learned_is_named(save_model, has_trained_value, use_value, warns):
    search = dataclasses.replace(CONFIG.search, use_value=use_value)
    config = dataclasses.replace(CONFIG, search=search)
    warnings = found(save_model(has_trained_value=has_trained_value), config)
    assert len(warnings) == warns
    assert all("never trained" in one and "--search.no-use-value" in one for one in warnings)


def test_prompts_lie_within_the_positions_of_training(save_model):
    checkpoint = save_model(longest_text_tokens=5)
    with pytest.raises(ConfigError, match=r"5 of those, and prompts of up to 5 .* 3 of 3 .* Play"):
        found(checkpoint)


def test_answers_that_may_outgrow_training_are_named(save_model):
    (warning,) = found(save_model(longest_text_tokens=30))
    assert "5 + 26 tokens, and the model was trained on 30" in warning
    assert "Lower search.action.max_completion_tokens" in warning
    assert found(save_model(longest_text_tokens=31)) == []


def test_a_model_without_positions_reads_any_length(save_model):
    assert found(save_model(longest_text_tokens=4, rope_base=None)) == []


def test_there_are_no_more_candidates_than_openings(save_model):
    checkpoint = save_model()  # of 109 tokens
    with pytest.raises(ConfigError, match="num_candidates=110 of 1 token for a vocabulary of 109"):
        found(checkpoint, num_candidates=110)
    assert found(checkpoint, num_candidates=110, opening_tokens=2) == []


@pytest.mark.parametrize("part", ["trunk", "value_head"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_logits_that_are_not_numbers_are_found_on_the_first_prompts(save_model, part, bad):
    def spoil(params):
        return {**params, part: jax.tree.map(lambda x: x.at[0].set(bad), params[part])}

    what = "next-token logits of 2 of 2 prompts" if part == "trunk" else "in the value of 2 of 2"
    with pytest.raises(DataError, match=f"{what}.*take an earlier checkpoint"):
        found(save_model(change=spoil))


def test_few_shot_answers_need_an_end(save_model, data_file):
    data_file("gsm8k/test.jsonl")
    config = dataclasses.replace(CONFIG, problem_set="gsm8k_few_shot", split="test")
    checkpoint = save_model("bytes")
    with pytest.raises(ConfigError, match=r"Add --search.action.empty-line-ends"):
        found(checkpoint, config)
    assert found(checkpoint, config, empty_line_ends=True) == []


@pytest.mark.parametrize("number", ["0", "-3"])
def test_a_search_has_simulations(save_model, tmp_path, number):
    arguments = ["game24_search", "--checkpoint", str(save_model()), "--run-folder"]
    with pytest.raises(ConfigError, match="at least one simulation"):
        command.main([*arguments, str(tmp_path / "run"), "--search.num-simulations", number])
    assert not (tmp_path / "run").exists()


def test_the_command_warns_and_refuses_in_one_line(save_model, tmp_path, monkeypatch, capsys):
    checkpoint = save_model(has_trained_value=False, longest_text_tokens=5)
    folder = tmp_path / "run"
    arguments = ["game24_search", "--checkpoint", str(checkpoint), "--run-folder", str(folder)]
    monkeypatch.setattr("sys.argv", ["search", *arguments])
    with pytest.raises(SystemExit) as stopped:
        load.main("search", command.main)
    error = capsys.readouterr().err
    assert (stopped.value.code, error.count("\n")) == (EXIT_CONFIG, 1)
    assert "within the positions that the model was trained on" in error
    assert not folder.exists()

    monkeypatch.setattr(self_play, "run", lambda *_, **__: "played")
    small = ["--search.action.max-completion-tokens", "20", "--search.action.max-step-tokens", "10"]
    command.main([
        *arguments, *small, "--checkpoint", str(save_model(has_trained_value=False)),
    ])  # fmt: skip
    out, error = capsys.readouterr()
    assert error.startswith("search: warning: the value head") and error.count("\n") == 1
    assert out == "records: played\n"
