"""``lemmata prove``: run the proofs and print a line for each layer of each kernel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..operators import OPERATORS
from .accepted import ACCEPTED
from .engine.base.report import Layer, Report, fates
from .suite import Proof, proofs
from .table import mutation_table

_WIDTH = 160


@dataclass(frozen=True)
class Request:
    """What the command line asked for; ``options`` go to ``verify``."""

    ops: tuple[str, ...]
    mutants: bool
    as_json: bool
    table: Path | None
    options: Mapping[str, Any]


def run(request: Request) -> bool:
    """Prove and print what was asked for, and return whether all of it holds and leaves aside only what is accepted.

    Raises:
        ValueError: an operator or a layer is unknown.
    """
    asked = request.options.get("layers")
    suite = [proof for op in request.ops or OPERATORS for proof in proofs(op) if proof.claimed(asked)]
    if not suite:
        raise ValueError("op: expected at least one proof, got none")
    console = Console(highlight=False, width=_WIDTH)
    found: list[tuple[Proof, Report]] = []
    with _progress(console, request.as_json) as progress:
        for proof in suite:
            task = progress.add_task(proof.name, total=None)
            report = proof.run(mutate=request.mutants, **request.options)
            progress.remove_task(task)
            found.append((proof, report))
            if not request.as_json:
                for line in lines(proof.name, report):
                    console.print(line, markup=False, soft_wrap=True)
    holds = all(report.holds and not report.aside(ACCEPTED) for _, report in found)
    if request.table:
        request.table.write_text("# Mutants\n\n" + mutation_table((proof.name, report) for proof, report in found))
    if request.as_json:
        content = [{"name": proof.name, **json.loads(report.to_json())} for proof, report in found]
        print(json.dumps({"holds": holds, "kernels": content}, indent=1))
    else:
        console.print(summary(report for _, report in found), markup=False)
    return holds


def _progress(console: Console, quiet: bool) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def lines(name: str, report: Report) -> Iterator[str]:
    """Yield the lines of a kernel's verdict: one for each layer, with its failures and statements below it."""
    for layer in report.layers:
        verdict = "FAILED" if not layer.holds else "proved" if layer.proves else "tested"
        kept = ", kept" if report.cached else ""
        guards = f", {layer.guards} guards" if layer.guards else ""
        counts = f"{layer.proved}/{layer.conditions} {'conditions' if layer.proves else 'runs'}{guards}"
        yield f"{name:<42} {layer.name:<7} {verdict}  {counts:<32} {layer.seconds:6.2f} s{kept}{_missing(layer)}"
        yield from (f"    {line}" for failure in layer.failures for line in str(failure).splitlines())
        yield from (f"    {statement}" for statement in layer.statements)
        yield from (f"    waived: {waiver}" for waiver in layer.waived)
    if aside := report.aside(ACCEPTED):
        yield f"{name:<42} INCOMPLETE: neither modelled nor accepted: {', '.join(aside)}"
    if report.mutations:
        met = ", ".join(f"{count} {fate}" for fate, count in fates(report.mutations).items())
        yield f"{name:<42} mutants {met}"
        for mutation in report.mutations:
            if mutation.fate == "equivalent":
                yield f"    equivalent: {mutation.name}: {mutation.reason or 'NOT EXPLAINED'}"


def _missing(layer: Layer) -> str:
    return f"  not modelled: {', '.join(layer.unmodelled)}" if layer.unmodelled else ""


def summary(reports: Iterable[Report]) -> str:
    """Return in a sentence how much of what was asked for was proved; runs on examples do not count."""
    reports = [report for report in reports if any(layer.proves for layer in report.layers)]
    layers = [layer for report in reports for layer in report.layers if layer.proves]
    mutants = sum(len(report.mutations) for report in reports)
    return (
        f"{sum(r.holds for r in reports)} of {len(reports)} kernels proved, "
        f"{sum(layer.proved for layer in layers)} of {sum(layer.conditions for layer in layers)} conditions, "
        f"{sum(layer.guards for layer in layers)} guards, {mutants} mutants"
    )
