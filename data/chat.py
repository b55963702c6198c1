r"""Chats as text: templates, which part of a text is an answer, and their token ids.

A chat is a sequence of messages {"role": "system" | "user" | "assistant", "content": ...}, as the
chat templates of Hugging Face take them; an answer may have "labels" (`data.attributes`), which
the template "steerlm" writes before it. A prompt is a chat up to an answer, or the text of its one
question.

Templates:
  steerlm  <extra_id_0>System\n{system}\n<extra_id_1>User\n{question}\n<extra_id_1>Assistant\n
           [<extra_id_2>{labels}\n]{answer}\n<extra_id_1>; that of NeMo-Aligner, byte for byte
  chatml   <|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n
  plain    {question}\n{answer}
  own      what the tokenizer's folder says (`data.folder_tokenizer`)
Every text ends with the end-of-text token of the tokenizer, which is part of the last answer.
"""

import re
from collections.abc import Sequence
from typing import Literal

from data import prompts
from data.errors import DataError
from data.folder_tokenizer import FolderTokenizer
from data.prompts import Message
from data.tokenizer import Tokenizer, prompt_ids

TemplateName = Literal["steerlm", "chatml", "plain", "own"]
Prompt = str | Sequence[Message]
ROLES = ("system", "user", "assistant")

SYSTEM_START, TURN_START, LABELS_START = "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"
SYSTEM = (  # fixed in steerlm/common.py of NeMo-Aligner
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
_TURN = re.compile(r"<extra_id_1>(User|Assistant)\n")


# ------------------------------------------------------------------------------------- texts


def messages_of(prompt: Prompt) -> tuple[Message, ...]:
    """The prompt as messages. A text is one question; the turns of HelpSteer2's prompts, which
    stand in one text with SteerLM's marks between them, are taken apart.
    """
    if not isinstance(prompt, str):
        return tuple(prompt)
    if _TURN.search(prompt) is None:
        return ({"role": "user", "content": prompt},)
    return _turns(f"{TURN_START}User\n{prompt}\n")


def with_answer(prompt: Prompt, answer: str) -> tuple[Message, ...]:
    """The chat that ends with this answer."""
    return (*messages_of(prompt), {"role": "assistant", "content": answer})


def render(
    chat: Sequence[Message],
    template: TemplateName,
    tokenizer: Tokenizer | None = None,
    *,
    generate: bool = False,
    labels: str | None = None,
) -> str:
    """A chat as the text that a model reads.

    Args:
      tokenizer: has the template "own".
      generate: end where the assistant begins to speak; else with the end of the last turn.
      labels: of the answer that is to come (template "steerlm").

    Raises:
      DataError: the template cannot write this chat.
    """
    if labels is not None and template != "steerlm":
        raise DataError(
            f'labels are written by the template "steerlm" alone; got {template!r} with {labels!r}.'
        )
    match template:
        case "steerlm":
            return _steerlm(chat, generate, labels)
        case "chatml":
            return prompts.chatml(chat, add_generation_prompt=generate)
        case "plain":
            ends = "\n" if generate or chat[-1]["role"] != "assistant" else ""
            return "\n".join(one["content"] for one in chat) + ends
    if not isinstance(tokenizer, FolderTokenizer):
        raise DataError(
            'the template "own" lies in the folder of a tokenizer; got a tokenizer without a '
            'folder. Take "chatml" or "steerlm".'
        )
    return tokenizer.chat(chat, add_generation_prompt=generate)


def prompt_text(
    prompt: Prompt,
    template: TemplateName,
    tokenizer: Tokenizer | None = None,
    *,
    labels: str | None = None,
) -> str:
    """What a model reads before it answers."""
    return render(messages_of(prompt), template, tokenizer, generate=True, labels=labels)


def answer_of(generated: str, template: TemplateName) -> str:
    """The answer in a text that a model wrote, without the mark that ends its turn."""
    if template == "steerlm":
        return generated.partition(TURN_START)[0].removesuffix("\n")
    return generated.partition("<|im_end|>")[0] if template == "chatml" else generated


def scored_text(chat: Sequence[Message], template: TemplateName, tokenizer: Tokenizer) -> str:
    r"""What a reward model reads of a chat that ends with an answer.

    With SteerLM's template it ends with `{answer}\n<extra_id_2>`, the place of the labels. Labels
    that stand in the chat are left out.
    """
    chat = [{key: one[key] for key in one if key != "labels"} for one in chat]
    text = render(chat, template, tokenizer)
    return text.removesuffix(TURN_START) + LABELS_START if template == "steerlm" else text


def parse_steerlm(text: str) -> tuple[Message, ...]:
    """The chat in a text of the template "steerlm" without labels; the inverse of `render`.

    Raises:
      DataError: it is of another form.
    """
    start = f"{SYSTEM_START}System\n"
    first = _TURN.search(text)
    if not text.startswith(start) or first is None or text[first.start() - 1] != "\n":
        raise DataError(
            f"a text of SteerLM begins with {start!r} and has turns that begin with "
            f"{TURN_START!r}; got {text[:60]!r}."
        )
    system = text[len(start) : first.start() - 1]
    turns = _turns(text[first.start() :].removesuffix(LABELS_START).removesuffix(TURN_START))
    return (*([] if system == SYSTEM else [{"role": "system", "content": system}]), *turns)


def _turns(text: str) -> tuple[Message, ...]:
    r"""`<extra_id_1>User\n...\n<extra_id_1>Assistant\n...\n` as messages."""
    _, *parts = _TURN.split(text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        {"role": name.lower(), "content": content.removesuffix("\n")} for name, content in pairs
    )


def _steerlm(chat: Sequence[Message], generate: bool, labels: str | None) -> str:
    has_system = chat[:1] and chat[0]["role"] == "system"
    system = chat[0]["content"] if has_system else SYSTEM
    parts = [f"{SYSTEM_START}System\n{system}\n"]
    for one in chat[1:] if has_system else chat:
        given = f"{LABELS_START}{one['labels']}\n" if one.get("labels") else ""
        parts.append(f"{TURN_START}{_NAMES[one['role']]}\n{given}{one['content']}\n")
    if generate:
        given = "" if labels is None else f"{LABELS_START}{labels}\n"
        parts.append(f"{TURN_START}Assistant\n{given}")
    elif chat[-1]["role"] == "assistant":
        parts.append(TURN_START)  # what the model says at the end of its turn
    return "".join(parts)


# ------------------------------------------------------------------------------------- tokens


def encode(
    chat: Sequence[Message],
    tokenizer: Tokenizer,
    template: TemplateName,
    *,
    last_answer_only: bool = False,
) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and which of them are answers; the last is the end of text.

    Every answer, and what lies between two, is tokenised alone: as generation sees them.

    Raises:
      DataError: the template cannot write this chat, or does not begin with what was said before.
    """
    tokens: list[int] = []
    is_answer: list[bool] = []
    written = ""
    for number, one in enumerate(chat):
        is_last = number == len(chat) - 1
        if one["role"] != "assistant" or (last_answer_only and not is_last):
            continue
        labels = one.get("labels") if template == "steerlm" else None
        before = render(chat[:number], template, tokenizer, generate=True, labels=labels)
        after = render(chat[: number + 1], template, tokenizer)
        if not before.startswith(written) or not after.startswith(before):
            raise DataError(
                "a chat template writes a chat turn by turn, the earlier ones unchanged; got "
                f"{template!r}, which changes what it wrote. Give the turns one by one."
            )
        given = before[len(written) :]
        given_ids = tokenizer.encode(given) if written else prompt_ids(tokenizer, given)
        said_ids = tokenizer.encode(after[len(before) :])
        tokens += [*given_ids, *said_ids]
        is_answer += [False] * len(given_ids) + [True] * len(said_ids)
        written = after
    if tokens[-1:] != [tokenizer.eos_id]:
        tokens.append(tokenizer.eos_id)
        is_answer.append(True)
    return tokens, is_answer


def encode_scored(
    chat: Sequence[Message], tokenizer: Tokenizer, template: TemplateName
) -> tuple[list[int], list[bool], int]:
    """What a reward model reads of a chat that ends with an answer: it is asked at the last token.

    Returns:
      Token ids, which of them are the answer and what follows it, and how many follow it.
    """
    text = scored_text(chat, template, tokenizer)
    before = [{key: one[key] for key in one if key != "labels"} for one in chat[:-1]]
    given = render(before, template, tokenizer, generate=True)
    answer = text[len(given) :]
    end = f"\n{LABELS_START}" if template == "steerlm" else ""
    parts = [prompt_ids(tokenizer, given), tokenizer.encode(answer.removesuffix(end))]
    parts.append(tokenizer.encode(end) if end else [tokenizer.eos_id])
    is_answer = [False] * len(parts[0]) + [True] * (len(parts[1]) + len(parts[2]))
    return [*parts[0], *parts[1], *parts[2]], is_answer, len(parts[2])


def cut(
    tokens: list[int], is_answer: list[bool], length: int, *, kept_end: int = 0
) -> tuple[list[int], list[bool]]:
    """The row in `length` tokens: of the last answer the beginning, before it the end of the rest.

    What precedes the answer keeps at least a quarter of the row, or all that it has.

    Args:
      kept_end: tokens at the end of the row that stay in any case.
    """
    if len(tokens) <= length:
        return tokens, is_answer
    start = len(tokens) - (is_answer[::-1].index(False) if False in is_answer else len(tokens))
    kept_answer = min(len(tokens) - start, length - min(start, length // 4))
    first, last = start - (length - kept_answer), start + kept_answer - kept_end
    end = len(tokens) - kept_end
    return tokens[first:last] + tokens[end:], is_answer[first:last] + is_answer[end:]
