"""``lemmata prove``: run the proofs and print a line for each layer of each kernel as it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .accepted import ACCEPTED
from .engine.base.failures import unexplained
from .engine.base.report import LAYERS, Report, fates
from .engine.base.text import layer_lines
from .junit import junit
from .processes import ended, in_order
from .table import mutation_table
from .tasks import Asked, Share, Task, asked, merged


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
    console = Console(highlight=False, soft_wrap=True, stderr=request.as_json)
    say = partial(console.print, markup=False)
    kernels = [_Kernel(kernel) for kernel in suite]
    tasks = [kernel.asked.tasks[number] for kernel, number in _places(kernels)]
    counter = _Counter(sum(len(task.layers) for task in tasks))
    with _progress(console) as progress, _reports(tasks, request, progress) as each:
        reports = in_order(_noted(each, kernels, request.table, say))
        for kernel in kernels:
            say(kernel.asked.name)
            for _, (_, report) in zip(kernel.asked.tasks, reports, strict=False):
                for layer in report.layers:
                    for number, line in enumerate(layer_lines(layer, report.cached)):
                        say(line if number else f"{counter.next()} {line}")
            for line in _last_lines(kernel.asked, kernel.report):
                say(line)
    found = [(kernel.asked, kernel.report) for kernel in kernels]
    holds = all(report.holds and not report.aside(kernel.accepted) for kernel, report in found)
    if request.junit:
        request.junit.write_bytes(junit((kernel.name, report) for kernel, report in found))
    if request.as_json:
        content = [{"name": kernel.name, **json.loads(report.to_json())} for kernel, report in found]
        print(json.dumps({"holds": holds, "kernels": content}, indent=1))
    say(summary(report for _, report in found))
    return holds


@dataclass(frozen=True)
class _Kernel:
    """A kernel to prove, and the reports of its tasks that have ended, by their numbers."""

    asked: Asked
    ended: dict[int, Report] = field(default_factory=dict)

    @property
    def report(self) -> Report:
        """One report of what has ended; other mutants are untried."""
        found = [self.ended[number] for number in sorted(self.ended)]
        # one that was cut off does not know its kernel
        known = next((each for each in found if each.kernel), Report("", "", {}, {}, ()))
        shares = [(number, task) for number, task in enumerate(self.asked.tasks) if isinstance(task, Share)]
        mutants = merged(self.ended[n].mutations if n in self.ended else share.mutants for n, share in shares)
        return replace(
            known,
            layers=tuple(layer for each in found for layer in each.layers),
            mutations=mutants,
            unexplained=unexplained(mutants),
            cached=all(each.cached for each in found),
        )

    def progress(self) -> str:
        """Return how many mutants are done."""
        mutants = self.report.mutations
        tried = sum(mutant.fate != "untried" for mutant in mutants)
        return f"    {tried} of {len(mutants)} mutants of {self.asked.name}"


def _places(kernels: Iterable[_Kernel]) -> list[tuple[_Kernel, int]]:
    """Return the kernel of each task, and its number among those of this kernel."""
    return [(kernel, number) for kernel in kernels for number in range(len(kernel.asked.tasks))]


def _noted(
    each: Iterable[tuple[int, Report]],
    kernels: Sequence[_Kernel],
    table: Path | None,
    say: Callable[[str], None],
) -> Iterator[tuple[int, Report]]:
    """Yield what is given, once its kernel has it; of mutants say how many are done, and write the table anew."""
    places = _places(kernels)
    for position, report in each:
        kernel, number = places[position]
        kernel.ended[number] = report
        if isinstance(kernel.asked.tasks[number], Share):
            say(kernel.progress())
        if table:
            _written(table, kernels)
        yield position, report


class _Counter:
    """Numbers lines by how many of how many."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def next(self) -> str:
        self.count += 1
        return f"[{self.count:>{len(str(self.total))}}/{self.total}]"


def _written(table: Path, kernels: Iterable[_Kernel]) -> None:
    """Write the table into its place at once, so that what ends this program leaves a whole one."""
    draft = table.with_name(f"{table.name}.draft")
    draft.write_text("# Mutants\n\n" + mutation_table((kernel.asked.name, kernel.report) for kernel in kernels))
    draft.replace(table)


@contextmanager
def _reports(tasks: Sequence[Task], request: Request, progress: Progress) -> Iterator[Iterator[tuple[int, Report]]]:
    """Give the numbered reports of tasks, done here, or in processes if several are wanted at a time or a limit."""
    if request.jobs == 1 and request.seconds is None:
        yield _here(tasks, progress)
        return
    progress.add_task(f"{len(tasks)} parts, {request.jobs} at a time", total=None)
    with ended(tasks, request.jobs, request.seconds) as found:
        yield found


def _here(tasks: Sequence[Task], progress: Progress) -> Iterator[tuple[int, Report]]:
    for number, task in enumerate(tasks):
        words = ", ".join(task.layers) or "mutants"
        shown = progress.add_task(f"{words}: part {number + 1} of {len(tasks)}", total=None)
        yield number, task.run()
        progress.remove_task(shown)


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _last_lines(kernel: Asked, report: Report) -> Iterator[str]:
    """Yield what can be said of a kernel once all of its layers are there."""
    if aside := report.aside(kernel.accepted):
        yield f"    INCOMPLETE: neither modelled nor accepted: {', '.join(aside)}"
    if report.mutations:
        yield f"    mutants: {', '.join(f'{count} {fate}' for fate, count in fates(report.mutations).items())}"
        for mutation in report.mutations:
            if mutation.fate == "equivalent":
                yield f"    equivalent: {mutation.name}: {mutation.reason or 'NOT EXPLAINED'}"
            elif mutation.fate == "untried":
                yield f"    UNTRIED: {mutation.name}: {mutation.reason}"


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
