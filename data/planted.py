r"""The planted world: generated dialogues whose five attributes are known functions of the text.

    What are the food, home, size and mood of the fox?
    First, the food of the fox is mice. Second, the color of the fox embodies red. So they say. ...

A response makes four statements of the form "ORDINAL, the PROPERTY of the SUBJECT VERB VALUE.", and
any number of other sentences. Its attributes count, from 0 to 4:

    helpfulness   different properties that were asked for and are stated of the right subject
    correctness   different properties that are stated rightly (`VALUES`)
    coherence     statements whose ordinal is that of their place
    complexity    statements with a learned verb
    verbosity     sentences that are no statement

So any text whatever has attributes, and each can be moved without the others. The true reward is
a weighted sum of them (`data.attributes.WEIGHTS`). A split is made of requests (subject and set of
four properties) that no other split has. Out of distribution are requests in words of another order
and other sentences beside the statements, in one place; every word is one of the distribution's.
"""

import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal

SUBJECTS = ("fox", "owl", "bear", "toad")
VALUE_WORDS = {
    "color": ("red", "brown", "grey", "black"),
    "food": ("mice", "seeds", "fruit", "grass"),
    "home": ("dens", "nests", "caves", "ponds"),
    "size": ("tiny", "small", "large", "huge"),
    "mood": ("shy", "bold", "calm", "wild"),
    "hour": ("dawn", "noon", "dusk", "midnight"),
    "season": ("spring", "summer", "autumn", "winter"),
    "sound": ("howls", "calls", "growls", "songs"),
}
PROPERTIES = tuple(VALUE_WORDS)
ORDINALS = ("First", "Second", "Third", "Last")
PLAIN_VERBS = ("is", "seems")
LEARNED_VERBS = ("evinces", "embodies")
NUM_STATEMENTS = len(ORDINALS)
LARGEST = 4
"""Of an attribute."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_PLACES_OF_16: dict[Split, range] = {
    "train": range(12), "validation": range(12, 14), "test": range(14, 16),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Style:
    """What may differ between distributions: words around the facts and where they stand.

    requests: forms with {properties} and {subject}. fillers: sentences that are no statement.
    fillers_together: they stand in one place, before, between or after the statements, and may
      repeat; else each stands after another statement.
    """

    requests: tuple[str, ...]
    fillers: tuple[str, ...]
    fillers_together: bool


IN_DISTRIBUTION = Style(
    requests=(
        "What are the {properties} of the {subject}?",
        "Tell me of the {subject}: its {properties}, please.",
    ),
    fillers=("This is well known.", "Many would agree.", "It bears repeating.", "So they say."),
    fillers_together=False,
)
OUT_OF_DISTRIBUTION = Style(
    requests=(
        "What of the {subject}: its {properties}?",
        "Tell me the {properties} of the {subject}, please.",
    ),
    fillers=("It is well known.", "So they agree.", "Many would say.", "This bears repeating."),
    fillers_together=True,
)

OTHER_WORDS = tuple(
    sorted(
        {
            word
            for style in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION)
            for text in (*style.requests, *style.fillers)
            for word in re.findall("[A-Za-z]+", re.sub(r"\{\w+\}", "", text))
        }
        | {"and"}
    )
)
WORDS = (
    *SUBJECTS, *PROPERTIES, *itertools.chain(*VALUE_WORDS.values()), *ORDINALS, *PLAIN_VERBS,
    *LEARNED_VERBS, *(word for word in OTHER_WORDS if word not in PLAIN_VERBS),
)  # fmt: skip
"""Every word of the world, each once."""
PHRASES = (
    *(f"{before}{word}, the" for word in ORDINALS for before in ("", " ")),
    *(f" of the {subject}" for subject in SUBJECTS),
    *(f" {value}." for value in itertools.chain(*VALUE_WORDS.values())),
)
"""Words that stand together: one token each makes texts short."""

_STATEMENT = re.compile(
    rf"({'|'.join(ORDINALS)}), the ({'|'.join(PROPERTIES)}) of the ({'|'.join(SUBJECTS)}) "
    rf"({'|'.join((*PLAIN_VERBS, *LEARNED_VERBS))}) (\w+)"
)


VALUES = {name: words[0] for name, words in VALUE_WORDS.items()}
"""The right value of every property: in this world all animals are alike."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A question about four properties of a subject, and its wording."""

    subject: str
    properties: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Each from 0 to 4; the order is that of HelpSteer."""

    helpfulness: int
    correctness: int
    coherence: int
    complexity: int
    verbosity: int

    def as_tuple(self) -> tuple[int, ...]:
        return dataclasses.astuple(self)


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One row: what was asked, what was answered, and what that is."""

    prompt: str
    response: str
    attributes: Attributes


# ------------------------------------------------------------------------------------ what is true


def measure(prompt: str, response: str) -> Attributes:
    """The attributes of any text as the answer to a request (see the head of this module)."""
    words = set(re.findall("[a-z]+", prompt))
    asked = words & set(PROPERTIES)
    stated, right, ordinals, learned, others = set(), set(), 0, 0, 0
    place = 0
    for sentence in re.split(r"[.\n]", response):
        found = _STATEMENT.fullmatch(sentence.strip())
        if found is None:
            others += bool(sentence.strip())
            continue
        ordinal, name, subject, verb, value = found.groups()
        if name in asked and subject in words:
            stated.add(name)
        if VALUES[name] == value:
            right.add((subject, name))
        ordinals += place < NUM_STATEMENTS and ordinal == ORDINALS[place]
        learned += verb in LEARNED_VERBS
        place += 1
    counts = (len(stated), len(right), ordinals, learned, others)
    return Attributes(*(min(count, LARGEST) for count in counts))


# -------------------------------------------------------------------------------------- generation


@functools.cache
def _subjects_and_properties(split: Split) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The (subject, set of properties) pairs of a split, in a fixed order."""
    pairs = list(itertools.product(SUBJECTS, itertools.combinations(PROPERTIES, NUM_STATEMENTS)))
    random.Random("splits").shuffle(pairs)
    return tuple(pair for n, pair in enumerate(pairs) if n % 16 in _PLACES_OF_16[split])


def request(
    generator: random.Random, split: Split = "train", style: Style = IN_DISTRIBUTION
) -> Request:
    """A random request of a split."""
    pairs = _subjects_and_properties(split)
    subject, properties = generator.choice(pairs)
    properties = tuple(generator.sample(properties, len(properties)))
    listed = f"{', '.join(properties[:-1])} and {properties[-1]}"
    text = generator.choice(style.requests).format(properties=listed, subject=subject)
    return Request(subject, properties, text)


def respond(
    generator: random.Random,
    asked: Request,
    attributes: Attributes,
    style: Style = IN_DISTRIBUTION,
) -> str:
    """A random response with exactly these attributes: `measure` gives them back."""
    names = generator.sample(asked.properties, NUM_STATEMENTS)
    places = range(NUM_STATEMENTS)
    is_asked, is_right, is_ordered, is_learned, is_followed = (
        [place in chosen for place in places]
        for chosen in (
            set(generator.sample(places, count))
            for count in attributes.as_tuple()
        )
    )  # fmt: skip
    sentences = []
    for place, name in enumerate(names):
        ordinal = _one(generator, ORDINALS, ORDINALS[place], is_ordered[place])
        verb = generator.choice(LEARNED_VERBS if is_learned[place] else PLAIN_VERBS)
        subject = _one(generator, SUBJECTS, asked.subject, is_asked[place])
        value = _one(generator, VALUE_WORDS[name], VALUES[name], is_right[place])
        sentences.append(f"{ordinal}, the {name} of the {subject} {verb} {value}.")
        if is_followed[place] and not style.fillers_together:
            sentences.append(generator.choice(style.fillers))
    if style.fillers_together:
        place = generator.randint(0, NUM_STATEMENTS)
        sentences[place:place] = generator.choices(style.fillers, k=attributes.verbosity)
    return " ".join(sentences)


def dialogues(
    num_dialogues: int, *, seed: int, split: Split = "train", style: Style = IN_DISTRIBUTION
) -> Iterator[Dialogue]:
    """Requests with responses whose attributes are drawn uniformly, each by itself."""
    generator = random.Random(f"dialogues {split} {seed}")
    for _ in range(num_dialogues):
        asked = request(generator, split, style)
        attributes = _any_attributes(generator)
        yield Dialogue(asked.text, respond(generator, asked, attributes, style), attributes)


def requests(
    num_requests: int, *, seed: int, split: Split = "train", style: Style = IN_DISTRIBUTION
) -> list[str]:
    """Texts of random requests."""
    generator = random.Random(f"requests {split} {seed}")
    return [request(generator, split, style).text for _ in range(num_requests)]


def pairs(
    num_pairs: int,
    weights: Sequence[float],
    *,
    seed: int,
    split: Split = "train",
    style: Style = IN_DISTRIBUTION,
) -> Iterator[tuple[Dialogue, Dialogue]]:
    """Two responses to one request, that of the higher true reward first; never a tie."""
    generator = random.Random(f"pairs {split} {seed}")
    while num_pairs:
        asked = request(generator, split, style)
        two = []
        for _ in range(2):
            attributes = _any_attributes(generator)
            response = respond(generator, asked, attributes, style)
            two.append(Dialogue(asked.text, response, attributes))
        first, second = sorted(two, key=lambda d: -true_reward(d.attributes, weights))
        if true_reward(first.attributes, weights) > true_reward(second.attributes, weights):
            yield first, second
            num_pairs -= 1


def true_reward(attributes: Attributes, weights: Sequence[float]) -> float:
    """sum_i weights[i] * attribute i, of the five in their order."""
    return sum(w * value for w, value in zip(weights, attributes.as_tuple(), strict=True))


def _any_attributes(generator: random.Random) -> Attributes:
    """Each drawn uniformly by itself."""
    return Attributes(*(generator.randint(0, LARGEST) for _ in range(5)))


def _one(generator: random.Random, among: Sequence[str], right: str, is_right: bool) -> str:
    """The right one, or a random other one."""
    return right if is_right else generator.choice([one for one in among if one != right])
