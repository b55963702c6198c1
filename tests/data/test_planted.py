"""The planted world says what its own measure finds, in both distributions."""

import random
import re

import numpy as np
import pytest

from data import planted
from data.planted import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, Attributes

PROMPT = "What are the food, home, size and mood of the fox?"
RIGHT = planted.VALUES


@pytest.mark.parametrize("style", [IN_DISTRIBUTION, OUT_OF_DISTRIBUTION])
def test_responses_have_exactly_the_attributes_they_were_made_for(style):
    rows = list(planted.dialogues(500, seed=0, style=style))
    for row in rows:
        assert planted.measure(row.prompt, row.response) == row.attributes, row
    drawn = np.array([row.attributes.as_tuple() for row in rows])
    counts = [np.bincount(column, minlength=5).min() for column in drawn.T]
    assert min(counts) > 60, "all five values of all attributes are about as frequent"
    correlations = np.corrcoef(drawn.T) - np.eye(5)
    assert np.abs(correlations).max() < 0.15


def test_a_hand_counted_response():
    response = (
        f"First, the food of the fox is {RIGHT['food']}. It is so. "  # asked, right, in its place
        f"Third, the hour of the fox evinces {RIGHT['hour']}. "  # not asked, right, learned
        f"Third, the home of the fox embodies {RIGHT['hour']}. "  # asked, wrong, learned
        f"Last, the food of the fox is {RIGHT['food']}. "  # said before; in its place
        f"Last, the size of the owl is {RIGHT['size']}. And"  # of the owl, right
    )
    assert planted.measure(PROMPT, response) == Attributes(2, 3, 3, 2, 2)
    assert planted.measure(PROMPT, "") == Attributes(0, 0, 0, 0, 0)
    assert planted.measure(PROMPT, "a. b.\nc. d. e. f.").verbosity == planted.LARGEST


def test_no_subject_is_asked_the_same_set_in_two_splits():
    asked = {
        split: {
            (one.subject, frozenset(one.properties))
            for one in (planted.request(random.Random(n), split) for n in range(400))
        }
        for split in planted.SPLITS
    }
    assert min(map(len, asked.values())) > 25
    assert not asked["train"] & asked["test"] and not asked["validation"] & asked["test"]
    assert not asked["train"] & asked["validation"]


def test_out_of_distribution_has_known_words_and_unknown_sentences():
    def words_and_sentences(style):
        rows = list(planted.dialogues(300, seed=1, style=style))
        texts = [f"{row.prompt} {row.response}" for row in rows]
        words = {word for text in texts for word in re.findall(r"\w+", text)}
        return words, {line for text in texts for line in re.split(r"[.?] ?", text)}

    inside, outside = map(words_and_sentences, (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION))
    assert outside[0] <= inside[0] == set(planted.WORDS)
    fillers = {filler.rstrip(".") for filler in OUT_OF_DISTRIBUTION.fillers}
    assert fillers <= outside[1] and not fillers & inside[1]


def test_pairs_are_ordered_by_the_true_reward():
    weights = (0.3, 0.74, 0.46, 0.47, -0.33)
    for better, worse in planted.pairs(50, weights, seed=0):
        assert better.prompt == worse.prompt
        rewards = [planted.true_reward(d.attributes, weights) for d in (better, worse)]
        assert rewards[0] > rewards[1]
    assert planted.true_reward(Attributes(1, 2, 3, 4, 1), weights) == pytest.approx(4.71)


def test_the_same_seed_gives_the_same_world():
    first, second = (list(planted.dialogues(20, seed=7)) for _ in range(2))
    assert first == second
    assert first != list(planted.dialogues(20, seed=8))
    assert planted.requests(5, seed=3) == planted.requests(5, seed=3)
