"""``lemmata prove``: run the proofs and print a line for each layer of each kernel."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..operators import OPERATORS
from .accepted import ACCEPTED
from .engine.base.report import Layer, Report, fates
from .suite import proofs
from .table import mutation_table

_WIDTH = 160


@dataclass(frozen=True)
class Request:
    """What the command line asked for; ``options`` go to ``verify``."""

    ops: tuple[str, ...]
    jobs: int
    as_json: bool
    table: Path | None
    options: Mapping[str, Any]
    mutants: bool


@dataclass(frozen=True)
class _Task:
    """A proof by its place in the suite, since another process makes it anew."""

    op: str
    number: int
    mutate: bool
    options: Mapping[str, Any]

    def run(self) -> Report:
        proof = next(itertools.islice(proofs(self.op), self.number, None))
        return proof.run(mutate=self.mutate, **self.options)


def run(request: Request) -> bool:
    """Prove and print what was asked for, and return whether all of it holds and leaves aside only what is accepted.

    Raises:
        ValueError: an operator or a layer is unknown.
    """
    asked = request.options.get("layers")
    suite = [
        (proof.name, _Task(op, number, request.mutants, request.options))
        for op in request.ops or OPERATORS
        for number, proof in enumerate(proofs(op))
        if proof.claimed(asked)
    ]
    if not suite:
        raise ValueError("op: expected at least one proof, got none")
    console = Console(highlight=False, width=_WIDTH)
    found: list[tuple[str, Report]] = []
    with _progress(console, request.as_json) as progress, _each(request.jobs) as each:
        for (name, _), report in zip(suite, each([task for _, task in suite], progress), strict=True):
            found.append((name, report))
            for line in () if request.as_json else lines(name, report):
                console.print(line, markup=False, soft_wrap=True)
    holds = all(report.holds and not report.aside(ACCEPTED) for _, report in found)
    if request.table:
        request.table.write_text("# Mutants\n\n" + mutation_table(found))
    if request.as_json:
        content = [{"name": name, **json.loads(report.to_json())} for name, report in found]
        print(json.dumps({"holds": holds, "kernels": content}, indent=1))
    else:
        console.print(summary(report for _, report in found), markup=False)
    return holds


@contextmanager
def _each(jobs: int) -> Iterator[Callable[[Sequence[_Task], Progress], Iterator[Report]]]:
    """Give a function that runs tasks, so many at a time, and yields their reports in order."""

    def here(tasks: Sequence[_Task], progress: Progress) -> Iterator[Report]:
        for number, task in enumerate(tasks, 1):
            shown = progress.add_task(f"{task.op}, {number} of {len(tasks)}", total=None)
            yield task.run()
            progress.remove_task(shown)

    if jobs == 1:
        yield here
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:

        def there(tasks: Sequence[_Task], progress: Progress) -> Iterator[Report]:
            shown = progress.add_task(f"{len(tasks)} kernels, {jobs} at a time", total=None)
            yield from pool.map(_Task.run, tasks)
            progress.remove_task(shown)

        try:
            yield there
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
