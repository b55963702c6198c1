"""A watched search says what an unwatched one says, and says where it is meanwhile."""

import io

import pytest

from data import problems, tokenizer
from data.errors import DataError
from models import chat
from search import gumbel, live, self_play, token_model
from train.errors import ConfigError

PROMPT = problems.Prompt(id="typed/0", split="custom", text="4 5 6 10\n")
ACTION = token_model.ActionConfig(kind="token", num_candidates=4, max_completion_tokens=9)
CONFIG = self_play.SelfPlayConfig(
    search=gumbel.SearchConfig(action=ACTION, num_simulations=6), max_moves=2
)


def test_progress_does_not_change_the_answer(save_model, capsys):
    speaker = live.load(str(save_model()))
    live.show(speaker, PROMPT, CONFIG, every_seconds=None, checker=lambda text: False)
    quiet = capsys.readouterr().out.splitlines()
    live.show(speaker, PROMPT, CONFIG, every_seconds=0.0, checker=lambda text: False)
    watched = capsys.readouterr().out.splitlines()
    progress = [line for line in watched if line.startswith("  ... ")]
    assert [line for line in watched if line not in progress] == quiet
    counts = [int(line.split()[1]) for line in progress]
    assert counts == list(range(1, len(counts) + 1)) and len(counts) >= 6
    assert quiet[0].startswith("without search: wrong  ")
    assert quiet[1].startswith("with 6 simulations a move: wrong  ")
    assert quiet[2].startswith("  P(solved) 0.")
    assert quiet[-1].startswith("  the model read ")


def test_steps_make_up_the_answer(save_model, capsys):
    live.show(live.load(str(save_model())), PROMPT, CONFIG, every_seconds=None)
    lines = capsys.readouterr().out.splitlines()
    answer = lines[1].removeprefix("with 6 simulations a move: ")
    steps = [line.split("  ", 2)[2] for line in lines[2:-1]]
    assert len(steps) == 2
    assert [word for step in steps for word in step.split() if word != "|"] == [
        word for word in answer.split() if word != "|"
    ]


def say(monkeypatch, capsys, checkpoint, *arguments, typed=""):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    chat.main([str(checkpoint), *arguments])
    return capsys.readouterr()


def test_a_chat_continues_every_line_that_is_typed(save_model, monkeypatch, capsys):
    checkpoint = save_model("bytes")
    typed = "How many?\nAnd now?\n\nnot read\n"
    out, _ = say(monkeypatch, capsys, checkpoint, "--max-new-tokens", "4", typed=typed)
    again, _ = say(monkeypatch, capsys, checkpoint, "--max-new-tokens", "4", typed=typed)
    alone, _ = say(
        monkeypatch, capsys, checkpoint, "--max-new-tokens", "4", "--problem", "How many?"
    )
    assert out == again and out.startswith(alone) and len(out) > len(alone)
    drawn = ["--temperature", "3", "--max-new-tokens", "4", "--problem", "How many?"]
    one, _ = say(monkeypatch, capsys, checkpoint, *drawn)
    other, _ = say(monkeypatch, capsys, checkpoint, *drawn, "--seed", "1")
    assert one != other


@pytest.mark.parametrize("form", chat.FORMS)
def test_prompts_are_put_in_every_form(form):
    before = [{"role": "user", "content": "Before"}]
    text = chat._put("How many?", form, before, tokenizer.load_tokenizer("bytes"))
    assert text.count("How many?") == 1
    begins, has_history = {
        "plain": ("How many?\n", False),
        "few_shot": ("Question: A florist", False),
        "chat": ("<|im_start|>system\n", True),
    }[form]
    assert text.startswith(begins) and ("Before" in text) == has_history


def test_a_chat_searches_without_an_oracle(save_model, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(live, "show", lambda *arguments: asked.append(arguments) or "24")
    options = ["--search", "--simulations", "3", "--like", "game24_search"]
    checkpoint = save_model(has_trained_value=False)
    _, error = say(monkeypatch, capsys, checkpoint, *options, typed="4 5 6 10\n1 2 3 4\n")
    assert error.count("models.chat: warning: the value head of this model was never trained") == 1
    assert [prompt.text for _, prompt, _ in asked] == ["4 5 6 10\n", "1 2 3 4\n"]
    assert all(config.search.num_simulations == 3 for _, _, config in asked)
    assert not any(config.search.use_oracle or config.search.root_noise for _, _, config in asked)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--search", "--simulations", "0"], ConfigError, "simulations is 1 or more; got 0"),
        (["--temperature", "-1"], ConfigError, "temperature is 0 or more; got -1"),
        (["--max-new-tokens", "0"], ConfigError, "max_new_tokens is 1 or more; got 0"),
        (["--search", "--like", "tiny"], ConfigError, "configs/tiny.py is a Experiment"),
        (["--search", "--like", "gsm8k_serach"], ConfigError, "Did you mean gsm8k_search?"),
        ([], DataError, "every word must be in the vocabulary"),
    ],
)
def test_what_cannot_be_said_is_one_clear_line(
    save_model, monkeypatch, capsys, arguments, kind, message
):
    with pytest.raises(kind, match=message):
        say(monkeypatch, capsys, save_model(), "--problem", "four five", *arguments)
    assert capsys.readouterr().out == ""
