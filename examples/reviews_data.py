"""Seeded restaurant reviews whose verdict hangs on word order and negation, not on which words occur.

"The soup was not good but the service was great" praises and "the soup was great but the service was not good"
complains, with the same words. The rules, which give each review one verdict:

- A clause praises or complains by its adjective, and a negation turns it around.
- After "but", the last clause decides; with "although" or "even though", the main clause does.
- Clauses joined by "and" or "while" have equal weight: if they disagree, the verdict is mixed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

LABELS = ("negative", "mixed", "positive")
NEGATIVE, MIXED, POSITIVE = range(3)

SUBJECTS = (
    "soup", "service", "bread", "fish", "wine", "music", "waiter", "dessert", "coffee", "room", "salad", "view",
    "pizza", "menu", "garden", "rice",
)  # fmt: skip
GOOD = ("good", "great", "excellent", "lovely", "wonderful", "pleasant", "perfect", "nice")
BAD = ("bad", "awful", "terrible", "poor", "horrible", "dull", "boring", "disappointing")
# An adverb that does not change the verdict keeps the model from counting on fixed positions.
PLAIN = ("the {s} was {a}", "the {s} was truly {a}", "i found the {s} {a}", "the {s} was really {a}")
NEGATED = (
    "the {s} was not {a}",
    "the {s} was never {a}",
    "i did not find the {s} {a}",
    "the {s} was anything but {a}",
    "nobody thought the {s} was {a}",
    "the {s} was not at all {a}",
)
# "{a}" is the adjective that counts, "{o}" one of the opposite kind.
CONTRASTED = (
    "the {s} was {a} , not {o}",
    "the {s} was not {o} but {a}",
    "i expected the {s} to be {o} , but it was {a}",
)


def clause(rng: random.Random, subject: str, praises: bool) -> str:
    """Return a clause about `subject` that praises it or complains about it."""
    same, opposite = (GOOD, BAD) if praises else (BAD, GOOD)
    if rng.random() < 0.45:
        return rng.choice(NEGATED).format(s=subject, a=rng.choice(opposite))
    return rng.choice(PLAIN).format(s=subject, a=rng.choice(same))


def _make_single(rng: random.Random) -> tuple[str, int]:
    """Return a review of one clause."""
    praises = rng.random() < 0.5
    subject = rng.choice(SUBJECTS)
    same, opposite = (GOOD, BAD) if praises else (BAD, GOOD)
    if rng.random() < 0.5:
        text = rng.choice(CONTRASTED).format(s=subject, a=rng.choice(same), o=rng.choice(opposite))
    else:
        text = clause(rng, subject, praises)
    return text, POSITIVE if praises else NEGATIVE


def make(rng: random.Random) -> tuple[str, int]:
    """Return one review as (text, label index)."""
    if rng.random() < 0.2:
        text, label = _make_single(rng)
        return f"{text} .", label
    first, second = rng.sample(SUBJECTS, 2)
    praises = rng.random() < 0.5, rng.random() < 0.5
    one, two = clause(rng, first, praises[0]), clause(rng, second, praises[1])
    link = rng.choice(("but", "although", "front although", "and", "while"))
    if link == "front although":
        text, decides = f"{rng.choice(('although', 'even though'))} {one} , {two}", praises[1]
    elif link == "although":
        text, decides = f"{one} , {rng.choice(('although', 'even though'))} {two}", praises[0]
    elif link == "but":
        text, decides = f"{one} but {two}", praises[1]
    else:
        text, decides = f"{one} {link} {two}", praises[1]
        if praises[0] is not praises[1]:
            return f"{text} .", MIXED
    return f"{text} .", POSITIVE if decides else NEGATIVE


def is_held_out(text: str) -> bool:
    """True for about a tenth of all reviews; no training sample is one of them."""
    # Python's own hash of a string changes from run to run; a checksum does not.
    return zlib.crc32(text.encode()) % 10 == 7


def samples(seed: int, *, held_out: bool) -> Iterator[tuple[str, int]]:
    """Yield (text, label index) without end; the same seed yields the same reviews."""
    rng = random.Random(seed)
    while True:
        text, label = make(rng)
        # Mixed reviews need two clauses that disagree, so they are rarer; dropping others evens the classes out.
        if label != MIXED and rng.random() < 0.6:
            continue
        if is_held_out(text) is held_out:
            yield text, label
