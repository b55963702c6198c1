r"""How a problem is put to a model that was not trained on its form: few-shot or as a chat.

    problem = load_problems("gsm8k", "test")[0]
    few_shot(problem).prompt.text       "Question: ...\nAnswer: ... #### 8\n\n ... Answer:"
    chat(problem).prompt.text           the question as a turn, with an instruction

Both return a problem with another prompt; a few-shot checker reads no further than the first
answer, since a model that continues the pattern goes on to questions of its own. A model trained on
the problems' own form (question, line end, solution) is asked with the problem as it is loaded.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data import folder_tokenizer, gsm8k
from data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from data.problems import Problem  # which names the sets in these forms
else:
    Problem = Any

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Example:
    """A question with a worked answer, which ends as the checker wants it."""

    question: str
    answer: str


GSM8K_EXAMPLES = (
    Example(
        "A florist ties 9 bunches of 12 tulips and keeps 5 tulips for the shop window. How many "
        "tulips did the florist start with?",
        "The bunches hold 9 * 12 = 108 tulips. With those in the window there were 108 + 5 = 113 "
        "tulips.\n#### 113",
    ),
    Example(
        "Milo reads 18 pages on Saturday and half as many on Sunday. His book has 60 pages. How "
        "many pages are left?",
        "On Sunday he reads 18 / 2 = 9 pages. Together that is 18 + 9 = 27 pages. So 60 - 27 = 33 "
        "pages are left.\n#### 33",
    ),
    Example(
        "A taxi costs $4 to enter and $3 for every mile. Ines pays with two $20 notes after a ride "
        "of 11 miles. How much change does she get?",
        "The miles cost 11 * 3 = 33 dollars, and the ride 33 + 4 = 37 dollars. She pays "
        "2 * 20 = 40 dollars and gets 40 - 37 = 3 dollars back.\n#### 3",
    ),
    Example(
        "Of the 80 seats of a cinema 25% are taken by adults, and three times as many by children. "
        "How many seats are empty?",
        "Adults take 80 * 25 / 100 = 20 seats. Children would take 20 * 3 = 60 seats. So "
        "80 - 20 - 60 = 0 seats are empty.\n#### 0",
    ),
    Example(
        "A pump fills 45 liters in 3 minutes. How many minutes does it need for a pool of 2,400 "
        "liters?",
        "It fills 45 / 3 = 15 liters a minute. The pool takes 2400 / 15 = 160 minutes.\n#### 160",
    ),
    Example(
        "Ravi is 6 years older than Lin. In 4 years Lin will be 20. How old is Ravi now?",
        "Lin is 20 - 4 = 16 years old now. Ravi is 16 + 6 = 22.\n#### 22",
    ),
    Example(
        "A baker sells rolls at 3 for $2. On Friday she sells 36 rolls, and her flour cost $9. How "
        "many dollars remain?",
        "She sells 36 / 3 = 12 times three rolls, for 12 * 2 = 24 dollars. After the flour "
        "24 - 9 = 15 dollars remain.\n#### 15",
    ),
    Example(
        "Two shelves hold 64 books. The upper one holds 10 more than the lower one. How many books "
        "are on the upper shelf?",
        "Without the 10 more, both would hold the same: 64 - 10 = 54 books, 54 / 2 = 27 on each. "
        "The upper shelf holds 27 + 10 = 37 books.\n#### 37",
    ),
)

MATH_EXAMPLES = (
    Example(
        "What is the sum of the roots of $x^2 - 7x + 10$?",
        "It factors as $(x-2)(x-5)$, so the roots are 2 and 5, with sum $2+5=7$. The answer is "
        "$\\boxed{7}$.",
    ),
    Example(
        "A fair coin is tossed 3 times. What is the probability of exactly two heads?",
        "Of the $2^3=8$ outcomes, $\\binom{3}{2}=3$ have exactly two heads. The answer is "
        "$\\boxed{\\frac{3}{8}}$.",
    ),
    Example(
        "Expand $(y+4)(y-4)$.",
        "The product of sum and difference is $y^2-4^2=y^2-16$. The answer is $\\boxed{y^2-16}$.",
    ),
    Example(
        "For which real numbers $t$ is $\\sqrt{t-1}$ less than 3?",
        "The root needs $t \\ge 1$; squaring, $t-1<9$, so $t<10$. The answer is $\\boxed{[1,10)}$.",
    ),
)

GSM8K_INSTRUCTION = (
    "Solve the problem step by step. Then write the answer, a number without a unit, on a line of "
    "its own that begins with ####."
)
MATH_INSTRUCTION = "Solve the problem step by step, and put the answer within \\boxed{}."


def gsm8k_examples(rows: Sequence[int]) -> tuple[Example, ...]:
    """Rows of GSM8K's `train.jsonl` as examples, without the `<<...>>` of their calculations."""
    chosen = [gsm8k.train_row(number) for number in rows]
    return tuple(Example(row.question, gsm8k.without_calculator(row.answer)) for row in chosen)


# --------------------------------------------------------------------------------- few-shot


def few_shot(problem: Problem, examples: Sequence[Example] = GSM8K_EXAMPLES) -> Problem:
    """The problem after worked examples."""
    shown = [f"Question: {one.question}\nAnswer: {one.answer}\n\n" for one in examples]
    text = "".join([*shown, f"Question: {problem.prompt.text.rstrip()}\nAnswer:"])
    checker = functools.partial(_check_first_answer, problem.checker)
    return _with_text(dataclasses.replace(problem, checker=checker), text)


def first_answer(completion: str) -> str:
    """What a few-shot completion says before it goes on to another question."""
    return completion.lstrip("\n").partition("\n\n")[0].partition("Question:")[0]


def _check_first_answer(checker: Callable[[str], bool], completion: str) -> bool:
    return isinstance(completion, str) and checker(first_answer(completion))


# ------------------------------------------------------------------------------------- chat


def messages(question: str, instruction: str = GSM8K_INSTRUCTION) -> list[Message]:
    """The question as a chat of one turn, in the form that chat templates take."""
    return [
        {"role": "system", "content": instruction},
        {"role": "user", "content": question.rstrip()},
    ]


def chatml(chat: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """A chat in ChatML, up to where the assistant begins to speak."""
    turns = [f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in chat]
    return "".join([*turns, "<|im_start|>assistant\n" * add_generation_prompt])


def render(text: Tokenizer, chat: Sequence[Message]) -> str:
    """A chat as the model's own template writes it; in ChatML where the tokenizer has none."""
    if isinstance(text, folder_tokenizer.FolderTokenizer) and text.chat_template is not None:
        return text.chat(chat)
    return chatml(chat)


def chat(
    problem: Problem,
    instruction: str = GSM8K_INSTRUCTION,
    render: Callable[[Sequence[Message]], str] = chatml,
) -> Problem:
    """The problem as the first turn of a chat.

    Args:
      render: the model's own template; of a tokenizer of `transformers`, `functools.partial(
        tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)`.
    """
    return _with_text(problem, render(messages(problem.prompt.text, instruction)))


def _with_text(problem: Problem, text: str) -> Problem:
    return dataclasses.replace(problem, prompt=dataclasses.replace(problem.prompt, text=text))
