"""What is known of the words of a block: facts, what follows from them, and counts of keys.

A ``Fact`` is a formula over bit-vectors that holds of one run of a block, for all values of the schematic variables in it.
There are three ways to one. It is given, as what the kernel does, or as a definition. It is an instance of another one. Or
facts imply it: the book then keeps the condition that they do, and a layer has every condition proved. By induction a goal of
n is shown from that of 0, and from that of n for n + 1.

The keys of a block are key(0), ..., key(entries - 1). A ``Predicate`` is of one key, with parameters. Its count c satisfies

    c(0) = 0,   c(n + 1) = c(n) + [p(key(n))]   for n < entries,

and nothing else is said of it. Only what makes facts is trusted, not what asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import z3

from ..base.conditions import Condition, Site
from ..base.errors import Unsupported
from ..smt.bitvectors import of_term
from .words import word

_MARK = "?"
_WORD = z3.BitVecSort(32)


def schematic(name: str) -> z3.BitVecRef:
    """Return a variable that stands for any word."""
    return z3.BitVec(_MARK + name, 32)


THREAD, OTHER = schematic("thread"), schematic("other")
"""The index of any one thread in its block, and of another one."""
ITERATION = schematic("iteration")
"""The number of any one iteration of a loop that each thread runs by itself."""
_OWN = {str(THREAD), str(ITERATION)}
KEY, INDEX, BIN = schematic("key"), schematic("n"), schematic("bin")
"""The key that a predicate is of; what recurrences and inductions run over; an index into a table of counts."""


@of_term
def variables(term: z3.ExprRef) -> frozenset[str]:
    """Return the names of the constants in a term."""
    if z3.is_const(term):
        return frozenset([term.decl().name()] if term.decl().kind() == z3.Z3_OP_UNINTERPRETED else [])
    return frozenset().union(*(variables(child) for child in term.children()))


def uniform(term: z3.ExprRef) -> bool:
    """Return whether a term is the same in all threads, and in all iterations of their own loops."""
    return variables(term).isdisjoint(_OWN)


def replaced(term: z3.ExprRef, variable: z3.ExprRef, value: z3.ExprRef | int) -> z3.ExprRef:
    """Return a term with a value in the place of a variable."""
    return z3.substitute(term, (variable, word(value) if isinstance(value, int) else value))


@dataclass(frozen=True)
class Fact:
    """A formula that holds for all values of its schematic variables. Only a ``Book`` makes one."""

    formula: z3.BoolRef

    def at(self, *pairs: tuple[z3.ExprRef, z3.ExprRef | int]) -> Fact:
        """Return the instance with values in the place of schematic variables."""
        terms = [(v, word(t) if isinstance(t, int) else t) for v, t in pairs]
        if not all(str(v).startswith(_MARK) for v, _ in terms):
            raise ValueError(f"expected schematic variables, got {[v for v, _ in terms]}")
        return Fact(z3.substitute(self.formula, *terms))


@dataclass(frozen=True)
class Predicate:
    """A truth value of ``KEY``, and how many of the first n keys have it, for given values of the parameters."""

    formula: z3.BoolRef
    parameters: tuple[z3.ExprRef, ...]
    counted: z3.FuncDeclRef
    start: Fact
    step: Fact  # over INDEX and the parameters

    def count(self, n: z3.ExprRef | int, *values: z3.ExprRef | int) -> z3.BitVecRef:
        """Return how many of the first n keys have it."""
        return self.counted(*(word(v) if isinstance(v, int) else v for v in (n, *values)))


class Ballots(NamedTuple):
    """Words w of truth values of keys: bit n % 32 of w(n // 32) is that of key n."""

    formula: z3.BoolRef  # of ``KEY``
    word: z3.FuncDeclRef
    meaning: Fact  # of the bit of key(INDEX)


class Extremum(NamedTuple):
    """A function m of threads: the maximum or minimum of f over the aligned group of 2^j threads of each."""

    op: str
    term: z3.BitVecRef  # f, in THREAD
    j: int
    where: z3.FuncDeclRef  # a thread of the group, at which f is m
    bound: Fact  # m(THREAD) is at least, or at most, f(OTHER)
    taken: Fact


class ByThread(NamedTuple):
    """How many keys of one thread have a property, and those of the first n threads together."""

    own: z3.FuncDeclRef
    total: z3.FuncDeclRef
    meaning: Fact  # of own(INDEX)
    start: Fact
    step: Fact
    whole: Fact  # total(threads) is the count of all keys


class Book:
    """Facts of one run of a block, and the conditions that they hang on.

    Args:
        threads: of the block.
        slots: how many keys each of them holds: slot i of thread t is key(i threads + t).
    """

    def __init__(self, threads: int, slots: int) -> None:
        self.threads, self.slots, self.entries = threads, slots, threads * slots
        self.key = z3.Function("key of", _WORD, _WORD)
        self.facts: list[Fact] = []
        self.meanings: dict[str, tuple[Fact, ...]] = {}  # of functions of threads, by name
        self.extrema: dict[str, Extremum] = {}
        self.totals: list[tuple[z3.FuncDeclRef, z3.BitVecRef]] = []
        self.ballots: list[Ballots] = []
        self.conditions: list[Condition] = []
        self._goals: list[z3.BoolRef] = []
        self._predicates: dict[tuple[int, ...], Predicate] = {}

    def given(self, formula: z3.BoolRef) -> Fact:
        """Return a fact that is a definition or what the kernel does. Only those who read the kernel may ask for it."""
        self.facts.append(Fact(formula))
        return self.facts[-1]

    def show(self, statement: str, goal: z3.BoolRef, *facts: Fact, opaque: Sequence[z3.ExprRef] = ()) -> Fact:
        """Return a fact that others imply, once a layer has proved that they do, whatever the values of opaque terms are."""
        if not all(isinstance(fact, Fact) for fact in facts):
            raise TypeError(f"{statement}: expected facts")
        *formulas, claim = *(fact.formula for fact in facts), goal
        for number, term in enumerate(opaque):
            pair = term, z3.Const(f"opaque#{number}", term.sort())
            *formulas, claim = (z3.substitute(f, pair) for f in (*formulas, claim))
        self.conditions.append(Condition("selection", statement, tuple(formulas), claim, Site(statement)))
        self._goals.append(goal)
        return Fact(goal)

    def has(self, goal: z3.BoolRef) -> bool:
        """Return whether a goal was shown."""
        return any(goal.eq(shown) for shown in self._goals)

    def induction(
        self,
        statement: str,
        bound: int,
        goal: z3.BoolRef,
        cases: tuple[Sequence[Fact], Sequence[Fact]],
        opaque: Sequence[z3.ExprRef] = (),
    ) -> Fact:
        """Return that a goal holds for all ``INDEX`` from 0 to the bound, which is below 2^31.

        ``cases`` are the facts that show it at 0, and those by which it goes from n to n + 1.
        """
        base, step = cases
        if not 0 <= bound < 2**31:
            raise ValueError(f"{statement}: expected a bound from 0 below 2^31, got {bound}")
        below = z3.And(z3.ULT(INDEX, bound), goal)
        self.show(f"{statement}, at 0", replaced(goal, INDEX, 0), *base)
        self.show(
            f"{statement}, from n to n + 1", z3.Implies(below, replaced(goal, INDEX, INDEX + 1)), *step, opaque=opaque
        )
        return Fact(z3.Implies(z3.ULE(INDEX, bound), goal))

    def predicate(self, formula: z3.BoolRef, *parameters: z3.ExprRef) -> Predicate:
        """Return a predicate of ``KEY`` with some parameters, schematic variables other than ``KEY`` and ``INDEX``."""
        name = formula.get_id(), *(p.get_id() for p in parameters)
        if name not in self._predicates:
            marked = {v for v in variables(formula) if v.startswith(_MARK)}
            if not marked <= {str(KEY), *map(str, parameters)} or str(INDEX) in map(str, (KEY, *parameters)):
                raise ValueError(f"expected a predicate of a key and its parameters, got {formula}")
            counted = z3.Function(f"count#{len(self._predicates)}", *[_WORD] * (len(parameters) + 2))
            at, after = (counted(n, *parameters) for n in (INDEX, INDEX + 1))
            more = z3.If(replaced(formula, KEY, self.key(INDEX)), word(1), word(0))
            start = self.given(counted(word(0), *parameters) == 0)
            step = self.given(z3.Implies(z3.ULT(INDEX, self.entries), after == at + more))
            self._predicates[name] = Predicate(formula, parameters, counted, start, step)
        return self._predicates[name]

    def template(self, term: z3.ExprRef) -> tuple[z3.ExprRef, int]:
        """Return a term of one key with ``KEY`` in its place, and by how much that key's entry exceeds the thread."""
        found = _applications(term, self.key)
        if len(found) != 1:
            raise Unsupported("what is asked of keys is not of one key")
        (application,) = found.values()
        general = z3.substitute(term, (application, KEY))
        offset = z3.simplify(application.arg(0) - THREAD)
        if not uniform(general) or not z3.is_bv_value(offset):
            raise Unsupported("what is asked of keys is not the same of each")
        return general, offset.as_long()

    def ballot(self, formula: z3.BoolRef) -> Ballots:
        """Return the words of a truth value of ``KEY``."""
        for known in self.ballots:
            if known.formula.eq(formula):
                return known
        word_of = z3.Function(f"ballots#{len(self.ballots)}", _WORD, _WORD)
        bit = z3.LShR(word_of(z3.LShR(INDEX, 5)), INDEX & 31) & 1 == 1
        meaning = z3.Implies(z3.ULT(INDEX, self.entries), bit == replaced(formula, KEY, self.key(INDEX)))
        self.ballots.append(Ballots(formula, word_of, self.given(meaning)))
        return self.ballots[-1]

    def sums(self, total: z3.FuncDeclRef, term: z3.BitVecRef) -> None:
        """Let total(n) be the sum of a term over the first n threads."""
        after = total(INDEX) + replaced(term, THREAD, INDEX)
        start = self.given(total(word(0)) == 0)
        step = self.given(z3.Implies(z3.ULT(INDEX, self.threads), total(INDEX + 1) == after))
        self.meanings[total.name()] = start, step
        self.totals.append((total, term))

    def by_thread(self, predicate: Predicate) -> ByThread:
        """Return how many keys of threads have a property; those of all threads are all that have it."""
        name, given = predicate.counted.name(), predicate.parameters
        own, total = (z3.Function(f"{what} {name}", *[_WORD] * (len(given) + 2)) for what in ("own", "total"))
        ones = [
            z3.If(replaced(predicate.formula, KEY, self.key(INDEX + i * self.threads)), word(1), word(0))
            for i in range(self.slots)
        ]
        more = total(INDEX + 1, *given) == total(INDEX, *given) + own(INDEX, *given)
        return ByThread(
            own,
            total,
            self.given(own(INDEX, *given) == sum(ones, word(0))),
            self.given(total(word(0), *given) == 0),
            self.given(z3.Implies(z3.ULT(INDEX, self.threads), more)),
            self.given(total(word(self.threads), *given) == predicate.count(self.entries, *given)),
        )


def _applications(term: z3.ExprRef, function: z3.FuncDeclRef) -> dict[int, z3.ExprRef]:
    """Return where a function of what differs between threads is applied in a term, by number."""
    found: dict[int, z3.ExprRef] = {}
    seen, open_ = set(), [term]
    while open_:
        here = open_.pop()
        if here.get_id() not in seen:
            seen.add(here.get_id())
            if here.decl().eq(function):
                found[here.get_id()] = here
            open_ += [child for child in here.children() if not uniform(child)]
    return found
