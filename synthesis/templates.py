"""What a model is asked so that it invents topics, questions and the user's side of dialogues.

The kinds of questions and the order of steps are those of Nemotron-4 340B (arXiv:2406.11704,
section 3.2); the wordings are our own. Every template that asks for several things asks for a
numbered list, which `items_of` takes apart.
"""

import re
from collections.abc import Sequence

from data.prompts import Message

_LIST = "Number the lines, write one on each, and nothing else."
TOPICS = (
    "Name {count} broad fields of knowledge and of daily life, as far from each other as you can. "
    + _LIST
)
SUBTOPICS = "Name {count} narrower topics that belong to: {topic}. " + _LIST
OPEN_QA = (
    "Think of {count} questions that curious people may have about: {topic}. Let some be short and "
    "some be long, some simple and some for experts. " + _LIST
)
WRITING = (
    "Think of {count} requests to write something of this kind: {text_form}. All are about: "
    "{topic}. " + _LIST
)
CLOSED_QA = (
    "Read this text:\n\n{document}\n\nThink of {count} questions or tasks that can be answered "
    "from the text alone. " + _LIST
)
MATHEMATICS = (
    "Make up {count} problems in mathematics about: {topic}. Each gives all that is needed and has "
    "one right answer. " + _LIST
)
CODE = (
    "Make up {count} programming tasks in Python about: {topic}. Each says what goes in and what "
    "comes out. " + _LIST
)
REFINE = (
    "Make this request more demanding: add a concrete situation, a limit or a second part. Do not "
    "answer it. Write the new request only.\n\n{question}"
)
FOLLOW_UP = (
    "This is a talk between a user and an assistant.\n\n{dialogue}\n\nWhat does the user say next? "
    "Let it go on from what was said. Write the message of the user only."
)
PERSONA = (
    "{persona}\n\nYou are this user, in a talk with an assistant.\n\n{dialogue}\n\nWrite your next "
    "message only."
)
ON_A_DOCUMENT = "{document}\n\n{question}"
WITH_INSTRUCTION = "{question}\n\n{instruction}"
STANDING_INSTRUCTION = "In all of your answers, keep to this: {instruction}\n\n{question}"
REWRITE = "Write your answer once more. {instruction}"

WRITING_FORMS = (
    "an essay",
    "a letter",
    "a story",
    "a poem",
    "a news article",
    "a plan",
    "a speech",
)
PERSONAS = (
    "A teacher who wants examples for every claim.",
    "A student who doubts what is said and asks why.",
    "An engineer who wants figures and units.",
    "A person in a hurry who changes the subject a little.",
    "An elderly reader who asks for simpler words.",
)


def items_of(text: str) -> list[str]:
    """The lines of a numbered or bulleted list, without their marks; other lines are left out."""
    found = re.findall(r"^\s*(?:\(?\d+[.):]|[-*•])\s+(.+?)\s*$", text, flags=re.MULTILINE)
    return [re.sub(r"^\*\*(.+)\*\*$", r"\1", item) for item in found]


def dialogue_of(chat: Sequence[Message]) -> str:
    """A chat as a text that a template shows."""
    names = {"user": "User", "assistant": "Assistant", "system": "System"}
    return "\n\n".join(f"{names[one['role']]}: {one['content']}" for one in chat)


_THANKS = re.compile(
    r"(?i)\b(?:many thanks|thanks|thank you|i appreciate)\b[^.!?\n]*(?:[.!?]+|$)\s*"
    r"|\b(?:great|wonderful|excellent|good) (?:answer|question|point)\b[^.!?\n]*[.!?]+\s*"
)
_PLEASE = re.compile(r"(?i),?\s*\b(?:please|kindly)\b,?")


def without_politeness(text: str) -> str:
    """A user's message without thanks, praise and "please": models write users who are too kind."""
    text = re.sub(r"[ \t]{2,}", " ", _PLEASE.sub("", _THANKS.sub("", text))).strip()
    return text[:1].upper() + text[1:]
