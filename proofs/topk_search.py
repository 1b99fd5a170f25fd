"""Why the search of the selection kernel ends with the k-th key: steps for a ``Book``, which keeps what each hangs on.

e, t and w are the edge, the top and how many keys are wanted, as a histogram begins. Then

    #{key > t} + w = k,   1 <= w,   e <= t,   e = 1 or #{key >= e} >= k.

A histogram H of the keys from e to t by their bin (key - e) >> s gives a(n) = Σ_{m<n} H(2047 - m), the number of those in the
n last bins. The threads' prefix sums are a(bins τ). The bin of the w-th key is the 2047 - n with a(n) < w <= a(n + 1): there is
one unless a(2048) < w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import z3

from .engine.execution import words
from .engine.execution.block import Run
from .engine.execution.counting import BIN, INDEX, KEY, OTHER, THREAD, Book, Fact, Predicate, replaced, schematic
from .engine.execution.shared import Store
from .engine.execution.words import word

BINS = 2048
GREATEST = 0xFF800000
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


def added(book: Book, statement: str, whole: Counted, parts: list[Counted], *facts: Fact, when: z3.BoolRef,
          keys: Fact | None = None, known: z3.BoolRef | None = None, opaque: Sequence[z3.ExprRef] = ()) -> Fact:
    """Return that the count of one predicate is the sum of those of others, by the same of each key.

    ``known`` is what ``keys`` says of key(n), for n below the entries, with ``KEY`` in its place.
    """
    always = z3.BoolVal(True) if known is None else known
    each = one(of(whole[0], *whole[1])) == sum((one(of(p, *v)) for p, v in parts), word(0))
    pointwise = book.show(f"{statement}, of a key", z3.Implies(z3.And(when, always), each), *facts, opaque=opaque)
    total = whole[0].count(INDEX, *whole[1]) == sum((p.count(INDEX, *v) for p, v in parts), word(0))
    rules = [at(p, *v) for p, v in (whole, *parts)]
    here = [pointwise.at((KEY, book.key(INDEX))), *([keys] if keys else [])]
    shown = book.induction(statement, book.entries, z3.Implies(when, total), [s for s, _ in rules],
                           [*(r for _, r in rules), *here])
    return shown.at((INDEX, book.entries))


def bounded(book: Book, statement: str, less: Counted, more: Counted | None = None, *facts: Fact,
            when: z3.BoolRef | None = None, opaque: Sequence[z3.ExprRef] = ()) -> Fact:
    """Return that one count is at most another one, which is at most the entries; or at most the entries itself."""
    when = z3.BoolVal(True) if when is None else when
    top = more[0].count(INDEX, *more[1]) if more else INDEX
    rules = [at(p, *v) for p, v in ([less, more] if more else [less])]
    here = []
    if more:
        each = z3.Implies(of(less[0], *less[1]), of(more[0], *more[1]))
        here = [book.show(f"{statement}, of a key", z3.Implies(when, each), *facts, opaque=opaque).at((KEY, book.key(INDEX)))]
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
                            z3.And(self.all(self.exceeds, top) + wanted == self.k, z3.ULE(1, wanted), z3.ULE(wanted, self.k)), none)
        order, reached = self._reached(edge, top, leaves)
        greatest = self.book.show("no key is above the greatest", z3.Implies(z3.ULT(INDEX, self.entries),
                                  z3.ULE(book.key(INDEX), GREATEST)), self.run.meaning)  # fmt: skip
        known = {key.get_id(): greatest.at((INDEX, key.arg(0))) for key in slots}
        lifted = {n: book.show("", z3.Implies(inside, z3.ULE(key, GREATEST)), known[n]) for n, key in ((k.get_id(), k) for k in slots)}
        largest = self._at_most(most.term, inside, dict(lifted))
        high = book.show("the top is a key, or 1", z3.ULE(top, GREATEST), most.taken.at((THREAD, 0)),
                         largest.at((THREAD, most.where(word(0)))), opaque=[replaced(most.term, THREAD, most.where(word(0)))])
        return State(edge, top, wanted, balance, order, reached, order, within, high)

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

    def _at_most(self, term: z3.BitVecRef, inside: z3.BoolRef, known: dict[int, Fact]) -> Fact:
        """Return that nested maxima are at most the greatest key, as their operands are."""
        if term.get_id() not in known:
            parts = [self._at_most(t, inside, known) for t in term.children()[1:]] if not z3.is_bv_value(term) else []
            known[term.get_id()] = self.book.show("a maximum of keys", z3.Implies(inside, z3.ULE(term, GREATEST)), *parts,
                                                  opaque=_hidden(term) if parts else [])
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


@dataclass(frozen=True)
class Pass:
    """One histogram: its terms, and what is known of them."""

    state: State
    number: int
    store: Store
    shift: z3.BitVecRef
    above: Predicate  # of the keys in the LAST last bins
    facts: dict[str, Fact]

    @property
    def span(self) -> z3.BitVecRef:
        """From edge to top."""
        return self.state.top - self.state.edge


LAST, X, Y, S = (schematic(name) for name in ("last", "x", "y", "s"))
POWER = word(1) << S


class Passes(Search):
    """The steps for the histograms."""

    def passes(self) -> tuple[State, Pass]:
        """Return the last state with the pass that leads to it."""
        state = self.start()
        self._shifts()
        for number in range(len(self.run.shared.stores)):
            now = self._pass(state, number)
            self._thread(now)
            state = self._next(now)
            if number + 1 < len(self.run.shared.stores):
                state = self.settled(state, now)
        self.result(state, now)
        return state, now

    def _shifts(self) -> None:
        """Show how a shifted word compares, for any word x, shift s and bin y."""
        inside = z3.And(z3.ULE(S, 21), z3.ULE(Y, 2047))
        bin_ = z3.LShR(X, S)
        least = z3.Implies(inside, z3.UGE(bin_, Y) == z3.UGE(X, Y << S))
        beyond = z3.Implies(inside, z3.UGE(bin_, Y + 1) == z3.UGT(X, (Y << S) + (POWER - 1)))
        self.least, self.beyond = self.book.show("y << s is the least of bin y", least), self.book.show("the greatest", beyond)
        small = z3.Implies(inside, z3.And(z3.ULE(Y << S, 2**32 - 2**21), z3.ULE(POWER, 2**21), z3.ULE(1, POWER)))
        self.small = self.book.show("no bin wraps", small)

    def _pass(self, state: State, number: int) -> Pass:
        book, span = self.book, state.top - state.edge
        zeros = words.leading_zeros(span)
        shift = words.binary("max", words.binary("sub", word(21), zeros, "int32"), word(0), "int32")
        most = (2**32 - 1, 2**21 - 1, 2**10 - 1)[number]
        bound = z3.And(z3.ULE(shift, (21, 10, 0)[number]), z3.ULE(z3.LShR(span, shift), 2047))
        if number:
            whole = z3.ULE((z3.LShR(span, shift) << shift) + ((word(1) << shift) - 1), span)
            bound = z3.And(bound, whole)
        shifted = book.show("the shift makes bins of the span", z3.Implies(z3.ULE(span, most), bound), state.narrow,
                            opaque=[*([self.last_shift] if number else []), span])
        before = [self.last_shift] if number else []
        self.last_shift = shift
        shifted = book.show("", bound, shifted, state.narrow, opaque=[shift, span, *before])
        offset = KEY - state.edge
        place = z3.LShR(offset, shift)
        above = book.predicate(z3.And(z3.ULE(offset, span), z3.UGE(place + LAST, BINS)), LAST)
        now = Pass(state, number, self.run.shared.stores[number], shift, above, {"shift": shifted})
        now.facts["fits"] = book.show("the shift is by bits of a word", z3.ULE(shift, 21), shifted, opaque=[shift])
        histogram = self.run.shared.histograms[number]
        # a key within the span has a bin
        bins = book.show("a key has one of the bins", z3.Implies(z3.ULE(offset, span), z3.ULE(place, 2047)), shifted,
                         self.least.at((X, span), (Y, 2047), (S, shift)), self._monotone().at((X, offset), (Y, span), (S, shift)),
                         opaque=[place, z3.LShR(span, shift), shift, offset, span])
        now.facts["bins"] = bins
        m = LAST
        now.facts["one more"] = added(book, "one more bin", (above, (m + 1,)), [(above, (m,)), (histogram, (2047 - m,))], bins,
                                      shifted, when=z3.ULT(m, BINS), opaque=[place, shift, offset, span])
        now.facts["none"] = added(book, "no bin", (above, (0,)), [], bins, when=z3.BoolVal(True), opaque=[place, shift, offset, span])
        other = schematic("more")
        now.facts["rising"] = bounded(book, "more bins have no fewer keys", (above, (m,)), (above, (other,)), bins,
                                      when=z3.And(z3.ULE(m, other), z3.ULE(other, BINS)), opaque=[place, shift, offset, span])
        total, _ = book.totals[number]
        start, step = book.meanings[total.name()]
        first = INDEX * self.bins
        _, term = book.totals[number]
        parts = [replaced(term, THREAD, INDEX)]
        for _ in range(self.bins):
            parts.append(parts[-1].arg(0))
        parts = parts[::-1]
        goal = total(INDEX) == self.all(above, first)
        below = z3.And(z3.ULT(INDEX, self.threads), goal)
        fact = book.show("nothing of a thread", z3.Implies(below, total(INDEX) + parts[0] == self.all(above, first)))
        for q in range(self.bins):
            same = total(INDEX) + parts[q + 1] == self._last(now, first, q + 1)
            fact = book.show("one more bin of a thread", z3.Implies(below, same), fact, self._one_more(now, first, q), opaque=[parts[q]])
        after = self.all(above, (INDEX + 1) * self.bins)
        ends = book.show("the first bin of the next thread", after == self._last(now, first, self.bins))
        now.facts["prefix"] = book.induction("prefix sums over threads count the last bins", self.threads, goal,
                                             [start, now.facts["none"]], [step, fact, ends], opaque=[parts[-1]])
        empty = z3.UGT(2047 - m, z3.LShR(span, shift))
        now.facts["empty"] = added(book, "bins beyond the span are empty", (histogram, (2047 - m,)), [], bins, shifted,
                                   self._monotone().at((X, offset), (Y, span), (S, shift)),
                                   when=z3.And(z3.ULT(m, BINS), empty), opaque=[place, z3.LShR(span, shift), shift, offset, span])
        return now

    def _monotone(self) -> Fact:
        if not hasattr(self, "_shift_monotone"):
            goal = z3.Implies(z3.And(z3.ULE(S, 21), z3.ULE(X, Y)), z3.ULE(z3.LShR(X, S), z3.LShR(Y, S)))
            self._shift_monotone = self.book.show("shifts are monotone", goal)
        return self._shift_monotone

    def _last(self, now: Pass, first: z3.BitVecRef, q: int) -> z3.BitVecRef:
        """Return a(first + q)."""
        return self.all(now.above, first + q if q else first)

    def _one_more(self, now: Pass, first: z3.BitVecRef, q: int) -> Fact:
        """Return a(first + q + 1) = a(first + q) + H(2047 - (first + q))."""
        histogram = self.run.shared.histograms[now.number]
        more = histogram.count(self.entries, 2047 - (first + q))
        goal = self._last(now, first, q + 1) == self._last(now, first, q) + more
        return self.book.show("one more bin", z3.Implies(z3.ULT(first + q, BINS), goal),
                              now.facts["one more"].at((LAST, first + q)))

    def _thread(self, now: Pass) -> None:
        """Show what a thread stores, that one does, and that no other one does."""
        book, state, store, bins = self.book, now.state, now.store, self.bins
        a = lambda n: self.all(now.above, n)
        more, inside, first = schematic("more"), z3.ULT(THREAD, self.threads), THREAD * bins
        few = a(word(BINS))
        total, _ = book.totals[now.number]
        whole = book.show("a sum over all threads", total(word(self.threads)) == few, now.facts["prefix"].at((INDEX, self.threads)))
        found, place, held = self._chain(now, first)
        hit = z3.And(z3.ULT(a(first), state.wanted), z3.ULE(state.wanted, a(first + bins)))
        none = z3.And(THREAD == 0, z3.ULT(few, state.wanted))
        rising = now.facts["rising"].at((LAST, first + bins), (more, word(BINS)))
        stores = book.show("which thread stores", z3.Implies(inside, store.guard == z3.Or(none, hit)), found, whole, rising,
                           *self._open(now), opaque=held)
        self._exclusive(now, stores, a, first)
        goal = z3.Implies(z3.Not(store.written), z3.ULT(a(INDEX * bins), state.wanted))
        late = book.induction("if none stores the key is in no bin", self.threads, goal, [now.facts["none"], state.balance],
                              [store.absent.at((THREAD, INDEX)), stores.at((THREAD, INDEX))], opaque=[replaced(store.guard, THREAD, INDEX)])
        last = book.show("some thread stores", store.written, late.at((INDEX, self.threads)), store.absent.at((THREAD, 0)),
                         stores.at((THREAD, 0)), opaque=[replaced(store.guard, THREAD, 0)])
        now.facts["outcome"] = self._outcome(now, place, (found, whole, rising, stores, now.facts["fits"], *self._open(now)), held, last, a)

    def _open(self, now: Pass) -> list[Fact]:
        """Return that the search is open, where that was decided."""
        return self.run.decided if now.number else []

    def _chain(self, now: Pass, first: z3.BitVecRef) -> tuple[Fact, z3.BitVecRef, list[z3.BitVecRef]]:
        """Return what edge, status and wanted of a thread are once it has looked at its bins."""
        book, state, store, shift = self.book, now.state, now.store, now.shift
        more, w = schematic("more"), state.wanted
        a = lambda n: self.all(now.above, n)
        edges, wanteds = _nested(store.values["search", 0][0], self.bins), _nested(store.values["search", 2][0], self.bins)
        stored = store.guard.arg(0) if z3.is_and(store.guard) else store.guard
        statuses = _nested(next(t for t in stored.children() if not z3.is_bv_value(t)), self.bins)
        conditions = [t.arg(0) for t in edges[1:]]
        befores = [c.arg(0).arg(0) for c in conditions] + [conditions[-1].arg(1).arg(1)]
        inside = z3.ULT(THREAD, self.threads)
        total, _ = book.totals[now.number]
        equal = book.show("what is before a thread", z3.Implies(inside, befores[0] == a(first)), now.facts["prefix"].at((INDEX, THREAD)))
        place = first
        b0 = a(first)

        def claim(q: int, place: z3.BitVecRef) -> z3.BoolRef:
            edge, status, wanted, here = edges[q], statuses[q], wanteds[q], self._last(now, first, q)
            kept = z3.And(z3.Or(z3.ULE(w, b0), z3.ULT(here, w)), edge == state.edge, status == statuses[0], wanted == w)
            one_more = a(place + 1)
            end = z3.If(w == one_more, word(1), z3.If(z3.ULE(shift, self.zeros), word(2), word(3)))
            found = z3.And(z3.ULT(b0, w), z3.ULE(w, here), z3.ULT(place, BINS), z3.ULT(a(place), w), z3.ULE(w, one_more),
                           edge == state.edge + ((2047 - place) << shift), status == end, wanted == w - a(place))
            return z3.Implies(inside, z3.Or(kept, found))

        fact = book.show("before it looks", claim(0, place), opaque=[shift])
        for q in range(self.bins):
            step = self._one_more(now, first, q)
            rising = now.facts["rising"].at((LAST, first + q), (more, first + q + 1))
            low = now.facts["rising"].at((LAST, first), (more, first + q))
            following = book.show("what is before the next bin", z3.Implies(inside, befores[q + 1] == self._last(now, first, q + 1)),
                                  equal, step, opaque=[befores[q]])
            later = first + q if q == 0 else z3.If(z3.ULE(w, self._last(now, first, q)), place, first + q)
            hidden = [shift, statuses[q], edges[q], wanteds[q], befores[q + 1], befores[q], *([place] if q else [])]
            fact = book.show("after one more bin", claim(q + 1, later), fact, equal, following, rising, low, now.facts["fits"],
                             opaque=sorted(hidden, key=_size, reverse=True))
            place, equal = later, following
        return fact, place, sorted([statuses[-1], edges[-1], wanteds[-1], place, shift], key=_size, reverse=True)

    def _exclusive(self, now: Pass, stores: Fact, a: Callable[[z3.ExprRef], z3.ExprRef], first: z3.BitVecRef) -> Fact:
        more, bins = schematic("more"), self.bins
        others = OTHER * bins
        rising = [now.facts["rising"].at((LAST, n), (more, m)) for n, m in
                  ((first + bins, others), (others + bins, first), (first + bins, word(BINS)), (others + bins, word(BINS)))]
        goal = next(g for s, g in self.run.shared.obligations[now.number : now.number + 1])
        guard, other = now.store.guard, replaced(now.store.guard, THREAD, OTHER)
        return self.book.show("one thread stores at most", goal, stores, stores.at((THREAD, OTHER)), *rising, opaque=[guard, other])

    def _outcome(self, now: Pass, place: z3.BitVecRef, given: Sequence[Fact], held: Sequence[z3.ExprRef], written: Fact,
                 a: Callable[[z3.ExprRef], z3.ExprRef]) -> Fact:
        """Return what the search holds after the pass."""
        book, state, store, shift = self.book, now.state, now.store, now.shift
        v = [store.values["search", i][0] for i in range(4)]
        width, one_more = (word(1) << shift) - 1, a(place + 1)

        def claim(v: Sequence[z3.ExprRef], place: z3.BitVecRef) -> z3.BoolRef:
            one_more = a(place + 1)
            status = z3.If(state.wanted == one_more, word(1), z3.If(z3.ULE(shift, self.zeros), word(2), word(0)))
            ends = z3.And(z3.ULT(a(word(BINS)), state.wanted), v[0] == state.edge, v[1] == v[0] + width, v[2] == state.wanted,
                          v[3] == 1)
            found = z3.And(z3.ULT(place, BINS), z3.ULT(a(place), state.wanted), z3.ULE(state.wanted, one_more),
                           v[0] == state.edge + ((2047 - place) << shift), v[1] == v[0] + width,
                           v[2] == state.wanted - a(place), v[3] == status)
            return z3.Or(ends, found)

        inside = z3.And(z3.ULT(THREAD, self.threads), store.guard)
        stored = book.show("what the thread stores", z3.Implies(inside, claim(v, place)), *given, opaque=held)
        after = [store.values["search", i][2] for i in range(4)]
        self.place = replaced(place, THREAD, store.witness)
        hidden = [replaced(t, THREAD, store.witness) for t in (*v, store.guard, place)]
        return book.show("what the search holds after a pass", claim(after, self.place), stored.at((THREAD, store.witness)),
                         store.effect, written, opaque=sorted(hidden, key=_size, reverse=True))

    def _next(self, now: Pass) -> State:
        """Return the state after a pass that found the bin, where the search goes on or is cut."""
        book, state, shift, m, e = self.book, now.state, now.shift, LAST, now.state.edge
        span, offset = now.span, KEY - now.state.edge
        place, low, power = z3.LShR(offset, shift), (2047 - m) << shift, word(1) << shift
        a = lambda n: self.all(now.above, n)
        instances = [f.at((X, x), (Y, 2047 - m), (S, shift)) for x in (offset, span) for f in (self.least, self.beyond)]
        instances += [self.small.at((Y, 2047 - m), (S, shift)), now.facts["fits"], now.facts["bins"], state.order, state.high]
        there = z3.And(z3.ULT(m, BINS), z3.ULE(2047 - m, z3.LShR(span, shift)))
        room = book.show("a bin lies within the span", z3.Implies(there, z3.ULE(low, span)), *instances,
                         opaque=[place, offset, shift, span])
        if now.number:
            whole = book.show("a whole bin does", z3.Implies(there, z3.ULE(low + (power - 1), span)), *instances, now.facts["shift"],
                              opaque=[place, offset, shift, span])
            instances.append(whole)
        hidden = [place, z3.LShR(span, shift), low, power, shift]
        keys = {"keys": state.within, "known": z3.ULE(KEY, state.top)} if not now.number else {}
        start, end = e + low, e + low + (power - 1)
        over = added(book, "what is above a bin", (self.exceeds, (end,)), [(self.exceeds, (state.top,)), (now.above, (m,))],
                     *instances, room, when=there, opaque=hidden, **keys)
        upon = added(book, "what is from a bin on", (self.reaches, (start,)),
                     [(self.exceeds, (state.top,)), (now.above, (m + 1,))], *instances, room, when=there, opaque=hidden, **keys)
        after = [now.store.values["search", i][2] for i in range(4)]
        found = z3.And(z3.ULT(m, BINS), z3.ULT(a(m), state.wanted), z3.ULE(state.wanted, a(m + 1)))
        valid = book.show("the bin is not empty", z3.Implies(found, there), now.facts["one more"], now.facts["empty"],
                          opaque=[shift, span])
        at_place = [(LAST, self.place)]
        facts = [f.at(*at_place) for f in (over, upon, valid, room, *instances[4:5], *([instances[-1]] if now.number else []))]
        facts += [now.facts["rising"].at((LAST, self.place), (schematic("more"), self.place + 1)), now.facts["fits"]]
        facts += [now.facts["outcome"], state.balance, state.order, state.high]
        return self._after(now, after, facts, [self.place, shift])

    def _after(self, now: Pass, after: Sequence[z3.ExprRef], facts: Sequence[Fact], hidden: Sequence[z3.ExprRef]) -> State:
        book, (edge, top, wanted, status) = self.book, after

        def claim(statement: str, goal: z3.BoolRef) -> Fact:
            return book.show(statement, z3.Implies(status != 1, goal), *facts, opaque=hidden)

        every = added(book, "what is from the edge on", (self.reaches, (now.state.edge,)),
                      [(self.exceeds, (now.state.top,)), (now.above, (word(BINS),))], now.facts["bins"], now.state.order,
                      when=z3.BoolVal(True), opaque=[z3.LShR(KEY - now.state.edge, now.shift), now.shift])
        reached = self.all(self.reaches, edge)
        ends = z3.Or(reached == self.k, z3.And(edge == 1, z3.ULT(reached, self.k)))
        more = now.facts["rising"].at((LAST, word(BINS)), (schematic("more"), word(BINS)))
        self.all_wanted = book.show("it ends with all from the edge on", z3.Implies(status == 1, ends), *facts, every, more,
                                    now.state.reached, opaque=hidden)
        self.positive_edge = book.show("1 <= edge", z3.ULE(1, edge), *facts, opaque=hidden)
        shift = now.shift
        narrow = z3.And(top - edge == (word(1) << shift) - 1, z3.ULE(shift, 10 if now.number else 21))
        limit = book.show("", z3.ULE(shift, (21, 10, 0)[now.number]), now.facts["shift"], opaque=[shift])
        return State(
            edge, top, wanted,
            claim("balance", z3.And(self.all(self.exceeds, top) + wanted == self.k, z3.ULE(1, wanted), z3.ULE(wanted, self.k))),
            claim("order", z3.And(z3.ULE(1, edge), z3.ULE(edge, top))),
            claim("reached", z3.UGE(reached, self.k)),
            book.show("narrow", z3.Implies(status != 1, narrow), *facts, limit, opaque=hidden),
            now.state.within,
            claim("high", z3.ULE(top, HIGH)),
        )  # fmt: skip

    def settled(self, state: State, now: Pass) -> State:
        """Return the state with what holds where the search is open."""
        status = now.store.values["search", 3][2]
        plain = lambda f: self.book.show("", f.formula.arg(1), f, *self._decided(), opaque=[now.shift])
        return replace(state, balance=plain(state.balance), order=plain(state.order), reached=plain(state.reached),
                       narrow=plain(state.narrow), high=plain(state.high))

    def _decided(self) -> list[Fact]:
        return self.run.decided

    def result(self, state: State, now: Pass) -> Fact:
        """Return what the search ends with."""
        book, edge, top, wanted = self.book, state.edge, state.top, state.wanted
        status, low = now.store.values["search", 3][2], 2**self.zeros - 1
        first = (edge + low) & (2**32 - 1 - low)
        known = {"keys": self.multiple, "known": KEY & low == 0}
        inside = z3.And(z3.ULE(edge, top), z3.ULE(edge, HIGH), z3.ULE(top - edge, low))
        same = added(book, "no key is between the edge and the first key", (self.reaches, (first,)), [(self.reaches, (edge,))],
                     when=inside, **known)
        over = added(book, "one key has room", (self.exceeds, (first,)), [(self.exceeds, (top,))],
                     when=z3.And(inside, z3.ULE(first, top)), **known)
        none = added(book, "no key has room", (self.reaches, (edge,)), [(self.exceeds, (top,))],
                     when=z3.And(inside, z3.UGT(first, top)), **known)
        above, reached = self.all(self.exceeds, first), self.all(self.reaches, first)
        cut = z3.And(above + wanted == self.k, z3.ULE(1, wanted), z3.ULE(wanted, self.k), z3.UGE(reached, self.k), z3.ULE(1, first))
        narrow = book.show("the cut bin has room for one key", z3.Implies(status == 2, z3.ULE(top - edge, low)),
                           now.facts["outcome"], state.narrow, now.facts["fits"], opaque=[self.place, now.shift])
        ended = book.show("the search ends", z3.Or(status == 1, status == 2), now.facts["outcome"], now.facts["shift"],
                          *self._decided(), opaque=[self.place, now.shift])
        exact = z3.Or(self.all(self.reaches, edge) == self.k,
                      z3.And(edge == 1, z3.ULT(self.all(self.reaches, edge), self.k)))
        goal = z3.And(z3.ULE(1, edge), z3.Or(z3.And(status == 1, exact), z3.And(status == 2, cut)))
        return book.show("the search ends with the k-th key", goal, same, over, none, narrow, ended, state.balance, state.order,
                         state.reached, state.high, self.all_wanted, self.positive_edge)


HIGH = 0xFF9FFFFF
"""No top is above it: the greatest key, and less than 2^21 more."""


def _size(term: z3.ExprRef) -> int:
    """Return how deep a term is, so that no term is inside one that is not deeper."""
    depth: dict[int, int] = {}
    open_ = [(term, False)]
    while open_:
        here, ready = open_.pop()
        if here.get_id() in depth:
            continue
        if ready or not here.children():
            depth[here.get_id()] = 1 + max((depth[c.get_id()] for c in here.children()), default=0)
        else:
            open_ += [(here, True), *((c, False) for c in here.children())]
    return depth[term.get_id()]


def _nested(term: z3.ExprRef, count: int) -> list[z3.ExprRef]:
    """Return the values that a variable had before so many stores under conditions, and after each."""
    found = [term]
    for _ in range(count):
        found.append(found[-1].arg(2))
    return found[::-1]


def _hidden(term: z3.BitVecRef) -> list[z3.BitVecRef]:
    """Return the operands of a maximum or minimum, outer ones first."""
    parts = [t for t in term.children()[1:] if not z3.is_bv_value(t)]
    return sorted(parts, key=lambda t: -t.get_id())


def _operands(term: z3.BitVecRef, kind: int) -> list[z3.BitVecRef]:
    """Return what nested maxima or minima are taken of."""
    if term.decl().kind() == z3.Z3_OP_ITE and term.arg(0).decl().kind() == kind:
        return [t for part in term.children()[1:] for t in _operands(part, kind)]
    return [term]
