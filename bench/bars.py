"""Times as bars: of each case what every contender takes, in bursts and sustained, and the least that the hardware allows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lemmata.bench import svg

WIDTH, MARGIN, LEFT, RIGHT = 520, 12, 168, 420  # bars begin at LEFT, and the longest of a case ends at RIGHT
HEAD, BAR, STEP, GAP = 20, 9, 15, 8  # heights: of a case's name, of a bar, from one to the next, between cases
LETTERS, LINE = 25, 12  # of a contender's name beside its bar: letters in a line, and the height of each line more

Case = Mapping[str, Mapping[str, Any]]
"""The figures of one case by contender; one of them is lemmata's."""


class Panel(NamedTuple):
    """Cases by name under one heading."""

    title: str
    cases: Mapping[str, Case]


def panels(figures: Iterable[Mapping[str, Any]]) -> list[Panel]:
    """Return a panel for each operator or public function that figures are of."""
    found: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for figure in figures:
        found.setdefault(figure["op"], {}).setdefault(figure["shape"], {})[figure["contender"]] = figure
    return [Panel(op, cases) for op, cases in found.items()]


def picture(title: str, panels: Sequence[Panel]) -> str:
    """Return the picture of all panels; each case is drawn to its own scale."""
    if not panels:
        return svg.picture(WIDTH, 40, title, [svg.text(MARGIN, 24, "no record holds a figure yet", "soft")])
    parts, y = [*_legend()], 62.0
    for panel in panels:
        parts.append(svg.text(MARGIN, y + 10, panel.title, "bold"))
        y += 20
        for name, case in panel.cases.items():
            parts += _case(name, case, y)
            y += HEAD + sum(map(_step, case)) + GAP
        y += 16
    return svg.picture(WIDTH, round(y), title, parts)


def _legend() -> Iterator[str]:
    for x, kind, words in ((MARGIN, "ours", "lemmata"), (112, "rival", "a contender")):
        yield svg.bar(x, 12, 22, BAR, kind) + svg.text(x + 28, 20, words)
    yield svg.bar(238, 12, 22, BAR, "rival pale") + svg.text(266, 20, "more if sustained")
    yield svg.line(412, 8, 412, 24, "bound") + svg.text(420, 20, "the bound")
    yield svg.text(MARGIN, 42, "burst / sustained, us; and the fastest contender's burst / lemmata's", "soft small")


def _case(name: str, case: Case, top: float) -> Iterator[str]:
    """Yield the parts of one case: its name and ratio, and below them a bar for each contender, lemmata's first."""
    ours = case["lemmata"]
    rivals = sorted((f for n, f in case.items() if n != "lemmata"), key=lambda figure: float(figure["burst_us"]))
    longest = max(max(figure["burst_us"], figure["sustained_us"], figure["bound_us"]) for figure in case.values())

    def wide(time: float) -> float:
        return (RIGHT - LEFT) * time / float(longest)

    words, kind = _ratio(ours, rivals)
    yield svg.text(MARGIN, top + 14, name, "small") + svg.text(WIDTH - MARGIN, top + 14, words, f"end small {kind}")
    y = top + HEAD
    for figure in (ours, *rivals):
        who = str(figure["contender"])
        color, times = (
            "ours" if figure is ours else "rival",
            f"{_us(figure['burst_us'])} / {_us(figure['sustained_us'])}",
        )
        yield svg.bar(LEFT, y, wide(figure["sustained_us"]), BAR, f"{color} pale")
        yield svg.bar(LEFT, y, wide(figure["burst_us"]), BAR, color, f"{who}: {times} us")
        for number, line in enumerate(_lines(who)):
            yield svg.text(LEFT - 6, y + 9 + LINE * number, line, "end soft small")
        yield svg.text(WIDTH - MARGIN, y + 9, times, "end small")
        last, y = y, y + _step(who)
    x = LEFT + wide(ours["bound_us"])
    yield svg.line(x, top + HEAD - 2, x, last + BAR + 2, "bound")


def _lines(who: str) -> list[str]:
    """Return a contender's name in lines that fit beside the bars."""
    return textwrap.wrap(who, LETTERS)


def _step(who: str) -> int:
    """Return how far below a contender's bar the next one is."""
    return STEP + LINE * (len(_lines(who)) - 1)


def _ratio(ours: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return what is said of the fastest rival, and the class of that text."""
    if not rivals:
        return "no contender", "soft"
    ratio = rivals[0]["burst_us"] / ours["burst_us"]
    return (f"{ratio:.1f} x", "") if ratio >= 1 else (f"{below(ratio)} x, slower", "bold slow")


def below(ratio: float) -> str:
    """Return a ratio below 1 with two digits, or with three where two would round it to 1."""
    return f"{ratio:.2f}" if ratio < 0.995 else f"{min(ratio, 0.999):.3f}"


def _us(time: float) -> str:
    """Return a time with three digits, or whole microseconds."""
    return f"{time:.3g}" if time < 100 else f"{time:.0f}"
