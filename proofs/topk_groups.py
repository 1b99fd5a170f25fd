"""Why the search of top-k's selection begins between a key that k keys reach, or 1, and the largest key, or 1.

The edge is the least of the maxima of groups of keys. Each group has a key that is at least the edge, unless that is 1. So
there are at least as many such keys as groups, counted thread by thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import z3

from .engine.execution.counting import INDEX, KEY, OTHER, THREAD, Extremum, Fact, Predicate, replaced
from .engine.execution.run import Run
from .engine.execution.words import word
from .topk_steps import GREATEST, LIMIT, Known, State, added, hidden, of, operands


class Bounds(NamedTuple):
    """The first edge and top: the edge is ``least`` of ``own``, or of what a group of lanes has of it."""

    edge: z3.BitVecRef
    top: z3.BitVecRef
    least: Extremum
    group: Extremum | None
    own: z3.BitVecRef


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
        highest = book.show(
            "the top is at least what a thread has",
            z3.Implies(inside, z3.ULE(most.term, top)),
            most.bound.at((THREAD, 0), (OTHER, THREAD)),
            opaque=[replaced(most.term, THREAD, OTHER), most.term],
        )
        leaves = self._parts(highest, inside, most.term, z3.Z3_OP_UGEQ, lambda t: z3.ULE(t, top))
        slots = [book.key(THREAD + i * self.threads) for i in range(book.slots)]
        numbers = [leaves[key.get_id()].at((THREAD, INDEX & (self.threads - 1))) for key in slots]
        within = book.show(
            "no key is above the top", z3.Implies(z3.ULT(INDEX, self.entries), z3.ULE(book.key(INDEX), top)), *numbers
        )
        none = added(
            book, "no keys are above the top", (self.exceeds, (top,)), [], known=Known(within, z3.ULE(KEY, top))
        )
        balance = book.show(
            "as many are wanted as are missing above the top",
            z3.And(self.all(self.exceeds, top) + wanted == self.k, z3.ULE(1, wanted), z3.ULE(wanted, self.k)),
            none,
        )
        order, reached = self._reached(edge, top, leaves)
        greatest = self.book.show("no key is above the greatest", z3.Implies(z3.ULT(INDEX, self.entries),
                                  z3.ULE(book.key(INDEX), GREATEST)), self.run.meaning)  # fmt: skip
        known = {key.get_id(): greatest.at((INDEX, key.arg(0))) for key in slots}
        lifted = {
            n: book.show("", z3.Implies(inside, z3.ULE(key, GREATEST)), known[n])
            for n, key in ((k.get_id(), k) for k in slots)
        }
        largest = self._at_most(most.term, inside, dict(lifted))
        high = book.show(
            "the top is a key, or 1",
            z3.ULE(top, GREATEST),
            most.taken.at((THREAD, 0)),
            largest.at((THREAD, most.where(word(0)))),
            opaque=[replaced(most.term, THREAD, most.where(word(0)))],
        )
        return State(edge, top, wanted, balance, order, reached, order, within, high)

    def _parts(
        self, fact: Fact, when: z3.BoolRef, term: z3.BitVecRef, kind: int, claim: Callable[[z3.BitVecRef], z3.BoolRef]
    ) -> dict[int, Fact]:
        """Return that a claim holds of the operands of nested maxima or minima, as it does of the whole, by their numbers."""
        found, open_ = {term.get_id(): fact}, [term]
        while open_:
            here = open_.pop()
            if here.decl().kind() == z3.Z3_OP_ITE and here.arg(0).decl().kind() == kind:
                for part in here.children()[1:]:
                    if part.get_id() not in found and not z3.is_bv_value(part):
                        found[part.get_id()] = self.book.show("what holds of an extremum holds of its parts",
                            z3.Implies(when, claim(part)), found[here.get_id()], opaque=hidden(here))  # fmt: skip
                        open_.append(part)
        return found

    def _at_most(self, term: z3.BitVecRef, inside: z3.BoolRef, known: dict[int, Fact]) -> Fact:
        """Return that nested maxima are at most the greatest key, as their operands are."""
        if term.get_id() not in known:
            parts = [self._at_most(t, inside, known) for t in term.children()[1:]] if not z3.is_bv_value(term) else []
            known[term.get_id()] = self.book.show(
                "a maximum of keys",
                z3.Implies(inside, z3.ULE(term, GREATEST)),
                *parts,
                opaque=hidden(term) if parts else [],
            )
        return known[term.get_id()]

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
                result = self.book.show("1 <= an extremum", claim, *parts, opaque=hidden(term))
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
        low = book.show(
            "the edge is at most what a group has",
            z3.Implies(inside, z3.And(here, z3.ULE(edge, of_where))),
            least.bound.at((THREAD, 0), (OTHER, THREAD)),
            *([group.taken] if group else []),
            opaque=[of_where],
        )
        when = z3.ULE(edge, own)
        start = book.show("that a group has it", z3.Implies(when, z3.ULE(edge, own)), opaque=[own])
        parts = self._parts(start, when, own, z3.Z3_OP_ULEQ, lambda t: z3.ULE(edge, t))
        maxima = [t for t in operands(own, z3.Z3_OP_ULEQ) if not z3.is_bv_value(t)]
        of_one = maxima[0].get_id()
        one = maxima[0], parts[of_one], leaves[of_one]
        order = self._order(Bounds(edge, top, least, group, own), low, one)
        enough = [self._some(edge, when, parts[t.get_id()], t) for t in maxima]
        number, atoms = book.by_thread(self.reaches), [a for _, some in enough for a in some]
        meaning = number.meaning.at((LIMIT, edge), (INDEX, THREAD))
        count = number.own(THREAD, edge)
        counted = book.show(
            "a key for each group of a thread",
            z3.Implies(z3.And(when, edge != 1), z3.UGE(count, len(maxima))),
            *(f for f, _ in enough),
            meaning,
            order,
            opaque=[when, *atoms],
        )
        keys = [self._reaches(edge, book.key(THREAD + i * self.threads)) for i in range(book.slots)]
        few = book.show("a thread has so many keys", z3.ULE(count, book.slots), meaning, opaque=keys)
        first = INDEX << joined
        sums = number.total(first, edge)
        goal = z3.Implies(edge != 1, z3.And(z3.UGE(sums, INDEX * len(maxima)), z3.ULE(sums, first * book.slots)))
        of_first = [counted.at((THREAD, replaced(where, THREAD, first))), low.at((THREAD, first))]
        steps = [
            f
            for d in range(2**joined)
            for f in (number.step.at((LIMIT, edge), (INDEX, first + d)), few.at((THREAD, first + d)))
        ]
        none, of_thread = number.start.at((LIMIT, edge)), replaced(of_where, THREAD, first)
        facts, groups = [*of_first, *steps], self.threads >> joined
        shown = book.induction("threads have keys from the edge on", groups, goal, ([none], facts), opaque=[of_thread])
        reached = book.show(
            "edge = 1, or k keys are from the edge on",
            z3.Or(edge == 1, z3.UGE(self.all(self.reaches, edge), self.k)),
            shown.at((INDEX, groups)),
            number.whole.at((LIMIT, edge)),
        )
        return order, reached

    def _reaches(self, edge: z3.ExprRef, key: z3.ExprRef) -> z3.BoolRef:
        return of(self.reaches, edge) if key is KEY else replaced(of(self.reaches, edge), KEY, key)

    def _some(
        self, edge: z3.BitVecRef, when: z3.BoolRef, fact: Fact, term: z3.BitVecRef
    ) -> tuple[Fact, list[z3.BoolRef]]:
        """Return that the edge is at most some operand of nested maxima, as it is at most the whole."""
        atoms, done = [term], False
        while not done:
            done = True
            for place, here in enumerate(atoms):
                if here.decl().kind() == z3.Z3_OP_ITE and here.arg(0).decl().kind() == z3.Z3_OP_UGEQ:
                    others = [z3.ULE(edge, t) for t in (*atoms[:place], *atoms[place + 1 :])]
                    atoms = [*atoms[:place], *here.children()[1:], *atoms[place + 1 :]]
                    goal = z3.Implies(when, z3.Or(*(z3.ULE(edge, t) for t in atoms)))
                    fact = self.book.show(
                        "what is at most a maximum is at most a part of it",
                        goal,
                        fact,
                        opaque=[when, *others, *hidden(here)],
                    )
                    done = False
                    break
        return fact, [z3.ULE(edge, t) for t in atoms if not z3.is_bv_value(t)]

    def _order(self, at: Bounds, low: Fact, one: tuple[z3.BitVecRef, Fact, Fact]) -> Fact:
        """Return 1 <= edge <= top, for the maximum of one group, which is at least the edge and at most the top."""
        book, group, own = self.book, at.group, at.own
        if (positive := self._positive(own, {})) is None:
            raise ValueError("a group may have nothing")
        taker = at.least.where(word(0))
        at_taker, zero = (group.where(t) if group else t for t in (taker, word(0)))
        facts = [at.least.taken.at((THREAD, 0)), positive.at((THREAD, at_taker))]
        facts += [group.taken.at((THREAD, taker))] if group else []
        above = book.show("1 <= edge", z3.ULE(1, at.edge), *facts, opaque=[replaced(own, THREAD, at_taker)])
        largest, lower, upper = one
        return book.show(
            "1 <= edge <= top",
            z3.And(z3.ULE(1, at.edge), z3.ULE(at.edge, at.top)),
            above,
            low.at((THREAD, 0)),
            lower.at((THREAD, zero)),
            upper.at((THREAD, zero)),
            opaque=[replaced(own, THREAD, zero), replaced(largest, THREAD, zero)],
        )
