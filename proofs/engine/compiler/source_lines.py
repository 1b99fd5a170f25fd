"""The lines of its Python source at which a kernel touches a buffer.

The compiler drops the positions of statements before the levels at which accesses are explicit. They are still there in
the PrimFunc as its factory returns it: so a failed access is traced back by the name of its buffer and by whether it
reads or writes, to one line or to a few candidates.

No error here can make a false theorem: only the message of a failure holds what is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilelang.ir import get_stmt_span, span_to_location
from tvm import tirx

from ..base.failures import Failure

_ACCESS = re.compile(r"\b(read|write|writes|element) of (\w+)")

_MODE = {"read": "read", "write": "write", "writes": "write", "element": "write"}

Lines = Mapping[tuple[str, str], frozenset[tuple[str, int]]]


def touched(prim_func: Any) -> Lines:
    """Return for each buffer, and "read" or "write", the files and lines of the statements that do so."""
    found: dict[tuple[str, str], set[tuple[str, int]]] = {}

    def note(mode: str, buffer: Any, where: tuple[str, int]) -> None:
        found.setdefault((buffer.name, mode), set()).add(where)

    def visit(node: Any) -> None:
        if not isinstance(node, (tirx.BufferStore, tirx.Evaluate, tirx.Bind, tirx.IfThenElse)):
            return
        location = span_to_location(get_stmt_span(node)) if get_stmt_span(node) is not None else None
        if location is None:
            return
        where = (Path(str(location[0])).name, int(location[1]))
        if isinstance(node, tirx.BufferStore):
            note("write", node.buffer, where)
        value = node.condition if isinstance(node, tirx.IfThenElse) else node.value
        tile_operation = isinstance(node, tirx.Evaluate)

        def reads(inner: Any) -> None:
            if isinstance(inner, tirx.BufferLoad):
                note("read", inner.buffer, where)
                if tile_operation:  # its regions are written as loads, whichever way the data goes
                    note("write", inner.buffer, where)

        tirx.stmt_functor.post_order_visit(value, reads)

    tirx.stmt_functor.post_order_visit(prim_func.body, visit)
    return {key: frozenset(places) for key, places in found.items()}


def origin(statement: str, lines: Lines) -> str:
    """Return as text the source lines that a condition's statement can be about; "" if none is known."""
    places = {place for how, buffer in _ACCESS.findall(statement) for place in lines.get((buffer, _MODE[how]), ())}
    files = sorted({file for file, _ in places})
    return "; ".join(f"{file}:{', '.join(str(n) for f, n in sorted(places) if f == file)}" for file in files)


def traced(failures: Iterable[Failure], kernel: Any) -> Iterator[Failure]:
    """Yield the failures with the source lines that they can be about."""
    for failure in failures:
        lines = origin(failure.statement, touched(kernel))
        yield replace(failure, site=f"{failure.site} ({lines})") if lines else failure
