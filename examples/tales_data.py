"""Seeded tiny tales, and a judge that says whether a tale follows their grammar.

A tale names its hero, its hero's friend, and a thing once and then refers back to them, so a model has to carry
them along; the judge checks exactly that.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator

Tale = dict[str, str]

# Each name goes with one pronoun throughout.
NAMES = {
    "Anna": "she", "Bella": "she", "Clara": "she", "Dora": "she", "Ella": "she", "Flora": "she",
    "Greta": "she", "Hugo": "he", "Ivan": "he", "Jonas": "he", "Karl": "he", "Leo": "he", "Max": "he", "Otto": "he",
}  # fmt: skip
SLOTS: dict[str, tuple[str, ...]] = {
    "name": tuple(NAMES),
    "adj": ("small", "brave", "clever", "shy", "hungry", "merry", "proud", "sleepy"),
    "hero": ("fox", "bear", "mouse", "rabbit", "wolf", "goose", "badger", "hedgehog", "cat", "frog"),
    "home": ("forest", "valley", "village", "garden", "old mill", "castle"),
    "thing": ("lamp", "key", "drum", "ribbon", "pear", "bell", "coin", "book", "shell", "boat"),
    "where": ("by the river", "under a stone", "behind the barn", "on the hill", "near the well"),
    "friend": ("crow", "deer", "squirrel", "snail", "turtle", "heron", "donkey", "beaver"),
    "when": ("morning", "evening", "winter day", "summer night"),
    "mood": ("happy", "calm", "grateful", "surprised"),
}
OPENINGS = (
    "Once there was a {adj} {hero} called {name}.",
    "Long ago, a {adj} {hero} named {name} lived in the {home}.",
    "In the {home} lived a {adj} {hero}, and the {hero} was called {name}.",
)
FINDINGS = (
    "One {when}, {pronoun} found a {thing} {where}.",
    "One {when}, {name} lost a {thing} {where}, and {pronoun} looked for it everywhere.",
)
MEETINGS = (
    'A {friend} came by and asked, "Is that your {thing}, {name}?"',
    "Then a {friend} came along, and {name} told the {friend} about the {thing}.",
)
TURNS = (
    "So {name} gave the {thing} to the {friend}.",
    "The {friend} and the {hero} shared the {thing}.",
    "Together the {hero} and the {friend} took the {thing} home.",
)
ENDINGS = (
    "The {friend} was {mood}, and so was {name}.",
    "From that day on, the {friend} and the {hero} were friends.",
    "That night {pronoun} slept well, and the {friend} did too.",
)
PARTS = (OPENINGS, FINDINGS, MEETINGS, TURNS, ENDINGS)


def make(rng: random.Random) -> tuple[str, str]:
    """Return one tale as (opening, rest)."""
    tale: Tale = {slot: rng.choice(words) for slot, words in SLOTS.items()}
    tale["pronoun"] = NAMES[tale["name"]]
    opening, *rest = (rng.choice(part).format(**tale) for part in PARTS)
    return opening, " ".join(rest)


def is_held_out(opening: str) -> bool:
    """True for about a tenth of all openings; no training tale starts with one of them."""
    # Python's own hash of a string changes from run to run; a checksum does not.
    return zlib.crc32(opening.encode()) % 10 == 7


def samples(seed: int, *, held_out: bool) -> Iterator[tuple[str, str]]:
    """Yield (opening, rest) without end; the same seed yields the same tales."""
    rng = random.Random(seed)
    while True:
        opening, rest = make(rng)
        if is_held_out(opening) is held_out:
            yield opening, rest


def _pattern() -> re.Pattern[str]:
    """Compile the grammar, one named group for each slot of each template."""
    words = {**SLOTS, "pronoun": ("she", "he")}
    counter = 0

    def group(slot: re.Match[str]) -> str:
        nonlocal counter
        counter += 1
        return f"(?P<{slot[1]}_{counter}>{'|'.join(words[slot[1]])})"

    parts = []
    for part in PARTS:
        choices = (re.sub(r"\\\{(\w+)\\\}", group, re.escape(template)) for template in part)
        parts.append(f"(?:{'|'.join(choices)})")
    return re.compile(r"\ ".join(parts))


_GRAMMAR = _pattern()


def follows_grammar(text: str) -> bool:
    """True if `text` is a whole tale in which every slot keeps one value and the pronoun fits the name."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        return False
    seen: Tale = {}
    for group, word in match.groupdict().items():
        slot = group.rsplit("_", 1)[0]
        if word is not None and seen.setdefault(slot, word) != word:
            return False
    return seen.get("pronoun", NAMES[seen["name"]]) == NAMES[seen["name"]]
