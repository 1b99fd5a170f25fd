"""``python docs/pictures.py`` draws ``docs/pictures``: times and errors from records, and what can only be drawn by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import curves
import diagrams
import engine_diagrams
import svg
from dots import WIDTH, Panel, Row, Words, plot
from lemmata.operators import OPERATORS, Operator
from lemmata.record import Record, kernel_digest, records

FOLDER = Path(__file__).parent / "pictures"
ERRORS = FOLDER.parent / "errors.json"

Case = dict[str, Mapping[str, Any]]
"""The figures of one case by contender."""


def times(operator: Operator) -> str:
    """Return the picture of an operator's times on each card, on a logarithmic axis, beside contenders and bounds."""
    panels = [
        Panel(_of(record, operator), [_row(name, case) for name, case in found.items()])
        for record in records()
        if (found := _cases(record, operator))
    ]
    title = f"{operator.title}: device time of each case beside its contenders and its bound"
    if not panels:
        return svg.picture(WIDTH, 40, title, [svg.text(10, 24, "no record holds a figure yet", "soft")])
    right = "the fastest contender's time / lemmata's"
    return plot(
        panels, Words(title, "lemmata", "a contender", "the least that the hardware allows", right, "{:.6g} us")
    )


def _of(record: Record, operator: Operator) -> str:
    return f"{record.device['name']}{', of an earlier kernel' if record.behind(operator.name) else ''}"


def _cases(record: Record, operator: Operator) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for figure in record.figures:
        if figure["op"] in operator.functions:
            name = figure["shape"] if len(operator.functions) == 1 else f"{figure['op']}, {figure['shape']}"
            found.setdefault(name, {})[figure["contender"]] = figure
    return found


def _row(name: str, case: Case) -> Row:
    ours, bound = case["lemmata"]["burst_us"], case["lemmata"]["bound_us"]
    others = sorted(((n, f["burst_us"]) for n, f in case.items() if n != "lemmata"), key=lambda other: other[1])
    if not others:
        return Row(name, ours, others, bound, "no contender", "soft")
    ratio = others[0][1] / ours
    words = f"{others[0][0]}: " + (f"{ratio:.1f} x" if ratio >= 1 else f"{ratio:.2f} x, slower")
    return Row(name, ours, others, bound, words, "" if ratio >= 1 else "bold slow")


def errors() -> str:
    """Return the picture of the kernels' errors against fp64, each beside plain torch's on the same inputs."""
    rows = [
        Row(
            case["case"] + (", of an earlier kernel" if kernel_digest(case["op"]) != case["digest"] else ""),
            case["kernel"],
            [("plain torch", case["torch"])],
            2 * case["torch"],
            f"{case['kernel'] / case['torch']:.2f} x",
            "" if case["kernel"] <= 2 * case["torch"] else "bold slow",
        )
        for case in json.loads(ERRORS.read_text(encoding="utf-8"))
    ]
    title = "The largest error of each kernel against fp64, beside plain torch's and what the tests allow"
    marks = "the kernel", "plain torch", "twice that, the tests' bound", "the kernel's error / plain torch's"
    return plot(
        [Panel("Relative to a sum of absolute values; of sinkhorn absolute", rows)], Words(title, *marks, "{:.2g}")
    )


PICTURES: Mapping[str, Callable[[], str]] = {
    **{f"times-{name}": partial(times, operator) for name, operator in OPERATORS.items()},
    "errors": errors,
    "loss": curves.loss,
    "verdict": diagrams.verdict,
    "keys": diagrams.keys,
    "page": diagrams.page,
    "roles": diagrams.roles,
    "rooms": engine_diagrams.rooms,
    "way": engine_diagrams.way,
}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")
