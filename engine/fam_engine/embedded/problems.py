"""A generator of worked maths word problems: what the demo model is taught besides GSM8K.

In: the name of a skill and a seed. Out: a question, its number, and the worked answer in three
styles that say the same maths: `plain` (short sentences, last line "A: 18"), `formal`
(givens, numbered derivation, last line "Result: 18") and `brief`, which is `formal` without its
first two lines and so about as long as `plain`. The model sees `plain` nearly always, `brief` by
itself never and some skills never, so which answers should be familiar to it is known beforehand:
a truth to check scores against. Templates, and not a language model's text, because then every
answer is right by construction and the licence is ours. Pure Python; same seed, same problem.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

Style = Literal["plain", "formal", "brief"]

# Never in the training text: questions whose wording and working the model can know only from
# the few of GSM8K. They stand for material that is off the model's beaten track.
HELD_OUT_SKILLS: Final = ("average", "perimeter", "unit_conversion")
# One training document in this many is formal: enough to have been seen, too few to be at home.
FORMAL_EVERY: Final = 25

_PEOPLE: Final = (
    *((name, "She") for name in ("Anna", "Mia", "Rosa", "Leila", "Julia", "Kate", "Nora")),
    *((name, "He") for name in ("Tom", "Omar", "Ben", "Paul", "Ivan", "Sam", "Luis")),
)
_THINGS: Final = ("apples", "books", "cards", "coins", "cookies", "eggs", "marbles", "pencils")
_GOODS: Final = ("book", "cap", "kite", "lamp", "pen", "plant", "shirt", "ticket", "toy")
_BOXES: Final = ("bags", "baskets", "boxes", "crates", "jars", "shelves")
_UNITS: Final = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("weeks", "days", 7),
    ("feet", "inches", 12),
    ("meters", "centimeters", 100),
    ("kilograms", "grams", 1000),
    ("days", "hours", 24),
)


@dataclass(frozen=True)
class Problem:
    """One word problem: `answers` holds the worked answer per style, `gold` its number."""

    skill: str
    question: str
    answers: dict[Style, str]
    gold: int


@dataclass(frozen=True)
class _Draft:
    """What a skill fills in: sentences, given quantities, and the derivation's lines."""

    question: str
    plain: tuple[str, ...]
    given: dict[str, int]
    wanted: str
    formal: tuple[str, ...]
    gold: int


def _addition(rng: Random) -> _Draft:
    (name, pron), thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    a, b = rng.randint(3, 60), rng.randint(2, 40)
    verb = rng.choice(("buys", "finds", "gets"))
    return _Draft(
        f"{name} has {a} {thing}. {pron} {verb} {b} more {thing}. "
        f"How many {thing} does {name} have now?",
        (f"{name} has {a} + {b} = {a + b} {thing} now.",),
        {"initial stock": a, "increase": b},
        f"final stock of {thing}",
        (f"initial stock plus increase: {a} + {b} = {a + b}",),
        a + b,
    )


def _giving_away(rng: Random) -> _Draft:
    ((name, pron), (friend, _)), thing = rng.sample(_PEOPLE, 2), rng.choice(_THINGS)
    b, c, rest = rng.randint(2, 20), rng.randint(2, 20), rng.randint(1, 40)
    a = b + c + rest
    return _Draft(
        f"{name} has {a} {thing}. {pron} gives {b} {thing} to {friend} and loses {c}. "
        f"How many {thing} does {name} have left?",
        (
            f"After giving {b} to {friend}, {name} has {a} - {b} = {a - b} {thing}.",
            f"After losing {c}, {name} has {a - b} - {c} = {rest} {thing} left.",
        ),
        {"initial stock": a, "transferred": b, "lost": c},
        f"remaining stock of {thing}",
        (
            f"total reduction: {b} + {c} = {b + c}",
            f"initial stock minus reduction: {a} - {b + c} = {rest}",
        ),
        rest,
    )


def _how_many_more(rng: Random) -> _Draft:
    ((name, _), (friend, _)), thing = rng.sample(_PEOPLE, 2), rng.choice(_THINGS)
    b, more = rng.randint(3, 40), rng.randint(2, 30)
    a = b + more
    return _Draft(
        f"{name} has {a} {thing} and {friend} has {b} {thing}. "
        f"How many more {thing} does {name} have than {friend}?",
        (f"{name} has {a} - {b} = {more} more {thing} than {friend}.",),
        {"larger count": a, "smaller count": b},
        f"difference in {thing}",
        (f"larger count minus smaller count: {a} - {b} = {more}",),
        more,
    )


def _price_times_quantity(rng: Random) -> _Draft:
    (name, _), good = rng.choice(_PEOPLE), rng.choice(_GOODS)
    count, price = rng.randint(2, 12), rng.randint(2, 20)
    cost = count * price
    return _Draft(
        f"A {good} costs ${price}. {name} buys {count} of them. How much does {name} pay?",
        (f"{name} pays {count} * ${price} = ${cost}.",),
        {"unit price in dollars": price, "quantity": count},
        "total cost in dollars",
        (f"quantity times unit price: {count} * {price} = {cost}",),
        cost,
    )


def _change(rng: Random) -> _Draft:
    (name, pron), good = rng.choice(_PEOPLE), rng.choice(_GOODS)
    count, price = rng.randint(2, 9), rng.randint(2, 10)
    cost = count * price
    paid = min(note for note in (10, 20, 50, 100) if note > cost)
    return _Draft(
        f"{name} buys {count} {good}s for ${price} each. {pron} pays with a ${paid} bill. "
        f"How much change does {name} get?",
        (
            f"The {good}s cost {count} * ${price} = ${cost}.",
            f"{name} gets ${paid} - ${cost} = ${paid - cost} in change.",
        ),
        {"unit price in dollars": price, "quantity": count, "tendered in dollars": paid},
        "change in dollars",
        (
            f"quantity times unit price: {count} * {price} = {cost}",
            f"tendered minus cost: {paid} - {cost} = {paid - cost}",
        ),
        paid - cost,
    )


def _equal_sharing(rng: Random) -> _Draft:
    (name, _), thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    share, friends = rng.randint(2, 12), rng.randint(2, 10)
    total = share * friends
    return _Draft(
        f"{name} shares {total} {thing} equally among {friends} friends. "
        f"How many {thing} does each friend get?",
        (f"Each friend gets {total} / {friends} = {share} {thing}.",),
        {"total": total, "recipients": friends},
        f"{thing} per recipient",
        (f"total divided by recipients: {total} / {friends} = {share}",),
        share,
    )


def _groups(rng: Random) -> _Draft:
    (name, _), thing, box = rng.choice(_PEOPLE), rng.choice(_THINGS), rng.choice(_BOXES)
    boxes, each, loose = rng.randint(2, 10), rng.randint(2, 12), rng.randint(1, 20)
    packed = boxes * each
    return _Draft(
        f"{name} has {boxes} {box} with {each} {thing} in each, and {loose} more {thing} "
        f"on the table. How many {thing} are there in total?",
        (
            f"The {box} hold {boxes} * {each} = {packed} {thing}.",
            f"In total there are {packed} + {loose} = {packed + loose} {thing}.",
        ),
        {f"number of {box}": boxes, "content of each": each, "loose": loose},
        f"total number of {thing}",
        (
            f"number times content: {boxes} * {each} = {packed}",
            f"packed plus loose: {packed} + {loose} = {packed + loose}",
        ),
        packed + loose,
    )


def _percent(rng: Random) -> _Draft:
    (name, _), thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    percent, total = rng.choice((10, 20, 25, 50, 75)), 20 * rng.randint(1, 20)
    color, part = rng.choice(("blue", "green", "red")), percent * total // 100
    return _Draft(
        f"{name} has {total} {thing}, and {percent}% of them are {color}. "
        f"How many {color} {thing} does {name} have?",
        (f"{percent}% of {total} is {total} * {percent} / 100 = {part} {color} {thing}.",),
        {"total": total, "rate in percent": percent},
        f"number of {color} {thing}",
        (f"total times rate: {total} * {percent} / 100 = {part}",),
        part,
    )


def _saving(rng: Random) -> _Draft:
    (name, pron), good = rng.choice(_PEOPLE), rng.choice(("bike", "camera", "guitar", "phone"))
    rate, weeks, first = rng.randint(3, 20), rng.randint(2, 12), rng.randint(5, 60)
    price = rate * weeks + first
    return _Draft(
        f"{name} wants a {good} that costs ${price}. {pron} has ${first} and saves ${rate} "
        f"every week. After how many weeks can {name} buy the {good}?",
        (
            f"{name} still needs ${price} - ${first} = ${price - first}.",
            f"That takes {price - first} / {rate} = {weeks} weeks.",
        ),
        {"price in dollars": price, "capital in dollars": first, "weekly saving": rate},
        "duration in weeks",
        (
            f"price minus capital: {price} - {first} = {price - first}",
            f"shortfall divided by weekly saving: {price - first} / {rate} = {weeks}",
        ),
        weeks,
    )


def _average(rng: Random) -> _Draft:
    name, _ = rng.choice(_PEOPLE)
    a, b, mean = rng.randint(5, 30), rng.randint(5, 30), rng.randint(22, 40)
    c = 3 * mean - a - b
    return _Draft(
        f"{name} reads {a} pages on Monday, {b} pages on Tuesday and {c} pages on Wednesday. "
        "What is the average number of pages per day?",
        (
            f"In all, {name} reads {a} + {b} + {c} = {3 * mean} pages.",
            f"The average is {3 * mean} / 3 = {mean} pages per day.",
        ),
        {"first": a, "second": b, "third": c},
        "arithmetic mean in pages per day",
        (
            f"sum of observations: {a} + {b} + {c} = {3 * mean}",
            f"sum divided by 3 observations: {3 * mean} / 3 = {mean}",
        ),
        mean,
    )


def _perimeter(rng: Random) -> _Draft:
    place = rng.choice(("field", "garden", "lawn", "yard"))
    width, extra = rng.randint(3, 30), rng.randint(1, 20)
    length = width + extra
    return _Draft(
        f"A rectangular {place} is {length} meters long and {width} meters wide. "
        "How many meters of fence go around it?",
        (
            f"One long side and one short side are {length} + {width} = {length + width} meters.",
            f"The fence is 2 * {length + width} = {2 * (length + width)} meters long.",
        ),
        {"length in meters": length, "width in meters": width},
        "perimeter in meters",
        (
            f"half perimeter: {length} + {width} = {length + width}",
            f"twice the half perimeter: 2 * {length + width} = {2 * (length + width)}",
        ),
        2 * (length + width),
    )


def _unit_conversion(rng: Random) -> _Draft:
    big, small, factor = rng.choice(_UNITS)
    count, extra = rng.randint(2, 9), rng.randint(1, 6)
    base = count * factor
    return _Draft(
        f"There are {factor} {small} in each of {count} {big}, and {extra} {small} come on top. "
        f"How many {small} is that?",
        (
            f"{count} {big} are {count} * {factor} = {base} {small}.",
            f"Together that is {base} + {extra} = {base + extra} {small}.",
        ),
        {big: count, f"additional {small}": extra},
        f"measure in {small}",
        (
            f"conversion of {big}: {count} * {factor} = {base}",
            f"converted plus additional: {base} + {extra} = {base + extra}",
        ),
        base + extra,
    )


_SKILLS: Final[dict[str, Callable[[Random], _Draft]]] = {
    "addition": _addition,
    "average": _average,
    "change": _change,
    "equal_sharing": _equal_sharing,
    "giving_away": _giving_away,
    "groups": _groups,
    "how_many_more": _how_many_more,
    "percent": _percent,
    "perimeter": _perimeter,
    "price_times_quantity": _price_times_quantity,
    "saving": _saving,
    "unit_conversion": _unit_conversion,
}
SKILLS: Final = tuple(_SKILLS)
TRAINED_SKILLS: Final = tuple(skill for skill in SKILLS if skill not in HELD_OUT_SKILLS)


def _brief(draft: _Draft) -> str:
    steps = [f"({number}) {line}" for number, line in enumerate(draft.formal, start=1)]
    return "\n".join([*steps, f"Result: {draft.gold}"])


def _formal(draft: _Draft) -> str:
    given = "; ".join(f"{name} = {value}" for name, value in draft.given.items())
    return f"Given: {given}.\nRequired: {draft.wanted}.\n{_brief(draft)}"


def generate(skill: str, seed: int) -> Problem:
    """Return the problem of a skill (one of `SKILLS`) with a seed; the same pair, the same one.

    Raises:
        KeyError: For a skill there is none of.
    """
    draft = _SKILLS[skill](Random(f"{skill}/{seed}"))
    plain = "\n".join([*draft.plain, f"A: {draft.gold}"])
    answers: dict[Style, str] = {
        "plain": plain,
        "formal": _formal(draft),
        "brief": _brief(draft),
    }
    return Problem(skill, draft.question, answers, draft.gold)


def training_texts(num_documents: int, *, first_seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (question, worked answer) pairs of the trained skills in turn, mostly plain.

    Args:
        num_documents: How many pairs.
        first_seed: Seed of the first; seeds count up, so ranges do not overlap.
    """
    for index in range(num_documents):
        problem = generate(TRAINED_SKILLS[index % len(TRAINED_SKILLS)], first_seed + index)
        style: Style = "formal" if index % FORMAL_EVERY == 0 else "plain"
        yield problem.question, problem.answers[style]
