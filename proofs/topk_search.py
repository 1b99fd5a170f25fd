"""Why the search of the selection kernel ends with the k-th key: steps for a ``Book``, which keeps what each hangs on.

e, t and w are the edge, the top and how many keys are wanted, as a histogram begins. Then

    #{key > t} + w = k,   1 <= w,   e <= t,   e = 1 or #{key >= e} >= k.

A histogram H of the keys from e to t by their bin (key - e) >> s gives a(n) = Σ_{m<n} H(2047 - m), the number of those in the
n last bins. The threads' prefix sums are a(bins τ). The bin of the w-th key is the 2047 - n with a(n) < w <= a(n + 1): there is
one unless a(2048) < w.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import z3

from .engine.execution import words
from .engine.execution.block import Run
from .engine.execution.counting import BIN, INDEX, KEY, OTHER, THREAD, Book, Fact, Predicate, replaced, schematic
from .engine.execution.shared import Store
from .engine.execution.words import word

BINS = 2048
LIMIT = schematic("limit")


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
    within: Fact  # key(n) <= top, in the first pass; true afterwards


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


def added(book: Book, statement: str, whole: Counted, parts: list[Counted], *facts: Fact, when: z3.BoolRef,
          keys: Fact | None = None, known: z3.BoolRef | None = None) -> Fact:
    """Return that the count of one predicate is the sum of those of others, by the same of each key.

    ``known`` is what ``keys`` says of key(n), for n below the entries, with ``KEY`` in its place.
    """
    always = z3.BoolVal(True) if known is None else known
    each = one(of(whole[0], *whole[1])) == sum((one(of(p, *v)) for p, v in parts), word(0))
    pointwise = book.show(f"{statement}, of a key", z3.Implies(z3.And(when, always), each), *facts)
    total = whole[0].count(INDEX, *whole[1]) == sum((p.count(INDEX, *v) for p, v in parts), word(0))
    rules = [at(p, *v) for p, v in (whole, *parts)]
    here = [pointwise.at((KEY, book.key(INDEX))), *([keys] if keys else [])]
    shown = book.induction(statement, book.entries, z3.Implies(when, total), [s for s, _ in rules],
                           [*(r for _, r in rules), *here])
    return shown.at((INDEX, book.entries))


def bounded(book: Book, statement: str, less: Counted, more: Counted | None = None, *facts: Fact,
            when: z3.BoolRef | None = None) -> Fact:
    """Return that one count is at most another one, which is at most the entries; or at most the entries itself."""
    when = z3.BoolVal(True) if when is None else when
    top = more[0].count(INDEX, *more[1]) if more else INDEX
    rules = [at(p, *v) for p, v in ([less, more] if more else [less])]
    here = []
    if more:
        each = z3.Implies(of(less[0], *less[1]), of(more[0], *more[1]))
        here = [book.show(f"{statement}, of a key", z3.Implies(when, each), *facts).at((KEY, book.key(INDEX)))]
    goal = z3.And(z3.ULE(less[0].count(INDEX, *less[1]), top), z3.ULE(top, INDEX))
    shown = book.induction(statement, book.entries, z3.Implies(when, goal), [s for s, _ in rules], [*(r for _, r in rules), *here])
    return shown.at((INDEX, book.entries))


class Search:
    """The steps for one run."""

    def __init__(self, run: Run, k: int, zeros: int, bins: int) -> None:
        self.run, self.book, self.k, self.zeros, self.bins = run, run.book, k, zeros, bins
        self.entries, self.threads = run.book.entries, run.book.threads
        self.reaches = self.book.predicate(z3.ULE(LIMIT, KEY), LIMIT)
        self.exceeds = self.book.predicate(z3.UGT(KEY, LIMIT), LIMIT)
        low = 2**zeros - 1
        self.multiple = self.book.show(
            "keys are multiples of 2^zeros",
            z3.Implies(z3.ULT(INDEX, self.entries), self.book.key(INDEX) & low == 0), run.meaning)  # fmt: skip

    def all(self, predicate: Predicate, *values: z3.ExprRef | int) -> z3.BitVecRef:
        """Return how many keys have a property."""
        return predicate.count(self.entries, *values)

    def start(self) -> State:
        """Return the state that the groups of keys give."""
        book, store = self.book, self.run.shared.stores[0]
        edge, top, wanted = (store.values["search", i][1] for i in range(3))
        most = book.extrema[top.decl().name()]
        inside = z3.ULT(THREAD, self.threads)
        highest = book.show("the top is at least what a thread has", z3.Implies(inside, z3.ULE(most.term, top)),
                            most.bound.at((THREAD, 0), (OTHER, THREAD)), opaque=[replaced(most.term, THREAD, OTHER), most.term])
        leaves = self._parts(highest, inside, most.term, z3.Z3_OP_UGEQ, lambda t: z3.ULE(t, top))
        slots = [book.key(THREAD + i * self.threads) for i in range(book.slots)]
        numbers = [leaves[key.get_id()].at((THREAD, INDEX & (self.threads - 1))) for key in slots]
        within = book.show("no key is above the top",
                           z3.Implies(z3.ULT(INDEX, self.entries), z3.ULE(book.key(INDEX), top)), *numbers)
        none = added(book, "no keys are above the top", (self.exceeds, (top,)), [], when=z3.BoolVal(True),
                     keys=within, known=z3.ULE(KEY, top))
        balance = book.show("as many are wanted as are missing above the top",
                            z3.And(self.all(self.exceeds, top) + wanted == self.k, wanted == self.k), none)
        order, reached = self._reached(edge, top, leaves)
        return State(edge, top, wanted, balance, order, reached, order, within)

    def _parts(self, fact: Fact, when: z3.BoolRef, term: z3.BitVecRef, kind: int,
               claim: Callable[[z3.BitVecRef], z3.BoolRef]) -> dict[int, Fact]:
        """Return that a claim holds of the operands of nested maxima or minima, as it does of the whole, by their numbers."""
        found, open_ = {term.get_id(): fact}, [term]
        while open_:
            here = open_.pop()
            if here.decl().kind() == z3.Z3_OP_ITE and here.arg(0).decl().kind() == kind:
                for part in here.children()[1:]:
                    if part.get_id() not in found and not z3.is_bv_value(part):
                        found[part.get_id()] = self.book.show("what holds of an extremum holds of its parts",
                            z3.Implies(when, claim(part)), found[here.get_id()], opaque=_hidden(here))  # fmt: skip
                        open_.append(part)
        return found

    def _positive(self, term: z3.BitVecRef, known: dict[int, Fact | None]) -> Fact | None:
        """Return 1 <= term for maxima and minima, if it is so."""
        if term.get_id() in known:
            return known[term.get_id()]
        claim, result = z3.ULE(word(1), term), None
        if z3.is_bv_value(term):
            result = self.book.show("1 <= n", claim)
        elif term.decl().kind() == z3.Z3_OP_ITE:
            parts = [p for t in term.children()[1:] if (p := self._positive(t, known))]
            if len(parts) == 2 or (parts and term.arg(0).decl().kind() == z3.Z3_OP_UGEQ):
                result = self.book.show("1 <= an extremum", claim, *parts, opaque=_hidden(term))
        known[term.get_id()] = result
        return result

    def _reached(self, edge: z3.BitVecRef, top: z3.BitVecRef, leaves: dict[int, Fact]) -> tuple[Fact, Fact]:
        """Return 1 <= edge <= top, and that k keys are from the edge on, or the edge is 1."""
        book, least = self.book, self.book.extrema[edge.decl().name()]
        inside = z3.ULT(THREAD, self.threads)
        group = book.extrema.get(least.term.decl().name())
        own, joined = (group.term, group.j) if group else (least.term, 0)
        where = group.where(THREAD) if group else THREAD
        here = z3.And(z3.ULT(where, self.threads), z3.LShR(where, joined) == z3.LShR(THREAD, joined))
        of_where = replaced(own, THREAD, where)
        low = book.show("the edge is at most what a group has", z3.Implies(inside, z3.And(here, z3.ULE(edge, of_where))),
                        least.bound.at((THREAD, 0), (OTHER, THREAD)), *([group.taken] if group else []),
                        opaque=[of_where] if group else [of_where])
        when = z3.ULE(edge, own)
        start = book.show("", z3.Implies(when, z3.ULE(edge, own)), opaque=[own])
        parts = self._parts(start, when, own, z3.Z3_OP_ULEQ, lambda t: z3.ULE(edge, t))
        maxima = [t for t in _operands(own, z3.Z3_OP_ULEQ) if not z3.is_bv_value(t)]
        order = self._order(edge, top, least, group, (low, of_where, where), (own, parts, maxima, leaves))
        enough = [self._some(edge, when, parts[t.get_id()], t) for t in maxima]
        number, atoms = book.by_thread(self.reaches), [a for _, some in enough for a in some]
        meaning = number.meaning.at((LIMIT, edge), (INDEX, THREAD))
        count = number.own(THREAD, edge)
        counted = book.show("a key for each group of a thread", z3.Implies(z3.And(when, edge != 1), z3.UGE(count, len(maxima))),
                            *(f for f, _ in enough), meaning, order, opaque=[when, *atoms])
        few = book.show("a thread has so many keys", z3.ULE(count, book.slots), meaning,
                        opaque=[self._reaches(edge, book.key(THREAD + i * self.threads)) for i in range(book.slots)])
        first = INDEX << joined
        sums = number.total(first, edge)
        goal = z3.Implies(edge != 1, z3.And(z3.UGE(sums, INDEX * len(maxima)), z3.ULE(sums, first * book.slots)))
        of_first = [counted.at((THREAD, replaced(where, THREAD, first))), low.at((THREAD, first))]
        steps = [f for d in range(2**joined) for f in (number.step.at((LIMIT, edge), (INDEX, first + d)), few.at((THREAD, first + d)))]
        hidden = replaced(of_where, THREAD, first)
        shown = book.induction("threads have keys from the edge on", self.threads >> joined, goal,
                               [number.start.at((LIMIT, edge))], [*of_first, *steps], opaque=[hidden])
        reached = book.show("edge = 1, or k keys are from the edge on",
                            z3.Or(edge == 1, z3.UGE(self.all(self.reaches, edge), self.k)),
                            shown.at((INDEX, self.threads >> joined)), number.whole.at((LIMIT, edge)))
        return order, reached

    def _reaches(self, edge: z3.ExprRef, key: z3.ExprRef) -> z3.BoolRef:
        return of(self.reaches, edge) if key is KEY else replaced(of(self.reaches, edge), KEY, key)

    def _some(self, edge: z3.BitVecRef, when: z3.BoolRef, fact: Fact, term: z3.BitVecRef) -> tuple[Fact, list[z3.BoolRef]]:
        """Return that the edge is at most some operand of nested maxima, as it is at most the whole."""
        atoms, done = [term], False
        while not done:
            done = True
            for place, here in enumerate(atoms):
                if here.decl().kind() == z3.Z3_OP_ITE and here.arg(0).decl().kind() == z3.Z3_OP_UGEQ:
                    others = [z3.ULE(edge, t) for t in (*atoms[:place], *atoms[place + 1 :])]
                    atoms = [*atoms[:place], *here.children()[1:], *atoms[place + 1 :]]
                    goal = z3.Implies(when, z3.Or(*(z3.ULE(edge, t) for t in atoms)))
                    fact = self.book.show("what is at most a maximum is at most a part of it", goal, fact,
                                          opaque=[when, *others, *_hidden(here)])
                    done = False
                    break
        return fact, [z3.ULE(edge, t) for t in atoms if not z3.is_bv_value(t)]

    def _order(self, edge, top, least, group, low, parts) -> Fact:
        """Return 1 <= edge <= top."""
        (lower, of_where, where), (own, of_own, maxima, leaves) = low, parts
        book, known = self.book, {}
        positive = self._positive(own, known)
        taker = least.where(word(0))
        at_taker = replaced(where, THREAD, taker)
        facts = [least.taken.at((THREAD, 0)), positive.at((THREAD, at_taker)) if group else positive.at((THREAD, taker))]
        facts += [group.taken.at((THREAD, taker))] if group else []
        above = book.show("1 <= edge", z3.ULE(1, edge), *facts, opaque=[replaced(own, THREAD, at_taker)])
        one_of = maxima[0]
        zero = replaced(where, THREAD, 0) if group else word(0)
        pairs = (THREAD, zero)
        return book.show("1 <= edge <= top", z3.And(z3.ULE(1, edge), z3.ULE(edge, top)), above, lower.at((THREAD, 0)),
                         of_own[one_of.get_id()].at(pairs), leaves[one_of.get_id()].at(pairs),
                         opaque=[replaced(own, THREAD, zero), replaced(one_of, THREAD, zero)])


def _hidden(term: z3.BitVecRef) -> list[z3.BitVecRef]:
    """Return the operands of a maximum or minimum, outer ones first."""
    parts = [t for t in term.children()[1:] if not z3.is_bv_value(t)]
    return sorted(parts, key=lambda t: -t.get_id())


def _operands(term: z3.BitVecRef, kind: int) -> list[z3.BitVecRef]:
    """Return what nested maxima or minima are taken of."""
    if term.decl().kind() == z3.Z3_OP_ITE and term.arg(0).decl().kind() == kind:
        return [t for part in term.children()[1:] for t in _operands(part, kind)]
    return [term]
