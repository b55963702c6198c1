"""Puts the questions of a task to a model, scores the responses, and keeps them for resuming.

    RUN/samples/TASK[-METHOD].jsonl    one `Sample` per line, in the order of the questions

While an evaluation runs, samples are appended batch by batch. What is read at once is decided by
all the questions, so a run that was killed goes on with the next batch and ends with the bytes of
an uninterrupted one (but for seconds), and no question of a finished batch is asked again.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import prompts, tokenizer
from data.errors import DataError
from data.problems import Prompt
from evaluation import likelihood, report, statistics, tasks
from evaluation.player import Attempt, Method, Player, Questions
from evaluation.tasks import Question, Scores, Task, TaskOptions

PROGRESS_SECONDS = 10.0
LIKELIHOOD = "log-likelihood"  # the method of questions that are not written to


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question and what became of it.

    shown: the question, without what all questions begin with. prompt_hash: of all that was put to
    the model. response: see `evaluation.tasks`. tokens: read for it, the share of a prefix that
    several questions have in common included. seconds: None in batches that compiled.
    """

    id: str
    category: str
    shown: str
    prompt_hash: str
    response: Any
    scores: Scores
    tokens: float
    seconds: float | None = None


class Progress:
    """Says on stderr, now and then, how far an evaluation is and how long it will take."""

    def __init__(self, name: str, num_done: int, num_asked: int):
        self._name, self._num_asked = name, num_asked
        self._first, self._started = num_done, time.monotonic()
        self._printed = self._started

    def __call__(self, num_done: int) -> None:
        now = time.monotonic()
        if now - self._printed < PROGRESS_SECONDS or num_done == self._first:
            return
        self._printed = now
        left = (now - self._started) / (num_done - self._first) * (self._num_asked - num_done)
        print(
            f"{self._name}: {num_done:,} of {self._num_asked:,}, {left:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def ask(
    task: Task,
    options: TaskOptions,
    player_of: Callable[[], Player],
    path: Path,
    *,
    method: Method | None = None,
    longest_tokens: int,
    batch_size: int,
    batch_tokens: int = likelihood.BATCH_TOKENS,
    resume: bool,
    stop: Any,
) -> list[Sample]:
    """The samples of all questions, in their order.

    Args:
      player_of: gives the model; not called where everything is answered.
      method: writes the texts of a "write" task.
      longest_tokens: that the model reads at once.
      batch_size: questions that are written to at once. batch_tokens: of others (`likelihood`).

    Raises:
      Preempted: `stop` was requested; finished batches are saved.
      DataError: the saved samples are those of other questions.
    """
    questions = task.questions(options)
    hashes = [_hash(question) for question in questions]
    done = _read_partial(path, questions, hashes) if resume else {}
    if not resume:
        path.unlink(missing_ok=True)
    if len(done) < len(questions):
        player = player_of()
        if task.kind == "write":
            assert method is not None
            answered = _written(task, options, player, questions, done, method, batch_size)
        else:
            answered = _read(task, player, questions, done, longest_tokens, batch_tokens)
        progress = Progress(path.stem, len(done), len(questions))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            for batch in answered:
                for number, response, tokens, seconds in batch:
                    question = questions[number]
                    done[number] = Sample(
                        id=question.id,
                        category=question.category,
                        shown=question.shown or question.prompt,
                        prompt_hash=hashes[number],
                        response=response,
                        scores=task.score(question, response),
                        tokens=tokens,
                        seconds=seconds,
                    )
                    file.write(_line(done[number]))
                file.flush()
                os.fsync(file.fileno())
                progress(len(done))
                if stop is not None and stop.requested and len(done) < len(questions):
                    stop.raise_preempted(f"{len(done)} of {len(questions)} of {path.stem}")
    samples = [done[number] for number in range(len(questions))]
    write_samples(path, samples)
    return samples


# ------------------------------------------------------------------------------ three kinds

# (number of the question, response, tokens, seconds)
Answered = tuple[int, Any, float, float | None]


def _read(
    task: Task,
    player: Player,
    questions: Sequence[Question],
    done: dict[int, Sample],
    longest_tokens: int,
    batch_tokens: int,
) -> Iterator[list[Answered]]:
    """Of "choose" and "read": questions as requests, each answered once all of its requests are."""
    requests: list[likelihood.Request] = []
    owner: list[int] = []
    first_of: list[int] = []
    for number, question in enumerate(questions):
        first_of.append(len(requests))
        if task.kind == "choose":
            requests += tasks.encode_pairs(
                player.tokenizer, question.prompt, question.continuations
            )
        else:
            ids = player.tokenizer.encode(question.prompt)
            begin = tasks.prefix_id(player.tokenizer)
            requests += tasks.windows(ids, begin, longest_tokens)
        owner += [number] * (len(requests) - len(owner))
    first_of.append(len(requests))
    batches = likelihood.plan(requests, longest_tokens=longest_tokens, batch_tokens=batch_tokens)
    left = [
        batch for batch in batches if any(owner[request] not in done for request in batch.requests)
    ]
    found: dict[int, likelihood.Likelihood] = {}
    spent = dict.fromkeys(range(len(questions)), 0.0)
    shapes: set[Any] = set()
    started = time.monotonic()
    for batch, new in likelihood.Reader(player.model, player.params).read(left):
        found |= new
        for number, tokens in _tokens_read(batch, owner).items():
            spent[number] += tokens
        shape = (bool(batch.prefix), batch.shape)
        finished = [
            number
            for number in dict.fromkeys(owner[request] for request in new)
            if number not in done
            and all(request in found for request in range(first_of[number], first_of[number + 1]))
        ]
        seconds = (time.monotonic() - started) / max(1, len(finished))
        started = time.monotonic()
        yield [
            (
                number,
                _response(task, [found[n] for n in range(first_of[number], first_of[number + 1])],
                          requests[first_of[number] : first_of[number + 1]]),
                round(spent[number], 2),
                seconds if shape in shapes else None,
            )
            for number in finished
        ]  # fmt: skip
        shapes.add(shape)


def _response(
    task: Task, found: list[likelihood.Likelihood], requests: Sequence[likelihood.Request]
) -> Any:
    if task.kind == "choose":
        return [[round(one.log_prob, 6), one.is_greedy] for one in found]
    total = round(sum(one.log_prob for one in found), 6)
    return [total, sum(len(request.continuation) for request in requests)]


def _tokens_read(batch: likelihood.Batch, owner: Sequence[int]) -> dict[int, float]:
    """Tokens that went through the model for each question of a batch."""
    tokens: dict[int, float] = {}
    for text in batch.texts:
        own = len(text.context) + len(batch.prefix) / len(batch.texts)
        own += sum(len(continuation) - 1 for continuation in text.continuations.values())
        for request in text.continuations:
            number = owner[request]
            tokens[number] = tokens.get(number, 0.0) + own / len(text.continuations)
    return tokens


def _written(
    task: Task,
    options: TaskOptions,
    player: Player,
    questions: Sequence[Question],
    done: dict[int, Sample],
    method: Method,
    batch_size: int,
) -> Iterator[list[Answered]]:
    """Of "write": a method plays, questions of like length at once; batches are filled up."""
    form = "plain" if task.is_plain else options.form
    texts = [
        put([{"role": "user", "content": question.prompt}], form, player.tokenizer)
        for question in questions
    ]
    order = sorted(range(len(questions)), key=lambda n: (-len(texts[n]), n))
    size = min(batch_size, len(order))
    shapes: set[int] = set()
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        if all(number in done for number in numbers):
            continue
        filled = [*numbers, *[numbers[0]] * (size - len(numbers))]
        asked = [Prompt(id=questions[n].id, split="test", text=texts[n]) for n in filled]
        started = time.monotonic()
        attempts: list[Attempt] = method.play(player, Questions(task.name, filled, asked))
        seconds = (time.monotonic() - started) / size
        width = max(len(player.prompt_ids(texts[n])) for n in numbers)
        shape = 1 << (width - 1).bit_length()
        yield [
            (
                number,
                attempt.completion,
                float(attempt.evaluations),
                seconds if shape in shapes else None,
            )
            for number, attempt in zip(numbers, attempts)
            if number not in done
        ]
        shapes.add(shape)


def put(chat: Sequence[prompts.Message], form: str, text: tokenizer.Tokenizer) -> str:
    """Turns as the model reads them: as a chat, or plain, one below the other.

    form: "auto" is a chat where the tokenizer has a template.
    """
    if form == "chat" or (form == "auto" and getattr(text, "chat_template", None) is not None):
        return prompts.render(text, chat)
    return "\n\n".join([message["content"] for message in chat])


# ---------------------------------------------------------------------------------- samples


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file; a last line that was cut off by a kill is left out."""
    if not path.is_file():
        return []
    samples = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1]):  # the last one has no line end
        try:
            raw = json.loads(line)
            scores = {
                name: tuple(score) if isinstance(score, list) else score
                for name, score in raw["scores"].items()
            }
            samples.append(Sample(**{**raw, "scores": scores}))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} holds samples of this code; line {number + 1} is none ({error}). "
                "Use --overwrite to ask all again."
            ) from error
    return samples


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Replaces the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(map(_line, samples))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _line(sample: Sample) -> str:
    return json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n"


def _read_partial(
    path: Path, questions: Sequence[Question], hashes: Sequence[str]
) -> dict[int, Sample]:
    """Samples by number of their question; the file is left with whole lines of these alone."""
    samples = read_samples(path)
    numbers = {question.id: number for number, question in enumerate(questions)}
    for sample in samples:
        number = numbers.get(sample.id)
        if number is None or hashes[number] != sample.prompt_hash:
            raise DataError(
                f"an evaluation is resumed on the questions it began with; {path} has an answer to "
                f"{sample.id}, which is {'not asked' if number is None else 'put otherwise'} now. "
                "Restore the data, or use --overwrite to ask all again."
            )
    if path.is_file():
        write_samples(path, samples)
    return {numbers[sample.id]: sample for sample in samples}


def _hash(question: Question) -> str:
    content = json.dumps([question.prompt, question.continuations], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------- rows


def make_rows(
    task: Task,
    samples: Sequence[Sample],
    *,
    file: str,
    stage: str,
    method: str,
    settings: dict[str, Any],
    **fields: Any,
) -> list[report.Row]:
    """One row per metric, over all questions; means by category are in its settings.

    file: name of the samples.
    """
    seconds = [sample.seconds for sample in samples if sample.seconds is not None]
    categories: dict[str, list[Sample]] = {}
    for sample in samples:
        categories.setdefault(sample.category, []).append(sample)
    rows = []
    for metric in samples[0].scores:
        score, low, high = _estimate(task, metric, samples)
        by_category = {
            name: round(_estimate(task, metric, some)[0], 6)
            for name, some in categories.items()
            if len(categories) > 1
        }
        rows.append(
            report.Row(
                task=task.name,
                split="test",
                stage=stage,
                method=method,
                metric=metric,
                score=score,
                low=low,
                high=high,
                n=len(samples),
                forward_passes_per_problem=sum(sample.tokens for sample in samples) / len(samples),
                seconds_per_problem=sum(seconds) / len(seconds) if seconds else None,
                settings=settings
                | {"samples": [file, metric]}
                | ({"by_category": by_category} if by_category else {}),
                **{"simulations": None, "use_oracle": False, "use_value": False} | fields,
            )
        )
    return rows


def _estimate(task: Task, metric: str, samples: Sequence[Sample]) -> tuple[float, float, float]:
    estimate = statistics.estimate([sample.scores[metric] for sample in samples])
    if metric in task.exponential:
        return statistics.exponential(estimate)
    if report.is_share(metric):
        score, low, high = estimate
        return score, max(0.0, low), min(1.0, high)
    return estimate
