"""What is claimed of the listing of a selection kernel: which entries are selected, and what is written where.

Of the first n keys a(n) are taken whatever stands before them, and e(n) are equal to the edge and taken only if fewer than w
such stand before them; where all from the edge on are wanted there are none of these. So C(n) = a(n) + min(w, e(n)) of the
first n are selected. Thread t has the entries 32 t, ..., 32 t + 31. In iteration i it sees the entry n of them with
a(n) + e(n) - a(32 t) - e(32 t) = i.
"""

from __future__ import annotations

from collections.abc import Callable

import z3

from .engine.execution import words
from .engine.execution.counting import INDEX, ITERATION, KEY, OTHER, THREAD, replaced
from .engine.execution.run import Run
from .engine.execution.words import word
from .topk_steps import LIMIT, of, one

Index = Callable[[z3.BitVecRef], z3.BitVecRef]
BITS = 32
_HELD = "selected", "left", "place"  # what a thread goes on with from one iteration to the next
_BLOCK = z3.BitVec("blockIdx.x", 32), z3.BitVec("blockIdx.y", 32)


def at_most(x: z3.BitVecRef, y: z3.BitVecRef) -> z3.BitVecRef:
    """Return the smaller one, as the kernel has it."""
    return words.binary("min", x, y, "uint32")


def lowest(x: z3.BitVecRef) -> z3.BitVecRef:
    """Return the lowest bit that is set."""
    return x & (0 - x)


def place_of(x: z3.BitVecRef) -> z3.BitVecRef:
    """Return which bit is set, of a word in which one is."""
    return 31 - words.binary("min", words.leading_zeros(x), word(31), "int32")


class Claims:
    """The claims for one run, in which w keys equal to the edge are wanted, or all.

    Args:
        run: of a kernel that is read to its end.
        wanted: w.
        k: of the operator.
        index: returns the row's index that an entry of the block has, -1 if none.
        length: of the row.
    """

    def __init__(self, run: Run, wanted: z3.BitVecRef, k: int, index: Index, length: z3.BitVecRef) -> None:
        self.run, self.book, self.w, self.k, self.index, self.length = run, run.book, wanted, k, index, length
        self.edge = run.book.ballots[0].formula.arg(1)
        self.threads, self.entries, self.inside = run.book.threads, run.book.entries, z3.ULT(THREAD, run.book.threads)
        book, self.cut = self.book, len(run.book.ballots) > 1
        above = z3.UGT(KEY, LIMIT) if self.cut else z3.ULE(LIMIT, KEY)
        self.above, self.equal = book.predicate(above, LIMIT), book.predicate(KEY == LIMIT, LIMIT)
        self.selected = run.book.ballots[0]
        self.equals = run.book.ballots[1] if self.cut else None
        (self.loop,) = run.loops
        self.held = {name: f for (name, _), f in self.loop.held.items() if name in _HELD}
        self.base = THREAD * BITS

    # Functions of entries

    def a(self, n: z3.ExprRef | int) -> z3.BitVecRef:
        """Return how many of the first n keys are taken whatever stands before them."""
        return self.above.count(n, self.edge)

    def e(self, n: z3.ExprRef | int) -> z3.BitVecRef:
        """Return how many of the first n keys are taken only if there is room."""
        return self.equal.count(n, self.edge) if self.cut else word(0)

    def c(self, n: z3.ExprRef | int) -> z3.BitVecRef:
        """Return how many of the first n keys have a bit."""
        return self.a(n) + self.e(n)

    def place(self, n: z3.ExprRef | int) -> z3.BitVecRef:
        """Return C(n), how many of the first n keys are selected."""
        return self.a(n) + at_most(self.w, self.e(n))

    def room(self, n: z3.ExprRef) -> z3.BitVecRef:
        """Return how many keys equal to the edge may still be taken after the first n."""
        return self.w - at_most(self.w, self.e(n))

    def taken(self, n: z3.ExprRef) -> z3.BoolRef:
        """Return whether key n is taken whatever stands before it."""
        return replaced(of(self.above, self.edge), KEY, self.book.key(n))

    def tied(self, n: z3.ExprRef) -> z3.BoolRef:
        """Return whether key n is taken only if there is room."""
        return self.book.key(n) == self.edge if self.cut else z3.BoolVal(False)

    def chosen(self, n: z3.ExprRef) -> z3.BoolRef:
        """Return whether key n is selected."""
        return z3.Or(self.taken(n), z3.And(self.tied(n), z3.ULT(self.e(n), self.w)))

    def mask(self, t: z3.ExprRef) -> z3.BitVecRef:
        """Return word t of the selection."""
        return self.selected.word(t)

    def ties(self, t: z3.ExprRef) -> z3.BitVecRef:
        """Return word t of the keys that equal the edge."""
        return self.equals.word(t) if self.equals else word(0)

    def number(self, t: z3.ExprRef, n: z3.ExprRef) -> z3.BitVecRef:
        """Return in which iteration thread t sees entry n."""
        return self.c(n) - self.c(t * BITS)

    # Claims

    def goals(self) -> dict[str, z3.BoolRef]:
        """Return what is claimed, for every entry n, other one m, thread and iteration."""
        return {**self._order(), **self._entries(), **self._rest()}

    def _order(self) -> dict[str, z3.BoolRef]:
        """Return that the selected entries are the first of the order, and k or all that may be selected."""
        n, m, key, total = INDEX, OTHER, self.book.key, self.place(self.entries)
        before = z3.Or(z3.UGT(key(m), key(n)), z3.And(key(m) == key(n), z3.ULT(m, n)))
        some = z3.And(z3.ULT(n, self.entries), z3.ULT(total, self.k), z3.ULE(1, key(n)))
        later = z3.And(self.chosen(n), z3.ULT(n, m), z3.ULE(m, self.entries))
        return {
            "at most k are selected": z3.ULE(total, self.k),
            "if fewer are, all that may be selected are": z3.Implies(some, self.chosen(n)),
            "what is selected may be": z3.Implies(self.chosen(n), z3.ULE(1, key(n))),
            "what comes before a selected entry is selected":
                z3.Implies(z3.And(z3.ULT(n, self.entries), before, self.chosen(n)), self.chosen(m)),
            "none are selected before the first entry": self.place(0) == 0,
            "a place is how many are selected before":
                z3.Implies(z3.ULT(n, self.entries), self.place(n + 1) == self.place(n) + one(self.chosen(n))),
            "later places are further": z3.Implies(later, z3.ULT(self.place(n), self.place(m))),
        }  # fmt: skip

    def _entries(self) -> dict[str, z3.BoolRef]:
        """Return that each selected entry is written to its place, and nothing else by the loop."""
        n, write = INDEX, self.run.writes[0]
        t, i = z3.LShR(n, 5), self.number(z3.LShR(n, 5), n)
        here = z3.And(z3.ULT(n, self.entries), self.chosen(n))
        guard, value, *index = (
            z3.substitute(x, (THREAD, t), (ITERATION, i)) for x in (write.guard, write.value, *write.place)
        )
        where = [x == y for x, y in zip(index, (*_BLOCK, self.place(n)), strict=True)]
        seen = THREAD * BITS + place_of(lowest(self.held["selected"](THREAD, ITERATION)))
        mine = z3.And(z3.LShR(seen, 5) == THREAD, self.number(THREAD, seen) == ITERATION)
        of_one = z3.And(z3.ULT(seen, self.entries), mine, self.chosen(seen))
        return {
            "a selected entry is one of the row's":
                z3.Implies(here, z3.And(self.index(n) >= 0, self.index(n) < self.length)),
            "a selected entry is written to its place":
                z3.Implies(here, z3.And(guard, value == self.index(n), *where)),
            "each write of the loop is that of a selected entry, in the iteration that sees it":
                z3.Implies(write.guard, of_one),
        }  # fmt: skip

    def _rest(self) -> dict[str, z3.BoolRef]:
        """Return that thread t writes -1 to places t, t + threads and so on, if they are beyond the last and below k."""
        writes, total = self.run.writes[1:], self.place(self.entries)
        if len(writes) * self.threads < self.k or {w.buffer for w in self.run.writes} != {"out"}:
            raise ValueError("expected -1 to be written to each place below k, and nothing to other buffers")
        found = {}
        for number, write in enumerate(writes):
            slot = THREAD + number * self.threads
            here = z3.And(self.inside, ITERATION == 0, z3.ULE(total, slot), z3.ULT(slot, self.k))
            same = [x == y for x, y in zip(write.place, (*_BLOCK, slot), strict=True)]
            found[f"-1 is written to the places after them, {number}"] = z3.And(
                write.guard == here, write.value == -1, *same
            )
        return found


def whole(run: Run, k: int, length: z3.BitVecRef) -> dict[str, z3.BoolRef]:
    """Return that a row of at most k entries is listed whole by its first piece, and -1 after it and by the other pieces."""
    found = {"the row has at most k entries": z3.And(length >= 0, length <= k)}
    threads, first = run.book.threads, _BLOCK[1] == 0
    if len(run.writes) * threads < k or {w.buffer for w in run.writes} != {"out"}:
        raise ValueError("expected each place below k to be written, and nothing to other buffers")
    for number, write in enumerate(run.writes):
        slot = THREAD + number * threads
        here = z3.And(z3.ULT(THREAD, threads), ITERATION == 0, z3.ULT(slot, k))
        value = z3.If(z3.And(first, slot < length), slot, word(-1))
        same = [x == y for x, y in zip((write.value, *write.place), (value, *_BLOCK, slot), strict=True)]
        found[f"the row's entries are written, {number}"] = z3.And(write.guard == here, z3.Implies(here, z3.And(*same)))
    return found
