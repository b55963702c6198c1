"""Prompts that a model invents: `python -m synthesis synthesize --writer P`.

    RUN/prompts.jsonl   prompt (chat messages), kind, form, topic, and `check` where there is one
    RUN/steps/          what every step made, slice by slice

Topics -> narrower topics -> questions of several kinds -> a harder form of each -> a single
question, one with a verifiable instruction (in the first turn, in a later one, or for all turns),
or a dialogue of two or three turns whose user the model plays as well. Then `steer` with
`--requested none` answers, by as many models as you like, and `judge` makes pairs.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from data import instructions, json_rows
from data.chat import Prompt, TemplateName
from data.errors import DataError
from synthesis import slices, templates, writers
from synthesis.writers import Asked, Sampling, Writer
from train.errors import ConfigError
from train.stopping import StopFlag

Kind = Literal["open_qa", "writing", "closed_qa", "math", "code"]
Form = Literal[
    "single", "verifiable", "verifiable_rewrite", "verifiable_standing", "two_turn", "three_turn"
]
NUM_MESSAGES: dict[Form, int] = {
    "single": 1, "verifiable": 1, "verifiable_rewrite": 3, "verifiable_standing": 3, "two_turn": 3,
    "three_turn": 5,
}  # fmt: skip
Row = dict[str, Any]
MATH_KEYWORDS = ("fractions", "ratios", "linear equations", "probability", "areas", "sequences")
CODE_KEYWORDS = ("lists", "strings", "dictionaries", "recursion", "sorting", "text files")


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """One run of `python -m synthesis synthesize`."""

    writer: str = ""
    """Who invents: a run folder, a checkpoint, a folder of transformers, or "recorded:FILE"."""
    template: TemplateName | None = None
    """How a chat is written for this model; None: as it was trained."""
    sampling: Sampling = Sampling(max_new_tokens=512)
    """How tokens are drawn."""
    num_topics: int = 8
    """Broad topics that are asked for."""
    num_subtopics: int = 6
    """Narrower ones for each."""
    num_questions: int = 4
    """Questions of each kind about each narrower topic, keyword or document."""
    kinds: tuple[Kind, ...] = ("open_qa", "writing", "math", "code")
    """What is asked: "open_qa" and "writing" by topic, "math" and "code" by keyword, "closed_qa"
    over documents."""
    documents: str = ""
    """JSON lines with the field `text`, for "closed_qa"."""
    math_keywords: tuple[str, ...] = MATH_KEYWORDS
    """Of which problems are made up."""
    code_keywords: tuple[str, ...] = CODE_KEYWORDS
    """Of which programming tasks are made up."""
    refine: bool = True
    """Make every question of "open_qa" and "writing" more demanding."""
    forms: tuple[Form, ...] = (
        "single", "verifiable", "verifiable_rewrite", "verifiable_standing", "two_turn",
        "three_turn",
    )  # fmt: skip
    """What questions become, in turn; the verifiable ones carry an instruction and its check."""
    min_characters: int = 12
    """Shorter questions are left out."""
    max_characters: int = 2_000
    """Longer ones too."""
    items_per_slice: int = 64
    """Work that a kill can undo."""
    seed: int = 0
    """Decides what is drawn."""

    def __post_init__(self):
        counts = (
            self.num_topics, self.num_subtopics, self.num_questions, self.items_per_slice,
            len(self.kinds), len(self.forms),
        )  # fmt: skip
        if min(counts) < 1:
            raise ConfigError(f"there is one of everything at least; got {self}.")
        if ("closed_qa" in self.kinds) != bool(self.documents):
            raise ConfigError(
                'the kind "closed_qa" and the file documents belong together; got '
                f"kinds={self.kinds} with documents={self.documents!r}."
            )


def run(
    config: SynthesizeConfig,
    run_folder: Path,
    /,
    *,
    resume: bool = False,
    stop: StopFlag | None = None,
) -> Path:
    """Invents prompts; returns the path of prompts.jsonl.

    Raises:
      DataError: the writer gave nothing that can be used. Preempted: `stop` was requested.
    """
    writer = writers.load(config.writer, config.sampling, template=config.template)
    steps = Steps(config, writer, run_folder / "steps", resume=resume, stop=stop)
    questions = steps.questions()
    if config.refine:
        questions = steps.refined(questions)
    rows = steps.dialogues(questions)
    path = run_folder / "prompts.jsonl"
    json_rows.write(path, rows)
    return path


@dataclass
class Steps:
    """The steps of a run, each of which is kept."""

    config: SynthesizeConfig
    writer: Writer
    folder: Path
    resume: bool
    stop: StopFlag | None

    def ask(
        self,
        name: str,
        rows: Sequence[Row],
        put: Callable[[Row], Prompt],
        read: Callable[[Row, str], Sequence[Row]],
    ) -> list[Row]:
        """Asks the writer once for every row; `read` makes rows of a row and the answer.

        An answer that did not come to its end is not used.
        """
        key = jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(name.encode()))

        def work(part: Sequence[Row], number: int) -> list[Row]:
            asked = [Asked(put(row)) for row in part]
            written = self.writer.write(asked, jax.random.fold_in(key, number))
            return [
                new
                for row, answer in zip(part, written, strict=True)
                if answer.finished
                for new in read(row, answer.text)
            ]

        found = slices.run(
            rows,
            work,
            self.folder / f"{name}.jsonl",
            slice_size=self.config.items_per_slice,
            resume=self.resume,
            stop=self.stop,
        )
        if rows and not found:
            raise DataError(
                f"the step {name!r} gave nothing of {len(rows)} requests: no answer was finished "
                "or had the form that was asked for. Use a stronger writer, or raise "
                "sampling.max_new_tokens."
            )
        return found

    def ask_for_list(
        self, name: str, template: str, rows: Sequence[Row], count: int, field: str
    ) -> list[Row]:
        """Rows with one item each of the lists that the template asks for; no item twice."""
        found = self.ask(
            name,
            rows,
            lambda row: template.format(count=count, **row),
            lambda row, text: [{**row, field: item} for item in templates.items_of(text)[:count]],
        )
        return _different(found, field)

    def questions(self) -> list[Row]:
        """Questions of all kinds."""
        config, found = self.config, []
        by_topic = [kind for kind in config.kinds if kind in ("open_qa", "writing")]
        topics: list[Row] = []
        if by_topic:
            broad = self.ask_for_list("topics", templates.TOPICS, [{}], config.num_topics, "topic")
            topics = _different(
                self.ask(
                    "subtopics",
                    broad,
                    lambda row: templates.SUBTOPICS.format(count=config.num_subtopics, **row),
                    lambda row, text: [
                        {"topic": f"{row['topic']}: {item}"}
                        for item in templates.items_of(text)[: config.num_subtopics]
                    ],
                ),
                "topic",
            )
        for kind in config.kinds:
            template, rows = self._subjects_of(kind, topics)
            rows = [{**row, "kind": kind} for row in rows]
            found += self.ask_for_list(kind, template, rows, config.num_questions, "question")
        low, high = config.min_characters, config.max_characters
        return [row for row in found if low <= len(row["question"]) <= high]

    def _subjects_of(self, kind: Kind, topics: list[Row]) -> tuple[str, list[Row]]:
        config = self.config
        match kind:
            case "open_qa":
                return templates.OPEN_QA, topics
            case "writing":
                forms = templates.WRITING_FORMS
                return templates.WRITING, [
                    {**row, "text_form": forms[n % len(forms)]} for n, row in enumerate(topics)
                ]
            case "math":
                return templates.MATHEMATICS, [{"topic": word} for word in config.math_keywords]
            case "code":
                return templates.CODE, [{"topic": word} for word in config.code_keywords]
        texts = [row.text("text") for row in json_rows.read(config.documents)]
        return templates.CLOSED_QA, [{"topic": text[:40], "document": text} for text in texts]

    def refined(self, questions: Sequence[Row]) -> list[Row]:
        """Questions by topic in a harder form; the others as they are."""
        simple = [row for row in questions if row["kind"] in ("open_qa", "writing")]
        harder = self.ask(
            "refine",
            simple,
            lambda row: templates.REFINE.format(question=row["question"]),
            lambda row, text: [{**row, "question": text.strip()}] * bool(text.strip()),
        )
        others = [row for row in questions if row["kind"] not in ("open_qa", "writing")]
        low, high = self.config.min_characters, self.config.max_characters
        return [row for row in harder if low <= len(row["question"]) <= high] + others

    def dialogues(self, questions: Sequence[Row]) -> list[Row]:
        """Questions as prompts, in the forms of the config by turns."""
        forms, generator = self.config.forms, np.random.default_rng(self.config.seed)
        rows = {
            number: {"number": number, **_first_turn(row, forms[number % len(forms)], generator)}
            for number, row in enumerate(_different(questions, "question"))
        }
        talks = [row for row in rows.values() if NUM_MESSAGES[row["form"]] > 1]
        for turn in (1, 2):
            talks = self._one_more_turn(talks, turn)
            rows |= {row["number"]: row for row in talks}
            talks = [row for row in talks if NUM_MESSAGES[row["form"]] > len(row["prompt"])]
        return [
            {name: value for name, value in row.items() if name not in ("number", "rewrite")}
            for row in rows.values()
            if len(row["prompt"]) == NUM_MESSAGES[row["form"]]  # some talks fail
        ]

    def _one_more_turn(self, talks: Sequence[Row], turn: int) -> list[Row]:
        """An answer to each talk and what the user says then; talks that fail are left out."""
        answered = self.ask(
            f"answer{turn}",
            talks,
            lambda row: row["prompt"],
            lambda row, text: _said(row, "assistant", text),
        )
        fixed = [row for row in answered if "rewrite" in row]
        asked = self.ask(
            f"user{turn}",
            [row for row in answered if "rewrite" not in row],
            _as_user,
            lambda row, text: _said(row, "user", templates.without_politeness(text)),
        )
        return [new for row in fixed for new in _said(row, "user", row["rewrite"])] + asked


def _first_turn(row: Row, form: Form, generator: np.random.Generator) -> Row:
    """A question as the beginning of a talk of this form."""
    text: str = row["question"]
    more: Row = {}
    if row["kind"] == "closed_qa":
        text = templates.ON_A_DOCUMENT.format(**row)
    if form.startswith("verifiable"):
        one = instructions.draw(generator)
        more["check"] = {"instructions": [one.as_json()]}
        if form == "verifiable_rewrite":
            more["rewrite"] = templates.REWRITE.format(instruction=one.text)
        else:
            standing = form == "verifiable_standing"
            template = templates.STANDING_INSTRUCTION if standing else templates.WITH_INSTRUCTION
            text = template.format(question=text, instruction=one.text)
    prompt = [{"role": "user", "content": text}]
    return {"prompt": prompt, "kind": row["kind"], "form": form, "topic": row["topic"], **more}


def _said(row: Row, role: str, text: str) -> list[Row]:
    """The talk with one more message; no talk if that is empty."""
    message = {"role": role, "content": text.strip()}
    return [{**row, "prompt": [*row["prompt"], message]}] if message["content"] else []


def _as_user(row: Row) -> str:
    """Asks for what the user says next."""
    dialogue = templates.dialogue_of(row["prompt"])
    if row["form"] != "three_turn":
        return templates.FOLLOW_UP.format(dialogue=dialogue)
    persona = templates.PERSONAS[row["number"] % len(templates.PERSONAS)]
    return templates.PERSONA.format(persona=persona, dialogue=dialogue)


def _different(rows: Sequence[Row], field: str) -> list[Row]:
    """Rows whose field is in no earlier one, apart from case, spaces and punctuation."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(" ".join(re.findall(r"\w+", row[field].lower())), row)
    return list(found.values())
