"""Equations between a kernel's value and its reference's, proved under what is known of the integers in them.

Two normal forms are the same rational function of their atoms if their difference, multiplied by its denominators and
expanded, is 0. Almost every false equation is refuted before that, by the values of its sides at two points
(``refutation``). Atoms that are not the same object count as independent. So a negative answer says that the laws of
``normal_form`` do not suffice. It does not say that the functions differ somewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from . import normal_form as nf
from .cases import by_cases, case
from .choices import open_condition, solutions
from .entailment import Facts
from .normal_form import Form
from .refutation import differs
from .ring import Monomial, Polynomial, Rational, children, of_terms
from .statement import Equation as Equation

LIMIT = 20_000
"""The largest number of terms that an expansion may have."""
_SPLITS = 8
"""How many undecided conditions an equation may be split by, one inside the other."""
_ENUMERATED = 8
"""A dimension of at most this constant extent is checked element by element."""


class Undecided(Exception):
    """Raised where the expansion that would decide an equation is too large. It is never a verdict."""


def equal(a: Form, b: Form) -> bool:
    """Return whether a = b as rational functions of their atoms.

    Raises:
        Undecided: it holds at two random points modulo a prime, and the exact check would take too many terms.
    """
    difference = a - b
    return difference is nf.ZERO or (not differs(difference) and _vanishes(difference))


def _vanishes(p: Form) -> bool:
    """Return whether p is 0 once its denominators are cleared and its polynomials expanded."""
    inside = {a for m in p.terms for a, _ in m if isinstance(nf.atom_of(a), Polynomial)}
    # The outermost goes first: an atom is numbered after those inside it.
    return _vanishes(_eliminate(p, max(inside))) if inside else p is nf.ZERO


def _eliminate(p: Form, number: int) -> Form:
    """Return p times a power of one polynomial, with that polynomial expanded."""
    degrees = {m: int(dict(m).get(number, 0)) for m in p.terms}
    least = min(degrees.values())
    polynomial = children(nf.atom_of(number))[0]
    groups: dict[int, dict[Monomial, Rational]] = {}
    for monomial, coefficient in p.terms.items():
        rest = tuple(q for q in monomial if q[0] != number)
        groups.setdefault(degrees[monomial] - least, {})[rest] = coefficient
    result = nf.ZERO
    for degree in range(max(groups), -1, -1):  # Horner
        if len(result.terms) * len(polynomial.terms) > LIMIT:
            raise Undecided(f"more than {LIMIT} terms")
        result = result * polynomial + of_terms(groups.get(degree, {}))
    return result


def holds(a: Form, b: Form, facts: Facts, splits: int = _SPLITS) -> bool:
    """Return whether a = b under the facts; conditions that the facts leave open are split into cases."""
    a, b = facts.decide_all(a), facts.decide_all(b)
    if a is b:
        return True
    condition = open_condition(a - b) if splits else None
    if condition is None:
        return equal(a, b) or by_cases(a - b, facts) is nf.ZERO
    return all(_holds_where(condition, value, (a, b), facts, splits - 1) for value in (nf.ONE, nf.ZERO))


def _holds_where(number: int, value: Form, sides: tuple[Form, Form], facts: Facts, splits: int) -> bool:
    """Return whether two sides are equal where a condition, by its number, is 1 or 0."""
    condition, atom = case(number), nf.atom_of(number)
    with facts.assuming(condition if value is nf.ONE else nf.ONE - condition):
        a, b = (nf.substitute(side, {number: value}) for side in sides)
        if value is nf.ONE and isinstance(atom, nf.Indicator) and atom.relation == "eq":
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
