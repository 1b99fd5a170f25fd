"""Equations between a kernel's value and its reference's, proved under what is known of the integers in them.

Two normal forms are the same rational function of their atoms if their difference, multiplied by its denominators and
expanded, is 0. Almost every false equation is refuted before that, by the values of its sides at two points
(``refutation``). Atoms that are not the same object count as independent. So a negative answer says that the laws of
``normal_form`` do not suffice. It does not say that the functions differ somewhere.

What is decided case by case has a second, stronger normal form, in which conditions are taken out of where they stand:

    g([c]) = [c] g(1) + (1 - [c]) g(0)

for every condition c inside g, in an index, in another condition or in the body of a sum. Applied until no condition is
inside another atom, a form is a polynomial in conditions that no longer nest; two forms that agree in every case are then
the same. Conditions count as independent. It can take exponentially many steps, so it is tried last, and stops after a few
hundred of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..base.errors import Unsupported
from . import normal_form as nf
from .choices import nested_condition, open_condition, solutions
from .entailment import Facts
from .normal_form import ONE, ZERO, Form
from .refutation import differs
from .ring import Monomial, Polynomial, Rational, Rewriting, of_terms, support, support_of
from .statement import Equation as Equation

LIMIT = 20_000  # the largest number of terms that an expansion may have
_TAKEN_OUT = 300  # how often a condition is taken out of where it stands
_SPLITS = 8  # how many undecided conditions an equation may be split by, one inside the other
_ENUMERATED = 8  # a dimension of at most this constant extent is checked element by element


class Undecided(Unsupported):
    """Raised where the expansion that would decide an equation is too large. It is never a verdict."""


def equal(a: Form, b: Form) -> bool:
    """Return whether a = b as rational functions; Undecided if it holds at two points, and expanding it takes too long."""
    difference = a - b
    return difference is ZERO or (not differs(difference) and _vanishes(difference))


def _vanishes(p: Form) -> bool:
    """Return whether p is 0 once its denominators are cleared and its polynomials expanded."""
    inside = {a for m in p.terms for a, _ in m if isinstance(nf.atom_of(a), Polynomial)}
    # The outermost goes first: an atom is numbered after those inside it.
    return _vanishes(_eliminate(p, max(inside))) if inside else p is ZERO


def _eliminate(p: Form, number: int) -> Form:
    """Return p times a power of one polynomial, with that polynomial expanded."""
    degrees = {m: int(dict(m).get(number, 0)) for m in p.terms}
    least = min(degrees.values())
    polynomial = nf.atom_of(number).children()[0]
    groups: dict[int, dict[Monomial, Rational]] = {}
    for monomial, coefficient in p.terms.items():
        rest = tuple(q for q in monomial if q[0] != number)
        groups.setdefault(degrees[monomial] - least, {})[rest] = coefficient
    result = ZERO
    for degree in range(max(groups), -1, -1):  # Horner
        if len(result.terms) * len(polynomial.terms) > LIMIT:
            raise Undecided(f"more than {LIMIT} terms")
        result = result * polynomial + of_terms(groups.get(degree, {}))
    return result


def by_cases(p: Form, facts: Facts) -> Form:
    """Return the form with its conditions taken out, where those that follow from what is known are decided."""
    return _Cases(facts).form(p)


class _Cases:
    """Takes conditions out, and remembers the forms that are done."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._done: dict[Form, Form] = {}
        self._steps = 0

    def form(self, p: Form) -> Form:
        """Take conditions out of the bodies of sums and maxima first, then out of the atoms that are left."""
        if p not in self._done:
            self._done[p] = self._facts.decide_all(self._split(Rewriting(self._inner, _outermost)(p)))
        return self._done[p]

    def _inner(self, number: int) -> Form:
        """Return a sum or maximum of forms whose conditions are taken out."""
        atom = nf.atom_of(number)
        if isinstance(atom, nf.Max):
            return nf.maximum(map(self.form, atom.entries))
        assert isinstance(atom, nf.Big)
        build = nf.summation if atom.operator == "sum" else nf.big_maximum
        extent, body = _unclamped(atom)
        return build(self.form(extent), lambda k: self.form(body(self._facts.bound_fresh(k, extent))))

    def _split(self, p: Form) -> Form:
        condition = nested_condition(p) if p not in self._done and self._steps < _TAKEN_OUT else None
        if condition is not None:
            self._steps += 1
            c = case(condition)
            yes, no = (self._split(nf.substitute(p, {condition: value})) for value in (ONE, ZERO))
            self._done[p] = c * yes + (ONE - c) * no
        return self._done.get(p, p)


def case(number: int) -> Form:
    """Return the condition of that number, to split a form by; refuse one that varies with the index of a sum around it."""
    if not nf.is_closed_condition(number):
        raise ValueError(f"expected a condition to split by, got {nf.of_atom(nf.atom_of(number))}")
    return nf.of_atom(nf.atom_of(number))


def _unclamped(big: nf.Big) -> tuple[Form, Callable[[Form], Form]]:
    """Return extent and body, by Max_{k < n} f(min(k, c)) = Max_{k < c+1} f(k) for 0 <= c < n."""
    index = nf.fresh("k")
    body = nf.opened(big, index)
    for number in support(body) if big.operator == "max" else ():
        atom = nf.atom_of(number)
        if isinstance(atom, nf.Max) and -index in atom.entries and len(atom.entries) == 2:  # -min(k, c)
            (last,) = (-entry for entry in atom.entries - {-index})
            alone = support(index).isdisjoint(support(nf.substitute(body, {number: ZERO})))
            if alone and last.constant is not None and 0 <= last.constant < (big.extent.constant or 0):
                return last + 1, lambda k, number=number: nf.substitute(body, {number: -k})
    return big.extent, lambda k: nf.opened(big, k)


def _outermost(numbers: frozenset[int]) -> set[int]:
    found = {n for n in numbers if isinstance(nf.atom_of(n), (nf.Big, nf.Max)) and not nf.free_levels(n)}
    return found - {m for n in found for m in support_of(n) if m != n}


def holds(a: Form, b: Form, facts: Facts, splits: int = _SPLITS) -> bool:
    """Return whether a = b under the facts; conditions that the facts leave open are split into cases."""
    a, b = facts.decide_all(a), facts.decide_all(b)
    if a is b:
        return True
    condition = open_condition(a - b) if splits else None
    if condition is None:
        return equal(a, b) or by_cases(a - b, facts) is ZERO
    return all(_holds_where(condition, value, (a, b), facts, splits - 1) for value in (ONE, ZERO))


def _holds_where(number: int, value: Form, sides: tuple[Form, Form], facts: Facts, splits: int) -> bool:
    """Return whether two sides are equal where a condition, by its number, is 1 or 0."""
    condition, atom = case(number), nf.atom_of(number)
    with facts.assuming(condition if value is ONE else ONE - condition):
        a, b = (nf.substitute(side, {number: value}) for side in sides)
        if value is ONE and isinstance(atom, nf.Indicator) and atom.relation == "eq":
            right = (s for s in solutions(atom.form) if facts.same(nf.of_atom(nf.atom_of(s[0])), s[1]))
            solved = dict(itertools.islice(right, 1))
            a, b = nf.substitute(a, solved), nf.substitute(b, solved)
        return holds(a, b, facts, splits)


def elements(
    shape: Sequence[Form], facts: Facts, names: str = "ijklmn", parts: Mapping[int, int] | None = None
) -> Iterator[tuple[Form, ...]]:
    """Yield indices that stand for all elements: constants along small dimensions, a bounded variable along others.

    ``parts`` maps dimensions of constant extent to the number of elements of a part, which has a variable of its own.
    """

    def variable(dim: int, extent: Form | int) -> Form:
        found = nf.fresh(names[dim % len(names)])
        facts.bound(found, nf.form(extent))
        return found

    def along(dim: int, extent: Form) -> list[Form]:
        size = extent.constant
        if size is not None and size <= _ENUMERATED:
            return [nf.form(i) for i in range(int(size))]
        if size is None or not parts or dim not in parts:
            return [variable(dim, extent)]
        part, end = parts[dim], int(size)
        return [first + variable(dim, min(part, end - first)) for first in range(0, end, part)]

    return itertools.product(*(along(dim, extent) for dim, extent in enumerate(shape)))
