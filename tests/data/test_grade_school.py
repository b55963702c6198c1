import hashlib
import itertools
import re
from fractions import Fraction

import numpy as np
import pytest

from data import documents, grade_school, gsm8k_checker, problems, tokenizer
from data import grade_school_templates as templates
from data.errors import DataError

STORIES = tokenizer.load_tokenizer("grade_school")


@pytest.fixture(scope="module")
def many():
    return list(itertools.islice(grade_school.problems(0), 1_500))


def test_the_same_seed_tells_the_same_stories(many):
    """A golden hash: records, checkpoints and results name problems by seed and number."""
    text = "\n\n".join(one.prompt + one.answer for one in many[:500])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "d7b47479b3357ec2"
    again = list(itertools.islice(grade_school.problems(0), 20))
    assert again == many[:20] != list(itertools.islice(grade_school.problems(1), 20))


def test_a_story_by_hand():
    opening = next(one for one in templates.OPENINGS if one.name == "gift")
    known = {"a": 12, "k": 3}
    assert grade_school._calculate(opening.steps, known) == [("b", "12/3", 4), ("x", "12-4", 8)]
    assert known["x"] == 8
    assert grade_school._calculate(opening.steps, {"a": 13, "k": 3}) is None, "not whole"
    assert grade_school._calculate(("b = a - k | ",), {"a": 3, "k": 3}) is None, "below 1"
    assert grade_school._calculate(("b = a * k | ",), {"a": 500, "k": 2}) is None, "above 999"


def exact_value(expression):
    """By another way than the generator: sums of products, as fractions."""
    if summands := re.findall(r"[+-]?[^+-]+", expression)[1:]:
        first = re.match(r"[^+-]+", expression)[0]
        return exact_value(first) + sum(
            exact_value(one[1:]) * (-1 if one[0] == "-" else 1) for one in summands
        )
    value = Fraction(1)
    for sign, number in re.findall(r"([*/]?)([0-9]+)", expression):
        value = value / int(number) if sign == "/" else value * int(number)
    return value


def test_all_arithmetic_is_exact_and_leads_to_the_answer(many):
    for problem in many:
        *steps, last = problem.answer.split("\n")
        assert len(steps) == problem.num_steps and 2 <= len(steps) <= 6
        known = set(map(int, re.findall(r"[0-9]+", problem.question)))
        known |= {2, 3, 4, 5, 100}  # "twice", "a third", legs, percent
        for step in steps:
            written, expression, value, again = re.search(
                r"([0-9*/+-]+) = <<(.*)=([0-9]+)>>([0-9]+)", step
            ).groups()
            assert written == expression and value == again
            assert set(map(int, re.findall(r"[0-9]+", expression))) <= known
            assert gsm8k_checker.read_number(value) == exact_value(expression)
            assert 1 <= int(value) <= templates.LARGEST
            known.add(int(value))
        assert last == f"#### {problem.gold}" == f"#### {value}"
        assert gsm8k_checker.check(problem.gold, problem.answer)


def test_stories_are_told_in_full(many):
    openings = {one.template.split("+")[0] for one in many}
    events = {event for one in many for event in one.template.split("+")[1:]}
    assert openings == {one.name for one in templates.OPENINGS} and len(openings) >= 25
    assert events == {one.name for one in templates.EVENTS}
    assert {one.num_steps for one in many} == {2, 3, 4, 5, 6}
    for problem in many:
        assert problem.question.endswith("?") and not re.search(r"[{}<>\n]", problem.question)
        names = [name for name in templates.NAMES if name in problem.answer]
        assert all(name in problem.question for name in names)


def test_splits_share_no_question_and_no_template_with_its_numbers(many):
    sets = {name: grade_school.problem_set(name) for name in ("validation", "test")}
    assert [len(some) for some in sets.values()] == [500, 500]
    questions = {name: {one.question for one in some} for name, some in sets.items()}
    keys = {name: {(one.template, one.numbers) for one in some} for name, some in sets.items()}
    questions["train"] = {one.question for one in many}
    keys["train"] = {(one.template, one.numbers) for one in many}
    assert len(questions["train"]) == 1_500 and len(questions["test"]) == 500
    for a, b in itertools.combinations(questions, 2):
        assert not questions[a] & questions[b] and not keys[a] & keys[b]
    for name, some in keys.items():
        first = {one.name: len(one.draws) for one in templates.OPENINGS}
        begun = [(story, numbers[: first[story.split("+")[0]]]) for story, numbers in some]
        assert {grade_school.split_of(*key) for key in begun} == {name}


def test_a_question_says_its_template_and_numbers(many):
    """So that splits, which are by template and numbers, are by question too."""
    by_question = {}
    for problem in many:
        numbers = tuple(map(int, re.findall(r"[0-9]+", problem.question)))
        told = re.sub("|".join(templates.NAMES + templates.THINGS), "_", problem.question)
        key = problem.template, problem.answer.count("\n"), numbers
        assert by_question.setdefault(told, key) == key


@pytest.mark.parametrize(
    ("name", "max_steps", "largest"),
    [("grade_school", 6, 999), ("grade_school_short", 3, 999), ("grade_school_small", 3, 99)],
)
def test_it_is_a_problem_set(name, max_steps, largest):
    loaded = problems.load_problems(name, "validation")
    assert len({one.prompt.id for one in loaded}) == 500
    told = grade_school.problem_set("validation", max_steps, largest)
    assert max(one.num_steps for one in told) == max_steps
    assert largest / 2 < max(one.largest for one in told) <= largest
    first, problem = loaded[0], told[0]
    assert first.prompt.id == f"{name}/validation/0"
    assert first.prompt.text == problem.question + "\n"
    assert first.verify(problem.answer) and not first.verify(f"#### {problem.gold + 1}")
    with pytest.raises(DataError, match="split"):
        problems.load_problems("grade_school", "dev")


def test_wrong_steps_are_refused():
    for steps in ({"min_steps": 1}, {"max_steps": 7}, {"min_steps": 4, "max_steps": 3}):
        with pytest.raises(DataError, match="2 to 6 steps"):
            next(grade_school.problems(0, **steps))


def test_numbers_can_be_limited():
    small = list(itertools.islice(grade_school.problems(0, max_steps=3, largest=99), 200))
    written = [set(map(int, re.findall(r"[0-9]+", one.question + one.answer))) for one in small]
    assert [max(numbers - {100}) for numbers in written] == [one.largest for one in small]
    assert max(one.largest for one in small) <= 99
    every = itertools.islice(grade_school.problems(0, max_steps=3), 200)
    fitting = [one for one in every if one.largest <= 99]
    assert fitting == small[: len(fitting)] and fitting
    with pytest.raises(DataError, match="up to 99 or more; got largest=98"):
        next(grade_school.problems(0, largest=98))


def test_calculations_alone_are_training_text(many):
    source = grade_school.CalculationSource(num_problems=5)
    text = tokenizer.load_tokenizer("grade_school")
    found = source.documents(text, 32)
    read = [text.decode(part) for part in np.split(found.tokens, found.starts[1:])]
    told = [line for one in many[:5] for line in re.findall(r"<<[^>]*>>", one.answer)]
    assert read == [f" = {line}" for line in told]
    assert text.decode(found.tokens[found.is_counted]) == "".join(
        line.partition("=")[2] for line in told
    )


@pytest.mark.parametrize("max_steps", [2, 3])
def test_steps_can_be_limited(max_steps):
    some = itertools.islice(grade_school.problems(0, max_steps=max_steps), 200)
    assert {one.num_steps for one in some} == set(range(2, max_steps + 1))


def test_the_tokenizer_is_exact_and_knows_every_word(many):
    pieces = STORIES.pieces
    letters = {i for i, piece in enumerate(pieces) if len(piece) == 1 and piece.isalpha()}
    for problem in many:
        text = problem.prompt + problem.answer
        ids = STORIES.encode(text)
        assert STORIES.decode(ids) == text
        spelt = {pieces[i] for i in letters.intersection(ids)}
        assert spelt <= {"A"}, text  # the word "A" is its letter
    digits = [pieces[i] for i in STORIES.encode("#### 1203")]
    assert digits == ["#### ", "1", "2", "0", "3"]


@pytest.mark.parametrize("loss", ["completion", "results", "all"])
def test_the_source_counts_what_it_says(loss, many):
    source = grade_school.GradeSchoolSource(num_problems=20, loss=loss)
    windows = documents.load([source], STORIES, sequence_length_tokens=288).windows
    texts = [
        STORIES.decode(window[(ids == segment) & counted])
        for window, ids, counted in zip(windows.tokens, windows.segment_ids, windows.is_counted)
        for segment in range(1, ids.max() + 1)
    ]
    assert len(texts) == 20
    for text, problem in zip(texts, many, strict=False):
        first = STORIES.decode(STORIES.encode(problem.question)[:1])
        lines = problem.answer.split("\n")
        results = "".join(line.rpartition("=")[2] + "\n" for line in lines[:-1])
        wanted = {
            "completion": problem.answer,
            "results": results,
            "all": (problem.prompt + problem.answer).removeprefix(first),
        }
        assert text == wanted[loss]


def test_any_ascii_text_comes_back():
    rng = np.random.default_rng(0)
    characters = ["\n", *map(chr, range(32, 127)), " apples", " Ada", "Ada", " = <<", "####  "]
    for _ in range(300):
        text = "".join(rng.choice(characters, rng.integers(30)))
        assert STORIES.decode(STORIES.encode(text)) == text
    for text in ("é", "\t", "½"):
        with pytest.raises(DataError, match="printable ASCII"):
            STORIES.encode(text)
    with pytest.raises(DataError, match=r"0\.\.386"):
        STORIES.decode([387])


def test_ids_are_fixed():  # checkpoints depend on them
    assert STORIES.encode("\n0 = <<1=2>>3") == [2, 19, 98, 20, 32, 21, 99, 22]
    assert (STORIES.vocab_size, STORIES.pad_id, STORIES.eos_id) == (387, 0, 1)
    assert STORIES.newline_id == 2
    assert STORIES.fingerprint.startswith("21509fa4e869")
    assert STORIES.decode([0, 20, 1, 2, 0]) == "1\n"
    assert isinstance(STORIES, tokenizer.Tokenizer)
