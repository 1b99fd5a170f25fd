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
import shares
from dots import Panel, Row, Words, plot
from lemmata.bench import bars
from lemmata.operators import OPERATORS, Operator
from lemmata.record import Record, kernel_digest, records

FOLDER = Path(__file__).parent / "pictures"
ERRORS = FOLDER.parent / "errors.json"


def times(operator: Operator) -> str:
    """Return the picture of an operator's times on each card, beside contenders and bounds."""
    found = ((record, _cases(record, operator)) for record in records())
    panels = [bars.Panel(_of(record, operator), cases) for record, cases in found if cases]
    return bars.picture(f"{operator.title}: device time of each case beside its contenders and its bound", panels)


def _of(record: Record, operator: Operator) -> str:
    return f"{record.device['name']}{', of an earlier kernel' if _all_earlier(record, operator) else ''}"


def _all_earlier(record: Record, operator: Operator) -> bool:
    return all(record.earlier(figure) for figure in record.figures if figure["op"] in operator.functions)


def _cases(record: Record, operator: Operator) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the figures of each case by contender; a case of an earlier kernel says so unless all are."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    some = not _all_earlier(record, operator)
    for figure in record.figures:
        if figure["op"] in operator.functions:
            name = figure["shape"] if len(operator.functions) == 1 else f"{figure['op']}, {figure['shape']}"
            name += ", earlier kernel" if some and record.earlier(figure) else ""
            found.setdefault(name, {})[figure["contender"]] = figure
    return found


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
    "shares": shares.picture,
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
