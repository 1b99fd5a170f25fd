"""Running the benchmarks: a table for people, the record for the repository."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from lemmata.bench import bars
from lemmata.bench.timing import Figure, measure
from lemmata.operators import OPERATORS, find
from lemmata.record import read, update
from lemmata.terminal import console
from lemmata.warmup import cores, side_by_side

NOISY = 0.05  # a spread of bursts that is worth a word


@dataclass(frozen=True)
class Measured:
    """What `run` found: figures, and a line for each contender that is absent and for each case that failed."""

    figures: list[Figure]
    absent: list[str]
    failed: list[str]


def run(ops: Iterable[str], *, say: Callable[[str], object] | None = None) -> Measured:
    """Time every case of these operators or public functions on the current GPU, and write each into its record.

    Args:
        ops: all operators, if there are none.
        say: is told a line before kernels are compiled, and one of each case when it is done.

    Raises:
        ValueError: an operator has no benchmark.
        RuntimeError: there is no CUDA device of compute capability 9.0.
    """
    names = dict.fromkeys([find(op).name for op in ops] or OPERATORS)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        raise RuntimeError("expected a CUDA device of compute capability 9.0, got none of that")
    modules = [OPERATORS[op].module("bench") for op in names]
    jobs = [job for module in modules for job in module.compilations()]
    if say:
        say(f"compiling {len(jobs)} kernels, unless they are on disk")
    with contextlib.suppress(Exception):  # the case that needs what did not compile will say why
        list(side_by_side(jobs, cores()))
    out = Measured([], [], [])
    suites = [list(module.cases()) for module in modules]
    number, total = 0, sum(map(len, suites))
    for cases in suites:
        figures: list[Figure] = []
        for case in cases:
            number, name = number + 1, f"{case.op} {case.shape}"
            out.absent.extend(f"{name}: {peer} is absent" for peer in case.absent)
            try:
                found = measure(case)
            except Exception as error:  # a peer's too: the other cases are worth their time
                out.failed.append(f"{name}: {type(error).__name__}: {error}")
                continue
            figures += found
            update(figures=[asdict(figure) for figure in found], partly=True)  # so that an interrupt loses nothing
            if say:
                times = "; ".join(f"{figure.contender} {figure.burst_us:.2f} us" for figure in found)
                say(f"[{number}/{total}] {name}: {times}")
        if figures:
            update(figures=[asdict(figure) for figure in figures])  # shapes that are no more go
        out.figures.extend(figures)
    return out


def tables(figures: Iterable[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield a table for each operator, one row a case: our time, its limit and bound, every contender's time beside it."""
    for op, rows in bars.panels(figures):
        names = sorted({name for row in rows.values() for name in row} - {"lemmata"})
        title = f"{op}: microseconds, burst / sustained"
        out = Table(box=None, pad_edge=False, header_style=None, title=title, title_justify="left")
        for column in ("shape", "lemmata", "limit", "bound", *names):
            out.add_column(column, justify="left" if column == "shape" else "right", overflow="fold")
        for shape, row in rows.items():
            ours = row["lemmata"]
            times = [f"{row[n]['burst_us']:.2f} / {row[n]['sustained_us']:.2f}" if n in row else "-" for n in names]
            limit = "" if ours["limit_us"] is None else f"{ours['limit_us']:.1f}"
            own = f"{ours['burst_us']:.2f} / {ours['sustained_us']:.2f}"
            out.add_row(shape, own, limit, f"{ours['bound_us']:.2f} {ours['bound']}", *times)
        yield out


def markdown(
    figures: Iterable[Mapping[str, Any]], earlier: Callable[[Mapping[str, Any]], bool] = lambda _: False
) -> str:
    """Return the rows for people who read Markdown: burst times, and how many times faster we are than each contender.

    Rows of a function stand together, whenever they were measured.

    The first ratio is of bursts, the second of sustained times. A time whose bursts spread by more than a twentieth says so,
    and so does one that is of an ``earlier`` kernel.
    """
    lines = [
        "| operator | shape | lemmata, us | bound, us | contender | its time, us | ratio | sustained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    figures = sorted(figures, key=lambda f: str(f["op"]))
    for ours in (f for f in figures if f["contender"] == "lemmata"):
        rivals = [f for f in figures if (f["op"], f["shape"]) == (ours["op"], ours["shape"]) and f is not ours]
        bound = f"{ours['bound_us']:.1f} ({ours['bound']})"
        time = _burst(ours) + (", earlier kernel" if earlier(ours) else "")
        case = f"| {ours['op']} | {ours['shape']} | {time} | {bound}"
        for rival in sorted(rivals, key=lambda f: str(f["contender"])):
            burst, sustained = (_ratio(rival[kind] / ours[kind]) for kind in ("burst_us", "sustained_us"))
            lines.append(f"{case} | {rival['contender']} | {_burst(rival)} | {burst} | {sustained} |")
        if not rivals:
            lines.append(f"{case} | none | | | |")
    return "\n".join(lines)


def _ratio(times: float) -> str:
    return f"{times:.1f} x" if times >= 1 else f"**{bars.below(times)} x, slower**"


def _burst(figure: Mapping[str, Any]) -> str:
    noise = figure["noise"]
    return f"{figure['burst_us']:.2f}" + (f" (spread {noise:.0%})" if noise > NOISY else "")


def missed(figures: Iterable[Figure]) -> list[str]:
    """Return the limits that were not kept, a line each."""
    return [
        f"{f.op} {f.shape}: expected at most {f.limit_us} us, got {f.burst_us} us"
        for f in figures
        if f.contender == "lemmata" and f.limit_us is not None and f.burst_us > f.limit_us
    ]


def older_figures(path: Path) -> list[Mapping[str, Any]]:
    """Return the figures of an older record of this card.

    Raises:
        ValueError: the file is no record, or one of another card.
    """
    record, device = read(path), torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    if record.device["name"] != device:
        raise ValueError(f"against: expected a record of this device, {device}, got one of {record.device['name']}")
    return record.figures


def slower(figures: Iterable[Figure], older: Iterable[Mapping[str, Any]], limit: float) -> list[str]:
    """Return a line for each time of lemmata's, burst or sustained, that is more than ``limit`` per cent above an older one."""
    before = {(f["op"], f["shape"]): f for f in older if f["contender"] == "lemmata"}
    return [
        f"{f.op} {f.shape}, {kind}: expected at most {limit:g} % above the older {was} us, got {now} us"
        for f in figures
        if f.contender == "lemmata" and (f.op, f.shape) in before
        for kind, now in (("burst", f.burst_us), ("sustained", f.sustained_us))
        if now > (1 + limit / 100) * (was := before[f.op, f.shape][f"{kind}_us"])
    ]


def draw(figures: Iterable[Figure], path: Path) -> None:
    """Write the picture of what `run` measured, as SVG."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    title = f"Device time of each case beside its contenders and its bound: {device}"
    path.write_text(bars.picture(title, bars.panels(asdict(figure) for figure in figures)), encoding="utf-8")


def print_figures(figures: list[Figure], *, as_json: bool) -> None:
    """Print what `run` measured."""
    rows = [asdict(figure) for figure in figures]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        console(160).print(*tables(rows), sep="\n\n")
