"""Integer side conditions of the symbolic reading, decided by Z3.

Whether an index is in range, whether two indices are the same, whether a guard holds here: conditions are forms that are
0 or 1. They are decided under what is known: variables are bounded, integer inputs have the range that the contract
gives their elements, and control has passed certain guards. Whatever is not a polynomial of integers is an unknown
integer to Z3; an answer other than unsat leaves the condition undecided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import z3

from ..base.errors import Unsupported
from ..base.setting import Setting
from ..smt.solve import unsatisfiable
from . import normal_form as nf
from .normal_form import Form
from .ring import Atom

Elements = Mapping[str, tuple[int, Form | None]]
Intervals = Mapping[str, tuple[int | None, int | None]]
Path = tuple[Form, ...]
_STEPS = 2_000_000  # the steps that Z3 may take for one question


class Facts:
    """What is known, and what follows from it.

    ``elements`` gives for each integer input its least element, and the bound (excluded) of its elements or None. ``shapes``
    gives the shapes of those inputs, since what is said of elements holds only of those that exist. ``floats`` gives for
    some float inputs between which numbers their elements lie; nothing is decided by it here.
    """

    def __init__(
        self,
        elements: Elements | None = None,
        shapes: Mapping[str, Sequence[Form]] | None = None,
        floats: Intervals | None = None,
    ) -> None:
        self.elements, self.shapes, self.floats = dict(elements or {}), dict(shapes or {}), dict(floats or {})
        self.below: dict[int, Form] = {}  # atom -> upper bound, excluded
        self.forgotten: set[int] = set()
        self._permanent: list[Form] = []
        self._path = Setting[Path](())
        self._decided: dict[tuple[Form, Path], bool | None] = {}
        self._translations: dict[Path, _Translation] = {}

    def _forget_answers(self) -> None:
        self._decided.clear()
        self._translations.clear()

    def bound(self, variable: Form, extent: Form) -> None:
        """Let a natural variable be less than the extent."""
        number = nf.number(variable)
        if self.below.get(number, extent) is not extent:
            if self.forgotten:
                raise Unsupported(f"{variable} has the bound {extent}, not {self.below[number]} as was assumed")
            self._forget_answers()
        self.below[number] = extent

    def bound_fresh(self, index: Form, extent: Form) -> Form:
        """Let a form be less than the extent, if it is one variable that has no bound yet; return the form."""
        for number in nf.support(index):
            if isinstance(atom := nf.atom_of(number), nf.Variable) and nf.of_atom(atom) is index:
                self.below.setdefault(number, extent)
        return index

    def add(self, condition: Form) -> None:
        """Let a condition hold always."""
        self._permanent.append(condition)
        self._forget_answers()

    def forget(self, terms: Iterable[Form], known: Sequence[Form]) -> None:
        """Keep of quotients and maxima only what is given here, which must follow; they become unknown integers."""
        if open_conditions := [c for c in known if not self.holds(c)]:
            raise ValueError(f"{open_conditions} do not follow from what is known")
        direct = {a for p in terms for m in p.terms for a, _ in m}
        self.forgotten |= {a for a in direct if isinstance(nf.atom_of(a), (nf.Apply, nf.Max))}
        for condition in known:
            self.add(condition)

    @property
    def path(self) -> Path:
        """The conditions assumed now."""
        return self._path.value

    def assuming(self, *conditions: Form) -> AbstractContextManager[Path]:
        """Let the conditions hold inside."""
        return self._path.set_to(self.path + tuple(c for c in conditions if c is not nf.ONE and c not in self.path))

    def everywhere(self) -> AbstractContextManager[Path]:
        """Let only what holds always hold inside."""
        return self._path.set_to(())

    def decide(self, condition: Form) -> bool | None:
        """Return True if the condition follows from what is known, False if its negation does, else None."""
        if condition.constant is not None:
            return condition.constant == 1
        if condition in self.path:
            return True
        if nf.ONE - condition in self.path:
            return False
        key = condition, self.path
        if key not in self._decided:
            translation = self._known(self.path).assuming()
            goal = translation.integer(condition) == 1
            claims = ((True, z3.Not(goal)), (False, goal))
            shown = (verdict for verdict, claim in claims if unsatisfiable((*translation.facts, claim), _STEPS))
            self._decided[key] = next(shown, None)
        return self._decided[key]

    def holds(self, condition: Form) -> bool:
        """Return whether the condition follows from what is known."""
        return self.decide(condition) is True

    def same(self, a: Form, b: Form) -> bool:
        """Return whether two integers are known to be equal."""
        return self.holds(nf.zero(a - b))

    def decide_all(self, p: Form) -> Form:
        """Return the form with each condition outside a sum replaced by 0 or 1 where that follows from what is known.

        So is the largest of several integers by the one that is.
        """
        values = {n: nf.of_atom(nf.atom_of(n)) for n in self.forgotten & nf.support(p)}
        for atom in sorted(nf.support(p)):
            inner = nf.atom_of(atom)
            if isinstance(inner, nf.Indicator) and inner.integer and not nf.has_bound(atom):
                if (known := self.decide(nf.of_atom(inner))) is not None:
                    values[atom] = nf.ONE if known else nf.ZERO
            elif isinstance(inner, nf.Max) and self._integer(atom) and not nf.has_bound(atom):
                entries = sorted(inner.entries, key=lambda v: v.id)
                if largest := [v for v in entries if all(self.holds(nf.nonnegative(v - w)) for w in entries)]:
                    values[atom] = nf.substitute(largest[0], values)  # of what is inside: that comes first
        return nf.substitute(p, values)

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
                return all(map(self._integers, entries))
        return False

    def _integers(self, p: Form) -> bool:
        whole = all(c == int(c) for c in p.terms.values())
        return whole and all(e > 0 and self._integer(a) for m in p.terms for a, e in m)

    def _known(self, path: Path) -> _Translation:
        """Return what holds on a path, translated once for all paths that begin with it."""
        if path not in self._translations:
            before = self._known(path[:-1]) if path else _Translation(self)
            self._translations[path] = before.assuming(*(path[-1:] or self._permanent))
        return self._translations[path]


@dataclass
class _Translation:
    """Forms as Z3 integers; ``facts`` collects what is known of the atoms met, and what is assumed."""

    known: Facts
    facts: list[Any] = field(default_factory=list)
    terms: dict[int, Any] = field(default_factory=dict)

    def assuming(self, *conditions: Form) -> _Translation:
        """Return the same translation where more holds, to be extended independently."""
        more = _Translation(self.known, list(self.facts), dict(self.terms))
        more.facts += [more.integer(c) == 1 for c in conditions]
        return more

    def integer(self, p: Form) -> Any:
        """Translate a form with integer coefficients; any other form is an unknown integer."""
        if any(c != int(c) for c in p.terms.values()) or any(e != int(e) or e < 0 for m in p.terms for _, e in m):
            return z3.Int(f"form{p.id}")
        terms = [self._term(int(c), [self._atom(a) for a, e in m for _ in range(int(e))]) for m, c in p.terms.items()]
        return terms[0] if len(terms) == 1 else z3.Sum(*terms) if terms else z3.IntVal(0)

    def _term(self, coefficient: int, atoms: list[Any]) -> Any:
        factors = atoms if coefficient == 1 and atoms else [z3.IntVal(coefficient), *atoms]
        return factors[0] if len(factors) == 1 else z3.Product(*factors)

    def _atom(self, number: int) -> Any:
        if number not in self.terms:
            opaque = z3.Int(f"atom{number}")
            forgotten = number in self.known.forgotten
            self.terms[number] = opaque if forgotten else self._translate(nf.atom_of(number), opaque)
            if number in self.known.below:
                self.facts.append(self.terms[number] < self.integer(self.known.below[number]))
        return self.terms[number]

    def _translate(self, atom: Atom, opaque: Any) -> Any:
        """Return what an atom is, which is ``opaque`` where nothing is known."""
        match atom:
            case nf.Variable(name, kind) if kind != "real":
                value = z3.Int(name)
                self.facts += [value >= 0] if kind == "natural" else []
                return value
            case nf.Read(buffer, indices) if buffer in self.known.elements:
                index = [self.integer(i) for i in indices]
                value = z3.Function(buffer, *[z3.IntSort()] * (len(index) + 1))(*index)
                low, high = self.known.elements[buffer]
                extents = map(self.integer, self.known.shapes.get(buffer, ()))
                exists = z3.And(*(z3.And(i >= 0, i < n) for i, n in zip(index, extents, strict=False)))
                bounds = [value >= low] if high is None else [value >= low, value < self.integer(high)]
                self.facts.append(z3.Implies(exists, z3.And(*bounds)))
                return value
            case nf.Apply("floordiv", (a, b)) if (b.constant or 0) > 0:
                return self.integer(a) / self.integer(b)
            case nf.Apply("floordiv", (a, b)):
                of, by = self.integer(a), self.integer(b)
                self.facts.append(z3.Implies(z3.And(of >= 0, by >= 1), z3.And(opaque >= 0, opaque <= of)))
            case nf.Indicator(relation, inner, True):
                value = self.integer(inner)
                return z3.If(value >= 0 if relation == "ge" else value == 0, 1, 0)
            case nf.Indicator():
                self.facts += [opaque >= 0, opaque <= 1]
            case nf.Max(entries) if all(nf.conditional(v)[0] is nf.ONE for v in entries):
                values = [self.integer(v) for v in sorted(entries, key=lambda v: v.id)]
                return reduce(lambda a, b: z3.If(a >= b, a, b), values)
        return opaque
