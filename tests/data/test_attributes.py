"""Graded answers and pairs: forms of files, labels, and errors that name the place."""

import itertools
import json

import numpy as np
import pytest

from data import attributes, preferences
from data.attributes import FIVE, MASKED, NINE, AttributeRow, AttributeSource
from data.errors import DataError
from data.preferences import Preference, PreferenceSource


@pytest.fixture
def file(tmp_path):
    """`file({...}, {...})`: path of a file with these lines."""

    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


# ------------------------------------------------------------------------------------- labels


def test_all_labels_of_five_attributes_come_back():
    for grades in itertools.product(range(5), repeat=5):
        labels = dict(zip(FIVE, grades, strict=True))
        text = attributes.label_text(labels)
        assert attributes.parse_labels(text) == labels
    assert text == "helpfulness:4,correctness:4,coherence:4,complexity:4,verbosity:4"
    assert attributes.label_text({"verbosity": 1, "quality": 3}) == "quality:3,verbosity:1"


def malformed_labels():
    good = "helpfulness:4,correctness:3,verbosity:0"
    yield from (
        "",
        ",",
        ":",
        "helpfulness",
        "helpfulness:",
        ":4",
        "4",
        "helpfulness:4,,verbosity:0",
    )
    for character in " \t\n;|.=-+eE_x5679٣४":
        for place in (0, 11, 12, 13, 14, len(good)):
            yield good[:place] + character + good[place:]
    for grade in ("5", "-1", "4.0", "04", "1e0", "four", "٤", "nan", "", " 4", "4 "):
        for name in FIVE:
            yield f"{name}:{grade}"
    for first, second in itertools.permutations(FIVE, 2):
        if FIVE.index(first) > FIVE.index(second):
            yield f"{first}:1,{second}:1"
    for name in NINE:
        yield f"{name}:1,{name}:1"
        yield f"{name.upper()}:1"
        yield f"{name[:-1]}:1"


def test_every_malformed_label_is_refused():
    cases = sorted(set(malformed_labels()))
    assert len(cases) >= 200
    for text in cases:
        with pytest.raises(DataError, match="a label is `name:grade`"):
            attributes.parse_labels(text)


def test_labels_need_whole_grades():
    with pytest.raises(DataError, match="a label has whole grades"):
        attributes.label_text({"helpfulness": 2.5})
    with pytest.raises(DataError, match="from 0 to 4; got helpfulness=5"):
        attributes.label_text({"helpfulness": 5})
    halves = np.array([-1.0, 0.5, 1.5, 2.5, 3.5, 9.0])
    np.testing.assert_array_equal(attributes.quantize(halves), [0, 0, 2, 2, 4, 4])


def test_published_weights():
    grades = np.array([[4.0, 4.0, 4.0, 2.0, 1.0]])
    want = 4 * (0.3 + 0.74 + 0.46) + 2 * 0.47 - 0.33
    np.testing.assert_allclose(attributes.reward(grades, "nemotron4_340b"), [want])
    nine = np.concatenate([np.full((1, 4), 7.0), grades], axis=1)
    np.testing.assert_allclose(attributes.reward(nine, "nemotron4_340b"), [want])
    with pytest.raises(DataError, match="weights of attributes are one of"):
        attributes.reward(grades, "nemotron5")
    with pytest.raises(DataError, match="5 outputs .HelpSteer. or 9; got 4"):
        attributes.names(4)


# -------------------------------------------------------------------------------------- forms

GRADES = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}


def test_helpsteer_rows_come_back(file, tmp_path):
    rows = attributes.read(
        file(
            {"prompt": "Hi?", "response": "Yes.", **GRADES},
            {"prompt": "Hi?", "response": "No.", "verbosity": 0.5},
        )
    )
    assert rows[0] == AttributeRow(prompt="Hi?", response="Yes.", attributes=GRADES)
    np.testing.assert_array_equal(attributes.vector(rows[1].attributes, FIVE), [MASKED] * 4 + [0.5])
    talk = ({"role": "user", "content": "Hi?"},)
    rows.append(AttributeRow(prompt=talk, response="Well.", attributes={"humor": 4}))
    attributes.write(tmp_path / "again.jsonl", rows)
    assert attributes.read(str(tmp_path / "again.jsonl")) == rows


STEERLM = {
    "system": "",
    "mask": "User",
    "type": "VALUE_TO_TEXT",
    "conversations": [
        {"from": "User", "value": "Hi?", "label": None},
        {"from": "Assistant", "value": "Yes.", "label": "helpfulness:4,verbosity:0"},
        {"from": "User", "value": "Sure?", "label": None},
        {"from": "Assistant", "value": "No.", "label": None},
        {"from": "User", "value": "So?", "label": None},
        {"from": "Assistant", "value": "Yes!", "label": "verbosity:1"},
    ],
}


def test_steerlm_chats_give_a_row_per_labelled_answer(file):
    first, second = attributes.read(file(STEERLM))
    assert (first.response, first.attributes) == ("Yes.", {"helpfulness": 4, "verbosity": 0})
    assert [one["role"] for one in second.prompt] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert (second.response, second.attributes) == ("Yes!", {"verbosity": 1})


def test_real_regression_rows(data_file):
    rows = attributes.read(str(data_file("steerlm/regression_rm_sample.jsonl")))
    assert len(rows) == 8
    assert rows[0].attributes == {**GRADES, "helpfulness": 4, "complexity": 3, "verbosity": 2}
    assert rows[0].prompt[0]["content"] == "explain master slave replication nsql"
    assert rows[0].prompt == rows[1].prompt  # pairs of answers to one prompt


def test_real_pairs_of_ultrafeedback(data_file):
    name = "preferences/ultrafeedback_binarized_eval_200.jsonl"
    pairs = PreferenceSource(path=str(data_file(name))).pairs()
    assert len(pairs) == 200
    assert (pairs[0].chosen_reward, pairs[0].rejected_reward) == (9.0, 7.0)
    apart = PreferenceSource(path=str(data_file(name)), min_reward_gap=1.0).pairs()
    assert len(apart) < 175 and min(pair.reward_gap for pair in apart) >= 1.0
    graded = AttributeSource(path=str(data_file(name)), begin=0.5).rows()
    assert len(graded) == 200
    assert {name for row in graded for name in row.attributes} == {"helpfulness"}
    assert all(0 <= row.attributes["helpfulness"] <= 4 for row in graded)


def test_real_pairs_of_llmbar(data_file):
    pairs = preferences.read(str(data_file("preferences/llmbar/natural.json")))
    row = json.loads(data_file("preferences/llmbar/natural.json").read_text())[0]
    assert len(pairs) == 100
    assert pairs[0].prompt == row["input"]
    assert pairs[0].chosen == row[f"output_{row['label']}"]
    assert pairs[0].rejected == row[f"output_{3 - row['label']}"]


def test_pairs_come_back(file, tmp_path):
    talk = [{"role": "user", "content": "Hi?"}]
    pairs = preferences.read(
        file(
            {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No.", "chosen_reward": 2},
            {
                "prompt": talk,
                "chosen": [{"role": "assistant", "content": "Yes."}],
                "rejected": [*talk, {"role": "assistant", "content": "No."}],
            },
            {"prompt": "Hi?", "response_1": "A", "response_2": "B", "preference_strength": -3},
            {"prompt": "Hi?", "response_1": "A", "response_2": "B", "preference_strength": 0},
        )
    )
    assert pairs[0] == Preference(prompt="Hi?", chosen="Yes.", rejected="No.", chosen_reward=2.0)
    assert pairs[0].reward_gap is None
    assert pairs[1] == Preference(prompt=tuple(talk), chosen="Yes.", rejected="No.")
    assert (pairs[2].chosen, pairs[2].reward_gap) == ("A", 3.0)
    assert (pairs[3].chosen, pairs[3].reward_gap) == ("B", 0.0)
    preferences.write(tmp_path / "again.jsonl", pairs)
    assert preferences.read(str(tmp_path / "again.jsonl")) == pairs


PAIR = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
GRADED = {"prompt": "Hi?", "response": "Yes.", **GRADES}
REGRESSION = {"text": "<extra_id_0>System\nS\n<extra_id_1>User\nU\n", "label": [1] * 9}


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (
            attributes.read,
            {**GRADED, "helpfulness": 5},
            "helpfulness is a grade from 0 to 4; got 5",
        ),
        (attributes.read, {**GRADED, "coherence": "4"}, "coherence is a number; got '4'"),
        (attributes.read, {**GRADED, "response": 3}, "response is a text; got 3"),
        (attributes.read, {**GRADED, "prompt": None}, "prompt is a text; got None"),
        (attributes.read, {"prompt": "Hi?", "response": "Yes."}, "or another grade of quality"),
        (attributes.read, {"prompt": "Hi?"}, "they name the form; got no such field"),
        (attributes.read, {**STEERLM, "mask": "Assistant"}, "mask is 'User'"),
        (attributes.read, {**STEERLM, "type": "TEXT_TO_VALUE"}, "type is 'VALUE_TO_TEXT'"),
        (
            attributes.read,
            {"conversations": [{"from": "Assistant", "value": "x", "label": "humor:9"}]},
            "conversations has labels: a label is",
        ),
        (
            attributes.read,
            {"conversations": [{"from": "Bot", "value": "x"}]},
            r'"from" User or Assistant and a "value" \(turn 0\)',
        ),
        (attributes.read, REGRESSION, "text ends with an answer"),
        (attributes.read, {**REGRESSION, "label": [1] * 5}, "label is a list of 9 grades"),
        (attributes.read, {**REGRESSION, "text": "Hi?"}, "text is a chat in SteerLM's template"),
        (attributes.read, {**PAIR, "chosen_reward": 20, "rejected_reward": 1}, "rewards lie in 1"),
        (preferences.read, {**PAIR, "chosen": None}, "chosen is a text; got None"),
        (preferences.read, {"chosen": "a", "rejected": "b"}, "prompt is a text or a list"),
        (preferences.read, {**PAIR, "chosen_reward": "9"}, "chosen_reward is a number"),
        (preferences.read, {**PAIR, "prompt": [{"role": "bot"}]}, r'"role", one of .*message 0'),
        (
            preferences.read,
            {**PAIR, "prompt": [{"role": "assistant", "content": "x"}]},
            "prompt ends with a message that is not the assistant's",
        ),
        (preferences.read, {**PAIR, "chosen": [{"role": "user", "content": "x"}]}, "ends with an"),
        (
            preferences.read,
            {"input": "x", "output_1": "a", "output_2": "b", "label": 0},
            "label is 1 or 2",
        ),
        (
            preferences.read,
            {"prompt": "x", "response_1": "a", "response_2": "b", "preference_strength": 4},
            "preference_strength is a whole number from -3 to 3; got 4",
        ),
    ],
)
def test_a_wrong_line_is_named(file, read, row, message):
    good = GRADED if read is attributes.read else PAIR
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{message}"):
        read(file(good, row))


def test_files_that_are_none(tmp_path, file):
    with pytest.raises(DataError, match="is empty"):
        preferences.read(file())
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="is a JSON list of objects"):
        preferences.read(str(tmp_path / "bad.json"))
    with pytest.raises(DataError, match="neither a path nor below"):
        preferences.read("nowhere.jsonl")
    with pytest.raises(DataError, match="a part of a file begins before it ends"):
        PreferenceSource(path=file(PAIR), begin=1.0).pairs()
    with pytest.raises(DataError, match="min_reward_gap needs rewards; .*rows.jsonl:1 has none"):
        PreferenceSource(path=file(PAIR), min_reward_gap=1.0).pairs()
