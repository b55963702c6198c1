"""Templates to the byte, which tokens are answers, and how long rows are cut."""

import pytest

from data import chat, json_rows
from data.errors import DataError
from data.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Hi?"}
SAID = {"role": "assistant", "content": "Yes.", "labels": "helpfulness:4,verbosity:0"}
SECOND = {"role": "user", "content": "Sure?"}
AGAIN = {"role": "assistant", "content": "No.\nNever."}
TALK = (SYSTEM, FIRST, SAID, SECOND, AGAIN)


def test_steerlm_prompt_is_that_of_the_reference():
    """NeMo-Aligner, docs/user-guide/steerlm.rst and steerlm/common.py."""
    text = chat.prompt_text(
        "Write a poem.", "steerlm", labels="quality:4,toxicity:0,helpfulness:4,verbosity:2"
    )
    assert text == (
        "<extra_id_0>System\nA chat between a curious user and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the user's "
        "questions.\n<extra_id_1>User\nWrite a poem.\n<extra_id_1>Assistant\n"
        "<extra_id_2>quality:4,toxicity:0,helpfulness:4,verbosity:2\n"
    )


def test_real_texts_of_nemo_come_back_to_the_byte(data_file):
    path = str(data_file("steerlm/regression_rm_sample.jsonl"))
    for row in json_rows.read(path):
        text = row.text("text")
        assert chat.scored_text(chat.parse_steerlm(text), "steerlm", BYTES) == text


def test_templates():
    steerlm = (
        "<extra_id_0>System\nBe brief.\n<extra_id_1>User\nHi?\n<extra_id_1>Assistant\n"
        "<extra_id_2>helpfulness:4,verbosity:0\nYes.\n<extra_id_1>User\nSure?\n"
        "<extra_id_1>Assistant\nNo.\nNever.\n<extra_id_1>"
    )
    assert chat.render(TALK, "steerlm") == steerlm
    assert chat.render(TALK[1:], "plain") == "Hi?\nYes.\nSure?\nNo.\nNever."
    assert chat.render(TALK[1:4], "chatml", generate=True) == (
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    unlabelled = [{k: v for k, v in one.items() if k != "labels"} for one in TALK]
    parsed = chat.parse_steerlm(chat.render(unlabelled, "steerlm"))
    assert list(parsed) == unlabelled
    with pytest.raises(DataError, match="labels are written by the template"):
        chat.render(TALK, "plain", generate=True, labels="helpfulness:4")
    with pytest.raises(DataError, match="a text of SteerLM begins with"):
        chat.parse_steerlm("Hi?")


def said(template, messages=TALK, **options):
    """The parts of a text that count, and all of it."""
    tokens, is_answer = chat.encode(messages, BYTES, template, **options)
    runs, previous = [], False
    for token, counts in zip(tokens, is_answer, strict=True):
        if counts and not previous:
            runs.append([])
        if counts:
            runs[-1].append(token)
        previous = counts
    assert tokens[-1] == BYTES.eos_id and is_answer[-1]
    return [BYTES.decode(run) for run in runs], BYTES.decode(tokens)


def test_answers_alone_count_and_labels_are_given():
    answers, text = said("steerlm")
    assert answers == ["Yes.\n<extra_id_1>", "No.\nNever.\n<extra_id_1>"]
    assert text == chat.render(TALK, "steerlm")
    assert said("chatml")[0] == ["Yes.<|im_end|>\n", "No.\nNever.<|im_end|>\n"]
    assert said("plain", TALK[1:]) == (["Yes.", "No.\nNever."], "Hi?\nYes.\nSure?\nNo.\nNever.")
    assert said("chatml", last_answer_only=True)[0] == ["No.\nNever.<|im_end|>\n"]


def test_what_is_generated_continues_the_prompt_of_training():
    """Prompt ids and answer ids of training are those that generation has, token for token."""
    tokens, is_answer = chat.encode(TALK, BYTES, "steerlm", last_answer_only=True)
    prompt = chat.prompt_text(TALK[:-1], "steerlm")
    assert tokens[: is_answer.index(True)] == BYTES.encode(prompt)
    generated = BYTES.decode(tokens[is_answer.index(True) :])
    assert chat.answer_of(generated, "steerlm") == "No.\nNever."
    for template in ("chatml", "plain"):
        (answer,) = said(template, TALK[:3])[0]
        assert chat.answer_of(answer, template) == "Yes."


def test_prompts_of_helpsteer_with_several_turns_are_taken_apart():
    text = "Hi?\n<extra_id_1>Assistant\nYes.\n<extra_id_1>User\nSure?"
    plain = {"role": "assistant", "content": "Yes."}
    assert chat.messages_of(text) == (FIRST, plain, SECOND)
    assert chat.messages_of("Hi?") == (FIRST,)


def test_a_long_row_keeps_the_end_of_its_prompt_and_the_beginning_of_its_answer():
    row = [*range(10), *range(100, 120)], [False] * 10 + [True] * 20
    tokens, is_answer = chat.cut(*row, 16)
    assert tokens == [*range(6, 10), *range(100, 112)] and sum(is_answer) == 12
    tokens, _ = chat.cut(*row, 16, kept_end=2)
    assert tokens == [*range(6, 10), *range(100, 110), 118, 119]
    assert chat.cut(*row, 28)[0] == [*range(2, 10), *range(100, 120)]  # the answer fits
    assert chat.cut(*row, 30) == row
    short_prompt = [0, *range(100, 130)], [False] + [True] * 30
    assert chat.cut(*short_prompt, 16)[0] == [0, *range(100, 115)]


def test_what_a_reward_model_reads_ends_where_labels_would_stand():
    tokens, is_answer, num_after = chat.encode_scored(TALK[:3], BYTES, "steerlm")
    assert BYTES.decode(tokens).endswith("Assistant\nYes.\n<extra_id_2>")
    assert BYTES.decode(tokens[-num_after:]) == "\n<extra_id_2>"
    assert BYTES.decode([t for t, a in zip(tokens, is_answer) if a]) == "Yes.\n<extra_id_2>"
    tokens, _, num_after = chat.encode_scored(TALK[:3], BYTES, "chatml")
    assert (tokens[-1], num_after) == (BYTES.eos_id, 1)


def test_the_template_of_a_folder(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "taylorzero_tokenizer.json").write_text('{"name": "bytes"}')
    with pytest.raises(DataError, match='the template "own" lies in the folder of a tokenizer'):
        chat.render(TALK, "own", load_tokenizer(str(folder)))
