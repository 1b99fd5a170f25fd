"""Folds over the threads of a block as terms: new functions of a thread, with what is known of them."""

from __future__ import annotations

import numpy as np
import z3

from ..base.errors import Unsupported
from . import folds, words
from .counting import OTHER, THREAD, Book, Extremum
from .folds import Fold, Value

Thing = Value | Fold


class Meanings:
    """The functions that folds of one run were made.

    Args:
        book: of the run, which is given what is known of them.
    """

    def __init__(self, book: Book) -> None:
        self.book, self.threads = book, book.threads
        self._alike: dict[int, int] = {}  # terms that are the same in aligned groups of 2^j threads, by number
        self._ghosts: dict[tuple[object, ...], z3.FuncDeclRef] = {}

    def plain(self, a: Thing) -> Value:
        """Return a fold as a term: a new function of the thread, with what is known of it."""
        if isinstance(a, Value):
            return a
        if a.op in ("min", "max"):
            j, first = folds.grouped(a, self._alike.get(a.term.get_id(), 0))
            if not np.array_equal(first >> j, np.arange(self.threads) >> j):
                raise Unsupported("a maximum or minimum over other threads")
            return Value(self._extremum(a, j)(THREAD if 2**j < self.threads else words.word(0)))
        if a.op == "add":
            count = folds.prefixes(a)
            total = self._sum(a)
            steps = count - np.arange(self.threads)
            if (count == count[0]).all():
                return Value(total(words.word(int(count[0]))))
            if (steps == steps[0]).all():
                return Value(total(THREAD + int(steps[0])))
        raise Unsupported("what threads tell one another, as a number")

    def regrouped(self, a: Thing) -> Thing:
        """Return a maximum or minimum over groups as the value of one thread of each."""
        if isinstance(a, Fold) and a.op in ("min", "max"):
            j, first = folds.grouped(a, self._alike.get(a.term.get_id(), 0))
            rows = np.eye(self.threads, dtype=folds.COUNT)[first >> j << j]
            return Fold(None, self._extremum(a, j)(THREAD), rows)
        return a

    def _ghost(self, *key: object) -> tuple[z3.FuncDeclRef, bool]:
        """Return a function of that name, and whether it is new."""
        new = key not in self._ghosts
        if new:
            sort = z3.BitVecSort(32)
            self._ghosts[key] = z3.Function(f"{key[0]}#{len(self._ghosts)}", sort, sort)
        return self._ghosts[key], new

    def _sum(self, a: Fold) -> z3.FuncDeclRef:
        """Return s with s(n) = Σ_{t<n} f(t)."""
        total, new = self._ghost("sum", a.term.get_id())
        if new:
            self.book.sums(total, a.term)
        return total

    def _extremum(self, a: Fold, j: int) -> z3.FuncDeclRef:
        """Return m, the extremum of f in the group of 2^j threads of a thread, which takes it."""
        extremum, new = self._ghost(str(a.op), a.term.get_id(), j)
        if new:
            at, (where, _) = extremum(THREAD), self._ghost("where", extremum.name())
            f = a.term
            self._alike[at.get_id()] = j
            of = z3.substitute(f, (THREAD, OTHER))
            same = z3.LShR(THREAD, j) == z3.LShR(OTHER, j)
            inside = z3.And(z3.ULT(THREAD, self.threads), z3.ULT(OTHER, self.threads))
            bound = z3.ULE(at, of) if a.op == "min" else z3.UGE(at, of)
            one = where(THREAD)
            taken = z3.And(z3.LShR(one, j) == z3.LShR(THREAD, j), at == z3.substitute(f, (THREAD, one)))
            bound = self.book.given(z3.Implies(z3.And(inside, same), bound))
            taken = self.book.given(z3.Implies(z3.ULT(THREAD, self.threads), taken))
            self.book.extrema[extremum.name()] = Extremum(str(a.op), f, j, where, bound, taken)
        return extremum
