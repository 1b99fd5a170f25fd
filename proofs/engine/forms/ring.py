"""The ring of forms: polynomials with rational coefficients, and with negative exponents, over atoms.

Forms are hash-consed: the same form is the same object. What an atom stands for is up to its class (``normal_form``); the
ring asks of it only the forms inside it, how to rebuild it from others, and three properties. Building a form rewrites it
by these laws, and no others but those of its atoms' constructors, where [c] is an idempotent atom:

    ring laws over the rationals                        x^a x^b = x^(a+b)
    [c]² = [c], [c] g([c]) = [c] g(1)                   1/(c m p) = (1/c) m^-1 p^-1, m the common monomial of the terms

The law 1/x * x = 1 holds where x is not 0: the range layer proves that of every denominator of a kernel.

Substitution is here too, since a product with [c] puts 1 for [c] in the other factors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import ClassVar

from ..base.errors import Unsupported
from ..base.setting import Setting
from .forgetting import remembered, table

Rational = int | Fraction
Monomial = tuple[tuple[int, Rational], ...]
"""(atom, exponent) pairs by rising atom number; exponents are integers but for those of exps."""


class Undefined(Unsupported):
    """Raised where a term has no value, such as 1/0."""

    kind = "undefined"


class Form:
    """A sum of monomials with rational coefficients. Compare by identity, or with ``equations.equal``."""

    __slots__ = ("id", "terms")

    terms: dict[Monomial, Rational]
    id: int

    def __add__(self, other: Form | Rational) -> Form:
        return total((self, form(other)))

    def __mul__(self, other: Form | Rational) -> Form:
        if self is ONE or other is ONE:
            return form(other) if self is ONE else self
        terms: dict[Monomial, Rational] = {}
        for a, x in self.terms.items():
            for b, y in form(other).terms.items():
                monomial = _product(a, b)
                terms[monomial] = terms.get(monomial, 0) + x * y
        return _absorb(terms) if conditional(self) or conditional(form(other)) else of_terms(terms)

    def __pow__(self, exponent: Rational) -> Form:
        if exponent == 1:
            return self
        if exponent != int(exponent):
            raise ValueError(f"({self}) to the power {exponent}")
        base = self if exponent >= 0 else reciprocal(self)
        return reduce(Form.__mul__, itertools.repeat(base, abs(int(exponent))), ONE)

    def __neg__(self) -> Form:
        return of_terms({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: Form | Rational) -> Form:
        return self + -form(other)

    def __rsub__(self, other: Rational) -> Form:
        return form(other) - self

    def __truediv__(self, other: Form | Rational) -> Form:
        return self * reciprocal(form(other))

    def __rtruediv__(self, other: Rational) -> Form:
        return form(other) * reciprocal(self)

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def constant(self) -> Rational | None:
        """The number that this form is, or None."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None


Change = Callable[[Form], Form]
Numbers = set[int] | frozenset[int]


class Atom:
    """What a form is a polynomial in. Equal atoms are the same function."""

    __slots__ = ()

    idempotent: ClassVar[bool] = False
    """Whether it is its own square."""
    binds: ClassVar[bool] = False
    """Whether it binds a variable."""

    def children(self) -> tuple[Form, ...]:
        """Return the forms inside: what is a form, or a collection of forms, among the parts of the atom."""
        names: tuple[str, ...] = self.__slots__
        parts = (getattr(self, name) for name in names)
        collections = (part if isinstance(part, (tuple, frozenset)) else (part,) for part in parts)
        return tuple(f for collection in collections for f in collection if isinstance(f, Form))

    def _rebuild(self, change: Change) -> Form:
        """Return the atom with its parts changed, made by the constructor that applies the laws."""
        return of_atom(self)

    def _rebuild_power(self, exponent: Rational, change: Change) -> Form:
        """Return a power of the atom with its parts changed."""
        return self._rebuild(change) ** exponent


@dataclass(frozen=True, slots=True)
class Polynomial(Atom):
    """A polynomial of several terms, without common monomial and with leading coefficient 1, under a reciprocal."""

    form: Form

    def _rebuild_power(self, exponent: Rational, change: Change) -> Form:
        # It stays a factor, since products of such polynomials would explode if they were expanded.
        ((monomial, coefficient),) = _inverse(change(self.form)).terms.items()
        return of_terms({tuple((a, -e * exponent) for a, e in monomial): Fraction(coefficient) ** -int(exponent)})


_ATOMS: dict[int, Atom] = table()
_NUMBER: dict[Atom, int] = table()
_FORMS: dict[frozenset[tuple[Monomial, Rational]], Form] = table()
_numbers, _ids = (
    itertools.count(),
    itertools.count(),
)  # never begun anew, so that what is forgotten is taken for nothing else
_limit = Setting(math.inf)


def at_most(new: int) -> AbstractContextManager[float]:
    """Allow so many new atoms inside; what needs more is ``Unsupported``, before it fills the memory."""
    return _limit.set_to(min(_limit.value, len(_ATOMS) + new))


def atom_of(number: int) -> Atom:
    """Return the atom with that number."""
    return _ATOMS[number]


def number_of(atom: Atom) -> int:
    """Return the number of an atom; equal atoms have the same."""
    if atom not in _NUMBER:
        if len(_ATOMS) >= _limit.value:
            raise Unsupported("more atoms than are allowed: terms grow out of hand")
        number = next(_numbers)
        _NUMBER[atom], _ATOMS[number] = number, atom
    return _NUMBER[atom]


def single(p: Form) -> Atom | None:
    """Return the atom that a form is, or None."""
    monomial = next(iter(p.terms)) if len(p.terms) == 1 else ()
    return _ATOMS[monomial[0][0]] if len(monomial) == 1 and p.terms[monomial] == monomial[0][1] == 1 else None


def number(p: Form) -> int:
    """Return the number of the one atom of a form."""
    (((found, _),),) = p.terms
    return found


def of_atom(atom: Atom, exponent: Rational = 1) -> Form:
    """Return the form of one atom to a power."""
    return of_terms({((number_of(atom), exponent),): 1})


def monomial_form(monomial: Monomial, coefficient: Rational = 1) -> Form:
    """Return the form of one term."""
    return of_terms({monomial: coefficient})


def of_terms(terms: dict[Monomial, Rational]) -> Form:
    """Return the form of a sum of terms, no two of which have the same monomial."""
    if not all(terms.values()):
        terms = {m: c for m, c in terms.items() if c}
    key = frozenset(terms.items())
    found = _FORMS.get(key)
    if found is None:
        found = Form()
        found.terms, found.id = terms, next(_ids)
        _FORMS[key] = found
    return found


ZERO, ONE = of_terms({}), of_terms({(): 1})


def total(summands: Iterable[Form]) -> Form:
    """Return the sum of forms."""
    terms: dict[Monomial, Rational] = {}
    each = list(summands)
    if len(each) == 1:
        return each[0]
    for summand in each:
        for monomial, coefficient in summand.terms.items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
    return of_terms(terms)


def form(value: Form | Rational) -> Form:
    """Return a number as a form, or the form itself."""
    return value if isinstance(value, Form) else of_terms({(): value})


def _product(a: Monomial, b: Monomial) -> Monomial:
    if not a or not b:
        return a or b
    exponents = dict(a)
    for atom, exponent in b:
        exponents[atom] = exponents.get(atom, 0) + exponent
    return tuple(sorted([(x, 1 if _ATOMS[x].idempotent else e) for x, e in exponents.items() if e]))


def _absorb(terms: dict[Monomial, Rational]) -> Form:
    """Return the sum of terms, by [c] g([c]) = [c] g(1)."""
    summands = []
    for monomial, coefficient in terms.items():
        known = {a: ONE for a, _ in monomial if _ATOMS[a].idempotent}
        inside = tuple((a, e) for a, e in monomial if a not in known and not support_of(a).isdisjoint(known))
        rest = of_terms({tuple(p for p in monomial if p not in inside): coefficient})
        summands.append(rest * substitute(of_terms({inside: 1}), known) if inside else rest)
    return total(summands)


def common_monomial(p: Form) -> Monomial:
    """Return the atoms that every term has, at their least exponent; an atom that a term lacks has exponent 0 there."""
    terms = [dict(m) for m in p.terms]
    atoms = sorted({a for term in terms for a in term if not _ATOMS[a].idempotent})
    least = ((a, min(term.get(a, 0) for term in terms)) for a in atoms)
    return tuple((a, e) for a, e in least if e != 0)


def reciprocal(p: Form) -> Form:
    """Return 1/p, as 1/(c m q) = (1/c) m^-1 q^-1."""
    result = _inverse(p)
    ((monomial, coefficient),) = result.terms.items()
    polynomials = [(a, e) for a, e in monomial if isinstance(_ATOMS[a], Polynomial)]
    if len(polynomials) == 1 and polynomials[0][1] == 1:  # 1/(1/q) = q
        others = tuple(p for p in monomial if p not in polynomials)
        return of_terms({others: coefficient}) * _ATOMS[polynomials[0][0]].children()[0]
    return result


def _inverse(p: Form) -> Form:
    """Return 1/p as one monomial; a polynomial of several terms in it stays an atom."""
    if not p.terms:
        raise Undefined("the reciprocal of 0")
    inverse = tuple((a, -e) for a, e in common_monomial(p))
    rest = of_terms({_product(m, inverse): c for m, c in p.terms.items()})
    if rest.constant is not None:
        return of_terms({inverse: Fraction(1) / rest.constant})
    leading = rest.terms[max(rest.terms)]
    monic = of_terms({m: Fraction(c) / leading for m, c in rest.terms.items()})
    last = ((number_of(Polynomial(monic)), -1),)
    return of_terms({_product(inverse, last): Fraction(1) / leading})


@remembered
def conditional(p: Form) -> bool:
    """Return whether an idempotent atom is a factor in a form."""
    return any(_ATOMS[a].idempotent for m in p.terms for a, _ in m)


@remembered
def support(p: Form) -> frozenset[int]:
    """Return the numbers of all atoms of a form, at any depth."""
    return frozenset().union(*(support_of(a) for m in p.terms for a, _ in m))


@remembered
def support_of(number: int) -> frozenset[int]:
    """Return the number of an atom, and those of all atoms inside it."""
    return frozenset({number}).union(*(support(f) for f in _ATOMS[number].children()))


def _level(atom: Atom) -> int:
    """Return the level of the variable that an atom binds, or is; 0 of other atoms."""
    return getattr(atom, "level", 0)


@remembered
def height(p: Form) -> int:
    """Return the largest level of an atom inside that binds a variable."""
    return max((_level(a) for a in map(atom_of, support(p)) if a.binds), default=0)


@remembered
def levels(p: Form) -> frozenset[int]:
    """Return the levels of the bound variables on which a form depends, those that it binds itself left out."""
    return frozenset[int]().union(*(free_levels(a) for m in p.terms for a, _ in m))


@remembered
def free_levels(number: int) -> frozenset[int]:
    """Return the same of an atom."""
    atom = _ATOMS[number]
    inside, own = frozenset[int]().union(*map(levels, atom.children())), {_level(atom)} - {0}
    return inside - own if atom.binds else inside | own


class Rewriting:
    """A function on forms that replaces some atoms, and rebuilds those around them. It remembers what it has done.

    ``targets`` tells which of the atoms of a form are to be replaced, and ``replacement`` gives the value of one by its
    number, or None. The value is not rewritten again.
    """

    def __init__(self, replacement: Callable[[int], Form | None], targets: Callable[[frozenset[int]], Numbers]) -> None:
        self._replacement, self._find = replacement, targets
        self._targets: set[int] = set()
        self._walked: dict[Form, Form] = {}
        self._powers: dict[tuple[int, Rational], Form] = {}

    def __call__(self, p: Form) -> Form:
        """Return the rewritten form."""
        self._targets |= self._find(support(p))
        return self._visit(p)

    def _visit(self, p: Form) -> Form:
        if support(p).isdisjoint(self._targets):
            return p
        if p not in self._walked:
            self._walked[p] = self._walk(p)
        return self._walked[p]

    def _walk(self, p: Form) -> Form:
        kept: dict[Monomial, Rational] = {}
        summands: list[Form] = []
        for monomial, coefficient in p.terms.items():
            changed = [(a, e) for a, e in monomial if not support_of(a).isdisjoint(self._targets)]
            if not changed:
                kept[monomial] = coefficient
                continue
            rest = of_terms({tuple(p for p in monomial if p not in changed): coefficient})
            for power in changed:
                if power not in self._powers:
                    self._powers[power] = self._power(*power)
                rest = rest * self._powers[power]
            summands.append(rest)
        return total((*summands, of_terms(kept))) if kept else total(summands)

    def _power(self, atom: int, exponent: Rational) -> Form:
        value = self._replacement(atom) if atom in self._targets else None
        if value is not None:
            return value**exponent
        # The body of a sum is rewritten at a fresh index. Its atoms are new, and may be targets.
        return _ATOMS[atom]._rebuild_power(exponent, self if _ATOMS[atom].binds else self._visit)


class Substitution(Rewriting):
    """The rewriting that puts ``values`` for atoms, by number, and does nothing else."""

    def __init__(self, values: Mapping[int, Form]) -> None:
        super().__init__(values.get, lambda numbers: numbers & values.keys())
        self.levels = frozenset[int]().union(*map(levels, values.values()))  # of the bound variables in them


def substitute(p: Form, values: Mapping[int, Form]) -> Form:
    """Return the form with atoms, by number, replaced. A value must not hold a bound variable that ``p`` binds."""
    return p if support(p).isdisjoint(values) else Substitution(values)(p)


def rewritten(p: Form, rewritings: Iterable[Callable[[Form], Form]]) -> Form:
    """Return the form after one rewriting after the other."""
    return reduce(lambda q, rewriting: rewriting(q), rewritings, p)
