"""Ranking and pairs, on recorded grades: no model is needed to choose between answers."""

import pytest

from data import attributes, json_rows, preferences, problems
from synthesis import judge, verifiers
from synthesis.judge import JudgeConfig
from train.errors import ConfigError, DataError

WEIGHTS = attributes.WEIGHTS["nemotron4_340b"]


def grades(helpfulness, verbosity=0):
    return dict.fromkeys(attributes.FIVE, 0) | {"helpfulness": helpfulness, "verbosity": verbosity}


@pytest.fixture
def files(tmp_path):
    """Two answers of one model and three of another, one of them unfinished, and their grades."""
    answers = {"bad": grades(0), "fair": grades(2), "good": grades(3), "long": grades(3, 4)}
    answers["best"] = grades(4)
    graded = [{"prompt": "why?", "response": text, **each} for text, each in answers.items()]
    json_rows.write(tmp_path / "grades.jsonl", graded)
    for name, texts in {"a": ("fair", "bad"), "b": ("good", "best", "long", "fair")}.items():
        rows = [
            {"prompt": "why?", "response": text, "model": name, "finished": text != "best"}
            for text in texts
        ]
        json_rows.write(tmp_path / f"{name}.jsonl", rows)
    return {
        "responses": (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")),
        "reward_model": f"recorded:{tmp_path / 'grades.jsonl'}",
    }


def judged(config, folder):
    path = judge.run(config, folder)
    return [(pair.chosen, pair.rejected) for pair in preferences.read(str(path))]


def test_the_best_finished_answer_is_chosen_over_the_worst(files, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert judged(JudgeConfig(**files), folder) == [("good", "long")]  # .9 and .9 - 1.32
    (pair,) = preferences.read(str(folder / "preferences.jsonl"))
    assert pair.reward_gap == pytest.approx(-4 * WEIGHTS["verbosity"], abs=1e-4)
    (kept,) = json_rows.read(str(folder / "kept.jsonl"))
    assert kept.fields["response"] == "good" and kept.fields["model"] == "b"
    rows = json_rows.read(str(folder / "judged.jsonl"))
    assert len(rows) == 6 and {row.fields["judge"] for row in rows} == {"reward model"}


def test_kinds_of_pairs(files, tmp_path):
    neighbours = judged(JudgeConfig(**files, pairing="neighbours"), tmp_path)
    assert neighbours == [("good", "fair"), ("fair", "bad"), ("bad", "long")]
    every = judged(JudgeConfig(**files, pairing="all"), tmp_path)
    assert len(every) == 6 and ("good", "bad") in every  # of 5 answers, but "best" is not finished
    wide = judged(JudgeConfig(**files, pairing="all", min_gap=1.0), tmp_path)
    assert wide == [("good", "long"), ("fair", "long")]
    good = judged(JudgeConfig(**files, pairing="all", min_reward=0.7), tmp_path)
    assert {chosen for chosen, _ in good} == {"good"}


def test_nothing_to_choose_is_an_error(files, tmp_path):
    with pytest.raises(DataError, match="num_responses"):
        judge.run(JudgeConfig(**files, min_gap=5.0), tmp_path)
    with pytest.raises(ConfigError, match="nemotron4_340b"):
        JudgeConfig(**files, weights="nemotron")
    with pytest.raises(DataError, match="reward-model"):
        judge.run(JudgeConfig(responses=files["responses"]), tmp_path)


def test_the_truth_decides_where_it_is_known(tmp_path):
    (problem, *_) = problems.load_problems("grade_school_small", "validation")
    check = {"problem_set": "grade_school_small", "split": "validation", "id": problem.prompt.id}
    numbers = [n for n in range(100) if problem.verify(f"#### {n}")]
    assert len(numbers) == 1
    right, wrong = (
        {"prompt": problem.prompt.text, "check": check, "response": f"So.\n#### {n}"}
        for n in (numbers[0], numbers[0] + 1)
    )
    assert verifiers.verdict(right) is True and verifiers.verdict(wrong) is False
    assert verifiers.verdict({"response": "#### 3"}) is None
    json_rows.write(tmp_path / "answers.jsonl", [wrong, right])
    judge.run(JudgeConfig(responses=(str(tmp_path / "answers.jsonl"),)), tmp_path)
    (pair,) = preferences.read(str(tmp_path / "preferences.jsonl"))
    assert (pair.chosen, pair.rejected) == (right["response"], wrong["response"])
    assert (pair.chosen_reward, pair.rejected_reward) == (1, 0)
    with pytest.raises(DataError, match="problem_set"):
        verifiers.verdict(right | {"check": {"problem_set": "grade_school_small"}})
