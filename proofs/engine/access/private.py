"""Integers that a thread keeps in its own memory: followed through straight-line code, and how large they can get.

A buffer that is only ever set to some values, or increased by some amounts, holds at most the largest value set plus the
largest amount times the number of increases, which is at most the product of the extents of the loops around them.
Elements are not told apart. The bounds are those of an element that has been set, which `LocalState` knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import z3
from tvm import tirx
from tvm.ir import structural_equal

from ..base.dtypes import bits, is_integer, span
from ..base.errors import Unsupported
from ..compiler.instructions import COUNTS
from ..compiler.nodes import called, children, passed
from .trace import Variable

Key = tuple[int, str]  # the identity of the data pointer, and the type it is read with
Place = tuple[int | str, ...]  # an index; what is no constant, by its text
Indices = tuple[z3.ArithRef, ...]

_ALL_REDUCE = re.compile(r"tl::AllReduce<tl::(Sum|Max|Min)Op, (\d+),")
_MOST = 1024  # elements that a loop is followed over
_PASSES = 3  # a buffer may be set to what another one holds
_TO_WHOLE_NUMBERS = {f"tirx.{name}" for name in ("floor", "ceil", "round", "nearbyint", "trunc")}

Interval = tuple[Any, Any]
Loops = tuple[tirx.PrimExpr | None, ...]  # the extents of the loops around a statement, None of a while loop
Store = tuple[tirx.BufferStore, Loops]
Bounds = tuple[z3.ArithRef, z3.ArithRef]
Extent = Callable[[tirx.PrimExpr], z3.ArithRef]


def _places(s: Any, loops: Loops = ()) -> Iterator[tuple[Any, Loops]]:
    """Yield a statement and all statements in it, in program order, with the extents of the loops around each."""
    yield s, loops
    if isinstance(s, (tirx.For, tirx.While)):
        loops = (*loops, s.extent if isinstance(s, tirx.For) else None)
    for child in children(s):
        yield from _places(child, loops)


def counters(body: tirx.Stmt, extent: Extent, inputs: Mapping[int, Interval]) -> dict[int, Bounds]:
    """Return the least and the largest value of private buffers, by data pointer, of a body that is all that can touch them.

    ``extent``: that of a loop as a term over the sizes, Unsupported where it depends on more. ``inputs``: the least and the
    largest element of tensors that the kernel only reads, by data pointer.
    """
    found: dict[int, list[Store]] = {}
    for s, loops in _places(body):
        if isinstance(s, tirx.BufferStore) and s.buffer.scope().startswith("local"):
            found.setdefault(hash(s.buffer.data), []).append((s, loops))
    given = {hash(pointer) for pointer in passed(body)}
    stores = {data: of for data, of in found.items() if data not in given and _counts(of)}
    bounds: dict[int, Bounds] = {}
    for _ in range(_PASSES):
        constant = {data: b for data, b in bounds.items() if all(map(z3.is_int_value, b))}
        known = {**inputs, **{data: (low.as_long(), high.as_long()) for data, (low, high) in constant.items()}}
        found_now = {data: _bounds(of, partial(interval, known=known), extent) for data, of in stores.items()}
        bounds = {data: b for data, b in found_now.items() if b}
    return bounds


def _counts(stores: Sequence[Store]) -> bool:
    """Return whether the stores to a buffer are of integers of its one type, some of which it is set to."""
    types = {str(s.buffer.dtype) for s, _ in stores}
    return len(types) == 1 and all(map(is_integer, types)) and any(_sets(s) for s, _ in stores)


def _bounds(stores: Sequence[Store], value: Callable[[tirx.PrimExpr], Interval], extent: Extent) -> Bounds | None:
    values = [value(s.value) for s, _ in stores if _sets(s)]
    low: z3.ArithRef = z3.IntVal(min(v[0] for v in values))
    high: z3.ArithRef = z3.IntVal(max(v[1] for v in values))
    threads = 1  # whose values the sums over threads add up
    for s, loops in stores:
        amount, over = _increase(s), _summed_over(s)
        if (amount is not None and any(n is None for n in loops)) or (over is not None and loops):
            return None
        threads *= over or 1
        least, most = (0, 0) if amount is None else value(amount)
        times = z3.Product([z3.IntVal(1), *(_most(n, value, extent) for n in loops if amount is not None)])
        low, high = low + times * min(least, 0), high + times * max(most, 0)
    if threads > 1:
        low, high = low * z3.If(low < 0, threads, 1), high * z3.If(high > 0, threads, 1)
    (least, most), (low, high) = span(str(stores[0][0].buffer.dtype)), (z3.simplify(low), z3.simplify(high))
    return None if low.eq(z3.IntVal(least)) and high.eq(z3.IntVal(most)) else (low, high)


def _most(n: tirx.PrimExpr, value: Callable[[tirx.PrimExpr], Interval], extent: Extent) -> z3.ArithRef:
    """Return a bound on how often a loop of that extent runs."""
    try:
        term = extent(n)
    except Unsupported:
        term = z3.IntVal(value(n)[1])
    return z3.simplify(z3.If(term > 0, term, z3.IntVal(0)))


def _sets(s: tirx.BufferStore) -> bool:
    return _increase(s) is None and _summed_over(s) is None


def _summed_over(s: tirx.BufferStore) -> int | None:
    """Return ``n`` in ``x = the sum of x over n threads``, 1 of their maximum or minimum, and None of anything else."""
    reduction = _ALL_REDUCE.match(str(s.value.args[0].value)) if called(s.value) == "tirx.call_extern" else None
    if reduction is None or not _same_element(s.value.args[1], s):
        return None
    return int(reduction[2]) if reduction[1] == "Sum" else 1


def _same_element(e: tirx.PrimExpr, s: tirx.BufferStore) -> bool:
    """Return whether an expression is what a store overwrites."""
    same = isinstance(e, tirx.BufferLoad) and e.buffer.same_as(s.buffer) and len(e.indices) == len(s.indices)
    return same and all(structural_equal(i, j) for i, j in zip(e.indices, s.indices, strict=True))


def _increase(s: tirx.BufferStore) -> tirx.PrimExpr | None:
    """Return ``d`` in ``x = x + d``."""
    a, b = (s.value.a, s.value.b) if isinstance(s.value, tirx.Add) else (None, None)
    return b if _same_element(a, s) else a if _same_element(b, s) else None


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
        case tirx.Broadcast() if integer:
            return value(e.value)
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
    match called(e), list(getattr(e, "args", [])):
        case name, [a] if name in _TO_WHOLE_NUMBERS:
            low, high = value(a)
            return (math.floor(low) if math.isfinite(low) else low), (math.ceil(high) if math.isfinite(high) else high)
        case "tirx.if_then_else", [_, then, otherwise] if integer:
            return _hull(value(then), value(otherwise))
        case name, [a] if name in COUNTS:
            return 0, bits(str(a.dtype))
        case "tirx.bitwise_and" | "tirx.shift_right" as name, [a, tirx.IntImm(value=b)] if b >= 0 and value(a)[0] >= 0:
            low, high = value(a)
            return (0, min(high, b)) if name == "tirx.bitwise_and" else (low >> b, high >> b)
    return None


def _hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


class LocalState:
    """The known values of thread-private integers, and the elements that have been set on every path.

    A value is known from a write to the next write that may touch it: at another constant index it may not. Between two
    writes, two reads at the same index give the same value even where that value is not known. Of what a loop writes
    nothing is known at the start of its body; after it nothing is known but what was before and is not written in it.

    ``unknown`` makes a value of which only the buffer and the type are known, and whether it has been set; ``followed`` gives
    the number of elements of a buffer, None of those whose elements set are not asked for.
    """

    def __init__(self, unknown: Callable[[Key, bool], z3.ExprRef], followed: Callable[[int], int | None]) -> None:
        self._unknown, self._followed = unknown, followed
        self._known: dict[tuple[Key, Place], z3.ExprRef] = {}
        self._set: dict[tuple[int, Place], Indices] = {}

    def read(self, key: Key, indices: Indices) -> z3.ExprRef:
        """Return the value at an index."""
        at = key, place(indices)
        if at not in self._known:
            self._known[at] = self._unknown(key, self._is_set(self._set, key[0], at[1]))
        return self._known[at]

    def write(
        self, key: Key, indices: Indices, value: z3.ExprRef | None, lanes: Collection[Variable] = (), anew: bool = True
    ) -> None:
        """Remember a value, which each lane stores at its own index, and forget what the write may have changed.

        What is not made ``anew``, but of what the buffer held, is set only if that was.
        """
        at = place(indices)
        self._known = {(k, i): v for (k, i), v in self._known.items() if k[0] != key[0] or (k == key and _apart(i, at))}
        if value is not None:
            self._known[key, at] = value
        if anew and self._followed(key[0]) is not None:
            written = {(key[0], at): indices}
            for lane in lanes:
                written = _over(lane, written)
            self._set |= written

    def forget(self, changed: Collection[int]) -> None:
        """Know nothing of the buffers with these data pointers."""
        self._known = {(k, i): v for (k, i), v in self._known.items() if k[0] not in changed}

    def begin(self, data: int) -> None:
        """Know nothing of a buffer that is made, of which no element has been set."""
        self.forget({data})
        self._set = {(d, i): v for (d, i), v in self._set.items() if d != data}

    @contextmanager
    def loop(self, variable: Variable, changed: Collection[int]) -> Iterator[None]:
        """Let what is inside be the body of a loop that changes the buffers with these data pointers."""
        self.forget(changed)
        known, before = dict(self._known), dict(self._set)
        yield
        self._known = known
        self._set = before | _over(variable, {at: i for at, i in self._set.items() if at not in before})

    def branch(self, condition: z3.BoolRef, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Run two alternatives from the same state; afterwards each value is that of the alternative taken."""
        known, before = dict(self._known), dict(self._set)
        then()
        first, self._known = self._known, known
        set_first, self._set = self._set, before
        otherwise()
        arms = (first, set_first), (self._known, self._set)
        merged = {}
        for at in dict.fromkeys([*first, *self._known]):
            a, b = (v[at] if at in v else self._unknown(at[0], self._is_set(s, at[0][0], at[1])) for v, s in arms)
            merged[at] = a if a.eq(b) else z3.If(condition, a, b)
        self._known = merged
        self._set = {at: i for at, i in self._set.items() if at in set_first}

    def is_set(self, data: int) -> bool:
        """Return whether all elements of a buffer have been set."""
        return self._is_set(self._set, data, ())

    def _is_set(self, done: Collection[tuple[int, Place]], data: int, element: Place) -> bool:
        """Return whether an element has been set, or all elements of its buffer."""
        if (data, element) in done:
            return True
        constant = sum(d == data and all(isinstance(i, int) for i in at) for d, at in done)
        return constant == self._followed(data)


def _over(variable: Variable, written: dict[tuple[int, Place], Indices]) -> dict[tuple[int, Place], Indices]:
    """Return the elements that are set once a variable has taken all its values; none if it may take none."""
    count, low = (None if t is None else z3.simplify(t) for t in (variable.extent, variable.low))
    if count is None or not z3.is_int_value(count) or not 0 < count.as_long() <= _MOST:
        return {}
    elements = ((data, each) for (data, _), i in written.items() for each in _values(variable, low, count.as_long(), i))
    return {(data, place(each)): each for data, each in elements}


def _values(variable: Variable, low: z3.ArithRef, count: int, indices: Indices) -> Iterator[Indices]:
    """Yield the indices at each value of a variable, once if it does not occur."""
    for number in range(count):
        here = tuple(z3.substitute(i, (variable.term, z3.simplify(low + number))) for i in indices)
        yield here
        if all(a.eq(b) for a, b in zip(here, indices, strict=True)):
            return


def place(indices: Indices) -> Place:
    """Return an index as a key."""
    values = [z3.simplify(i) for i in indices]
    return tuple(v.as_long() if z3.is_int_value(v) else v.sexpr() for v in values)


def _apart(a: Place, b: Place) -> bool:
    """Return whether two indices differ for certain."""
    pairs = zip(a, b, strict=True) if len(a) == len(b) else ()
    return any(isinstance(i, int) and isinstance(j, int) and i != j for i, j in pairs)
