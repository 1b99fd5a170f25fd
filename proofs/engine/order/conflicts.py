"""When two accesses by two threads meet: the bytes that they share."""

from __future__ import annotations

import z3

from ..access.trace import Access, Context
from ..base.conditions import conjunction
from ..base.errors import Unsupported


def same_execution(a: Context, b: Context, kinds: set[str]) -> z3.BoolRef:
    """Both are executed by the same thread, or block."""
    ours, theirs = ([v.term for v in c.variables if v.kind in kinds] for c in (a, b))
    if len(ours) != len(theirs):
        raise Unsupported("accesses under different launch axes")
    return conjunction(*(x == y for x, y in zip(ours, theirs, strict=True)))


def conflict(a: Access, b: Access) -> str:
    """That two accesses do not meet, in words."""
    other = "" if a.context.site == b.context.site else f" in {b.context.site.text}"
    return f"no other thread's {b}{other} meets this {a} unordered"


def overlap(a: Access, b: Access) -> z3.BoolRef:
    """The two elements share a byte."""
    if (a.region.offset, a.region.bits) == (b.region.offset, b.region.bits):
        return _flat(a) == _flat(b)
    return z3.And(_byte(a) < _byte(b) + _size(b), _byte(b) < _byte(a) + _size(a))


def _flat(a: Access) -> z3.ArithRef:
    """The position in the buffer, in elements."""
    flat = a.indices[0]
    for index, extent in zip(a.indices[1:], a.region.shape[1:], strict=True):
        flat = flat * extent + index
    return flat


def _byte(a: Access) -> z3.ArithRef:
    return a.region.offset + _flat(a) * _size(a)


def _size(a: Access) -> int:
    if a.region.bits % 8:
        raise Unsupported(f"elements of {a.region.bits} bits in shared memory")
    return a.region.bits // 8
