import numpy as np
import pytest

from data import instructions
from data.errors import DataError
from data.instructions import KINDS, Instruction

CASES = [  # kind, arguments, an answer that keeps to it, one that does not
    ("keywords:existence", {"keywords": ["river", "quiet"]}, "A QUIET river.", "Quietly, a river."),
    ("keywords:forbidden_words", {"forbidden_words": ["river"]}, "Two rivers.", "The River!"),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 4}, "It's so-so now",
     "one two three four"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "a b c", "a b"),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3},
     'It costs 3.50. "Yes!"', "One. Two? Three"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2},
     "One\nTwo", "Only 1.5 of them."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n ***\nb", "a\n***\n"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "So:\n* a\n - b", "* a\n*b"),
    ("detectable_format:title", {}, "<<On rivers>>\nThey flow.", "<< >> rivers"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', 'So: {"a": 1}'),
    ("change_case:english_lowercase", {}, "all small: 1!", "Not small"),
    ("change_case:english_capital", {}, "ALL 1!", "ALmOST"),
    ("startend:end_checker", {"end_phrase": "I hope this helps."}, "So. I hope this helps. ",
     "I hope this helps. So"),
    ("startend:quotation", {}, ' "so" ', '"so" he said'),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "right", "wrong"), CASES)
def test_checkers(kind, arguments, right, wrong):
    one = Instruction(kind, arguments)
    assert one.is_followed(right) and not one.is_followed(wrong)
    assert not one.is_followed(" \n")


def test_every_kind_has_a_case_and_comes_back_from_json():
    assert {kind for kind, *_ in CASES} == set(KINDS)
    drawn = [instructions.draw(np.random.default_rng(n)) for n in range(200)]
    assert {one.id for one in drawn} == set(KINDS)
    for one in drawn:
        assert instructions.from_json(one.as_json()) == one
        assert "{" not in one.text and all(str(w) in one.text for w in one.arguments.values()
                                           if not isinstance(w, list))  # fmt: skip
    words = Instruction("keywords:existence", {"keywords": ["river", "quiet"]})
    assert words.text == 'Use the words "river", "quiet".'


@pytest.mark.parametrize("row", [{"id": "no such"}, {"id": "punctuation:no_comma", "x": 1}, 3])
def test_other_forms_are_refused(row):
    with pytest.raises(DataError, match="instruction|arguments"):
        instructions.from_json(row)
