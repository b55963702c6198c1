r"""The 25 kinds of instructions of IFEval, each a function of a response and its arguments.

Source: Zhou et al., arXiv:2311.07911; google-research/instruction_following_eval, whose verdicts
tests/evaluation/golden/ifeval.jsonl records. Keywords are regular expressions there, and here.

Two things differ, where the original draws at random: a "letter" outside a-z is counted as it is
(the original counts a random letter instead), and the detector of languages has a fixed seed.

Sentences are found by Punkt's English model, words with capitals by NLTK's word tokenizer, the
language by langdetect: packages that hold their data (extra `eval`).
"""

import functools
import json
import re
from collections.abc import Callable
from typing import Any

from train.errors import ConfigError

LESS, AT_LEAST = "less than", "at least"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
TICKS = ("```json", "```Json", "```JSON", "```")


def require_packages() -> None:
    """Raises ConfigError where the packages of the extra `eval` are not there."""
    try:
        import langdetect  # noqa: F401
        import nltk  # noqa: F401
        import punkt  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "ifeval finds sentences and languages with packages of the extra `eval`; got "
            f"{error}. Install it: pip install -c constraints.txt -e '.[eval]'."
        ) from error


@functools.cache
def _punkt():
    """NLTK's algorithm with NLTK's English model, which a package holds."""
    import punkt
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    english, model = punkt.load_model("english"), PunktParameters()
    model.abbrev_types = set(english.abbrev_types)
    model.collocations = set(map(tuple, english.collocations))
    model.sent_starters = set(english.sent_starters)
    model.ortho_context.update({word: int(flags) for word, flags in english.ortho_context.items()})
    return PunktSentenceTokenizer(model)


def sentences(text: str) -> list[str]:
    """Sentences as NLTK's Punkt finds them."""
    return _punkt().tokenize(text)


@functools.cache
def _word_tokenizer():
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


def tokens(text: str) -> list[str]:
    """Words and punctuation as NLTK's `word_tokenize` finds them."""
    return [token for part in sentences(text) for token in _word_tokenizer().tokenize(part)]


@functools.lru_cache(maxsize=1024)  # the variants of a response are often the same
def language(text: str) -> str | None:
    """ISO 639-1 code of the likeliest language; None where there is nothing to tell it by."""
    import langdetect

    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


def compare(count: int, relation: str | None, threshold: int) -> bool:
    """Whether a number is less than a threshold, or at least that."""
    if relation not in (LESS, AT_LEAST):
        raise ValueError(f"a relation is {LESS!r} or {AT_LEAST!r}; got {relation!r}.")
    return count < threshold if relation == LESS else count >= threshold


# ---------------------------------------------------------------------------------- keywords


def existence(text: str, keywords: list[str]) -> bool:
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.findall(keyword.strip(), text, re.IGNORECASE)
    return compare(len(found), relation, frequency)


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compare(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


# --------------------------------------------------------------------------- language and case


def response_language(text: str, language: str) -> bool:
    return _is_in(text, language)


def english_capital(text: str) -> bool:
    return text.isupper() and _is_in(text, "en")


def english_lowercase(text: str) -> bool:
    return text.islower() and _is_in(text, "en")


def _is_in(text: str, wanted: str) -> bool:
    found = language(text)
    return found is None or found == wanted


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    count = sum(word.isupper() for word in tokens(text))
    return compare(count, capital_relation, capital_frequency)


# ------------------------------------------------------------------------------------- length


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return compare(len(sentences(text)), relation, num_sentences)


def number_words(text: str, num_words: int, relation: str) -> bool:
    return compare(len(re.findall(r"\w+", text)), relation, num_words)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs between `***`; an empty one counts against, but for the first and the last."""
    parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


def nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs between empty lines; the n-th of all, empty ones too, begins with the word."""
    paragraphs = re.split(r"\n\n", text)
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if nth_paragraph > count or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower()
    return count == num_paragraphs and word == first_word.lower()


# ------------------------------------------------------------------------- content and format


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = patterns.get(marker, rf"\s*{marker.lower()}.*$")
    return bool(re.search(pattern, text.lower(), re.MULTILINE))


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """`*so*` and `**so**`, of which the latter count once more."""
    single = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", text)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(found.strip()) for found in (*single, *double)) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) - 1 >= num_sections


def json_format(text: str) -> bool:
    text = text.strip()
    for tick in TICKS:
        text = text.removeprefix(tick)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    found = re.findall(r"<<[^\n]+>>", text)
    return any(one.lstrip("<").rstrip(">").strip() for one in found)


# ------------------------------------------------------------------ combination, start and end


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False
    responses = [part for part in parts if part]
    return len(responses) == 2 and responses[0] != responses[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text: str) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


def follows(response: str, instruction: str, arguments: dict[str, Any]) -> bool:
    """Strict: the response as it is. An empty one follows nothing."""
    return bool(response.strip()) and CHECKS[instruction](response, **arguments)


def follows_loosely(response: str, instruction: str, arguments: dict[str, Any]) -> bool:
    """Loose: also without its first line, its last line, or both, and without asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    variants = [response, *cut]
    variants += [variant.replace("*", "") for variant in variants]
    return any(follows(variant, instruction, arguments) for variant in dict.fromkeys(variants))
