"""Dot plots: for each case what lemmata has, what others have, and a bound, on one logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lemmata.bench import svg

WIDTH, LEFT, RIGHT, ROW = 520, 16, 504, 38

Axis = Callable[[float], float]
"""Where a value stands across the picture."""


class Row(NamedTuple):
    """One case: its name, the values, and words at the right with the class of their text."""

    name: str
    ours: float
    others: Sequence[tuple[str, float]]
    bound: float
    words: str
    kind: str = ""


class Panel(NamedTuple):
    """Cases under one heading."""

    title: str
    rows: Sequence[Row]


class Words(NamedTuple):
    """What a plot says of itself: its title, what each mark is, what stands at the right, and how values are written."""

    title: str
    ours: str
    others: str
    bound: str
    right: str
    value: str


def plot(panels: Sequence[Panel], words: Words) -> str:
    """Return the picture of all panels on one axis."""
    values = [v for panel in panels for row in panel.rows for v in (row.ours, row.bound, *(x for _, x in row.others))]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def across(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (math.log10(value) - low) / (high - low)

    parts, y = [*_legend(words)], 58
    for panel in panels:
        height = ROW * len(panel.rows)
        parts += [
            svg.text(10, y + 14, panel.title, "bold"),
            *_axis(range(low, high + 1), across, (y + 24, height), words),
        ]
        for number, row in enumerate(panel.rows):
            parts += _row(row, across, y + 24 + ROW * number, words)
        y += height + 66
    return svg.picture(WIDTH, y, words.title, parts)


def _legend(words: Words) -> Iterator[str]:
    def wide(said: str) -> float:
        return 40 + 6.6 * len(said)

    ours, others = 16.0, 16 + wide(words.ours)
    bound = others + wide(words.others)
    yield svg.dot(ours, 16, 5.5, "ours") + svg.text(ours + 12, 20, words.ours)
    yield svg.dot(others, 16, 5, "other") + svg.text(others + 12, 20, words.others)
    yield svg.line(bound, 8, bound, 24, "bound") + svg.text(bound + 12, 20, words.bound)
    yield svg.text(10, 42, f"at the right: {words.right}", "soft small")


def _axis(powers: range, across: Axis, place: tuple[float, float], words: Words) -> Iterator[str]:
    top, height = place
    for power in powers:
        x = across(10.0**power)
        kind = "end" if power == powers[-1] else "mid" if power != powers[0] else ""
        at = x + 8 if kind == "end" else x if kind else x - 8
        yield svg.line(x, top, x, top + height)
        yield svg.text(at, top + height + 16, words.value.format(10.0**power), f"{kind} soft small".strip())


def _row(row: Row, across: Axis, top: float, words: Words) -> Iterator[str]:
    y = top + 26
    yield svg.text(LEFT, top + 15, row.name, "small over") + svg.text(
        RIGHT, top + 15, row.words, f"end small over {row.kind}".strip()
    )
    yield svg.line(LEFT, y, RIGHT, y)
    x = across(row.bound)
    yield svg.line(x, y - 8, x, y + 8, "bound")
    for name, value in reversed(row.others):
        yield svg.dot(across(value), y, 6, "other", f"{name}: {words.value.format(value)}")
    yield svg.dot(across(row.ours), y, 4, "ours", f"lemmata: {words.value.format(row.ours)}")
