"""``lemmata prove``: run the proofs and print a line for each layer of each kernel as it ends."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .accepted import ACCEPTED
from .engine.base.report import LAYERS, Report, fates
from .engine.base.text import layer_lines
from .junit import junit
from .processes import reports
from .table import mutation_table
from .tasks import Asked, Task, asked


@dataclass(frozen=True)
class Request:
    """What the command line asked for; ``options`` go to the proofs."""

    names: tuple[str, ...]
    jobs: int
    seconds: float | None  # that a part may take
    as_json: bool
    table: Path | None
    junit: Path | None
    options: Mapping[str, Any]


def layer_named(name: str) -> str:
    """Return the name of a layer, given in any case.

    Raises:
        ValueError: there is none.
    """
    for layer in LAYERS:
        if layer.lower() == name.lower():
            return layer
    raise ValueError(f"layer: expected one of {', '.join(LAYERS)}, got {name!r}")


def run(request: Request) -> bool:
    """Prove and print what was asked for, and return whether all of it holds and leaves aside only what is accepted.

    Raises:
        ValueError: a name or a layer is unknown.
    """
    suite = list(asked(request.names, ACCEPTED, request.options, apart=request.seconds is not None))
    if not suite:
        raise ValueError("op: expected at least one proof, got none")
    console = Console(highlight=False, soft_wrap=True)
    found: list[tuple[Asked, Report]] = []
    say = _nothing if request.as_json else partial(console.print, markup=False)
    tasks = [task for kernel in suite for task in kernel.tasks]
    with _progress(console, request.as_json) as progress, _reports(tasks, request, progress) as each:
        counter = _Counter(sum(len(task.layers) for kernel in suite for task in kernel.tasks))
        for kernel in suite:
            say(kernel.name)
            parts = []
            for _, report in zip(kernel.tasks, each, strict=False):
                parts.append(report)
                for layer in report.layers:
                    for number, line in enumerate(layer_lines(layer, report.cached)):
                        say(line if number else f"{counter.next()} {line}")
            found.append((kernel, _whole(parts)))
            for line in _last_lines(*found[-1]):
                say(line)
    holds = all(report.holds and not report.aside(kernel.accepted) for kernel, report in found)
    _written(request, [(kernel.name, report) for kernel, report in found])
    if request.as_json:
        content = [{"name": kernel.name, **json.loads(report.to_json())} for kernel, report in found]
        print(json.dumps({"holds": holds, "kernels": content}, indent=1))
    else:
        say(summary(report for _, report in found))
    return holds


def _nothing(*_: object) -> None:
    """Print nothing: the answer will be one JSON object."""


class _Counter:
    """Numbers lines by how many of how many."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def next(self) -> str:
        self.count += 1
        return f"[{self.count:>{len(str(self.total))}}/{self.total}]"


def _whole(parts: Sequence[Report]) -> Report:
    """Return one report of all layers of a kernel."""
    layers = tuple(layer for part in parts for layer in part.layers)
    whole = next((part for part in parts if part.kernel), parts[0])  # one that was cut off does not know its kernel
    return replace(whole, layers=layers, cached=all(part.cached for part in parts))


def _written(request: Request, found: list[tuple[str, Report]]) -> None:
    if request.table:
        request.table.write_text("# Mutants\n\n" + mutation_table(found))
    if request.junit:
        request.junit.write_bytes(junit(found))


@contextmanager
def _reports(tasks: Sequence[Task], request: Request, progress: Progress) -> Iterator[Iterator[Report]]:
    """Give the reports of tasks in order, done here, or in processes if several are wanted at a time or a limit."""
    if request.jobs == 1 and request.seconds is None:
        yield _here(tasks, progress)
        return
    progress.add_task(f"{len(tasks)} parts, {request.jobs} at a time", total=None)
    with reports(tasks, request.jobs, request.seconds) as found:
        yield found


def _here(tasks: Sequence[Task], progress: Progress) -> Iterator[Report]:
    for number, task in enumerate(tasks, 1):
        shown = progress.add_task(f"{', '.join(task.layers)}: part {number} of {len(tasks)}", total=None)
        yield task.run()
        progress.remove_task(shown)


def _progress(console: Console, quiet: bool) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def _last_lines(kernel: Asked, report: Report) -> Iterator[str]:
    """Yield what can be said of a kernel once all of its layers are there."""
    if aside := report.aside(kernel.accepted):
        yield f"    INCOMPLETE: neither modelled nor accepted: {', '.join(aside)}"
    if report.mutations:
        yield f"    mutants: {', '.join(f'{count} {fate}' for fate, count in fates(report.mutations).items())}"
        for mutation in report.mutations:
            if mutation.fate == "equivalent":
                yield f"    equivalent: {mutation.name}: {mutation.reason or 'NOT EXPLAINED'}"


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
