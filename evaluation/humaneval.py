r"""`humaneval`: functions that must pass their tests (Chen et al., arXiv:2107.03374).

164 prompts, each the head of a function; a text ends where the next piece of a module begins, at
"\nclass", "\ndef", "\n#", "\nif" or "\nprint". What a model wrote is run (`evaluation.code_worker`)
with limits on time and memory and without a network, and only where `--allow-code` says so.
"""

import gzip
import json
import subprocess
import sys
import tempfile
from typing import Any, Literal

from data import files
from data.errors import DataError
from evaluation import code_worker
from evaluation.tasks import Question, Scores, Task, TaskOptions
from train.errors import ConfigError

FILE = "eval/humaneval/HumanEval.jsonl.gz"
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
SECONDS, MEMORY_BYTES = 5, 2**30
WALL_SECONDS = 30.0

Verdict = Literal["passed", "failed", "too slow"]


def run(program: str, *, seconds: int = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Verdict:
    """Whether a program runs to its end.

    Raises:
      ConfigError: this system does not let a process give up its network.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-S", "-B", code_worker.__file__]
        try:
            done = subprocess.run(
                [*command, str(seconds), str(memory_bytes)],
                input=program.encode(),
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=WALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "too slow"
    if done.returncode == code_worker.NO_NETWORK:
        raise ConfigError(
            "programs of a model run without a network; this system does not allow a process to "
            "give up its own (unshare). Evaluate humaneval elsewhere."
        )
    if done.returncode in (-9, -24):  # SIGKILL, SIGXCPU
        return "too slow"
    return "passed" if done.returncode == code_worker.PASSED else "failed"


def program(question: Question, response: str) -> str:
    """The function that a model completed, and its tests."""
    ends = [place for stop in STOPS if (place := response.find(stop)) >= 0]
    body = response[: min(ends)] if ends else response
    tests, name = question.gold["test"], question.gold["entry_point"]
    return f"{question.prompt}{body}\n\n{tests}\n\ncheck({name})\n"


def load(options: TaskOptions) -> list[Question]:
    """The prompts.

    Raises:
      ConfigError: nobody said that code may be run. DataError: the file is nowhere to be found.
    """
    if not options.allow_code:
        raise ConfigError(
            "humaneval runs programs that a model wrote; got allow_code=False. Say --allow-code on "
            "a machine that may do that."
        )
    path = files.find(FILE)
    if path is None:
        raise DataError(
            f"humaneval needs {FILE} below {', '.join(map(str, files.roots()))}. Put it there, or "
            "set TAYLORZERO_DATA to the folder that has it (docs/data.md)."
        )
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return [
        Question(
            id=f"humaneval/{row['task_id'].rpartition('/')[2]}",
            prompt=row["prompt"],
            gold={"test": row["test"], "entry_point": row["entry_point"]},
        )
        for row in rows
    ]


def score(question: Question, response: Any) -> Scores:
    verdict = run(program(question, response))
    return {"accuracy": float(verdict == "passed"), "too slow": float(verdict == "too slow")}


TASKS = {
    "humaneval": Task(
        name="humaneval", kind="write", load=load, score=score, max_new_tokens=512, is_plain=True
    ),
}
