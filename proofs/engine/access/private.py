"""Private memory, by the statements that store to it: what all threads of a block hold alike, and how large integers get.

A buffer of one element is common if it is set before each read of it, and if all stores to it are of common values, under
common conditions and in common loops. What is computed from block indices, loop variables, tensors that the kernel only
reads and common buffers is common. Then the threads make the same stores in the same order.

A buffer that is only ever set to some values, or increased by some amounts, holds at most the largest value set plus the
largest amount times the number of increases, which is at most the product of the extents of the loops around them.
Elements are not told apart. The bounds are those of an element that has been set, which state.py knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import z3
from tvm import tirx
from tvm.ir import structural_equal

from ..base.dtypes import bits, is_integer, lanes, span
from ..base.errors import Unsupported
from ..compiler.instructions import COUNTS, MATHEMATICS
from ..compiler.nodes import called, children, nodes, passed

OF_OPERANDS = re.compile(
    r"tirx\.(if_then_else|exp2?|log2?|r?sqrt|sigmoid|tanh|fabs|floor|ceil|pow|bitwise_\w+|shift_\w+)|"
    + MATHEMATICS.pattern
)
"""Calls whose value is a function of their operands."""
_DECIDING = (tirx.For, tirx.While, tirx.IfThenElse, tirx.SBlockRealize)
"""Statements that decide whether, and how often, what is inside them happens."""
_PASSES = 3  # a buffer may be set to what another one holds
_TO_WHOLE_NUMBERS = {f"tirx.{name}" for name in ("floor", "ceil", "round", "nearbyint", "trunc")}

Around = tuple[tuple[Any, int], ...]  # the statements around one, and in which of their parts it is
Use = tuple[Any, Around]  # a statement that reads or writes a buffer
Interval = tuple[Any, Any]
Bounds = tuple[z3.ArithRef, z3.ArithRef]
Extent = Callable[[tirx.PrimExpr], z3.ArithRef]


def _places(s: Any, around: Around = ()) -> Iterator[Use]:
    """Yield a statement and all statements in it, in program order, with what is around each."""
    yield s, around
    for part, child in enumerate(children(s)):
        yield from _places(child, (*around, (s, part)))


def common(body: tirx.Stmt, kept: Callable[[tirx.Buffer], bool]) -> frozenset[int]:
    """Return the data pointers of private buffers that hold the same in all threads of a block.

    Args:
        body: all that a thread does.
        kept: whether a buffer is a tensor that nobody writes.
    """
    uses: dict[int, list[Use]] = {}
    for s, around in _places(body):
        for data in _touched(s):
            uses.setdefault(data, []).append((s, around))
    inside = nodes(body)
    calls = (n for n in inside if isinstance(n, tirx.Call) and not OF_OPERANDS.fullmatch(called(n)))
    elements = (a.buffer.data for c in calls for a in c.args if isinstance(a, tirx.BufferLoad))
    given = {hash(pointer) for pointer in (*passed(body), *elements)}  # to calls, which may change them
    several = {hash(b.data) for b in _buffers(inside) if any(not _is_one(n) for n in b.shape)}
    held = {d for d, of in uses.items() if len({str(b.dtype) for b in _buffers(inside) if hash(b.data) == d}) == 1}
    held = {d for d in held - given - several if _set_first(d, uses[d])}
    judge = _Judge([s for s, _ in _places(body)], kept)
    while lost := {d for d in held if not all(judge.agrees(u, held) for u in uses[d] if _stores(u[0], d))}:
        held -= lost
    return frozenset(held)


class _Judge:
    """What is known of the variables of a kernel, to say which expressions are common."""

    def __init__(self, statements: Sequence[Any], kept: Callable[[tirx.Buffer], bool]) -> None:
        self._kept = kept
        self._bound = {hash(s.var): s.value for s in statements if isinstance(s, tirx.Bind)}
        axes = (s.node for s in statements if isinstance(s, tirx.AttrStmt) and s.attr_key == "thread_extent")
        loops = (s.loop_var for s in statements if isinstance(s, tirx.For) and s.thread_binding is not None)
        self._threads = {hash(a.var) for a in axes if str(a.thread_tag).startswith("threadIdx")} | set(map(hash, loops))

    def agrees(self, use: Use, held: set[int]) -> bool:
        """Return whether all threads make a store, in the same iterations, and of the same value."""
        s, around = use[0], [n for n, _ in use[1] if isinstance(n, _DECIDING)]
        vectors = any(isinstance(n, tirx.For) and n.kind == tirx.ForKind.VECTORIZED for n in around)
        alike = (self.common(e, held) for e in (s.value, *(e for n in around for e in _deciding(n))))
        return not vectors and s.predicate is None and all(alike)

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


def _deciding(s: Any) -> list[tirx.PrimExpr]:
    """Return the expressions that decide whether, and how often, the parts of a statement are executed."""
    if isinstance(s, tirx.For):
        return [s.min, s.extent]
    return [s.predicate] if isinstance(s, tirx.SBlockRealize) else [s.condition]


def _touched(s: Any) -> set[int]:
    """Return the data pointers of private buffers that a statement itself reads or writes."""
    own = _deciding(s) if isinstance(s, _DECIDING) else [] if children(s) else [s]
    return {hash(b.data) for e in own for b in _buffers(nodes(e)) if b.scope().startswith("local")}


def _buffers(inside: Sequence[Any]) -> list[tirx.Buffer]:
    return [n.buffer for n in inside if isinstance(n, (tirx.BufferLoad, tirx.BufferStore))]


def _stores(s: Any, data: int) -> bool:
    return isinstance(s, tirx.BufferStore) and hash(s.buffer.data) == data


def _set_first(data: int, uses: Sequence[Use]) -> bool:
    """Return whether a number is stored before each other use, wherever control goes."""
    first, around = uses[0]
    if not _stores(first, data) or any(
        isinstance(n, tirx.BufferLoad) and hash(n.buffer.data) == data for n in nodes(first)
    ):
        return False
    needed = [(n, part) for n, part in around if isinstance(n, _DECIDING) and not _certain(n)]
    return all(any(n.same_as(m) and part == p for m, p in use) for _, use in uses for n, part in needed)


def _certain(s: Any) -> bool:
    """Return whether what is inside a statement is executed at least once."""
    if isinstance(s, tirx.For):
        return isinstance(s.extent, tirx.IntImm) and int(s.extent) > 0
    return isinstance(s, tirx.SBlockRealize) and isinstance(s.predicate, tirx.IntImm) and bool(s.predicate)


def _is_one(n: tirx.PrimExpr) -> bool:
    return isinstance(n, tirx.IntImm) and int(n) == 1


@dataclass
class _Stores:
    """What the stores to one buffer do: each value set; each amount added, with the extents of the loops around.

    A while loop has the extent None.
    """

    dtype: str
    set_to: list[tirx.PrimExpr] = field(default_factory=list)
    added: list[tuple[tirx.PrimExpr, list[tirx.PrimExpr | None]]] = field(default_factory=list)


def counters(body: tirx.Stmt, extent: Extent) -> dict[int, Bounds]:
    """Return the least and the largest value of private buffers, by data pointer.

    Args:
        body: all that can touch the buffers.
        extent: the extent of a loop as a term over the sizes; Unsupported where it depends on more.
    """
    found: dict[int, _Stores | None] = {}
    for s, around in _places(body):
        if isinstance(s, tirx.BufferStore) and s.buffer.scope().startswith("local"):
            _store(s, around, found)
    given = {hash(pointer) for pointer in passed(body)}
    stores = {data: s for data, s in found.items() if s and s.set_to and data not in given}
    bounds: dict[int, Bounds] = {}
    for _ in range(_PASSES):
        constant = {data: b for data, b in bounds.items() if all(map(z3.is_int_value, b))}
        known = {data: (low.as_long(), high.as_long()) for data, (low, high) in constant.items()}
        found_now = {data: _bounds(s, partial(interval, known=known), extent) for data, s in stores.items()}
        bounds = {data: b for data, b in found_now.items() if b}
    return bounds


def _bounds(stores: _Stores, value: Callable[[tirx.PrimExpr], Interval], extent: Extent) -> Bounds | None:
    values = [value(e) for e in stores.set_to]
    low: z3.ArithRef = z3.IntVal(min(v[0] for v in values))
    high: z3.ArithRef = z3.IntVal(max(v[1] for v in values))
    for amount, loops in stores.added:
        if any(n is None for n in loops):
            return None
        least, most = value(amount)
        times = z3.Product([z3.IntVal(1), *(_most(n, value, extent) for n in loops)])
        low, high = low + times * min(least, 0), high + times * max(most, 0)
    return z3.simplify(low), z3.simplify(high)


def _most(n: tirx.PrimExpr, value: Callable[[tirx.PrimExpr], Interval], extent: Extent) -> z3.ArithRef:
    """Return a bound on how often a loop of that extent runs."""
    try:
        term = extent(n)
    except Unsupported:
        term = z3.IntVal(value(n)[1])
    return z3.simplify(z3.If(term > 0, term, z3.IntVal(0)))


def _store(s: tirx.BufferStore, around: Around, found: dict[int, _Stores | None]) -> None:
    dtype, data = str(s.buffer.dtype), hash(s.buffer.data)
    stores = found.setdefault(data, _Stores(dtype))
    if stores is None or stores.dtype != dtype or not is_integer(dtype) or lanes(str(s.value.dtype)) > 1:
        found[data] = None
    elif (amount := _increase(s)) is None:
        stores.set_to.append(s.value)
    else:
        loops = [n for n, _ in around if isinstance(n, (tirx.For, tirx.While))]
        stores.added.append((amount, [n.extent if isinstance(n, tirx.For) else None for n in loops]))


def _increase(s: tirx.BufferStore) -> tirx.PrimExpr | None:
    """Return ``d`` in ``x = x + d``."""
    if isinstance(s.value, tirx.Add):
        for same, other in ((s.value.a, s.value.b), (s.value.b, s.value.a)):
            load = isinstance(same, tirx.BufferLoad) and same.buffer.same_as(s.buffer)
            if load and all(structural_equal(i, j) for i, j in zip(same.indices, s.indices, strict=True)):
                return other
    return None


def interval(e: tirx.PrimExpr, known: Mapping[int, Interval]) -> Interval:
    """Return constants between which a number lies, read off its operators; at worst those of its type.

    A float lies between infinities where no constants are known. A clamped NaN is one of the constants.
    """
    least, most = span(str(e.dtype)) if is_integer(str(e.dtype)) else (-math.inf, math.inf)
    low, high = _read_off(e, known, is_integer(str(e.dtype))) or (least, most)
    return (low, high) if least <= low and high <= most else (least, most)


def _read_off(e: tirx.PrimExpr, known: Mapping[int, Interval], integer: bool) -> Interval | None:
    value = partial(interval, known=known)
    match e:
        case tirx.IntImm() | tirx.FloatImm():
            return e.value, e.value
        case tirx.BufferLoad() if integer:
            return known.get(hash(e.buffer.data))
        case tirx.Cast() if integer and is_integer(str(e.value.dtype)):
            return value(e.value)
        case tirx.Select() if integer:
            return _hull(value(e.true_value), value(e.false_value))
        case tirx.Max() | tirx.Min():
            choose = max if isinstance(e, tirx.Max) else min
            (a, b), (c, d) = value(e.a), value(e.b)
            return choose(a, c), choose(b, d)
        case tirx.Add() | tirx.Sub() if integer:
            (a, b), (c, d) = value(e.a), value(e.b)
            return (a + c, b + d) if isinstance(e, tirx.Add) else (a - d, b - c)
        case tirx.Call():
            return _of_call(e, called(e), value)
    return None


def _of_call(e: tirx.Call, name: str, value: Callable[[tirx.PrimExpr], Interval]) -> Interval | None:
    if name in _TO_WHOLE_NUMBERS:
        low, high = value(e.args[0])
        return (math.floor(low) if math.isfinite(low) else low), (math.ceil(high) if math.isfinite(high) else high)
    if name == "tirx.if_then_else" and is_integer(str(e.dtype)):
        return _hull(value(e.args[1]), value(e.args[2]))
    if name in COUNTS:
        return 0, bits(str(e.args[0].dtype))
    if name in ("tirx.bitwise_and", "tirx.shift_right") and isinstance(e.args[1], tirx.IntImm):
        (low, high), constant = value(e.args[0]), int(e.args[1].value)
        if low >= 0 and constant >= 0:
            return (0, min(high, constant)) if name == "tirx.bitwise_and" else (low >> constant, high >> constant)
    return None


def _hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])
