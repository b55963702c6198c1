"""`perplexity`: how well a model reads held-out text, every token after as many as it can read.

WikiText-2's articles are documents of their own; another file is one document, or several between
lines that hold nothing but `<|endoftext|>`. Numbers of models with different tokenizers compare by
byte and by word, not by token: a word is what stands between spaces (as in lm-eval's `wikitext`).
"""

import math
import re
from collections.abc import Sequence

from data import files
from evaluation import report
from evaluation.tasks import Question, Scores, Task, TaskOptions

ARTICLE = re.compile(r"(?m)^(?= = [^=].*[^=] = $)")  # a heading of the first level
SEPARATOR = "<|endoftext|>"
WORD_PERPLEXITY = "word perplexity"


def documents(text: str) -> list[str]:
    """The documents of a text file, none of them empty."""
    separated = re.split(rf"(?m)^{re.escape(SEPARATOR)}\n", text)
    cut = [part for document in separated for part in ARTICLE.split(document)]
    return [document for document in cut if document.strip()]


def _load(options: TaskOptions) -> list[Question]:
    return [
        Question(
            id=f"perplexity/{number}",
            prompt=document,
            category=document.strip().splitlines()[0][:80],
            gold={
                "bytes": len(document.encode("utf-8")),
                "words": max(1, len(re.split(r"\s+", document))),
            },
            shown=document[:1000],
        )
        for number, document in enumerate(documents(files.read_text(options.text)))
    ]


def _score(question: Question, response: Sequence[float]) -> Scores:
    log_prob, num_tokens = response
    return {
        report.LOSS: (-log_prob, num_tokens),
        "bits per byte": (-log_prob / math.log(2), question.gold["bytes"]),
        WORD_PERPLEXITY: (-log_prob, question.gold["words"]),
    }


TASKS = {
    "perplexity": Task(
        name="perplexity", kind="read", load=_load, score=_score, exponential=(WORD_PERPLEXITY,)
    ),
}
