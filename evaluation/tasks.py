"""What a task is: questions that are put to a model, and how its responses are scored.

A task is one `Task`: a function that loads its questions and one that scores a response. There are
three kinds of questions, by what the model does with one:

    "choose"  says how likely each of some continuations is; response: [[log_prob, is_greedy], ...]
    "read"    says how likely a whole text is; response: [log_prob, num_tokens]
    "write"   continues the prompt (by a method of `evaluation.methods`); response: the text

Problem sets of `data.problems`, whose texts are right or wrong, are answered by `evaluation.run`.
"""

import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.errors import DataError
from data.tokenizer import Tokenizer, prompt_ids
from evaluation.likelihood import Request
from train.errors import ConfigError

Kind = Literal["choose", "read", "write"]
# A number per question, of which the report has the mean; or a pair (x, y), of which it has the
# sum of x over the sum of y.
Score = float | tuple[float, float]
Scores = dict[str, Score]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which questions a task asks, and how it puts them."""

    limit: int | None = None
    """Only the first so many questions of every task; None asks all."""
    shots: int = 0
    """Worked examples before a question of mmlu."""
    subjects: tuple[str, ...] = ()
    """Of mmlu, such as anatomy; none: all 57."""
    text: str = "text/wikitext-2/test.txt"
    """What `perplexity` reads: a path, or a name below the data folder."""
    form: Literal["auto", "plain", "chat"] = "auto"
    """How questions of ifeval, readability and mt_bench are put: "plain" as they are, "chat" in the
    model's own template (ChatML where it has none), "auto" in its template if it has one."""
    allow_code: bool = False
    """Whether humaneval may run programs that the model wrote."""
    max_new_tokens: int | None = None
    """Longest text that is written in these; None: what the task says."""

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"a task asks at least one question; got limit={self.limit}.")
        if self.shots < 0 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise ConfigError(
                "examples are counted from 0 and tokens from 1; got "
                f"{self.shots=}, {self.max_new_tokens=}. Correct them."
            )


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    continuations: of "choose"; each begins with the space before it, if any.
    gold: what the scorer knows and the model does not.
    shown: what people are shown of a long prompt; all of it unless given.
    """

    id: str
    prompt: str
    continuations: tuple[str, ...] = ()
    category: str = ""
    gold: Any = None
    shown: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Questions and a scorer.

    score: never raises; the same names for every question.
    max_new_tokens: of "write". is_plain: of "write", prompts are never put as a chat.
    exponential: metrics whose report is exp(mean), as perplexity is.
    """

    name: str
    kind: Kind
    load: Callable[[TaskOptions], Sequence[Question]]
    score: Callable[[Question, Any], Scores]
    max_new_tokens: int = 256
    exponential: tuple[str, ...] = ()
    is_plain: bool = False

    def questions(self, options: TaskOptions) -> list[Question]:
        """Those that the options ask for.

        Raises:
          DataError: there is none, or its files are nowhere to be found.
        """
        asked = list(self.load(options))[: options.limit]
        if not asked:
            raise DataError(f"a task has questions; {self.name} has none of {options}.")
        return asked


# Name -> module that has the task of this name in its `TASKS`; a task of your own is one entry here
# (docs/extending.md).
MODULES = {
    "mmlu": "evaluation.choices",
    "truthfulqa_mc": "evaluation.choices",
    "perplexity": "evaluation.perplexity",
    "ifeval": "evaluation.ifeval",
    "readability": "evaluation.readability",
    "humaneval": "evaluation.humaneval",
}


def find(name: str) -> Task:
    """The task of that name.

    Raises:
      ConfigError: there is none, with the nearest name.
    """
    if name not in MODULES:
        near = difflib.get_close_matches(name, MODULES, n=1)
        raise ConfigError(
            f"a task is one of {sorted(MODULES)}; got {name!r}. "
            + (f"Did you mean {near[0]!r}?" if near else "Use one of these names.")
        )
    return importlib.import_module(MODULES[name]).TASKS[name]


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Token ids of a continuation after its context, divided as lm-eval divides them.

    Spaces at the end of the context go to the continuation; both are encoded together, and what
    goes beyond the length of the context's own ids is the continuation. An empty context is the
    token that begins texts, or else the one that ends them.
    """
    return encode_pairs(tokenizer, context, (continuation,))[0]


def encode_pairs(tokenizer: Tokenizer, context: str, continuations: Iterable[str]) -> list[Request]:
    """`encode_pair` for several continuations of one context, which is encoded once."""
    if not context:
        begin = prefix_id(tokenizer)
        encoded = [tokenizer.encode(continuation) for continuation in continuations]
        return [
            Request(tuple(ids[:1]), tuple(ids[1:]))
            if ids[:1] == [begin]
            else Request((begin,), tuple(ids))
            for ids in encoded
        ]
    bare = context.rstrip()
    spaces = context[len(bare) :]
    before = tuple(prompt_ids(tokenizer, bare))
    return [
        Request(before, tuple(prompt_ids(tokenizer, bare + spaces + continuation)[len(before) :]))
        for continuation in continuations
    ]


def prefix_id(tokenizer: Tokenizer) -> int:
    """The token that stands before a text without a context."""
    begin = getattr(tokenizer, "begin_id", None)
    return tokenizer.eos_id if begin is None else begin


def windows(ids: Sequence[int], first: int, longest_tokens: int) -> list[Request]:
    """A whole text as requests that score every token once, each after as many as the model reads.

    The first window begins with the token `first`. Those of lm-eval's `loglikelihood_rolling`, with
    a context of 1 token.
    """
    requests, done = [], 0
    text = [first, *ids]  # token n of the text follows text[: n + 1]
    while done < len(ids):
        end = min(len(ids), done + longest_tokens)
        start = max(0, end - longest_tokens)
        requests.append(Request(tuple(text[start : done + 1]), tuple(ids[done:end])))
        done = end
    return requests
