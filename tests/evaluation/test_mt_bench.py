"""MT-bench in FastChat's files, with a judge behind a local server, a model, and recorded ones."""

import contextlib
import http.server
import json
import re
import threading
import time

import pytest

from data import files
from evaluation import judges, mt_bench, report, run
from evaluation.judges import JudgeConfig
from evaluation.methods import Greedy
from evaluation.tasks import TaskOptions
from tests.evaluation import tiny_folder
from train.errors import ConfigError, DataError

QUICK = {"wait_seconds": 0.0, "timeout_seconds": 0.5, "attempts": 3}


@pytest.fixture(scope="module", autouse=True)
def questions_are_there(data_file):
    data_file(f"{mt_bench.FOLDER}/{mt_bench.QUESTIONS}")


@contextlib.contextmanager
def server(answers):
    """An endpoint of `answers(number, body) -> (status, text)`; yields address and requests."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, text = answers(len(asked), body)
            with contextlib.suppress(OSError):  # a client that did not wait
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}/v1", asked
    finally:
        listening.shutdown()
        listening.server_close()


def says(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def answers_of(questions, model="tiny"):
    return {
        question["question_id"]: {
            "question_id": question["question_id"], "answer_id": "x", "model_id": model,
            "choices": [{"index": 0, "turns": ["first answer", "second {answer}"]}], "tstamp": 0.0,
        }
        for question in questions
    }  # fmt: skip


def judge(tmp_path, config, limit=2, questions=None):
    questions = questions or mt_bench.load_questions(TaskOptions(limit=limit))
    return mt_bench.judge_all(
        questions, answers_of(questions), config, run.load_player, tmp_path / "judged.jsonl",
        model_id="tiny", stop=None,
    )  # fmt: skip


REQUEST = judges.Request("system", "user", 81, "tiny", 1)


def test_the_judge_is_asked_as_fastchat_asks_it(tmp_path, monkeypatch):
    every = mt_bench.load_questions(TaskOptions())
    math = next(q for q in every if q["category"] == "math")
    with server(lambda n, body: says(f"Because. Rating: [[{n}]]")) as (url, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", url + "/")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        config = JudgeConfig(kind="endpoint", model="gpt-x", parallel=1, **QUICK)
        rows = judge(tmp_path, config, questions=[every[0], math])
    assert [row["score"] for row in rows] == [1, 2, 3, 4]
    path, authorization, body = asked[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("gpt-x", 0)
    assert body["messages"][0]["content"] == "You are a helpful assistant."
    user = body["messages"][1]["content"]
    assert every[0]["turns"][0] in user and "first answer" in user and "{" not in user
    reference = files.read_json_lines(
        f"{mt_bench.FOLDER}/{mt_bench.REFERENCES}", fields=("question_id", "choices")
    )
    right = {row["question_id"]: row["choices"][0]["turns"] for row in reference}
    last = asked[-1][2]["messages"][1]["content"]
    assert all(text in last for text in (*math["turns"], *right[math["question_id"]]))
    assert "second {answer}" in last
    assert [row["judge"] for row in rows] == [
        ["gpt-x", name]
        for name in ("single-v1", "single-math-v1", "single-v1-multi-turn",
                     "single-math-v1-multi-turn")
    ]  # fmt: skip
    saved = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert saved == rows and [row["turn"] for row in rows] == [1, 1, 2, 2]


def test_a_judge_that_fails_is_asked_again_counted_and_kept(tmp_path, monkeypatch):
    def answers(number, body):
        if number == 1:
            return 500, "busy"
        if number == 2:
            time.sleep(1.0)
        if number == 3:
            return 200, "not JSON"
        if number == 4:
            return says("I cannot say.")
        if number == 5:
            return 200, json.dumps({"choices": []})
        return says("Rating: [[7.5]]" if number == 6 else "A [3], I think.")

    with server(answers) as (url, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        config = JudgeConfig(kind="endpoint", model="j", parallel=1, **QUICK)
        rows = judge(tmp_path, config)
        assert [(row["score"], row["attempts"]) for row in rows] == [
            (-1, 3), (7.5, 3), (3, 1), (3, 1)
        ]  # fmt: skip
        assert "malformed" in rows[0]["judgment"] and len(asked) == 8
        questions = mt_bench.load_questions(TaskOptions(limit=2))
        made = mt_bench.score_rows(
            questions, rows, file="j_single", method="greedy", stage="", settings={}
        )
        assert (made[0].score, made[0].n) == (4.5, 3)
        assert (made[0].settings["failed"], made[0].settings["asked_again"]) == (1, 2)
        again = judge(tmp_path, config)  # what failed is asked once more, nothing else
    assert len(asked) == 9 and sorted(row["score"] for row in again) == [3, 3, 3, 7.5]


@pytest.mark.parametrize("status", [401, 404])
def test_a_judge_that_refuses_is_one_error(tmp_path, monkeypatch, status):
    with server(lambda n, body: (status, "{}")) as (url, asked):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(ConfigError, match=f"refuses: HTTP {status}"):
            judge(tmp_path, JudgeConfig(kind="endpoint", model="j", parallel=1, **QUICK))
    assert len(asked) == 1


def test_an_endpoint_needs_its_address(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        judge(tmp_path, JudgeConfig(kind="endpoint", model="j"))
    with pytest.raises(ConfigError, match="--judge.model"):
        JudgeConfig(kind="endpoint")


def test_recorded_judgments_give_their_known_scores(tmp_path):
    questions = mt_bench.load_questions(TaskOptions(limit=11))
    recorded = tmp_path / "gpt-4_single.jsonl"
    lines = [
        {
            "question_id": question["question_id"], "model": "tiny",
            "judge": ["gpt-4", "single-v1"], "user_prompt": "",
            "judgment": f"Rating: [[{turn + number % 3}]]", "turn": turn,
            "score": turn + number % 3, "tstamp": 0.0,
        }
        for number, question in enumerate(questions)
        for turn in (1, 2)
    ]  # fmt: skip
    recorded.write_text("".join([json.dumps(line) + "\n" for line in lines]))
    rows = judge(tmp_path, JudgeConfig(kind="recorded", model=str(recorded)), questions=questions)
    made = mt_bench.score_rows(questions, rows, file="f", method="greedy", stage="", settings={})
    by_name = {(row.split, row.metric): row for row in made}
    means = [1 + sum(n % 3 for n in range(11)) / 11, 2 + sum(n % 3 for n in range(11)) / 11]
    assert by_name["all", "MT-bench score, turn 1"].score == pytest.approx(means[0])
    assert by_name["all", "MT-bench score, turn 2"].score == pytest.approx(means[1])
    assert by_name["all", "MT-bench score"].score == pytest.approx(sum(means) / 2)
    assert by_name["roleplay", "MT-bench score"].score == pytest.approx(1.5 + 10 % 3)
    assert mt_bench.category_scores(made).keys() == {"writing", "roleplay"}
    with pytest.raises(DataError, match="judgment"):
        judge(
            tmp_path / "other",
            JudgeConfig(kind="recorded", model=f"{mt_bench.FOLDER}/question.jsonl"),
        )


@pytest.mark.parametrize(
    ("text", "grade"),
    [("[[5]] or [[6]]", 5), ("[4] then [[7]]", 7), ("so [8.25]", 8.25), ("5", -1), ("[[n]]", -1)],
)
def test_grades_are_found_as_fastchat_finds_them(text, grade):
    assert judges.grade(text) == grade


@pytest.mark.slow
def test_an_evaluation_fills_a_folder_of_fastchat_and_goes_on_where_it_stopped(tmp_path):
    folder = tiny_folder.make(tmp_path / "model", template=tiny_folder.TEMPLATE)
    config = run.EvaluationConfig(
        checkpoint=str(folder), tasks=("mt_bench",), methods=(Greedy(),), batch_size=2,
        options=TaskOptions(limit=3, max_new_tokens=3),
        judge=JudgeConfig(kind="checkpoint", model=str(folder), max_new_tokens=2),
    )  # fmt: skip
    path = run.run(config, tmp_path / "run", resume=False, stop=None)
    rows = report.read(path).rows
    assert rows[0].n == 0 and rows[0].settings["failed"] == 6  # it says nothing of use
    place = tmp_path / "run" / "mt_bench"
    answers = place / "model_answer" / f"{run.name_of(str(folder))}.jsonl"
    said = [json.loads(line) for line in answers.read_text().splitlines()]
    example = files.read_json_lines(f"{mt_bench.FOLDER}/{mt_bench.REFERENCES}", fields=())[0]
    for row in said:
        assert row.keys() == example.keys()
        assert all(type(row[key]) is type(example[key]) for key in row)
        assert len(row["choices"][0]["turns"]) == 2 and re.fullmatch(
            "[0-9a-f]{22}", row["answer_id"]
        )
    (judged,) = (place / "model_judgment").iterdir()
    grades = [json.loads(line) for line in judged.read_text().splitlines()]
    assert grades[0].keys() >= {"question_id", "model", "judge", "user_prompt", "judgment", "score",
                                "turn", "tstamp"}  # fmt: skip
    assert (place / "radar.png").stat().st_size > 5000
    kept = answers.read_text()
    first = kept.splitlines(keepends=True)[0]
    answers.write_text(first + '{"torn')
    run.run(config, tmp_path / "run", resume=True, stop=None)
    again = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["choices"] for row in again] == [row["choices"] for row in said]
    assert answers.read_text().startswith(first)
