import pickle
import re
from fractions import Fraction

import pytest

from data import gsm8k, gsm8k_checker, math_checker, problems, prompts

APPLES = problems.Problem(
    prompt=problems.Prompt(id="apples", split="custom", text="How many apples?\n"),
    checker=lambda text: gsm8k_checker.check(7, text),
)


@pytest.mark.parametrize("example", prompts.GSM8K_EXAMPLES)
def test_the_worked_examples_calculate_right(example):
    calculations = re.findall(r"([0-9][0-9 */+-]*) = ([0-9]+)", example.answer)
    assert calculations
    for expression, result in calculations:
        exact = re.sub(r"[0-9]+", r"Fraction(\g<0>)", expression)
        assert eval(exact, {"Fraction": Fraction}) == int(result)
    assert gsm8k_checker.answer(example.answer) == int(calculations[-1][1])


def test_the_examples_of_math_end_with_a_box():
    boxes = [math_checker.boxed(example.answer) for example in prompts.MATH_EXAMPLES]
    assert boxes == ["7", "\\frac{3}{8}", "y^2-16", "[1,10)"]


def test_few_shot_prompts_show_the_examples_and_end_open():
    text = prompts.few_shot(APPLES).prompt.text
    assert len(prompts.GSM8K_EXAMPLES) == 8 and text.count("Question: ") == 9
    assert text.endswith("#### 37\n\nQuestion: How many apples?\nAnswer:")


def test_few_shot_checkers_stop_at_the_next_question():
    problem = prompts.few_shot(APPLES)
    assert problem.verify(" 3 + 4 = 7\n#### 7")
    assert problem.verify(" 3 + 4 = 7\n#### 7\n\nQuestion: Another?\nAnswer: 8\n#### 8")
    assert not problem.verify(" #### 8\n\nQuestion: Another?\nAnswer: 7\n#### 7")
    assert not problem.verify(None)


def test_chats_end_where_the_assistant_speaks():
    text = prompts.chat(APPLES).prompt.text
    assert text.startswith(f"<|im_start|>system\n{prompts.GSM8K_INSTRUCTION}<|im_end|>\n")
    assert text.endswith("user\nHow many apples?<|im_end|>\n<|im_start|>assistant\n")
    other = prompts.chat(APPLES, "Box it.", render=lambda chat: str([m["role"] for m in chat]))
    assert other.prompt.text == "['system', 'user']"
    assert other.prompt.id == "apples" and other.verify("#### 7")


def test_rows_of_gsm8k_are_examples(data_file):
    data_file(gsm8k.FILES["train"])
    (example,) = prompts.gsm8k_examples([0])
    assert example.question.startswith("Natalia") and "<<" not in example.answer
    assert gsm8k_checker.check(72, example.answer)
    problem = problems.load_problems("gsm8k", "validation")[0]
    again = pickle.loads(pickle.dumps(prompts.few_shot(problem, [example])))
    assert again.prompt.text.count("Question:") == 2
