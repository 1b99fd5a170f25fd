"""``python docs/pictures.py`` draws ``docs/pictures``: times from the GPU records, and what can only be drawn by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diagrams
import svg
from lemmata.operators import OPERATORS, Operator
from lemmata.record import Record, records

FOLDER = Path(__file__).parent / "pictures"
LABEL, PLOT, RATIO, ROW = 320, 320, 230, 26
WIDTH = LABEL + PLOT + RATIO

Case = dict[str, Mapping[str, Any]]
"""The figures of one case by contender."""


def times(operator: Operator) -> str:
    """Return the picture of an operator's times on each card, on a logarithmic axis, beside contenders and bounds."""
    panels = [(record, found) for record in records() if (found := _cases(record, operator))]
    figures = [figure for _, cases in panels for case in cases.values() for figure in case.values()]
    title = f"{operator.title}: device time of each case beside its contenders and its bound"
    if not figures:
        return svg.picture(WIDTH, 40, title, [svg.text(10, 24, "no record holds a figure yet", "soft")])
    low = 10 ** math.floor(math.log10(min(figure["bound_us"] for figure in figures)))
    high = 10 ** math.ceil(math.log10(max(figure["burst_us"] for figure in figures)))

    def across(us: float) -> float:
        return LABEL + PLOT * math.log(us / low) / math.log(high / low)

    parts, y = [*_legend()], 48
    for record, cases in panels:
        height = ROW * len(cases)
        parts += [
            svg.text(10, y + 14, _of(record, operator), "bold"),
            *_axis(low, high, across, y + 22, height),
        ]
        for number, (name, case) in enumerate(cases.items()):
            parts += _row(name, case, across, y + 22 + ROW * (number + 0.5))
        y += height + 64
    return svg.picture(WIDTH, y, title, parts)


def _of(record: Record, operator: Operator) -> str:
    return f"{record.device['name']}{', of an earlier kernel' if record.stale(operator.name) else ''}"


def _cases(record: Record, operator: Operator) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for figure in record.figures:
        if figure["op"] in operator.functions:
            name = figure["shape"] if len(operator.functions) == 1 else f"{figure['op']}, {figure['shape']}"
            found.setdefault(name, {})[figure["contender"]] = figure
    return found


def _legend() -> Iterator[str]:
    y = 20
    yield f'<circle cx="16" cy="{y - 4}" r="5.5" class="ours"/>{svg.text(28, y, "lemmata")}'
    yield f'<circle cx="112" cy="{y - 4}" r="5" class="other"/>{svg.text(124, y, "a contender")}'
    yield svg.line(216, y - 12, 216, y + 4, "bound") + svg.text(226, y, "the least that the hardware allows")
    yield svg.text(WIDTH - 10, y, "the fastest contender's time / lemmata's", "end soft small")


def _axis(low: float, high: float, across: Callable[[float], float], y: float, height: float) -> Iterator[str]:
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        x = across(10**power)
        yield svg.line(x, y, x, y + height) + svg.text(x, y + height + 16, f"{10**power:g} us", "mid soft small")


def _row(name: str, case: Case, across: Callable[[float], float], y: float) -> Iterator[str]:
    ours, others = case["lemmata"], sorted((f for n, f in case.items() if n != "lemmata"), key=lambda f: f["burst_us"])
    yield svg.text(LABEL - 12, y + 4, name, "end small")
    yield svg.line(LABEL, y, LABEL + PLOT, y)
    x = across(ours["bound_us"])
    yield svg.line(x, y - 8, x, y + 8, "bound")
    for other in reversed(others):
        title = f"<title>{other['contender']}: {other['burst_us']:.2f} us</title>"
        yield f'<circle cx="{across(other["burst_us"]):.1f}" cy="{y:g}" r="6" class="other">{title}</circle>'
    title = f"<title>lemmata: {ours['burst_us']:.2f} us</title>"
    yield f'<circle cx="{across(ours["burst_us"]):.1f}" cy="{y:g}" r="4" class="ours">{title}</circle>'
    if others:
        ratio = others[0]["burst_us"] / ours["burst_us"]
        words = f"{others[0]['contender']}: " + (f"{ratio:.1f} x" if ratio >= 1 else f"{ratio:.2f} x, slower")
        yield svg.text(WIDTH - 10, y + 4, words, "end small" if ratio >= 1 else "end small bold slow")
    else:
        yield svg.text(WIDTH - 10, y + 4, "no contender", "end small soft")


PICTURES: Mapping[str, Callable[[], str]] = {
    **{f"times-{name}": partial(times, operator) for name, operator in OPERATORS.items()},
    "verdict": diagrams.verdict,
    "keys": diagrams.keys,
    "roles": diagrams.roles,
}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
