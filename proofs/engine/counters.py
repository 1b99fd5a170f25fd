"""Integers that a thread counts up in its own memory: how large they can get.

A buffer that is only ever set to small values, or increased by small amounts, holds at most the largest value set plus the
largest amount times the number of increases, which is at most the product of the extents of the loops around them.
Elements are not told apart. What nothing has written yet is taken not to be read; layer L2 rejects that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import tilelang  # noqa: F401  (only then is the tvm that it bundles importable)
import z3
from tvm import tirx
from tvm.ir import structural_equal

from .errors import Unsupported

Interval = tuple[int, int]


@dataclass
class _Stores:
    """What the stores to one buffer do."""

    dtypes: set[str] = field(default_factory=set)
    set_to: list[Interval | None] = field(default_factory=list)
    added: list[tuple[Interval | None, tuple[tirx.PrimExpr, ...]]] = field(
        default_factory=list
    )  # and the loops' extents


def counters(
    body: tirx.Stmt, extent: Callable[[tirx.PrimExpr], z3.ArithRef]
) -> dict[int, tuple[z3.ArithRef, z3.ArithRef]]:
    """The least and the largest value of each private buffer that has such bounds, by its data pointer.

    Args:
        body: all that can touch the buffers.
        extent: the extent of a loop as a term; raises Unsupported where it depends on more than sizes.
    """
    found: dict[int, _Stores] = {}
    _visit(body, (), found)
    escaped = _escaped(body)
    bounds = {}
    for data, stores in found.items():
        try:
            known = None if data in escaped else _bounds(stores, extent)
        except Unsupported:
            known = None
        if known:
            bounds[data] = known
    return bounds


def _bounds(stores: _Stores, extent: Callable[[tirx.PrimExpr], z3.ArithRef]) -> tuple[z3.ArithRef, z3.ArithRef] | None:
    if (
        len(stores.dtypes) > 1
        or not stores.set_to
        or None in stores.set_to
        or any(amount is None for amount, _ in stores.added)
    ):
        return None
    low: z3.ArithRef = z3.IntVal(min(value[0] for value in stores.set_to if value))
    high: z3.ArithRef = z3.IntVal(max(value[1] for value in stores.set_to if value))
    for amount, loops in stores.added:
        times = z3.Product([z3.IntVal(1), *(_natural(_term(n, extent)) for n in loops)])
        low, high = low + times * min(amount[0], 0), high + times * max(amount[1], 0)  # type: ignore[index]
    return z3.simplify(low), z3.simplify(high)


def _term(e: tirx.PrimExpr, extent: Callable[[tirx.PrimExpr], z3.ArithRef]) -> z3.ArithRef:
    def visit(node: object) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.Call)):
            raise Unsupported(f"extent {e}")

    tirx.stmt_functor.post_order_visit(e, visit)
    return extent(e)


def _natural(n: z3.ArithRef) -> z3.ArithRef:
    return n if z3.is_int_value(n) else z3.If(n > 0, n, z3.IntVal(0))


def _visit(s: tirx.Stmt, loops: tuple[tirx.PrimExpr | None, ...], found: dict[int, _Stores]) -> None:
    match s:
        case tirx.For():
            _visit(s.body, (*loops, s.extent), found)
        case tirx.While():
            _visit(s.body, (*loops, None), found)
        case tirx.SeqStmt():
            for child in s.seq:
                _visit(child, loops, found)
        case tirx.IfThenElse():
            for arm in filter(None, (s.then_case, s.else_case)):
                _visit(arm, loops, found)
        case tirx.SBlockRealize():
            _visit(s.block.body, loops, found)
        case tirx.AttrStmt():
            _visit(s.body, loops, found)
        case tirx.BufferStore():
            if s.buffer.scope().startswith("local"):
                _store(s, loops, found.setdefault(hash(s.buffer.data), _Stores()))


def _store(s: tirx.BufferStore, loops: tuple[tirx.PrimExpr | None, ...], stores: _Stores) -> None:
    stores.dtypes.add(str(s.buffer.dtype))
    amount = _increase(s)
    if amount is None:
        stores.set_to.append(interval(s.value))
    else:
        stores.added.append((None if any(n is None for n in loops) else interval(amount), loops))


def _increase(s: tirx.BufferStore) -> tirx.PrimExpr | None:
    """``d`` in ``x = x + d``."""
    if isinstance(s.value, tirx.Add):
        for same, other in ((s.value.a, s.value.b), (s.value.b, s.value.a)):
            load = isinstance(same, tirx.BufferLoad) and same.buffer.same_as(s.buffer)
            if load and all(structural_equal(i, j) for i, j in zip(same.indices, s.indices, strict=True)):
                return other
    return None


def interval(e: tirx.PrimExpr) -> Interval | None:
    """Constants between which an expression lies, read off its outermost operators."""
    match e:
        case tirx.IntImm():
            return int(e.value), int(e.value)
        case tirx.Cast():
            return (0, 1) if str(e.value.dtype) == "bool" else None
        case tirx.Select():
            return _hull(interval(e.true_value), interval(e.false_value))
        case tirx.Call() if getattr(e.op, "name", "") == "tirx.if_then_else":
            return _hull(interval(e.args[1]), interval(e.args[2]))
    return None


def _hull(a: Interval | None, b: Interval | None) -> Interval | None:
    return (min(a[0], b[0]), max(a[1], b[1])) if a and b else None


def _escaped(body: tirx.Stmt) -> set[int]:
    """The data pointers that something other than a load or a store uses."""
    found: set[int] = set()

    def visit(node: object) -> None:
        if isinstance(node, tirx.Call):
            for a in node.args:
                if isinstance(a, tirx.Var) and str(a.dtype) == "handle":
                    found.add(hash(a))
                elif isinstance(a, tirx.BufferLoad) and getattr(node.op, "name", "") == "tirx.address_of":
                    found.add(hash(a.buffer.data))

    tirx.stmt_functor.post_order_visit(body, visit)
    return found
