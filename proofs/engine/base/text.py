"""A verdict as text, and terms as part of it.

It is not trusted: whether a layer holds is decided in report.py, and printed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import z3

if TYPE_CHECKING:
    from .report import Layer, Report


def lines(name: str, report: Report) -> Iterator[str]:
    """Yield the lines of a kernel's verdict: its name, one for each layer, with its failures and statements below it."""
    yield name
    for layer in report.layers:
        yield from layer_lines(layer, report.cached)


def layer_lines(layer: Layer, cached: bool = False) -> Iterator[str]:
    """Yield the lines of one layer: its verdict, then what failed, what is stated and what is waived."""
    verdict = "FAILED" if not layer.holds else "proved" if layer.proves else "tested"
    kept = ", kept" if cached else ""
    guards = f", {layer.guards} guards" if layer.guards else ""
    counts = f"{layer.proved}/{layer.conditions} {'conditions' if layer.proves else 'runs'}{guards}"
    yield f"{layer.name:<7} {verdict}  {counts}  {layer.seconds:.2f} s{kept}"
    if layer.unmodelled:
        yield f"    not modelled: {', '.join(layer.unmodelled)}"
    yield from (f"    {line}" for failure in layer.failures for line in str(failure).splitlines())
    yield from (f"    {statement}" for statement in layer.statements)
    yield from (f"    waived: {waiver}" for waiver in layer.waived)


def brief(term: z3.ExprRef) -> str:
    """Return the first words of a term, once it is simplified."""
    words = str(z3.simplify(term)).split()
    return " ".join(words) if len(words) <= 24 else " ".join([*words[:24], "..."])
