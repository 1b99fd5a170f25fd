"""Integers that a thread keeps in its own memory: how small and how large they can get.

A buffer that is only ever set to some values, or increased by some amounts, holds at most the largest value set plus the
largest amount times the number of increases, which is at most the product of the extents of the loops around them.
Elements are not told apart. The bounds are those of an element that has been set, which state.py knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import z3
from tvm import tirx
from tvm.ir import structural_equal

from ..base.dtypes import bits, is_integer, span
from ..base.errors import Unsupported
from ..compiler.instructions import COUNTS
from ..compiler.nodes import called, children, passed

Interval = tuple[int, int]
Bounds = tuple[z3.ArithRef, z3.ArithRef]
Extent = Callable[[tirx.PrimExpr], z3.ArithRef]
Loops = tuple[tirx.PrimExpr | None, ...]  # the extents of the loops around a statement, None of a while loop

_ALL_REDUCE = re.compile(r"tl::AllReduce<tl::(Sum|Max|Min)Op, (\d+),")
_PASSES = 3  # a buffer may be set to what another one holds
_TO_WHOLE_NUMBERS = {f"tirx.{name}" for name in ("floor", "ceil", "round", "nearbyint", "trunc")}


@dataclass
class _Stores:
    """What the stores to one buffer do: each value set; each amount added, with the extents of the loops around."""

    dtype: str
    set_to: list[tirx.PrimExpr] = field(default_factory=list)
    added: list[tuple[tirx.PrimExpr, Loops]] = field(default_factory=list)
    factor: int | None = 1  # of how many threads' values the sum takes its place; None if nobody knows how often


def counters(body: tirx.Stmt, extent: Extent, inputs: Mapping[int, Interval]) -> dict[int, Bounds]:
    """Return the least and the largest value of private buffers, by data pointer.

    Args:
        body: all that can touch the buffers.
        extent: the extent of a loop as a term over the sizes; Unsupported where it depends on more.
        inputs: the least and the largest element of tensors that the kernel only reads, by data pointer.
    """
    found: dict[int, _Stores | None] = {}
    _visit(body, (), found)
    given = {hash(pointer) for pointer in passed(body)}
    stores = {data: s for data, s in found.items() if s and s.set_to and data not in given}
    bounds: dict[int, Bounds] = {}
    for _ in range(_PASSES):
        constant = {data: b for data, b in bounds.items() if all(map(z3.is_int_value, b))}
        known = {**inputs, **{data: (low.as_long(), high.as_long()) for data, (low, high) in constant.items()}}
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
    if stores.factor is None:
        return None
    if stores.factor > 1:
        low, high = low * z3.If(low < 0, stores.factor, 1), high * z3.If(high > 0, stores.factor, 1)
    least, most = span(stores.dtype)
    low, high = z3.simplify(low), z3.simplify(high)
    return None if low.eq(z3.IntVal(least)) and high.eq(z3.IntVal(most)) else (low, high)


def _most(n: tirx.PrimExpr, value: Callable[[tirx.PrimExpr], Interval], extent: Extent) -> z3.ArithRef:
    """Return a bound on how often a loop of that extent runs."""
    try:
        term = extent(n)
    except Unsupported:
        term = z3.IntVal(value(n)[1])
    return z3.simplify(z3.If(term > 0, term, z3.IntVal(0)))


def _visit(s: tirx.Stmt, loops: Loops, found: dict[int, _Stores | None]) -> None:
    if isinstance(s, tirx.BufferStore) and s.buffer.scope().startswith("local"):
        _store(s, loops, found)
    around = [s.extent if isinstance(s, tirx.For) else None] if isinstance(s, (tirx.For, tirx.While)) else []
    for child in children(s):
        _visit(child, (*loops, *around), found)


def _store(s: tirx.BufferStore, loops: Loops, found: dict[int, _Stores | None]) -> None:
    dtype, data = str(s.buffer.dtype), hash(s.buffer.data)
    stores = found.setdefault(data, _Stores(dtype))
    if stores is None or stores.dtype != dtype or not is_integer(dtype):
        found[data] = None
    elif factor := _finalized(s):
        stores.factor = None if loops or stores.factor is None else stores.factor * factor
    elif (amount := _increase(s)) is None:
        stores.set_to.append(s.value)
    else:
        stores.added.append((amount, loops))


def _finalized(s: tirx.BufferStore) -> int | None:
    """Return ``n`` in ``x = the sum of x over n threads``, and 1 of a maximum or minimum."""
    call = s.value if called(s.value) == "tirx.call_extern" else None
    reduction = _ALL_REDUCE.match(str(call.args[0].value)) if call is not None else None
    load = call.args[1] if reduction and call is not None else None
    if not isinstance(load, tirx.BufferLoad) or not _same_element(load, s):
        return None
    return int(reduction[2]) if reduction[1] == "Sum" else 1  # type: ignore[index]


def _same_element(load: tirx.BufferLoad, s: tirx.BufferStore) -> bool:
    same = load.buffer.same_as(s.buffer) and len(load.indices) == len(s.indices)
    return same and all(structural_equal(i, j) for i, j in zip(load.indices, s.indices, strict=True))


def _increase(s: tirx.BufferStore) -> tirx.PrimExpr | None:
    """Return ``d`` in ``x = x + d``."""
    if isinstance(s.value, tirx.Add):
        for same, other in ((s.value.a, s.value.b), (s.value.b, s.value.a)):
            if isinstance(same, tirx.BufferLoad) and _same_element(same, s):
                return other
    return None


def interval(e: tirx.PrimExpr, known: Mapping[int, Interval]) -> Interval:
    """Return constants between which an integer lies, read off its operators; at worst those of its type."""
    low, high = _read_off(e, known) or span(str(e.dtype))
    least, most = span(str(e.dtype))
    return (low, high) if least <= low and high <= most else (least, most)


def _read_off(e: tirx.PrimExpr, known: Mapping[int, Interval]) -> Interval | None:
    value = partial(interval, known=known)
    match e:
        case tirx.IntImm():
            return int(e.value), int(e.value)
        case tirx.BufferLoad():
            return known.get(hash(e.buffer.data))
        case tirx.Broadcast():
            return value(e.value)
        case tirx.Cast() if is_integer(str(e.value.dtype)):
            return value(e.value)
        case tirx.Select():
            return _hull(value(e.true_value), value(e.false_value))
        case tirx.Add() | tirx.Sub() | tirx.Max() | tirx.Min():
            (a, b), (c, d) = value(e.a), value(e.b)
            ends = {"Add": (a + c, b + d), "Sub": (a - d, b - c), "Max": (max(a, c), max(b, d))}
            return ends.get(type(e).__name__, (min(a, c), min(b, d)))
        case tirx.Call():
            return _of_call(e, value)
    return None


def _of_call(e: tirx.Call, value: Callable[[tirx.PrimExpr], Interval]) -> Interval | None:
    name = called(e)
    if name == "tirx.if_then_else":
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


def float_interval(e: tirx.PrimExpr) -> tuple[float, float]:
    """Return constants between which a float lies, infinite where none is known. A clamped NaN is one of the constants."""
    match e:
        case tirx.FloatImm() | tirx.IntImm():
            return float(e.value), float(e.value)
        case tirx.Max() | tirx.Min():
            choose = max if isinstance(e, tirx.Max) else min
            (a, b), (c, d) = float_interval(e.a), float_interval(e.b)
            return choose(a, c), choose(b, d)
        case tirx.Call() if called(e) in _TO_WHOLE_NUMBERS:
            low, high = float_interval(e.args[0])
            return (math.floor(low) if math.isfinite(low) else low), (math.ceil(high) if math.isfinite(high) else high)
    return -math.inf, math.inf
