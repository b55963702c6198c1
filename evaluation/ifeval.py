"""`ifeval`: does a model do what it is told, where that can be checked (Zhou et al., 2311.07911).

541 prompts with one to three instructions each. A prompt is followed when all of its instructions
are; strict and loose are those of `evaluation.instructions`. The four numbers are the original's.
"""

from typing import Any

from data import files
from evaluation import instructions
from evaluation.tasks import Question, Scores, Task, TaskOptions

FILE = "eval/ifeval/input_data.jsonl"
MAX_NEW_TOKENS = 1280  # as in lm-eval
WAYS = {"strict": instructions.follows, "loose": instructions.follows_loosely}


def load(options: TaskOptions) -> list[Question]:
    """The prompts; `gold` has the names of the instructions and their arguments."""
    del options
    instructions.require_packages()
    rows = files.read_json_lines(FILE, fields=("key", "prompt", "instruction_id_list", "kwargs"))
    return [
        Question(
            id=f"ifeval/{row['key']}",
            prompt=row["prompt"],
            category=row["instruction_id_list"][0].partition(":")[0],
            gold=[
                (name, {key: value for key, value in arguments.items() if value})
                for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True)
            ],
        )
        for row in rows
    ]


def score(question: Question, response: Any) -> Scores:
    scores: Scores = {}
    for way, follows in WAYS.items():
        followed = [follows(response, name, arguments) for name, arguments in question.gold]
        scores[f"{way} prompt accuracy"] = float(all(followed))
        scores[f"{way} instruction accuracy"] = (float(sum(followed)), float(len(followed)))
    return scores


TASKS = {
    "ifeval": Task(
        name="ifeval", kind="write", load=load, score=score, max_new_tokens=MAX_NEW_TOKENS
    ),
}
