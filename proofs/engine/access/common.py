"""Private memory that holds the same in all threads of a block, at one statement in one iteration.

A buffer of one element is common if it is set before each read of it, and if all stores to it are of common values, under
common conditions and in common loops. What is computed from block indices, loop variables, tensors that the kernel only
reads and common buffers is common. Then the threads make the same stores in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from ..compiler.instructions import MATHEMATICS
from ..compiler.nodes import called, children, nodes, passed

OF_OPERANDS = re.compile(
    r"tirx\.(if_then_else|exp2?|log2?|r?sqrt|sigmoid|tanh|fabs|floor|ceil|pow|bitwise_\w+|shift_\w+)|"
    + MATHEMATICS.pattern
)
"""Calls whose value is a function of their operands."""
_DECIDING = (tirx.For, tirx.While, tirx.IfThenElse, tirx.SBlockRealize)
"""Statements that decide whether, and how often, what is inside them happens."""

Around = tuple[tuple[Any, int], ...]  # the statements around one, and in which of their parts it is


@dataclass(frozen=True)
class _Use:
    """A statement that reads or writes a buffer, with the buffers as it declares them."""

    statement: Any
    around: Around
    buffers: tuple[tirx.Buffer, ...]


def common(body: tirx.Stmt, kept: Callable[[tirx.Buffer], bool]) -> frozenset[int]:
    """Return the data pointers of private buffers that hold the same in all threads of a block.

    Args:
        body: all that a thread does.
        kept: whether a buffer is a tensor that nobody writes.
    """
    places = list(_places(body, ()))
    uses: dict[int, list[_Use]] = {}
    for s, around in places:
        for data, buffers in _touched(s).items():
            uses.setdefault(data, []).append(_Use(s, around, tuple(buffers)))
    held = {data for data, of in uses.items() if _set_first(data, of)} - _given(body)
    judge = _Judge(places, kept)
    while lost := {d for d in held if not all(judge.agrees(u, held) for u in uses[d] if _stores(u.statement, d))}:
        held -= lost
    return frozenset(held)


def _given(body: tirx.Stmt) -> set[int]:
    """Return the data pointers of what calls may change: what they are given, but as an operand."""
    calls = [n for n in nodes(body) if isinstance(n, tirx.Call) and not OF_OPERANDS.fullmatch(called(n))]
    elements = (a.buffer.data for c in calls for a in c.args if isinstance(a, tirx.BufferLoad))
    return {hash(pointer) for pointer in (*passed(body), *elements)}


class _Judge:
    """What is known of the variables of a kernel, to say which expressions are common."""

    def __init__(self, places: Sequence[tuple[Any, Around]], kept: Callable[[tirx.Buffer], bool]) -> None:
        self._kept = kept
        statements = [s for s, _ in places]
        self._bound = {hash(s.var): s.value for s in statements if isinstance(s, tirx.Bind)}
        axes = (s.node for s in statements if isinstance(s, tirx.AttrStmt) and s.attr_key == "thread_extent")
        self._threads = {hash(axis.var) for axis in axes if str(axis.thread_tag).startswith("threadIdx")}
        self._threads |= {
            hash(s.loop_var) for s in statements if isinstance(s, tirx.For) and s.thread_binding is not None
        }

    def agrees(self, use: _Use, held: set[int]) -> bool:
        """Return whether all threads make a store, in the same iterations, and of the same value."""
        s, around = use.statement, [n for n, _ in use.around if isinstance(n, _DECIDING)]
        deciding = [e for n in around for e in _deciding(n)]
        vectors = any(isinstance(n, tirx.For) and n.kind == tirx.ForKind.VECTORIZED for n in around)
        together = not vectors and s.predicate is None and all(self.common(e, held) for e in deciding)
        return together and self.common(s.value, held)

    def common(self, e: tirx.PrimExpr, held: set[int]) -> bool:
        """Return whether an expression has one value in all threads, if the buffers held have."""
        return all(self._leaf(n, held) for n in nodes(e))

    def _leaf(self, n: Any, held: set[int]) -> bool:
        if isinstance(n, tirx.Var):
            bound = self._bound.get(hash(n))
            return hash(n) not in self._threads and (bound is None or self.common(bound, held))
        if isinstance(n, tirx.BufferLoad):
            return self._kept(n.buffer) or hash(n.buffer.data) in held
        return not isinstance(n, tirx.Call) or bool(OF_OPERANDS.fullmatch(called(n)))


def _places(s: Any, around: Around) -> Iterator[tuple[Any, Around]]:
    """Yield a statement and all statements in it, in program order, with what is around each."""
    yield s, around
    for part, child in enumerate(children(s)):
        yield from _places(child, (*around, (s, part)))


def _deciding(s: Any) -> list[tirx.PrimExpr]:
    """Return the expressions that decide whether, and how often, the parts of a statement are executed."""
    if isinstance(s, tirx.For):
        return [s.min, s.extent]
    return [s.predicate] if isinstance(s, tirx.SBlockRealize) else [s.condition]


def _touched(s: Any) -> dict[int, list[tirx.Buffer]]:
    """Return the private buffers that a statement itself reads or writes, by data pointer."""
    inside = (
        [n for e in _deciding(s) for n in nodes(e)] if isinstance(s, _DECIDING) else [] if children(s) else nodes(s)
    )
    touching = (n.buffer for n in inside if isinstance(n, (tirx.BufferLoad, tirx.BufferStore)))
    found: dict[int, list[tirx.Buffer]] = {}
    for buffer in touching:
        if buffer.scope().startswith("local"):
            found.setdefault(hash(buffer.data), []).append(buffer)
    return found


def _stores(s: Any, data: int) -> bool:
    return isinstance(s, tirx.BufferStore) and hash(s.buffer.data) == data


def _set_first(data: int, uses: Sequence[_Use]) -> bool:
    """Return whether a buffer is one number that is stored before each other use, wherever control goes."""
    buffers = [b for use in uses for b in use.buffers]
    single = all(isinstance(n, tirx.IntImm) and int(n) == 1 for b in buffers for n in b.shape)
    first = uses[0]
    if not single or len({str(b.dtype) for b in buffers}) > 1 or not _stores(first.statement, data):
        return False
    if any(isinstance(n, tirx.BufferLoad) and hash(n.buffer.data) == data for n in nodes(first.statement)):
        return False
    needed = [(n, part) for n, part in first.around if isinstance(n, _DECIDING) and not _certain(n)]
    return all(any(n.same_as(m) and part == p for m, p in use.around) for use in uses for n, part in needed)


def _certain(s: Any) -> bool:
    """Return whether what is inside a statement is executed at least once."""
    if isinstance(s, tirx.For):
        return isinstance(s.extent, tirx.IntImm) and int(s.extent) > 0
    return isinstance(s, tirx.SBlockRealize) and isinstance(s.predicate, tirx.IntImm) and bool(s.predicate)
