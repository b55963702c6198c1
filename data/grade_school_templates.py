"""The stories that `data.grade_school` tells: 33 openings, and 12 ways in which they may go on.

A story is text with places: {A}, {B}, {C} are names, {things} and {others} objects, the other small
letters numbers. `draws` says where its numbers come from; a step is `formula | sentence`, and the
formula's result stands in its own sentence as the calculation. `{k:times}` is written as "twice" or
"3 times", `{k:part}` as "half" or "a third". What comes out must be whole and from 1 to LARGEST, or
other numbers are drawn: so `/` divides exactly.

An opening that `goes_on` leaves {A} with the number `x` of {things}. An event changes x, and one
with a question of its own ends the story.
"""

import dataclasses
from collections.abc import Mapping, Sequence

LARGEST = 999

NAMES = (
    "Ada", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Irene", "Jamal", "Kenji",
    "Lena", "Marco", "Nadia", "Omar", "Paula", "Quinn", "Rosa", "Samir", "Tara", "Uma", "Victor",
    "Wendy", "Yusuf",
)  # fmt: skip
THINGS = (
    "apples", "balloons", "beads", "books", "buttons", "candles", "cards", "coins", "cookies",
    "eggs", "flowers", "marbles", "muffins", "oranges", "pears", "pencils", "postcards", "shells",
    "stamps", "stickers", "stones", "tickets", "tomatoes", "toys",
)  # fmt: skip
PARTS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}

Draws = Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Opening:
    """How a story begins, or all of it."""

    name: str
    text: str
    question: str
    draws: Draws
    steps: tuple[str, ...]
    goes_on: bool = False


@dataclasses.dataclass(frozen=True)
class Event:
    """How a story goes on; with a question, how it ends."""

    name: str
    text: str
    draws: Draws
    steps: tuple[str, ...]
    question: str | None = None


SMALL, TEENS, TENS = range(2, 10), range(11, 40), range(10, 100, 10)
TIMES, SHARES = range(2, 6), (2, 3, 4, 5)
HAVE = "How many {things} does {A} have now?"
DOLLARS = "How many dollars"

OPENINGS = (
    Opening(
        "boxes",
        "{A} has {a} boxes with {b} {things} in each box.",
        HAVE,
        {"a": SMALL, "b": range(3, 13)},
        ("x = a * b | {A} has {x} {things}.",),
        goes_on=True,
    ),
    Opening(
        "two heaps",
        "{A} has {a} {things} in a basket and {b} {things} in a bag.",
        HAVE,
        {"a": TEENS, "b": TEENS},
        ("x = a + b | {A} has {x} {things}.",),
        goes_on=True,
    ),
    Opening(
        "gift",
        "{A} had {a} {things} and gave {k:part} of them to {B}.",
        HAVE,
        {"a": range(12, 100), "k": SHARES},
        ("b = a / k | {A} gave {b} {things} to {B}.", "x = a - b | {A} has {x} {things} left."),
        goes_on=True,
    ),
    Opening(
        "morning",
        "{A} finds {a} {things} in the morning and {k:times} as many in the evening.",
        HAVE,
        {"a": range(4, 30), "k": TIMES},
        ("b = k * a | In the evening {A} finds {b} {things}.", "x = a + b | {A} has {x} {things}."),
        goes_on=True,
    ),
    Opening(
        "trays",
        "{A} fills {a} trays with {b} {things} each and drops {c} of the {things}.",
        HAVE,
        {"a": SMALL, "b": range(4, 13), "c": SMALL},
        ("d = a * b | The trays hold {d} {things}.", "x = d - c | {A} has {x} {things} left."),
        goes_on=True,
    ),
    Opening(
        "broken",
        "{A} orders {a} {things}, but {p} percent of them are broken and thrown away.",
        HAVE,
        {"a": range(20, 300, 10), "p": (10, 20, 25, 30, 40, 50)},
        ("b = a * p / 100 | {b} {things} are broken.", "x = a - b | {A} has {x} {things} left."),
        goes_on=True,
    ),
    Opening(
        "daily",
        "{A} collects {a} {things} every day for {n} days.",
        HAVE,
        {"a": range(3, 25), "n": range(3, 15)},
        ("x = a * n | {A} collects {x} {things}.",),
        goes_on=True,
    ),
    Opening(
        "times as many",
        "{A} has {a} {things}. {B} has {k:times} as many {things} as {A}.",
        "How many {things} do they have together?",
        {"a": range(4, 60), "k": TIMES},
        ("b = k * a | {B} has {b} {things}.", "c = a + b | Together they have {c} {things}."),
    ),
    Opening(
        "more than",
        "{A} has {a} {things}. {B} has {d} more {things} than {A}.",
        "How many {things} do they have together?",
        {"a": range(5, 80), "d": range(3, 40)},
        ("b = a + d | {B} has {b} {things}.", "c = a + b | Together they have {c} {things}."),
    ),
    Opening(
        "fewer than",
        "{A} has {a} {things}. {B} has {d} fewer {things} than {A}, and {C} has {k:times} as many "
        "as {B}.",
        "How many {things} does {C} have?",
        {"a": range(12, 80), "d": range(3, 40), "k": TIMES},
        ("b = a - d | {B} has {b} {things}.", "c = k * b | {C} has {c} {things}."),
    ),
    Opening(
        "three people",
        "{A} has {a} {things}, {B} has {k:times} as many as {A}, and {C} has {d} fewer than {B}.",
        "How many {things} do the three have in all?",
        {"a": range(5, 40), "k": TIMES, "d": range(2, 30)},
        (
            "b = k * a | {B} has {b} {things}.",
            "c = b - d | {C} has {c} {things}.",
            "e = a + b + c | In all they have {e} {things}.",
        ),
    ),
    Opening(
        "sales",
        "A shop sells {a} {things} on Monday, {k:part} as many on Tuesday, and {d} more on Friday "
        "than on Tuesday.",
        "How many {things} does the shop sell on the three days?",
        {"a": range(12, 120), "k": SHARES, "d": range(3, 40)},
        (
            "b = a / k | On Tuesday the shop sells {b} {things}.",
            "c = b + d | On Friday the shop sells {c} {things}.",
            "e = a + b + c | In all the shop sells {e} {things}.",
        ),
    ),
    Opening(
        "red ones",
        "A store has {a} {things}. {p} percent of them are red, and {k:part} of the others are "
        "blue.",
        "How many {things} are blue?",
        {"a": range(20, 400, 10), "p": (10, 20, 25, 40, 50, 60, 75), "k": SHARES},
        (
            "b = a * p / 100 | {b} {things} are red.",
            "c = a - b | {c} {things} are not red.",
            "d = c / k | {d} {things} are blue.",
        ),
    ),
    Opening(
        "machine",
        "A machine makes {a} {things} in an hour. It runs {h} hours a day for {n} days.",
        "How many {things} does the machine make?",
        {"a": range(4, 40), "h": SMALL, "n": SMALL},
        (
            "b = a * h | In a day it makes {b} {things}.",
            "c = b * n | In {n} days it makes {c} {things}.",
        ),
    ),
    Opening(
        "shopping",
        "{A} buys {a} {things} for {p} dollars each and {b} {others} for {q} dollars each.",
        DOLLARS + " does {A} spend?",
        {"a": SMALL, "p": range(2, 16), "b": SMALL, "q": range(2, 16)},
        (
            "c = a * p | The {things} cost {c} dollars.",
            "d = b * q | The {others} cost {d} dollars.",
            "e = c + d | {A} spends {e} dollars.",
        ),
    ),
    Opening(
        "change",
        "{A} buys {a} {things} for {p} dollars each and pays with {m} dollars.",
        DOLLARS + " does {A} get back?",
        {"a": SMALL, "p": range(2, 16), "m": (20, 50, 100, 150)},
        ("c = a * p | The {things} cost {c} dollars.", "d = m - c | {A} gets back {d} dollars."),
    ),
    Opening(
        "wages",
        "{A} earns {w} dollars an hour and works {h} hours a day. After {n} days {A} spends {s} "
        "dollars.",
        DOLLARS + " does {A} have left?",
        {"w": range(8, 21), "h": range(3, 9), "n": SMALL, "s": range(15, 200, 5)},
        (
            "b = w * h | {A} earns {b} dollars a day.",
            "c = b * n | In {n} days {A} earns {c} dollars.",
            "d = c - s | {A} has {d} dollars left.",
        ),
    ),
    Opening(
        "savings",
        "{A} wants a bike that costs {m} dollars, has {h} dollars, and saves {s} dollars a week.",
        "In how many weeks can {A} buy the bike?",
        {"m": range(100, 400, 10), "h": range(10, 100, 5), "s": range(5, 30)},
        (
            "b = m - h | {A} still needs {b} dollars.",
            "c = b / s | {A} can buy the bike in {c} weeks.",
        ),
    ),
    Opening(
        "bakery",
        "{A} bakes {a} trays of {b} rolls. {B} eats {n} rolls, and the rest go into bags of {k}.",
        "How many bags are there?",
        {"a": SMALL, "b": range(4, 16), "n": range(1, 20), "k": SMALL},
        (
            "c = a * b | {A} bakes {c} rolls.",
            "d = c - n | {d} rolls are left.",
            "e = d / k | There are {e} bags.",
        ),
    ),
    Opening(
        "friends",
        "{a} friends share {b} boxes of {c} {things} equally.",
        "How many {things} does each friend get?",
        {"a": SMALL, "b": SMALL, "c": range(4, 20)},
        ("d = b * c | There are {d} {things}.", "e = d / a | Each friend gets {e} {things}."),
    ),
    Opening(
        "train",
        "A train goes {a} miles an hour for {h} hours and then {b} miles an hour for {k} hours.",
        "How many miles does the train go?",
        {"a": range(20, 90, 5), "h": range(2, 6), "b": range(20, 90, 5), "k": range(2, 6)},
        (
            "c = a * h | First the train goes {c} miles.",
            "d = b * k | Then the train goes {d} miles.",
            "e = c + d | In all it goes {e} miles.",
        ),
    ),
    Opening(
        "ages",
        "{A} is {a} years old. {B} is {k:times} as old as {A}.",
        "How old will {B} be in {n} years?",
        {"a": range(3, 20), "k": TIMES, "n": range(2, 20)},
        ("b = k * a | {B} is {b} years old.", "c = b + n | In {n} years {B} will be {c}."),
    ),
    Opening(
        "ages together",
        "{A} is {a} years old, and {B} is {d} years older than {A}.",
        "How old will the two be together in {n} years?",
        {"a": range(5, 50), "d": range(2, 30), "n": range(2, 15)},
        (
            "b = a + d | {B} is {b} years old.",
            "c = a + b | Together they are {c} years old.",
            "e = 2 * n | In {n} years that grows by {e} years.",
            "f = c + e | Then they will be {f} years old.",
        ),
    ),
    Opening(
        "garden",
        "A garden has {a} rows of {b} plants. A storm breaks {k:part} of the plants.",
        "How many plants are left?",
        {"a": range(3, 16), "b": range(4, 21), "k": SHARES},
        (
            "c = a * b | The garden has {c} plants.",
            "d = c / k | The storm breaks {d} plants.",
            "e = c - d | {e} plants are left.",
        ),
    ),
    Opening(
        "school",
        "A school has {a} students. {p} percent of them take the bus, and {w} walk. The others "
        "come by bike.",
        "How many students come by bike?",
        {"a": range(40, 500, 10), "p": (10, 20, 25, 30, 40, 50), "w": range(5, 90)},
        (
            "b = a * p / 100 | {b} students take the bus.",
            "c = a - b | {c} students do not take the bus.",
            "d = c - w | {d} students come by bike.",
        ),
    ),
    Opening(
        "tank",
        "A tank holds {a} liters. Every minute {r} liters flow in and {l} liters flow out.",
        "In how many minutes is the empty tank full?",
        {"a": range(30, 400, 10), "r": range(8, 40), "l": range(2, 20)},
        (
            "b = r - l | Every minute the tank gains {b} liters.",
            "c = a / b | It is full in {c} minutes.",
        ),
    ),
    Opening(
        "reading",
        "A book has {a} pages. {A} reads {b} pages a day for {n} days, and then {c} pages a day.",
        "How many more days does {A} need?",
        {"a": range(100, 400, 10), "b": range(5, 40), "n": SMALL, "c": range(5, 40)},
        (
            "d = b * n | In {n} days {A} reads {d} pages.",
            "e = a - d | {e} pages are left.",
            "f = e / c | {A} needs {f} more days.",
        ),
    ),
    Opening(
        "fence",
        "A field is {w} meters wide and {d} meters longer than that. {A} builds a fence around it "
        "for {p} dollars a meter.",
        DOLLARS + " does the fence cost?",
        {"w": range(5, 40), "d": range(2, 30), "p": SMALL},
        (
            "b = w + d | The field is {b} meters long.",
            "c = w + b | Two sides are {c} meters long.",
            "e = 2 * c | The fence is {e} meters long.",
            "f = e * p | The fence costs {f} dollars.",
        ),
    ),
    Opening(
        "walkers",
        "{A} walks {a} miles an hour and {B} rides {b} miles an hour.",
        "After {h} hours, how many more miles has {B} gone than {A}?",
        {"a": range(2, 7), "b": range(8, 30), "h": range(2, 9)},
        (
            "c = a * h | {A} goes {c} miles.",
            "d = b * h | {B} goes {d} miles.",
            "e = d - c | {B} has gone {e} more miles.",
        ),
    ),
    Opening(
        "discount",
        "A lamp costs {m} dollars. In a sale it is {p} percent cheaper, and {A} buys {n} lamps.",
        DOLLARS + " does {A} pay?",
        {"m": range(20, 160, 5), "p": (10, 20, 25, 30, 40, 50), "n": range(2, 8)},
        (
            "b = m * p / 100 | A lamp is {b} dollars cheaper.",
            "c = m - b | A lamp costs {c} dollars in the sale.",
            "d = c * n | {A} pays {d} dollars.",
        ),
    ),
    Opening(
        "farm",
        "A farm has {a} cows, which have 4 legs each, and {k:times} as many hens, which have 2 "
        "legs each.",
        "How many legs do the animals have?",
        {"a": range(3, 40), "k": TIMES},
        (
            "b = k * a | There are {b} hens.",
            "c = 4 * a | The cows have {c} legs.",
            "d = 2 * b | The hens have {d} legs.",
            "e = c + d | The animals have {e} legs.",
        ),
    ),
    Opening(
        "profit",
        "{A} buys {n} {things} for {p} dollars each and sells {m} of them for {q} dollars each.",
        DOLLARS + " does {A} gain?",
        {"n": range(5, 30), "p": range(2, 10), "m": range(4, 30), "q": range(5, 30)},
        (
            "b = n * p | {A} pays {b} dollars.",
            "c = m * q | {A} gets {c} dollars.",
            "d = c - b | {A} gains {d} dollars.",
        ),
    ),
    Opening(
        "training",
        "{A} runs {a} miles in the first week and {d} miles more every week.",
        "How many miles does {A} run in three weeks?",
        {"a": range(3, 40), "d": range(2, 15)},
        (
            "b = a + d | In the second week {A} runs {b} miles.",
            "c = b + d | In the third week {A} runs {c} miles.",
            "e = a + b + c | In three weeks {A} runs {e} miles.",
        ),
    ),
)

EVENTS = (
    Event(
        "gives",
        "Then {A} gives {n} {things} to {B}.",
        {"n": range(2, 60)},
        ("x = x - n | {A} has {x} {things} left.",),
    ),
    Event(
        "buys",
        "Then {A} buys {n} more {things}.",
        {"n": range(2, 60)},
        ("x = x + n | Then {A} has {x} {things}.",),
    ),
    Event(
        "bags",
        "{B} brings {A} {n} bags of {m} {things}.",
        {"n": SMALL, "m": range(3, 13)},
        ("y = n * m | {B} brings {y} {things}.", "x = x + y | Then {A} has {x} {things}."),
    ),
    Event(
        "loses part",
        "Then {A} loses {k:part} of the {things}.",
        {"k": SHARES},
        ("y = x / k | {A} loses {y} {things}.", "x = x - y | {A} has {x} {things} left."),
    ),
    Event(
        "doubles",
        "Then {B} gives {A} as many {things} as {A} has.",
        {},
        ("x = 2 * x | Then {A} has {x} {things}.",),
    ),
    Event(
        "sells percent",
        "Then {A} sells {p} percent of the {things}.",
        {"p": (10, 20, 25, 50, 75)},
        ("y = x * p / 100 | {A} sells {y} {things}.", "x = x - y | {A} has {x} {things} left."),
    ),
    Event(
        "swaps",
        "{A} loses {n} of them and finds {m} others.",
        {"n": range(2, 30), "m": range(2, 30)},
        ("x = x - n + m | Then {A} has {x} {things}.",),
    ),
    Event(
        "shares",
        "{A} shares the {things} equally among {k} children.",
        {"k": SMALL},
        ("y = x / k | Each child gets {y} {things}.",),
        "How many {things} does each child get?",
    ),
    Event(
        "sells all",
        "{A} sells all {things} for {p} dollars each.",
        {"p": SMALL},
        ("y = x * p | {A} gets {y} dollars.",),
        DOLLARS + " does {A} get?",
    ),
    Event(
        "wants",
        "{A} wants to have {t} {things}.",
        {"t": range(100, 500, 10)},
        ("y = t - x | {A} needs {y} more {things}.",),
        "How many more {things} does {A} need?",
    ),
    Event(
        "packs",
        "{A} packs the {things} into bags of {k} and sells each bag for {p} dollars.",
        {"k": SMALL, "p": SMALL},
        ("y = x / k | There are {y} bags.", "z = y * p | {A} gets {z} dollars."),
        DOLLARS + " does {A} get?",
    ),
    Event(
        "compares",
        "{B} has {k:times} as many {things} as {A}.",
        {"k": TIMES},
        ("y = k * x | {B} has {y} {things}.", "z = y - x | {B} has {z} more {things} than {A}."),
        "How many more {things} than {A} does {B} have?",
    ),
)
