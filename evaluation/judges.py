"""Who grades an answer: an OpenAI-compatible endpoint, a model of ours, or a file of judgments.

A judge is a function of what it is shown, `judge(Request) -> text`. What it says is read for a
grade by `grade`; a judge that says nothing usable is asked again (`graded`), and what fails to the
end is kept with the grade -1, counted and reported.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data import files, prompts
from data.problems import Prompt
from evaluation.methods import Greedy
from evaluation.player import Player, Questions
from train.errors import ConfigError

FAILED = -1
_GRADES = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who grades the answers of mt_bench."""

    kind: Literal["none", "endpoint", "checkpoint", "recorded"] = "none"
    """"none" writes answers only; "endpoint": OPENAI_BASE_URL, with OPENAI_API_KEY if it is set;
    "checkpoint": a model of ours; "recorded": a file in the form of FastChat's judgments."""
    model: str = ""
    """Name of the model behind the endpoint, path of the checkpoint, or path of the file."""
    attempts: int = 3
    """How often a judge is asked that fails or gives no grade."""
    timeout_seconds: float = 60.0
    """Of one answer of an endpoint."""
    wait_seconds: float = 1.0
    """Between two attempts at an endpoint; twice as long after each."""
    parallel: int = 4
    """Questions that an endpoint is asked at once."""
    max_new_tokens: int = 2048
    """Longest judgment."""

    def __post_init__(self):
        if (self.kind == "none") != (not self.model):
            raise ConfigError(
                "a judge has a kind and a model (its name or path), or there is none; got "
                f"{self.kind=}, {self.model=}. Give both, such as --judge.kind endpoint "
                "--judge.model NAME."
            )
        if min(self.attempts, self.parallel, self.max_new_tokens) < 1 or self.timeout_seconds <= 0:
            raise ConfigError(
                "a judge is asked at least once, for at least a token, with time to answer; got "
                f"{self}."
            )

    @property
    def name(self) -> str:
        """Names the file of judgments."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.model).name or self.model)


@dataclass(frozen=True)
class Request:
    """What a judge is shown, and where it comes from."""

    system: str
    user: str
    question_id: int
    model: str
    turn: int


class JudgeError(Exception):
    """A judge failed in a way that may pass."""


Judge = Callable[[Request], str]


def make(config: JudgeConfig, load_player: Callable[[str], Player]) -> Judge:
    """The judge of a config.

    Raises:
      ConfigError: there is no endpoint. DataError: no such checkpoint or file.
    """
    if config.kind == "endpoint":
        url = os.environ.get("OPENAI_BASE_URL", "")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                "a judge behind an endpoint needs its address; got OPENAI_BASE_URL="
                f"{url!r}. Set it, such as http://127.0.0.1:8000/v1."
            )
        return Endpoint(url.rstrip("/"), os.environ.get("OPENAI_API_KEY", ""), config)
    if config.kind == "checkpoint":
        return _of_model(load_player(config.model), config.max_new_tokens)
    if config.kind == "recorded":
        return recorded(config.model)
    raise ValueError(f"there is no judge to make; got {config.kind=}. Name one.")


@dataclass(frozen=True)
class Endpoint:
    """`POST URL/chat/completions` at temperature 0, by the standard library alone."""

    url: str
    key: str
    config: JudgeConfig

    def __call__(self, request: Request) -> str:
        body = {
            "model": self.config.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.user},
            ],
            "temperature": 0,
            "max_tokens": self.config.max_new_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        asked = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(asked, timeout=self.config.timeout_seconds) as answer:
                said = json.loads(answer.read())["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            if error.code in (400, 401, 403, 404):
                raise ConfigError(
                    f"the judge refuses: HTTP {error.code} {error.reason} from {self.url} for "
                    f"model {self.config.model!r}. Correct OPENAI_API_KEY, OPENAI_BASE_URL or the "
                    "name of the model."
                ) from error
            raise JudgeError(f"HTTP {error.code} {error.reason}") from error
        except (TimeoutError, urllib.error.URLError, ConnectionError) as error:
            raise JudgeError(f"no answer: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise JudgeError(f"malformed answer: {type(error).__name__} {error}") from error
        if not isinstance(said, str):
            raise JudgeError(f"malformed answer: {said!r} is no text")
        return said


def _of_model(player: Player, max_new_tokens: int) -> Judge:
    method = Greedy(max_completion_tokens=max_new_tokens)

    def judge(request: Request) -> str:
        chat = [
            {"role": "system", "content": request.system},
            {"role": "user", "content": request.user},
        ]
        prompt = Prompt(
            id=str(request.question_id), split="test", text=prompts.render(player.tokenizer, chat)
        )
        (attempt,) = method.play(player, Questions("mt_bench", [0], [prompt]))
        return attempt.completion

    return judge


def recorded(path: str) -> Judge:
    """Says what a file of judgments says of the same question, model and turn.

    Raises:
      DataError: the file is missing or of another form.
    """
    rows = files.read_json_lines(path, fields=("question_id", "model", "judgment", "turn"))
    said = {(row["question_id"], row["model"], row["turn"]): row["judgment"] for row in rows}

    def judge(request: Request) -> str:
        try:
            return said[request.question_id, request.model, request.turn]
        except KeyError:
            raise JudgeError(
                f"{path} has no judgment of question {request.question_id}, turn {request.turn}, "
                f"for {request.model!r}"
            ) from None

    return judge


def grade(judgment: str) -> float:
    """The grade in a judgment: the first [[n]], else the first [n], else -1 (as FastChat's)."""
    for pattern in _GRADES:
        if found := pattern.search(judgment):
            return float(found[1]) if "." in found[1] else int(found[1])
    return FAILED


@dataclass(frozen=True)
class Graded:
    """A grade, the text it was found in (or why there is none), and how often was asked."""

    grade: float
    judgment: str
    attempts: int


def graded(judge: Judge, request: Request, config: JudgeConfig) -> Graded:
    """Asks until there is a grade, at most `config.attempts` times. A file is asked once."""
    said = ""
    attempts = 1 if config.kind in ("recorded", "checkpoint") else config.attempts
    for attempt in range(1, attempts + 1):
        try:
            said = judge(request)
        except JudgeError as error:
            said = f"$ERROR$ {error}"
        else:
            if (found := grade(said)) != FAILED:
                return Graded(found, said, attempt)
        if attempt < attempts:
            time.sleep(config.wait_seconds * 2 ** (attempt - 1))
    return Graded(FAILED, said, attempts)
