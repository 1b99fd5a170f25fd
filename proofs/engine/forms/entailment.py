"""Integer side conditions of the symbolic reading, decided by Z3.

Whether an index is in range, whether two indices are the same, whether a guard holds here: conditions are forms that are
0 or 1. They are decided under what is known: variables are bounded, integer inputs have the range that the contract
gives their elements, and control has passed certain guards. Whatever is not a polynomial of integers is an unknown
integer to Z3; an answer other than unsat leaves the condition undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import z3

from ..base.errors import Unsupported
from ..smt.unsatisfiable import unsatisfiable
from . import normal_form as nf
from .normal_form import Form
from .ring import Atom

_STEPS = 2_000_000
"""The steps that Z3 may take for one question."""


class Facts:
    """What is known, and what follows from it.

    Args:
        elements: for each integer input its least element, and the bound (excluded) of its elements or None.
        shapes: the shapes of those inputs, since what is said of elements holds only of those that exist.
    """

    def __init__(
        self,
        elements: Mapping[str, tuple[int, Form | None]] | None = None,
        shapes: Mapping[str, Sequence[Form]] | None = None,
    ) -> None:
        self.elements, self.shapes = dict(elements or {}), dict(shapes or {})
        self._below: dict[int, Form] = {}  # atom -> upper bound, excluded
        self._permanent: list[Form] = []
        self._forgotten: set[int] = set()
        self._path: list[Form] = []
        self._decided: dict[tuple[Form, tuple[Form, ...]], bool | None] = {}
        self._translations: dict[tuple[Form, ...], Translation] = {}  # by the path

    def bound(self, variable: Form, extent: Form) -> None:
        """Let a natural variable be less than the extent."""
        number = _atom(variable)
        if self._below.get(number, extent) is not extent:
            if self._forgotten:
                raise Unsupported(f"{variable} has the bound {extent}, not {self._below[number]} as was assumed")
            self._decided.clear()
            self._translations.clear()
        self._below[number] = extent

    def bound_fresh(self, index: Form, extent: Form) -> None:
        """Let a form be less than the extent, if it is one variable that has no bound yet."""
        if len(index.terms) == 1:
            ((monomial, coefficient),) = index.terms.items()
            number, exponent = monomial[0] if len(monomial) == 1 else (-1, 0)
            if (
                coefficient == exponent == 1
                and number not in self._below
                and isinstance(nf.atom_of(number), nf.Variable)
            ):
                self._below[number] = extent

    def extent(self, number: int) -> int | None:
        """Return the constant bound, excluded, of a variable by the number of its atom, or None."""
        bound = self._below[number].constant if number in self._below else None
        return None if bound is None else int(bound)

    def add(self, condition: Form) -> None:
        """Let a condition hold always."""
        self._permanent.append(condition)
        self._decided.clear()
        self._translations.clear()

    def forget(self, terms: Iterable[Form], known: Sequence[Form]) -> None:
        """Keep of quotients and maxima only what is given here, which must follow; they become unknown integers.

        Raises:
            ValueError: it does not follow.
        """
        if open_conditions := [c for c in known if not self.holds(c)]:
            raise ValueError(f"{open_conditions} do not follow from what is known")
        direct = {a for p in terms for m in p.terms for a, _ in m}
        self._forgotten |= {a for a in direct if isinstance(nf.atom_of(a), (nf.Apply, nf.Max))}
        for condition in known:
            self.add(condition)

    @contextmanager
    def assuming(self, *conditions: Form) -> Iterator[None]:
        """Let the conditions hold inside."""
        before = list(self._path)
        self._path += [c for c in conditions if c is not nf.ONE and c not in self._path]
        try:
            yield
        finally:
            self._path = before

    @property
    def path(self) -> tuple[Form, ...]:
        """The conditions assumed now."""
        return tuple(self._path)

    def decide(self, condition: Form) -> bool | None:
        """Return True if the condition follows from what is known, False if its negation does, else None."""
        if condition.constant is not None:
            return condition.constant == 1
        if condition in self._path:
            return True
        if nf.ONE - condition in self._path:
            return False
        key = condition, self.path
        if key not in self._decided:
            self._decided[key] = self._solve(condition)
        return self._decided[key]

    def holds(self, condition: Form) -> bool:
        """Return whether the condition follows from what is known."""
        return self.decide(condition) is True

    def same(self, a: Form, b: Form) -> bool:
        """Return whether two integers are known to be equal."""
        return a is b or self.holds(nf.indicator("eq", a - b, integer=True))

    def decide_all(self, p: Form) -> Form:
        """Return the form with each condition outside a sum replaced by 0 or 1 where that follows from what is known.

        So is the largest of several integers by the one that is.
        """
        values = {n: nf.of_atom(nf.atom_of(n)) for n in self._forgotten & nf.support(p)}
        for atom in sorted(nf.support(p)):
            inner = nf.atom_of(atom)
            if isinstance(inner, nf.Indicator) and inner.integer and not nf.has_bound(atom):
                known = self.decide(nf.of_atom(inner))
                if known is not None:
                    values[atom] = nf.ONE if known else nf.ZERO
            elif isinstance(inner, nf.Max) and self._integer(atom) and not nf.has_bound(atom):
                largest = self._largest(inner)
                if largest is not None:
                    values[atom] = largest
        return nf.substitute(p, values)

    def _largest(self, entries: nf.Max) -> Form | None:
        values = sorted((v for _, v in entries.entries), key=lambda v: v.id)
        return next((v for v in values if all(self._at_least(v, w) for w in values)), None)

    def _at_least(self, a: Form, b: Form) -> bool:
        return a is b or self.holds(nf.indicator("ge", a - b, integer=True))

    def _integer(self, number: int) -> bool:
        """Return whether an atom is known to be an integer: a variable, an element of an integer input, or made of such."""
        match nf.atom_of(number):
            case nf.Variable(_, kind):
                return kind != "real"
            case nf.Read(buffer, _):
                return buffer in self.elements
            case nf.Apply("floordiv", arguments):
                return all(map(self._integers, arguments))
            case nf.Max(entries):
                return all(c is nf.ONE and self._integers(v) for c, v in entries)
        return False

    def _integers(self, p: Form) -> bool:
        whole = all(c == int(c) for c in p.terms.values())
        return whole and all(e > 0 and self._integer(a) for m in p.terms for a, e in m)

    def _solve(self, condition: Form) -> bool | None:
        translation = self._known(self.path).copy()
        goal = translation.integer(condition) == 1
        for verdict, claim in ((True, z3.Not(goal)), (False, goal)):
            if unsatisfiable((*translation.facts, claim), _STEPS):
                return verdict
        return None

    def _known(self, path: tuple[Form, ...]) -> Translation:
        """Return what holds on a path, translated once for all paths that begin with it."""
        if path not in self._translations:
            if path:
                known = self._known(path[:-1]).copy()
                known.assume(path[-1])
            else:
                known = Translation(self._below, self.elements, self.shapes, self._forgotten)
                for condition in self._permanent:
                    known.assume(condition)
            self._translations[path] = known
        return self._translations[path]


class Translation:
    """Forms as Z3 integers; ``facts`` collects what is known of the atoms met, and what is assumed."""

    def __init__(
        self,
        below: Mapping[int, Form],
        elements: Mapping[str, tuple[int, Form | None]],
        shapes: Mapping[str, Sequence[Form]],
        forgotten: Iterable[int] = (),
    ) -> None:
        self.facts: list[Any] = []
        self._forgotten = forgotten
        self._below, self._elements, self._shapes = below, elements, shapes
        self._atoms: dict[int, Any] = {}

    def copy(self) -> Translation:
        """Return the same translation, to be extended independently."""
        other = Translation(self._below, self._elements, self._shapes, self._forgotten)
        other.facts, other._atoms = list(self.facts), dict(self._atoms)
        return other

    def assume(self, condition: Form) -> None:
        """Let a condition hold."""
        self.facts.append(self.integer(condition) == 1)

    def integer(self, p: Form) -> Any:
        """Translate a form with integer coefficients; any other form is an unknown integer."""
        if any(c != int(c) for c in p.terms.values()) or any(e != int(e) or e < 0 for m in p.terms for _, e in m):
            return z3.Int(f"form{p.id}")
        terms = [
            z3.Product(z3.IntVal(int(c)), *(self._atom(a) for a, e in m for _ in range(int(e))))
            for m, c in p.terms.items()
        ]
        return z3.Sum(*terms) if terms else z3.IntVal(0)

    def _atom(self, number: int) -> Any:
        if number not in self._atoms:
            known = number not in self._forgotten
            self._atoms[number] = self._translate(number, nf.atom_of(number)) if known else z3.Int(f"atom{number}")
            if number in self._below:
                self.facts.append(self._atoms[number] < self.integer(self._below[number]))
        return self._atoms[number]

    def _translate(self, number: int, atom: Atom) -> Any:
        match atom:
            case nf.Variable(name, kind) if kind != "real":
                value = z3.Int(name)
                if kind == "natural":
                    self.facts.append(value >= 0)
                return value
            case nf.Read(buffer, index) if buffer in self._elements:
                return self._element(buffer, [self.integer(i) for i in index])
            case nf.Apply("floordiv", (a, b)) if (b.constant or 0) > 0:
                return self.integer(a) / self.integer(b)
            case nf.Apply("floormod", (a, b)) if (b.constant or 0) > 0:
                return self.integer(a) % self.integer(b)
            case nf.Indicator(relation, inner, True):
                value = self.integer(inner)
                return z3.If(value >= 0 if relation == "ge" else value == 0, 1, 0)
            case nf.Indicator():
                value = z3.Int(f"atom{number}")
                self.facts.append(z3.And(value >= 0, value <= 1))
                return value
            case nf.Max(entries) if all(c is nf.ONE for c, _ in entries):
                return self._maximum([self.integer(v) for _, v in sorted(entries, key=lambda e: e[1].id)])
        return z3.Int(f"atom{number}")

    def _element(self, buffer: str, index: list[Any]) -> Any:
        value = z3.Function(buffer, *[z3.IntSort()] * (len(index) + 1))(*index)
        low, high = self._elements[buffer]
        extents = map(self.integer, self._shapes.get(buffer, ()))
        exists = [z3.BoolVal(True), *(z3.And(i >= 0, i < n) for i, n in zip(index, extents, strict=False))]
        self.facts.append(z3.Implies(z3.And(*exists), value >= low))
        if high is not None:
            self.facts.append(z3.Implies(z3.And(*exists), value < self.integer(high)))
        return value

    @staticmethod
    def _maximum(values: Iterable[Any]) -> Any:
        first, *rest = values
        for value in rest:
            first = z3.If(first >= value, first, value)
        return first


def _atom(variable: Form) -> int:
    (((number, _),),) = variable.terms
    return number
