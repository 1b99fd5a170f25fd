"""Two accesses by two threads, or by one in two iterations: that they touch different bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import z3

from ..access.instances import agree, sequent
from ..access.trace import Access, Context
from ..base.conditions import Condition, conjunction, disjunction
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from ..smt.bitvectors import permutes_bits, without_products


@dataclass(frozen=True)
class Unordered:
    """Two accesses that may meet, in some iterations.

    Args:
        first: the one.
        second: the other, renamed.
        itself: whether the two are one statement.
        facts: what is known of the iterations, in each of the ways in which they may meet.
    """

    first: Access
    second: Access
    itself: bool
    facts: Sequence[Sequence[z3.BoolRef]]


def apart(kind: str, statement: str, met: Unordered, hypotheses: Hypotheses, alone: bool) -> Condition:
    """Return that two accesses share no byte; or are by one thread, where ``alone`` makes that harmless."""
    first, second = met.first, met.second
    either = met.facts[0] if len(met.facts) == 1 else [disjunction(*(conjunction(*f) for f in met.facts))]
    given = [*hypotheses.facts, *first.context.path, *second.context.path, *either]
    goal = z3.Not(overlap(first, second))
    if met.itself and not z3.is_false(same := agree(first, second, hypotheses.sizes)):
        goal = z3.Or(same, goal)
    if alone and not (first.collective or second.collective):
        goal = z3.Or(same_execution(first.context, second.context, {"thread"}), goal)
    elif met.itself:  # one and the same thread may stand for two, but not at once
        pairs = zip(first.context.variables, second.context.variables, strict=True)
        goal = z3.Or(conjunction(*(v.term == w.term for v, w in pairs if v.name != w.name)), goal)
    if kind == "async" and any(met.facts) and permutes_bits([goal]):  # sizes matter only as far as they decide a stage
        (*given, goal), signs = without_products([*given, goal])
        given += signs
    return sequent(kind, statement, given, goal, first.context.site)


def same_execution(a: Context, b: Context, kinds: set[str]) -> z3.BoolRef:
    """Return that the same thread, or block, executes both."""
    ours, theirs = ([v.term for v in c.variables if v.kind in kinds] for c in (a, b))
    if len(ours) != len(theirs):
        raise Unsupported("accesses under different launch axes")
    return conjunction(*(x == y for x, y in zip(ours, theirs, strict=True)))


def overlap(a: Access, b: Access) -> z3.BoolRef:
    """Return that the two elements share a byte."""
    if (a.region.offset, a.region.bits) == (b.region.offset, b.region.bits):
        return flat(a) == flat(b)
    return z3.And(_byte(a) < _byte(b) + _size(b), _byte(b) < _byte(a) + _size(a))


def flat(a: Access, strides: Sequence[z3.ArithRef] | None = None) -> z3.ArithRef:
    """Return the position in the buffer, in elements; one index is a position already."""
    if strides and len(a.indices) == len(strides):
        return z3.Sum([i * s for i, s in zip(a.indices, strides, strict=True)])
    position = a.indices[0]
    for index, extent in zip(a.indices[1:], a.region.shape[1:], strict=True):
        position = position * extent + index
    return position


def _byte(a: Access) -> z3.ArithRef:
    return a.region.offset + flat(a) * _size(a)


def _size(a: Access) -> int:
    if a.region.bits % 8:
        raise Unsupported(f"elements of {a.region.bits} bits in shared memory")
    return a.region.bits // 8
