"""Charts as SVG: lines over numbers, on axes that go in factors where asked; grey on nothing, for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 40, 48
"""Margins, in pixels; the legend stands on the right."""
GREY = "#808080"
COLOURS = ("#2f7fd0", "#d9822b", "#36a064", "#b565c9")
MARKS = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Line:
    """What was measured of one contender.

    Attributes:
        points: (x, y), in the order of x.
        stopped: where it was stopped; shown at the upper edge.
    """

    points: Sequence[tuple[float, float]]
    stopped: Sequence[float] = ()


@dataclass(frozen=True)
class Axis:
    """From values to pixels.

    Attributes:
        label: with its unit.
        ticks: in ascending order; the first and the last are its ends.
        log: whether equal ways are equal factors.
        start: the pixel of the first tick.
        end: the pixel of the last one.
    """

    label: str
    ticks: Sequence[float]
    log: bool
    start: float
    end: float

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.ticks[0], self.ticks[-1], value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def ticks_of(values: Sequence[float], *, log: bool) -> list[float]:
    """Round numbers around positive values: 1, 2 and 5 times powers of ten, or even steps from zero."""
    low, high = min(values), max(values)
    if not log:
        step = 10.0 ** math.floor(math.log10(high))
        step = next(part * step for part in (0.2, 0.5, 1.0, 2.0) if part * step * 6 >= high)
        return [step * count for count in range(math.ceil(high / step) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{part}e{power}") for power in powers for part in (1, 2, 5)]
    below = [step for step in steps if step <= low]
    above = [step for step in steps if step >= high]
    first, last = below[-1], above[0] if above[0] > below[-1] else above[1]
    return [step for step in steps if first <= step <= last]


def chart(
    title: str, labels: tuple[str, str], lines: Mapping[str, Line], *, log: tuple[bool, bool], note: str = ""
) -> str:
    """An SVG picture.

    Args:
        title: above it.
        labels: of both axes.
        lines: by the name that the legend shows.
        log: whether each axis goes in factors; values are positive.
        note: below the legend: what a cross at the upper edge means.
    """
    xs = [x for line in lines.values() for x in (*(x for x, _ in line.points), *line.stopped)]
    ys = [y for line in lines.values() for _, y in line.points]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    across = Axis(labels[0], ticks_of(xs, log=log[0]), log[0], LEFT, right)
    up = Axis(labels[1], ticks_of(ys, log=log[1]), log[1], bottom, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{GREY}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for tick in up.ticks:
        y = up.place(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="{GREY}" stroke-opacity="0.25"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:g}", "end"))
    for tick in across.ticks:
        x = across.place(tick)
        parts.append(f'<path d="M{x:.1f} {bottom}v5" stroke="{GREY}"/>' + _text(x, bottom + 18, f"{tick:g}", "middle"))
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="{GREY}" fill="none"/>')
    parts.append(_text((LEFT + right) / 2, HEIGHT - 10, across.label, "middle"))
    parts.append(f'<g transform="rotate(-90 16 {(TOP + bottom) / 2})">')
    parts.append(_text(16, (TOP + bottom) / 2, up.label, "middle") + "</g>")
    for index, (name, line) in enumerate(lines.items()):
        colour, mark, y = COLOURS[index % len(COLOURS)], MARKS[index % len(MARKS)], TOP + 12 + 20 * index
        places = [(across.place(x), up.place(value)) for x, value in line.points]
        path = " ".join(f"{x:.1f},{value:.1f}" for x, value in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_mark(mark, x, value, colour) for x, value in (*places, (right + 16, y - 4))]
        # Side by side: several may be stopped at one place.
        parts += [
            _mark("cross", across.place(x) + 9 * (index - (len(lines) - 1) / 2), TOP, colour) for x in line.stopped
        ]
        parts.append(_text(right + 28, y, name, "start"))
    parts += [
        _text(right + 10, TOP + 24 + 20 * len(lines) + 16 * i, row, "start") for i, row in enumerate(note.split("\n"))
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    shapes = {"square": "m-4-4h8v8h-8z", "triangle": "m0-5l5 9h-10z", "diamond": "m0-5l5 5l-5 5l-5-5z"}
    if kind in shapes:
        return f'<path d="M{x:.1f} {y:.1f}{shapes[kind]}" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y:.1f}m-4-4l8 8m0-8l-8 8" stroke="{colour}" stroke-width="2"/>'
