"""Why the selection kernel lists the selected entries in order: steps for a ``Book``, after those of the search.

Word t of the ballots has the bits of keys 32 t, ..., 32 t + 31, which thread t goes through from the lowest one on. Where it
sees entry n it holds the bits from there on, C(n), and how many keys equal to the edge may still be taken (``Claims``).
"""

from __future__ import annotations

from collections.abc import Sequence

import z3

from .engine.execution import words
from .engine.execution.counting import INDEX, ITERATION, KEY, OTHER, THREAD, Fact, replaced, schematic
from .engine.execution.words import word
from .topk_claims import BITS, Claims, lowest, place_of
from .topk_search import S, X, Y
from .topk_steps import LIMIT, added, at, one, size

POINT = schematic("point")


def bit(x: z3.BitVecRef, j: z3.ExprRef | int) -> z3.BoolRef:
    """Return whether bit j of a word is set."""
    return z3.LShR(x, j) & 1 == 1


def cleared(x: z3.BitVecRef, j: z3.ExprRef | int) -> z3.BitVecRef:
    """Return a word without its lowest j bits."""
    return z3.LShR(x, j) << j


class Listing(Claims):
    """The steps for one run."""

    def listed(self, ended: Fact, multiple: Fact, zeros: int) -> None:
        """Show what is written where, given what the search ends with and that keys are multiples of 2^zeros."""
        self.aims = self.goals()
        self.claimed: dict[str, Fact] = {}
        self.naturals = self._naturals()
        self.walk = self._walk()
        self._words()
        self._of_words()
        self._prefix(self._chain())
        self._iterations()
        self._states()
        self._inverse()
        self._of_entries()
        self._first(ended, multiple, zeros)
        self._writes()
        self._nothing_else()

    def claim(self, name: str, *facts: Fact, opaque: Sequence[z3.ExprRef] = ()) -> Fact:
        """Show what is claimed under a name."""
        self.claimed[name] = self.show(name, self.aims[name], *facts, opaque=opaque)
        return self.claimed[name]

    def show(self, statement: str, goal: z3.BoolRef, *facts: Fact, opaque: Sequence[z3.ExprRef] = ()) -> Fact:
        """Ask the book, with deeper terms hidden first."""
        return self.book.show(statement, goal, *facts, opaque=sorted(opaque, key=size, reverse=True))

    def _starts(self) -> list[Fact]:
        return [at(p, self.edge)[0] for p in (self.above, self.equal)]

    def _steps(self, n: z3.ExprRef) -> list[Fact]:
        return [at(p, self.edge)[1].at((INDEX, n)) for p in (self.above, self.equal)]

    def _naturals(self) -> Fact:
        """Show that a, e and a + e rise, and that a(n) + e(n) <= n."""
        n, counts = INDEX, (self.a, self.e, self.c)
        rise = z3.Implies(z3.ULE(POINT, n), z3.And(*(z3.ULE(f(POINT), f(n)) for f in counts)))
        few = z3.And(*(z3.ULE(f(n), n) for f in counts))
        return self.book.induction("counts rise", self.entries, z3.And(rise, few), (self._starts(), self._steps(n)))

    def _walk(self) -> Fact:
        """Show that bits tell how the counts go on."""
        n, ballots = INDEX, [b.meaning for b in self.book.ballots]
        x, y = (bit(m(z3.LShR(n, 5)), n & 31) for m in (self.mask, self.ties))
        goal = z3.And(
            self.a(n + 1) == self.a(n) + one(z3.And(x, z3.Not(y))),
            self.e(n + 1) == self.e(n) + one(y),
            z3.Implies(y, x),
            self.taken(n) == z3.And(x, z3.Not(y)),
            self.tied(n) == y,
        )
        return self.show("bits count keys", z3.Implies(z3.ULT(n, self.entries), goal), *ballots, *self._steps(n))

    def _words(self) -> None:
        """Show how the lowest bit of a word is found, and the word without it."""
        inside, x, j, power = z3.ULT(S, BITS), X, S, word(1) << S
        here, next_ = cleared(x, j), cleared(x, j + 1)
        found = z3.If(bit(x, j), z3.And(lowest(here) == power, here ^ power == next_), here == next_)
        self.low = self.show("the lowest bit", z3.Implies(inside, found))
        self.tests = self.show("one bit", z3.Implies(inside, z3.And((Y & power == 0) == z3.Not(bit(Y, j)), power != 0)))
        self.which = self.show("which bit it is", z3.Implies(inside, place_of(power) == j))
        self.whole = self.show("all bits", cleared(x, 0) == x)

    def _chain(self) -> Fact:
        """Show that the counts of bits of a word are what its keys add to those of keys."""
        t, b, counts = THREAD, self.base, (self.a, self.e, self.c)
        parts = [self.mask(t) ^ self.ties(t), self.ties(t), self.mask(t)]
        sums: list[list[z3.BitVecRef]] = []

        def claim(j: int) -> z3.BoolRef:
            here = [count(b + j) == count(b) + s for count, s in zip(counts, sums[j - 1], strict=True)]
            return z3.Implies(self.inside, z3.And(*here))

        shift = z3.Implies(X == Y + S, X + POINT == Y + (S + POINT))
        shifted = self.show("sums of sums", shift)
        for j in range(BITS):
            ones = [z3.ZeroExt(BITS - 1, z3.Extract(j, j, x)) for x in parts]
            step = self.step.at((INDEX, word(j)))
            more = [n(b + j + 1) == n(b + j) + o for n, o in zip(counts, ones, strict=True)]
            now = self.show("one bit of a word", z3.Implies(self.inside, z3.And(*more)), step,
                            opaque=[n(m) for n in counts for m in (b + j + 1, b + j) if not z3.is_bv_value(n(m))])  # fmt: skip
            if not sums:
                sums.append(ones)
                fact = self.show("the first bit of a word", claim(1), now)
                continue
            last, facts = sums[-1], [fact, now]
            sums.append([s + o for s, o in zip(last, ones, strict=True)])
            for n, s, o in zip(counts, last, ones, strict=True):
                facts.append(shifted.at((X, n(b + j)), (Y, n(b)), (S, s), (POINT, o)))
            hidden = [x for n, s, o, new in zip(counts, last, ones, sums[-1], strict=True)
                      for x in (n(b + j) + o, n(b) + s, n(b) + new)]  # fmt: skip
            fact = self.show("bits of a word", claim(j + 1), *facts, opaque=sorted(hidden, key=size, reverse=True))
        self.counts = sums[-1]
        return fact

    def _prefix(self, chain: Fact) -> None:
        """Show that the prefix sums of the words are the counts before a thread, which do not carry."""
        total, _ = self.book.totals[-1]
        start, step = self.book.meanings[total.name()]
        n, hidden = INDEX, [replaced(s, THREAD, INDEX) for s in self.counts]
        goal = total(n) == self.a(n * BITS) + (self.e(n * BITS) << 16)
        sums = self.book.induction("prefix sums count words", self.threads, goal, ([start, *self._starts()],
                                   [step, chain.at((THREAD, n))]), opaque=hidden)  # fmt: skip
        halves = z3.And(total(n) & 0xFFFF == self.a(n * BITS), z3.LShR(total(n), 16) == self.e(n * BITS))
        few = self.naturals.at((INDEX, n * BITS), (POINT, n * BITS))
        self.prefix = self.show("no carry", z3.Implies(z3.ULE(n, self.threads), halves), sums, few)
        ends = [self.naturals.at((INDEX, self.base + BITS), (POINT, self.base))]
        runs = self.loop.count == self.number(THREAD, self.base + BITS)
        self.count = self.show("a thread has an iteration for each bit", z3.Implies(self.inside, runs), chain, *ends,
                               opaque=[s for s in self.counts if not z3.is_bv_value(s)])  # fmt: skip

    def _of_words(self) -> None:
        """Show what the bits of a word tell, by the number of the bit."""
        t, j, b = THREAD, INDEX, self.base
        goal = z3.substitute(self.walk.formula.arg(1), (INDEX, b + j))
        goal = z3.substitute(goal, (z3.LShR(b + j, 5), t), ((b + j) & 31, j))
        here = z3.And(self.inside, z3.ULT(j, BITS))
        more = self.c(b + j + 1) == self.c(b + j) + one(bit(self.mask(t), j))
        self.step = self.show("a bit of a word", z3.Implies(here, z3.And(goal, more)), self.walk.at((INDEX, b + j)))

    def _iterations(self) -> None:
        """Show that a thread runs an iteration for each bit."""
        t, j, b = THREAD, INDEX, self.base
        here = z3.And(self.inside, z3.ULT(j, BITS))
        ends = [self.c(n) for n in (b, b + j, b + j + 1, b + BITS)]
        rise = [self._low(b, b + j), self._low(b + j + 1, b + BITS)]
        seen = z3.Implies(bit(self.mask(t), j), z3.ULT(self.number(t, b + j), self.loop.count))
        few = z3.ULE(self.number(t, b + j), self.entries)
        self.more = self.show("an iteration for this bit", z3.Implies(here, z3.And(seen, few)),
                              self.step, *rise, self.count, opaque=[self.loop.count, *ends])  # fmt: skip

    def _state(self, i: z3.ExprRef, j: z3.ExprRef) -> z3.BoolRef:
        """Return what a thread holds in iteration i, having seen the keys of its word below j."""
        t, n = THREAD, self.base + j
        values = {"selected": cleared(self.mask(t), j), "left": self.room(n), "place": self.place(n)}
        return z3.And(*(held(t, i) == values[name] for name, held in self.held.items()))

    def _states(self) -> None:
        """Show by induction over the bits what a thread holds."""
        t, j, b = THREAD, INDEX, self.base
        whole = self.whole.at((X, self.mask(t)))
        first = self.show("what a thread holds at first", z3.Implies(self.inside, self._state(word(0), word(0))),
                          *(self.loop.entry[name, 0] for name in self.held), self.prefix.at((INDEX, t)), whole)  # fmt: skip
        i = self.number(t, b + j)
        goal = z3.Implies(self.inside, self._state(i, j))
        steps = [self.loop.step[name, 0].at((ITERATION, i)) for name in self.held]
        bits = [self.low.at((X, self.mask(t)), (S, j)), self.tests.at((Y, self.ties(t)), (S, j))]
        hidden = [self.loop.count, cleared(self.mask(t), j), cleared(self.mask(t), j + 1), word(1) << j]
        hidden += [bit(self.mask(t), j), bit(self.ties(t), j)]
        self.states = self.book.induction("what a thread holds at a bit", BITS, goal, ([first],
            [*steps, *bits, self.step, self.more, self._low(b + j)]),
            opaque=sorted(hidden, key=size, reverse=True))  # fmt: skip

    def _low(self, point: z3.ExprRef, n: z3.ExprRef | None = None) -> Fact:
        """Return how counts of the first n compare with those of fewer."""
        return self.naturals.at((INDEX, point if n is None else n), (POINT, point))

    def _inverse(self) -> None:
        """Show that each iteration sees a bit."""
        t, j, b, i = THREAD, INDEX, self.base, ITERATION
        number, seen = self.number(t, b + j), place_of(lowest(self.held["selected"](t, i)))
        found = z3.And(z3.ULT(seen, BITS), bit(self.mask(t), seen), self.number(t, b + seen) == i)
        here = z3.And(self.inside, z3.ULT(j, BITS), bit(self.mask(t), j), i == number)
        same = self.show("the bit of an iteration", z3.Implies(here, seen == j), self.states,
                         self.low.at((X, self.mask(t)), (S, j)), self.which.at((S, j)))  # fmt: skip
        each = self.show("its number", z3.Implies(here, found), same, opaque=[seen])
        later, first = self.number(t, b + (j + 1)), self.number(t, b)
        next_ = z3.Implies(z3.And(self.inside, z3.ULT(j, BITS)), later == number + one(bit(self.mask(t), j)))
        following = self.show("the number of the next bit", next_, self.step, opaque=[self.c(n) for n in (b + j, b)])
        none = self.show("no number", first == 0, opaque=[self.c(b)])
        goal = z3.Implies(z3.And(self.inside, z3.ULT(i, number)), found)
        self.seen = self.book.induction("each iteration sees a bit", BITS, goal, ([none], [each, following, self.more]),
            opaque=[found, later, number, bit(self.mask(t), j), self.loop.count])  # fmt: skip

    def _of_entries(self) -> None:
        """Restate what a thread holds, by the entry that it sees."""
        n = INDEX
        t, j = z3.LShR(n, 5), n & 31
        goal = z3.substitute(z3.substitute(self._state(self.number(THREAD, self.base + j), j), (THREAD, t)),
                             (t * BITS + j, n))  # fmt: skip
        self.holds = self.show("what is held where an entry is seen", z3.Implies(z3.ULT(n, self.entries), goal),
                               self.states.at((THREAD, t), (INDEX, j)))  # fmt: skip

    def _first(self, ended: Fact, multiple: Fact, zeros: int) -> None:
        """Show that the selected are the first of the order, and k of them or all that there are."""
        book, n, m, facts = self.book, INDEX, OTHER, [ended, *self.run.decided]
        few, total = self._low(n), self.place(self.entries)
        rank = self.claim("a place is how many are selected before", *self._steps(n), few)
        self.claim("none are selected before the first entry", *self._starts())
        before = z3.And(z3.ULT(n, m), z3.ULE(m, self.entries))
        rise = z3.And(z3.ULE(self.place(n), n), z3.ULE(self.place(n + 1), self.place(m)))
        rising = self.show("places rise", z3.Implies(before, rise), self._low(n + 1, m), few, self._low(m))
        apart = self.claim("later places are further", rank, rising, opaque=[self.place(i) for i in (n + 1, n)])
        if self.cut:
            reaches = book.predicate(z3.ULE(LIMIT, KEY), LIMIT)
            parts = [(self.above, (self.edge,)), (self.equal, (self.edge,))]
            facts.append(added(book, "keys from the edge on", (reaches, (self.edge,)), parts))
        enough = z3.Or(
            total == self.k, z3.And(z3.ULT(total, self.k), z3.ULE(self.edge, 2**zeros), z3.BoolVal(not self.cut))
        )
        whole = self.show("k are selected, or all", z3.And(enough, z3.ULE(1, self.edge)), *facts,
                          self._low(word(self.entries)))  # fmt: skip
        self.claim("at most k are selected", whole, opaque=[total])
        self.claim("what is selected may be", whole)
        self.claim("if fewer are, all that may be selected are", whole, multiple, opaque=[total])
        self.claim("what comes before a selected entry is selected", self._low(m, n))
        here = z3.And(z3.ULT(n, self.entries), self.chosen(n))
        self.fits = self.show("its place is below k", z3.Implies(here, z3.ULT(self.place(n), self.k)),
                              apart.at((OTHER, word(self.entries))), whole)  # fmt: skip

    def _writes(self) -> None:
        """Show that each selected entry is written to its place, nothing else is, and -1 to the places after them."""
        n = INDEX
        t, j, number = z3.LShR(n, 5), n & 31, self.number(z3.LShR(n, 5), n)
        sel, inside, count = (
            self.held["selected"](t, number),
            z3.ULT(n, self.entries),
            replaced(self.loop.count, THREAD, t),
        )
        bits = [f.at((X, self.mask(t)), (Y, self.ties(t)), (S, j)) for f in (self.low, self.tests, self.which)]
        seen = z3.And(place_of(lowest(sel)) == j, (self.ties(t) & lowest(sel) == 0) == z3.Not(self.tied(n)))
        has = z3.And(inside, bit(self.mask(t), j))
        sees = self.show("the entry that is seen", z3.Implies(has, seen), self.holds, self.walk, *bits)
        early = self.show("an iteration for this entry", z3.Implies(has, z3.ULT(number, count)),
                          self.more.at((THREAD, t), (INDEX, j)), opaque=[count])  # fmt: skip
        valid = self.claim("a selected entry is one of the row's", self.claimed["what is selected may be"],
                           self.run.meaning, *self.run.sizes)  # fmt: skip
        least = words.binary("min", words.leading_zeros(lowest(sel)), word(31), "int32")
        self.claim("a selected entry is written to its place", self.holds, sees, early, valid, self.fits, self.walk,
                   *self.run.sizes, opaque=[count, least, lowest(sel)])  # fmt: skip
        for name in self.aims:
            if name.startswith("-1"):
                self.claim(name, self.prefix.at((INDEX, word(self.threads))), self.claimed["at most k are selected"],
                           self._low(word(self.entries)))  # fmt: skip

    def _nothing_else(self) -> None:
        """Show that each write of the loop is that of a selected entry, in the iteration that sees it."""
        t, i = THREAD, ITERATION
        seen = place_of(lowest(self.held["selected"](t, i)))
        n, runs = self.base + seen, z3.And(self.inside, z3.ULT(i, self.loop.count))
        facts = [f.at((X, self.mask(t)), (Y, self.ties(t)), (S, seen)) for f in (self.low, self.tests)]
        facts += [f.at((INDEX, seen)) for f in (self.states, self.step)]
        found = self.show("an iteration that is run sees a bit", z3.Implies(runs,
            z3.And(z3.ULT(seen, BITS), bit(self.mask(t), seen), self.number(t, n) == i)),
            self.seen.at((INDEX, word(BITS))), self.count, opaque=[seen, self.loop.count])  # fmt: skip
        self.claim("each write of the loop is that of a selected entry, in the iteration that sees it", found, *facts,
                   self._low(n), opaque=[self.loop.count, seen])  # fmt: skip
