"""Steps that the proof of top-k's search is made of: how counts of keys add up and compare, and terms taken apart.

They only ask a ``Book`` for facts, which keeps what each hangs on; no error here can make a false theorem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import z3

from .engine.execution.counting import INDEX, KEY, Book, Fact, Predicate, schematic
from .engine.execution.words import word

BINS = 2048
GREATEST = 0xFF800000
HIGH = 0xFF9FFFFF  # the greatest key, and less than 2^21 more
LIMIT = schematic("limit")
ALWAYS = z3.BoolVal(True)


@dataclass(frozen=True)
class State:
    """The numbers of the search, and what is known of them."""

    edge: z3.BitVecRef
    top: z3.BitVecRef
    wanted: z3.BitVecRef
    balance: Fact  # #{key > top} + wanted = k, 1 <= wanted <= k
    order: Fact  # 1 <= edge <= top
    reached: Fact  # edge = 1 or #{key >= edge} >= k
    narrow: Fact  # how far top is from edge
    within: Fact  # key(n) <= top, for all keys, with the first top
    high: Fact  # top is so far below 2^32 that no bin wraps


def one(formula: z3.BoolRef) -> z3.BitVecRef:
    """Return 1 where a formula holds, else 0."""
    return z3.If(formula, word(1), word(0))


def of(predicate: Predicate, *values: z3.ExprRef | int) -> z3.BoolRef:
    """Return a predicate for values of its parameters."""
    pairs = [(p, word(v) if isinstance(v, int) else v) for p, v in zip(predicate.parameters, values, strict=True)]
    return z3.substitute(predicate.formula, *pairs) if pairs else predicate.formula


def at(predicate: Predicate, *values: z3.ExprRef | int) -> tuple[Fact, Fact]:
    """Return the recurrence of a count for values of the parameters."""
    pairs = list(zip(predicate.parameters, values, strict=True))
    return predicate.start.at(*pairs), predicate.step.at(*pairs)


Counted = tuple[Predicate, tuple[z3.ExprRef | int, ...]]


class Known(NamedTuple):
    """What is known of all keys: of key(n) for n below the entries, and the same with ``KEY`` in its place."""

    keys: Fact
    claim: z3.BoolRef


def added(
    book: Book,
    statement: str,
    whole: Counted,
    parts: Sequence[Counted],
    *facts: Fact,
    when: z3.BoolRef = ALWAYS,
    known: Known | None = None,
    opaque: Sequence[z3.ExprRef] = (),
) -> Fact:
    """Return that, where ``when`` holds, the count of one predicate is the sum of others', as it is for each key."""
    always = known.claim if known else ALWAYS
    each = one(of(whole[0], *whole[1])) == sum((one(of(p, *v)) for p, v in parts), word(0))
    pointwise = book.show(f"{statement}, of a key", z3.Implies(z3.And(when, always), each), *facts, opaque=opaque)
    total = whole[0].count(INDEX, *whole[1]) == sum((p.count(INDEX, *v) for p, v in parts), word(0))
    rules = [at(p, *v) for p, v in (whole, *parts)]
    here = [pointwise.at((KEY, book.key(INDEX))), *([known.keys] if known else [])]
    shown = book.induction(
        statement, book.entries, z3.Implies(when, total), ([s for s, _ in rules], [*(r for _, r in rules), *here])
    )
    return shown.at((INDEX, book.entries))


def bounded(
    book: Book,
    statement: str,
    less: Counted,
    more: Counted,
    *facts: Fact,
    when: z3.BoolRef,
    opaque: Sequence[z3.ExprRef] = (),
) -> Fact:
    """Return that, where ``when`` holds, one count is at most another one, and that at most the entries."""
    top = more[0].count(INDEX, *more[1])
    rules = [at(p, *v) for p, v in (less, more)]
    each = z3.Implies(of(less[0], *less[1]), of(more[0], *more[1]))
    pointwise = book.show(f"{statement}, of a key", z3.Implies(when, each), *facts, opaque=opaque)
    here = [pointwise.at((KEY, book.key(INDEX)))]
    goal = z3.And(z3.ULE(less[0].count(INDEX, *less[1]), top), z3.ULE(top, INDEX))
    shown = book.induction(
        statement, book.entries, z3.Implies(when, goal), ([s for s, _ in rules], [*(r for _, r in rules), *here])
    )
    return shown.at((INDEX, book.entries))


def size(term: z3.ExprRef) -> int:
    """Return how deep a term is, so that no term is inside one that is not deeper."""
    return int(z3.Z3_get_depth(term.ctx_ref(), term.as_ast()))


def nested(term: z3.ExprRef, count: int) -> list[z3.ExprRef]:
    """Return the values that a variable had before so many stores under conditions, and after each."""
    found = [term]
    for _ in range(count):
        found.append(found[-1].arg(2))
    return found[::-1]


def hidden(term: z3.BitVecRef) -> list[z3.BitVecRef]:
    """Return the operands of a maximum or minimum, outer ones first."""
    parts = [t for t in term.children()[1:] if not z3.is_bv_value(t)]
    return sorted(parts, key=size, reverse=True)


def operands(term: z3.BitVecRef, kind: int) -> list[z3.BitVecRef]:
    """Return what nested maxima or minima are taken of."""
    if term.decl().kind() == z3.Z3_OP_ITE and term.arg(0).decl().kind() == kind:
        return [t for part in term.children()[1:] for t in operands(part, kind)]
    return [term]
