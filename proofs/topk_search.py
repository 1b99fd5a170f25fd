"""Why the search of the selection kernel ends with the k-th key: steps for a ``Book``, which keeps what each hangs on.

e, t and w are the edge, the top and how many keys are wanted, as a histogram begins. Then

    #{key > t} + w = k,   1 <= w,   e <= t,   e = 1 or #{key >= e} >= k.

A histogram H of the keys from e to t by their bin (key - e) >> s gives a(n) = Σ_{m<n} H(2047 - m), the number of those in the
n last bins. The threads' prefix sums are a(bins τ). The bin of the w-th key is the 2047 - n with a(n) < w <= a(n + 1): there is
one unless a(2048) < w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import z3

from .engine.execution import words
from .engine.execution.counting import INDEX, KEY, OTHER, THREAD, Fact, Predicate, replaced, schematic
from .engine.execution.shared import Store
from .engine.execution.words import word
from .topk_groups import Search
from .topk_steps import BINS, HIGH, Known, State, added, bounded, nested, size


@dataclass(frozen=True)
class Pass:
    """One histogram: its terms, and what is known of them."""

    state: State
    number: int
    store: Store
    shift: z3.BitVecRef
    above: Predicate  # of the keys in the LAST last bins
    entries: int
    facts: dict[str, Fact]

    def last(self, n: z3.ExprRef | int) -> z3.BitVecRef:
        """Return a(n), how many keys from edge to top are in the n last bins."""
        return self.above.count(self.entries, n)

    @property
    def span(self) -> z3.BitVecRef:
        """From edge to top."""
        return self.state.top - self.state.edge


class Look(NamedTuple):
    """What a thread holds once it has looked at some of its bins, and its status before."""

    edge: z3.BitVecRef
    status: z3.BitVecRef
    wanted: z3.BitVecRef
    first_status: z3.BitVecRef


LAST, X, Y, S = (schematic(name) for name in ("last", "x", "y", "s"))
POWER = word(1) << S


class Passes(Search):
    """The steps for the histograms."""

    ended: Fact  # what the search ends with
    last_shift: z3.BitVecRef
    place: z3.BitVecRef

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
        self.ended = self.result(state, now)
        return state, now

    def _shifts(self) -> None:
        """Show how a shifted word compares, for any word x, shift s and bin y."""
        inside = z3.And(z3.ULE(S, 21), z3.ULE(Y, 2047))
        bin_ = z3.LShR(X, S)
        least = z3.Implies(inside, z3.UGE(bin_, Y) == z3.UGE(X, Y << S))
        beyond = z3.Implies(inside, z3.UGE(bin_, Y + 1) == z3.UGT(X, (Y << S) + (POWER - 1)))
        self.least, self.beyond = (
            self.book.show("y << s is the least of bin y", least),
            self.book.show("the greatest", beyond),
        )
        small = z3.Implies(inside, z3.And(z3.ULE(Y << S, 2**32 - 2**21), z3.ULE(POWER, 2**21), z3.ULE(1, POWER)))
        self.small = self.book.show("no bin wraps", small)

    def _pass(self, state: State, number: int) -> Pass:
        book, span = self.book, state.top - state.edge
        zeros, before = words.leading_zeros(span), [self.last_shift] if number else []
        shift = words.binary("max", words.binary("sub", word(21), zeros, "int32"), word(0), "int32")
        most = (2**32 - 1, 2**21 - 1, 2**10 - 1)[number]
        bound = z3.And(z3.ULE(shift, (21, 10, 0)[number]), z3.ULE(z3.LShR(span, shift), 2047))
        if number:
            whole = z3.ULE((z3.LShR(span, shift) << shift) + ((word(1) << shift) - 1), span)
            bound = z3.And(bound, whole)
        shifted = book.show(
            "the shift makes bins of the span",
            z3.Implies(z3.ULE(span, most), bound),
            state.narrow,
            opaque=[*before, span],
        )
        self.last_shift = shift
        shifted = book.show("the shift of this span", bound, shifted, state.narrow, opaque=[shift, span, *before])
        offset = KEY - state.edge
        place = z3.LShR(offset, shift)
        above = book.predicate(z3.And(z3.ULE(offset, span), z3.UGE(place + LAST, BINS)), LAST)
        now = Pass(state, number, self.run.shared.stores[number], shift, above, self.entries, {"shift": shifted})
        now.facts["fits"] = book.show("the shift is by bits of a word", z3.ULE(shift, 21), shifted, opaque=[shift])
        self._counts(now, self.run.shared.histograms[number])
        self._prefixes(now, self.run.shared.histograms[number])
        return now

    def _counts(self, now: Pass, histogram: Predicate) -> None:
        """Show how many keys the last bins have."""
        book, state, shift, span, above = self.book, now.state, now.shift, now.span, now.above
        shifted, offset = now.facts["shift"], KEY - state.edge
        place = z3.LShR(offset, shift)
        bins = book.show(
            "a key has one of the bins",
            z3.Implies(z3.ULE(offset, span), z3.ULE(place, 2047)),
            shifted,
            self.least.at((X, span), (Y, 2047), (S, shift)),
            self._monotone().at((X, offset), (Y, span), (S, shift)),
            opaque=[place, z3.LShR(span, shift), shift, offset, span],
        )
        now.facts["bins"] = bins
        m = LAST
        now.facts["one more"] = added(
            book,
            "one more bin",
            (above, (m + 1,)),
            [(above, (m,)), (histogram, (2047 - m,))],
            bins,
            shifted,
            when=z3.ULT(m, BINS),
            opaque=[place, shift, offset, span],
        )
        now.facts["none"] = added(book, "no bin", (above, (0,)), [], bins, opaque=[place, shift, offset, span])
        other = schematic("more")
        now.facts["rising"] = bounded(
            book,
            "more bins have no fewer keys",
            (above, (m,)),
            (above, (other,)),
            bins,
            when=z3.And(z3.ULE(m, other), z3.ULE(other, BINS)),
            opaque=[place, shift, offset, span],
        )
        empty = z3.UGT(2047 - m, z3.LShR(span, shift))
        now.facts["empty"] = added(
            book,
            "bins beyond the span are empty",
            (histogram, (2047 - m,)),
            [],
            bins,
            shifted,
            self._monotone().at((X, offset), (Y, span), (S, shift)),
            when=z3.And(z3.ULT(m, BINS), empty),
            opaque=[place, z3.LShR(span, shift), shift, offset, span],
        )

    def _prefixes(self, now: Pass, histogram: Predicate) -> None:
        """Show that the prefix sums over threads count the last bins."""
        book, number, above = self.book, now.number, now.above
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
            fact = book.show(
                "one more bin of a thread",
                z3.Implies(below, same),
                fact,
                self._one_more(now, first, q),
                opaque=[parts[q]],
            )
        after = self.all(above, (INDEX + 1) * self.bins)
        ends = book.show("the first bin of the next thread", after == self._last(now, first, self.bins))
        now.facts["prefix"] = book.induction(
            "prefix sums over threads count the last bins",
            self.threads,
            goal,
            ([start, now.facts["none"]], [step, fact, ends]),
            opaque=[parts[-1]],
        )

    def _offset(self) -> Fact:
        """Return that x compares with y + s as x - y with s, if x is not below y and y + s does not wrap."""
        if not hasattr(self, "_shown_offset"):
            upper, lower = z3.UGT(X, Y + S) == z3.UGT(X - Y, S), z3.UGE(X, Y + S) == z3.UGE(X - Y, S)
            below = z3.And(z3.ULT(X, Y + S), z3.ULE(X, Y + S))
            goal = z3.Implies(z3.UGE(Y + S, Y), z3.If(z3.UGE(X, Y), z3.And(upper, lower), below))
            self._shown_offset = self.book.show("offsets compare as words do", goal)
        return self._shown_offset

    def _monotone(self) -> Fact:
        if not hasattr(self, "_shift_monotone"):
            goal = z3.Implies(z3.And(z3.ULE(S, 21), z3.ULE(X, Y)), z3.ULE(z3.LShR(X, S), z3.LShR(Y, S)))
            self._shift_monotone = self.book.show("shifts are monotone", goal)
        return self._shift_monotone

    def _last(self, now: Pass, first: z3.BitVecRef, q: int) -> z3.BitVecRef:
        """Return now.last(first + q)."""
        return self.all(now.above, first + q if q else first)

    def _one_more(self, now: Pass, first: z3.BitVecRef, q: int) -> Fact:
        """Return now.last(first + q + 1) = now.last(first + q) + H(2047 - (first + q))."""
        histogram = self.run.shared.histograms[now.number]
        more = histogram.count(self.entries, 2047 - (first + q))
        goal = self._last(now, first, q + 1) == self._last(now, first, q) + more
        return self.book.show(
            "one more bin", z3.Implies(z3.ULT(first + q, BINS), goal), now.facts["one more"].at((LAST, first + q))
        )

    def _thread(self, now: Pass) -> None:
        """Show what a thread stores, that one does, and that no other one does."""
        book, state, store, bins = self.book, now.state, now.store, self.bins
        more, inside, first = schematic("more"), z3.ULT(THREAD, self.threads), THREAD * bins
        few = now.last(word(BINS))
        total, _ = book.totals[now.number]
        whole = book.show(
            "a sum over all threads", total(word(self.threads)) == few, now.facts["prefix"].at((INDEX, self.threads))
        )
        found, place, held = self._chain(now, first)
        hit = z3.And(z3.ULT(now.last(first), state.wanted), z3.ULE(state.wanted, now.last(first + bins)))
        none = z3.And(THREAD == 0, z3.ULT(few, state.wanted))
        rising = now.facts["rising"].at((LAST, first + bins), (more, word(BINS)))
        stores = book.show(
            "which thread stores",
            z3.Implies(inside, store.guard == z3.Or(none, hit)),
            found,
            whole,
            rising,
            *self._open(now),
            opaque=held,
        )
        self._exclusive(now, stores, first)
        goal = z3.Implies(z3.Not(store.written), z3.ULT(now.last(INDEX * bins), state.wanted))
        late = book.induction(
            "if none stores the key is in no bin",
            self.threads,
            goal,
            (
                [now.facts["none"], state.balance],
                [store.absent.at((THREAD, INDEX)), stores.at((THREAD, INDEX))],
            ),
            opaque=[replaced(store.guard, THREAD, INDEX)],
        )
        last = book.show(
            "some thread stores",
            store.written,
            late.at((INDEX, self.threads)),
            store.absent.at((THREAD, 0)),
            stores.at((THREAD, 0)),
            opaque=[replaced(store.guard, THREAD, 0)],
        )
        now.facts["outcome"] = self._outcome(
            now, place, (found, whole, rising, stores, now.facts["fits"], *self._open(now)), held, last
        )

    def _open(self, now: Pass) -> list[Fact]:
        """Return that the search is open, where that was decided."""
        return self.run.decided if now.number else []

    def _chain(self, now: Pass, first: z3.BitVecRef) -> tuple[Fact, z3.BitVecRef, list[z3.BitVecRef]]:
        """Return what edge, status and wanted of a thread are once it has looked at its bins."""
        book, state, store, shift = self.book, now.state, now.store, now.shift
        more, w = schematic("more"), state.wanted
        edges, wanteds = (
            nested(store.values["search", 0][0], self.bins),
            nested(store.values["search", 2][0], self.bins),
        )
        stored = store.guard.arg(0) if z3.is_and(store.guard) else store.guard
        statuses = nested(next(t for t in stored.children() if not z3.is_bv_value(t)), self.bins)
        conditions = [t.arg(0) for t in edges[1:]]
        befores = [c.arg(0).arg(0) for c in conditions] + [conditions[-1].arg(1).arg(1)]
        inside = z3.ULT(THREAD, self.threads)
        equal = book.show(
            "what is before a thread",
            z3.Implies(inside, befores[0] == now.last(first)),
            now.facts["prefix"].at((INDEX, THREAD)),
        )
        place = first
        b0 = now.last(first)

        looks = [Look(*each, statuses[0]) for each in zip(edges, statuses, wanteds, strict=True)]

        def claim(q: int, place: z3.BitVecRef) -> z3.BoolRef:
            return z3.Implies(inside, self._looked(now, looks[q], (b0, self._last(now, first, q)), place))

        fact = book.show("before it looks", claim(0, place), opaque=[shift])
        for q in range(self.bins):
            step = self._one_more(now, first, q)
            rising = now.facts["rising"].at((LAST, first + q), (more, first + q + 1))
            low = now.facts["rising"].at((LAST, first), (more, first + q))
            following = book.show(
                "what is before the next bin",
                z3.Implies(inside, befores[q + 1] == self._last(now, first, q + 1)),
                equal,
                step,
                opaque=[befores[q]],
            )
            later = first + q if q == 0 else z3.If(z3.ULE(w, self._last(now, first, q)), place, first + q)
            hidden = [shift, statuses[q], edges[q], wanteds[q], befores[q + 1], befores[q], *([place] if q else [])]
            fact = book.show(
                "after one more bin",
                claim(q + 1, later),
                fact,
                equal,
                following,
                rising,
                low,
                now.facts["fits"],
                opaque=sorted((t for t in hidden if not z3.is_bv_value(t)), key=size, reverse=True),
            )
            place, equal = later, following
        return fact, place, sorted([statuses[-1], edges[-1], wanteds[-1], place, shift], key=size, reverse=True)

    def _looked(
        self, now: Pass, look: Look, counts: tuple[z3.BitVecRef, z3.BitVecRef], place: z3.BitVecRef
    ) -> z3.BoolRef:
        """Return that a thread has found the bin at ``place`` or none, by a(n) before its bins and after those it looked at."""
        state, shift, w, (before, here) = now.state, now.shift, now.state.wanted, counts
        missed = z3.Or(z3.ULE(w, before), z3.ULT(here, w))
        kept = z3.And(missed, look.edge == state.edge, look.status == look.first_status, look.wanted == w)
        one_more = now.last(place + 1)
        end = z3.If(w == one_more, word(1), z3.If(z3.ULE(shift, self.zeros), word(2), word(3)))
        found = z3.And(
            z3.ULT(before, w),
            z3.ULE(w, here),
            z3.ULT(place, BINS),
            z3.ULT(now.last(place), w),
            z3.ULE(w, one_more),
            look.edge == state.edge + ((2047 - place) << shift),
            look.status == end,
            look.wanted == w - now.last(place),
        )
        return z3.Or(kept, found)

    def _exclusive(self, now: Pass, stores: Fact, first: z3.BitVecRef) -> Fact:
        """Show that no two threads store, and return it."""
        more, bins = schematic("more"), self.bins
        others = OTHER * bins
        rising = [
            now.facts["rising"].at((LAST, n), (more, m))
            for n, m in (
                (first + bins, others),
                (others + bins, first),
                (first + bins, word(BINS)),
                (others + bins, word(BINS)),
            )
        ]
        _, goal = self.run.shared.obligations[now.number]
        guard, other = now.store.guard, replaced(now.store.guard, THREAD, OTHER)
        return self.book.show(
            "one thread stores at most", goal, stores, stores.at((THREAD, OTHER)), *rising, opaque=[guard, other]
        )

    def _outcome(
        self,
        now: Pass,
        place: z3.BitVecRef,
        given: Sequence[Fact],
        held: Sequence[z3.ExprRef],
        written: Fact,
    ) -> Fact:
        """Return what the search holds after the pass."""
        book, state, store, shift = self.book, now.state, now.store, now.shift
        v = [store.values["search", i][0] for i in range(4)]
        width = (word(1) << shift) - 1

        def claim(v: Sequence[z3.ExprRef], place: z3.BitVecRef) -> z3.BoolRef:
            one_more = now.last(place + 1)
            status = z3.If(state.wanted == one_more, word(1), z3.If(z3.ULE(shift, self.zeros), word(2), word(0)))
            ends = z3.And(
                z3.ULT(now.last(word(BINS)), state.wanted),
                v[0] == state.edge,
                v[1] == v[0] + width,
                v[2] == state.wanted,
                v[3] == 1,
            )
            found = z3.And(
                z3.ULT(place, BINS),
                z3.ULT(now.last(place), state.wanted),
                z3.ULE(state.wanted, one_more),
                v[0] == state.edge + ((2047 - place) << shift),
                v[1] == v[0] + width,
                v[2] == state.wanted - now.last(place),
                v[3] == status,
            )
            return z3.Or(ends, found)

        inside = z3.And(z3.ULT(THREAD, self.threads), store.guard)
        stored = book.show("what the thread stores", z3.Implies(inside, claim(v, place)), *given, opaque=held)
        after = [store.values["search", i][2] for i in range(4)]
        self.place = replaced(place, THREAD, store.witness)
        hidden = [replaced(t, THREAD, store.witness) for t in (*v, store.guard, place)]
        return book.show(
            "what the search holds after a pass",
            claim(after, self.place),
            stored.at((THREAD, store.witness)),
            store.effect,
            written,
            opaque=sorted(hidden, key=size, reverse=True),
        )

    def _next(self, now: Pass) -> State:
        """Return the state after a pass that found the bin, where the search goes on or is cut."""
        book, state, shift, m, e = self.book, now.state, now.shift, LAST, now.state.edge
        span, offset = now.span, KEY - now.state.edge
        place, low, power = z3.LShR(offset, shift), (2047 - m) << shift, word(1) << shift
        instances = [f.at((X, x), (Y, 2047 - m), (S, shift)) for x in (offset, span) for f in (self.least, self.beyond)]
        fits, of_bins = now.facts["fits"], now.facts["bins"]
        instances += [self.small.at((Y, 2047 - m), (S, shift)), fits, of_bins, state.order, state.high]
        there = z3.And(z3.ULT(m, BINS), z3.ULE(2047 - m, z3.LShR(span, shift)))
        room = book.show(
            "a bin lies within the span",
            z3.Implies(there, z3.ULE(low, span)),
            *instances,
            opaque=[place, offset, shift, span],
        )
        if now.number:
            whole = book.show(
                "a whole bin does",
                z3.Implies(there, z3.ULE(low + (power - 1), span)),
                *instances,
                now.facts["shift"],
                opaque=[place, offset, shift, span],
            )
            instances.append(whole)
        ends = low + (power - 1)
        apart = [self._offset().at((X, KEY), (Y, e), (S, q)) for q in (low, ends, span)]
        hidden = [place, z3.LShR(span, shift), low, power, shift]
        known = None if now.number else Known(state.within, z3.ULE(KEY, state.top))
        premises = *instances, room, *apart
        over, upon = (
            added(
                book,
                name,
                bound,
                [(self.exceeds, (state.top,)), (now.above, (last,))],
                *premises,
                when=there,
                opaque=hidden,
                known=known,
            )
            for name, bound, last in (
                ("what is above a bin", (self.exceeds, (e + ends,)), m),
                ("what is from a bin on", (self.reaches, (e + low,)), m + 1),
            )
        )
        after = [now.store.values["search", i][2] for i in range(4)]
        found = z3.And(z3.ULT(m, BINS), z3.ULT(now.last(m), state.wanted), z3.ULE(state.wanted, now.last(m + 1)))
        one_more, empty = now.facts["one more"], now.facts["empty"]
        valid = book.show("the bin is not empty", z3.Implies(found, there), one_more, empty, opaque=[shift, span])
        at_place = [(LAST, self.place)]
        facts = [
            f.at(*at_place)
            for f in (over, upon, valid, room, *instances[4:5], *([instances[-1]] if now.number else []))
        ]
        facts += [now.facts["rising"].at((LAST, self.place), (schematic("more"), self.place + 1)), now.facts["fits"]]
        facts += [now.facts["outcome"], state.balance, state.order, state.high]
        return self._after(now, after, facts, [self.place, shift])

    def _after(
        self, now: Pass, after: Sequence[z3.ExprRef], facts: Sequence[Fact], hidden: Sequence[z3.ExprRef]
    ) -> State:
        book, (edge, top, wanted, status) = self.book, after

        def claim(statement: str, goal: z3.BoolRef) -> Fact:
            return book.show(statement, z3.Implies(status != 1, goal), *facts, opaque=hidden)

        every = added(
            book,
            "what is from the edge on",
            (self.reaches, (now.state.edge,)),
            [(self.exceeds, (now.state.top,)), (now.above, (word(BINS),))],
            now.facts["bins"],
            now.state.order,
            opaque=[z3.LShR(KEY - now.state.edge, now.shift), now.shift],
        )
        reached = self.all(self.reaches, edge)
        ends = z3.Or(reached == self.k, z3.And(edge == 1, z3.ULT(reached, self.k)))
        more = now.facts["rising"].at((LAST, word(BINS)), (schematic("more"), word(BINS)))
        self.all_wanted = book.show(
            "it ends with all from the edge on",
            z3.Implies(status == 1, ends),
            *facts,
            every,
            more,
            now.state.reached,
            opaque=hidden,
        )
        self.positive_edge = book.show("1 <= edge", z3.ULE(1, edge), *facts, opaque=hidden)
        self.low_edge = book.show("the edge is no higher than the top", z3.ULE(edge, HIGH), *facts, opaque=hidden)
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

        def plain(fact: Fact) -> Fact:
            return self.book.show(
                "the search goes on", fact.formula.arg(1), fact, *self.run.decided, opaque=[now.shift]
            )

        return replace(
            state,
            balance=plain(state.balance),
            order=plain(state.order),
            reached=plain(state.reached),
            narrow=plain(state.narrow),
            high=plain(state.high),
        )

    def result(self, state: State, now: Pass) -> Fact:
        """Return what the search ends with."""
        book, edge, top, wanted = self.book, state.edge, state.top, state.wanted
        status, low = now.store.values["search", 3][2], 2**self.zeros - 1
        first = (edge + low) & (2**32 - 1 - low)
        within = z3.ULE(top - edge, low)
        above, reached = self.all(self.exceeds, first), self.all(self.reaches, first)
        cut = z3.And(
            above + wanted == self.k,
            z3.ULE(1, wanted),
            z3.ULE(wanted, self.k),
            z3.UGE(reached, self.k),
            z3.ULE(1, first),
        )
        exact = z3.Or(reached == self.k, z3.And(edge == 1, z3.ULT(reached, self.k)))
        goal = z3.And(z3.ULE(1, edge), z3.ULE(1, first), z3.Or(z3.And(status == 1, exact), z3.And(status == 2, cut)))
        return book.show(
            "the search ends with the k-th key",
            goal,
            *self._one_key(state, first, low),
            *self._ended(state, now, z3.Implies(status == 2, within), z3.Or(status == 1, status == 2)),
            state.balance,
            state.order,
            state.reached,
            state.high,
            self.all_wanted,
            self.positive_edge,
            self.low_edge,
        )

    def _one_key(self, state: State, first: z3.BitVecRef, low: int) -> tuple[Fact, Fact, Fact]:
        """Return how keys count where at most one, ``first``, can lie from the edge to the top."""
        edge, top = state.edge, state.top
        known = Known(self.multiple, KEY & low == 0)
        inside = z3.And(z3.ULE(edge, top), z3.ULE(edge, HIGH), z3.ULE(top - edge, low))
        same = added(
            self.book,
            "no key is between the edge and the first key",
            (self.reaches, (first,)),
            [(self.reaches, (edge,))],
            when=z3.ULE(edge, HIGH),
            known=known,
        )
        over = added(
            self.book,
            "one key has room",
            (self.exceeds, (first,)),
            [(self.exceeds, (top,))],
            when=z3.And(inside, z3.ULE(first, top)),
            known=known,
        )
        none = added(
            self.book,
            "no key has room",
            (self.reaches, (edge,)),
            [(self.exceeds, (top,))],
            when=z3.And(inside, z3.UGT(first, top)),
            known=known,
        )
        return same, over, none

    def _ended(self, state: State, now: Pass, room: z3.BoolRef, end: z3.BoolRef) -> tuple[Fact, Fact]:
        """Return that a cut bin has room for one key, and that the search ends."""
        narrow = self.book.show(
            "the cut bin has room for one key",
            room,
            now.facts["outcome"],
            state.narrow,
            now.facts["fits"],
            opaque=[self.place, now.shift],
        )
        ended = self.book.show(
            "the search ends",
            end,
            now.facts["outcome"],
            now.facts["shift"],
            *self.run.decided,
            opaque=[self.place, now.shift],
        )
        return narrow, ended
