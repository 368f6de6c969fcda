"""Seeded pairs of a date as people write it in English and the same date in ISO form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date

FIRST, LAST = date(1900, 1, 1), date(2099, 12, 31)
# A year of two digits says nothing about its century, so it is used for these years only.
SHORT_YEARS = range(1950, 2050)

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
SHORT_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ONES = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth",
    "eighteenth", "nineteenth", "twentieth",
)  # fmt: skip

LONG_FORMS = (
    "{day} {month} {year}",
    "{nth} {month} {year}",
    "{nth} {month}, {year}",
    "{nth} of {month} {year}",
    "the {nth} of {month} {year}",
    "the {nth} of {month}, {year}",
    "{month} {day}, {year}",
    "{month} {day} {year}",
    "{month} {nth}, {year}",
    "{month} the {nth}, {year}",
    "{mon} {day}, {year}",
    "{mon}. {day}, {year}",
    "{day} {mon} {year}",
    "{day}-{mon}-{year}",
    "{year} {mon} {day}",
    "{weekday}, {day} {month} {year}",
    "{weekday}, {month} {day}, {year}",
    "{weekday} the {nth} of {month} {year}",
    "{wd} {day} {mon} {year}",
    "{wd}, {mon} {day} {year}",
    "the {word} of {month} {year}",
    "the {word} of {month}, {year}",
    "{month} the {word}, {year}",
    "{weekday} the {word} of {month} {year}",
    "{day2}.{month2}.{year}",
    "{day}.{month1}.{year}",
)
SHORT_FORMS = (
    "{day} {mon} {year2}",
    "{day} {month} '{year2}",
    "{mon} {day}, '{year2}",
    "{month} {nth}, '{year2}",
)


def ordinal(day: int) -> str:
    """Return `day` as 1st, 2nd, 3rd, ..."""
    # 11, 12 and 13 end in "th" although 1, 2 and 3 do not.
    suffix = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def ordinal_word(day: int) -> str:
    """Return `day` as first, second, ..., thirty-first."""
    if day <= 20:
        return ONES[day - 1]
    if day == 30:
        return "thirtieth"
    return f"{'twenty' if day < 30 else 'thirty'}-{ONES[day % 10 - 1]}"


def write(when: date, form: str) -> str:
    """Write `when` in one of the forms above."""
    weekday = WEEKDAYS[when.weekday()]
    return form.format(
        day=when.day,
        day2=f"{when.day:02d}",
        nth=ordinal(when.day),
        word=ordinal_word(when.day),
        month=MONTHS[when.month - 1],
        mon=SHORT_MONTHS[when.month - 1],
        month1=when.month,
        month2=f"{when.month:02d}",
        weekday=weekday,
        wd=weekday[:3],
        year=when.year,
        year2=f"{when.year % 100:02d}",
    )


def is_held_out(when: date) -> bool:
    """True for the tenth of all days that no training sample shows, in any form."""
    return when.toordinal() % 10 == 7


def samples(seed: int, *, held_out: bool) -> Iterator[tuple[str, str]]:
    """Yield (written, ISO) pairs without end; the same seed yields the same pairs."""
    rng = random.Random(seed)
    while True:
        when = date.fromordinal(rng.randint(FIRST.toordinal(), LAST.toordinal()))
        forms = LONG_FORMS + SHORT_FORMS if when.year in SHORT_YEARS else LONG_FORMS
        text = write(when, rng.choice(forms))
        case = rng.random()
        if is_held_out(when) is held_out:
            yield (text.lower() if case < 0.1 else text.upper() if case < 0.2 else text), when.isoformat()
