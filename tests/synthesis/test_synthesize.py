"""Inventing prompts with a scripted writer, which knows the templates and nothing else."""

import re

import pytest

from data import instructions, json_rows
from synthesis import synthesize, templates, verifiers, writers
from synthesis.synthesize import NUM_MESSAGES, SynthesizeConfig
from synthesis.writers import Written
from train.errors import ConfigError, DataError, Preempted
from train.stopping import StopFlag


class Script:
    """Numbered lists where they are asked for; a user who is too polite."""

    name = "script"

    def __init__(self):
        self.asked = []

    def write(self, asked, rng_key):
        del rng_key
        self.asked += asked
        return [Written(self.answer(one.prompt), finished=True) for one in asked]

    def answer(self, prompt):
        if not isinstance(prompt, str):
            return f"An answer to {len(prompt)} messages."
        if prompt.startswith(templates.REFINE[:20]):
            return prompt.rpartition("\n\n")[2] + " Be exact."
        if "Write the message of the user only" in prompt or "Write your next" in prompt:
            return "Thank you so much! Please tell me more."
        count, about = int(re.search(r"\d+", prompt)[0]), re.search(r"(?<=: )[^.]+\.", prompt)
        lines = [f"{n + 1}. Thing {n // 2} of {about[0] if about else 'all'}" for n in range(count)]
        return "Here they are:\n" + "\n".join(lines)


@pytest.fixture
def script(monkeypatch):
    script = Script()
    monkeypatch.setattr(writers, "load", lambda *arguments, **options: script)
    return script


def invent(folder, **fields):
    config = SynthesizeConfig(writer="script", num_topics=4, num_questions=4, **fields)
    return [row.fields for row in json_rows.read(str(synthesize.run(config, folder)))]


def test_all_kinds_and_forms_come_out_whole(script, tmp_path):
    json_rows.write(tmp_path / "texts.jsonl", [{"text": "Foxes eat {mice}: and fruit."}])
    kinds = ("open_qa", "writing", "closed_qa", "math", "code")
    rows = invent(tmp_path / "run", kinds=kinds, documents=str(tmp_path / "texts.jsonl"))
    assert {row["kind"] for row in rows} == set(kinds)
    assert {row["form"] for row in rows} == set(NUM_MESSAGES)
    for row in rows:
        roles = [one["role"] for one in row["prompt"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert len(roles) == NUM_MESSAGES[row["form"]]
        assert ("check" in row) == row["form"].startswith("verifiable")
        if "check" in row:
            one = instructions.from_json(row["check"]["instructions"][0])
            place = -1 if row["form"] == "verifiable_rewrite" else 0
            assert one.text in row["prompt"][place]["content"]
            assert verifiers.verdict({**row, "response": ""}) is False
        else:
            assert row["prompt"][-1]["content"] != "Thank you so much! Please tell me more."
    talk = next(row for row in rows if row["form"] == "three_turn")
    assert talk["prompt"][2]["content"] == "Tell me more."
    closed = next(row for row in rows if row["kind"] == "closed_qa")
    assert closed["prompt"][0]["content"].startswith("Foxes eat {mice}: and fruit.\n\n")
    harder = [row for row in rows if row["kind"] == "open_qa" and row["form"] == "single"]
    assert all(row["prompt"][0]["content"].endswith("Be exact.") for row in harder)


def test_nothing_is_asked_twice_and_no_question_comes_twice(script, tmp_path):
    rows = invent(tmp_path, kinds=("math",), forms=("single",))
    questions = [row["prompt"][0]["content"] for row in rows]
    assert len(set(questions)) == len(questions) == 2 * len(synthesize.MATH_KEYWORDS)  # in 4 lines
    assert len(script.asked) == len(synthesize.MATH_KEYWORDS)


def test_a_stopped_run_asks_for_the_rest_only(script, tmp_path):
    config = SynthesizeConfig(writer="script", kinds=("math",), items_per_slice=2)
    stop = StopFlag()
    write = script.write

    def once(asked, rng_key):
        stop.request("test")
        return write(asked, rng_key)

    script.write = once
    with pytest.raises(Preempted):
        synthesize.run(config, tmp_path, stop=stop)
    script.write = write
    resumed = synthesize.run(config, tmp_path, resume=True).read_text()
    num_asked = len(script.asked)
    whole = synthesize.run(config, tmp_path / "whole").read_text()
    assert resumed == whole and len(script.asked) == 2 * num_asked


def test_a_writer_that_cannot_is_named(script, tmp_path):
    script.answer = lambda prompt: "I will not make lists."
    with pytest.raises(DataError, match="'math' gave nothing"):
        invent(tmp_path, kinds=("math",))
    with pytest.raises(ConfigError, match="documents"):
        SynthesizeConfig(kinds=("closed_qa",))


def test_lists_and_politeness():
    text = "Sure:\n1. One\n 2) **Two**\n- three 3\n(4) four\nno item\n* five"
    assert templates.items_of(text) == ["One", "Two", "three 3", "four", "five"]
    said = "Thanks a lot! Great answer, really. could you, please, say why it is so, kindly?"
    assert templates.without_politeness(said) == "Could you say why it is so?"
    assert templates.without_politeness("Thank you!") == ""
    assert templates.without_politeness("Goodness knows. Why?") == "Goodness knows. Why?"
