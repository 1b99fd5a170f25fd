"""Which cases an equation is split into, for which variable an equation of integers is solved, and which sums are written out.

It is not trusted. Whoever asks splits by any condition soundly, looks at all values of any index, checks a solution before
using it, and writes out any sum of so many elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from . import normal_form as nf
from .forgetting import remembered
from .normal_form import Form
from .ring import Atom, Rational, support_of

_MOST = 2**14  # how many elements of sums are written out at most


def open_condition(p: Form) -> int | None:
    """Return the number of a condition on integers in a form, outside of sums, or None."""
    conditions = ((n, nf.atom_of(n)) for n in sorted(nf.support(p)))
    return next((n for n, a in conditions if isinstance(a, nf.Indicator) and a.integer and not nf.has_bound(n)), None)


def solutions(equation: Form) -> Iterator[tuple[int, Form]]:
    """Yield the variables that have coefficient 1 or -1 in an equation q = 0, each with what it equals."""
    for monomial, coefficient in equation.terms.items():
        if len(monomial) == 1 and monomial[0][1] == 1 and abs(coefficient) == 1:
            variable = monomial[0][0]
            rest = equation - nf.monomial_form(monomial, coefficient)
            if isinstance(nf.atom_of(variable), nf.Variable) and variable not in nf.support(rest):
                yield variable, -rest * coefficient


def nested_condition(p: Form) -> int | None:
    """Return a condition inside an atom of the form, but not inside a maximum, that holds no condition itself; or None."""
    nested = sorted({n for m in p.terms for a, _ in m for n in _conditions(a) if n != a})
    return next((n for n in nested if _conditions(n) == {n}), None)


@remembered
def _conditions(number: int) -> frozenset[int]:
    """Return the conditions in an atom, itself included, outside of sums and maxima."""
    atom = nf.atom_of(number)
    if isinstance(atom, (nf.Big, nf.Max)):
        return frozenset()
    own = {number} if nf.is_closed_condition(number) else set()
    return frozenset(own.union(*(_conditions(a) for f in atom.children() for m in f.terms for a, _ in m)))


def indices_of_maxima(p: Form) -> list[int]:
    """Return the variables that occur in a form, but in none of its longest maxima: j in x[i, j] - max(x[i, 0], x[i, 1]), ...

    A maximum of which they are an index is then at least its entry at each of their values.
    """
    support = nf.support(p)
    lengths = {n: length for n in support if (length := _entries(nf.atom_of(n)))}
    longest = [n for n, length in lengths.items() if length == max(lengths.values())]
    return sorted(support - frozenset[int]().union(*map(support_of, longest))) if longest else []


def _entries(atom: Atom) -> float:
    """Return how many entries a maximum has, infinitely many if it is not written out; 0 of what is none."""
    if isinstance(atom, nf.Max):
        return len(atom.entries)
    return math.inf if isinstance(atom, nf.Big) and atom.operator == "max" else 0


def is_constant_sum(atom: Atom) -> bool:
    """Return whether an atom is a sum that may be written out: one over a constant number of elements."""
    return isinstance(atom, nf.Big) and atom.operator == "sum" and atom.extent.constant is not None


def few_elements(p: Form) -> bool:
    """Return whether the elements of all sums that may be written out are few enough, taken together."""
    return _elements(p) <= _MOST


@remembered
def _elements(p: Form) -> Rational:
    """Return how many elements are written out: those of sums inside a sum once for each element of that."""
    count: Rational = 0
    for atom in (nf.atom_of(n) for m in p.terms for n, _ in m):
        if isinstance(atom, nf.Big):
            count += (atom.extent.constant or 1) * (is_constant_sum(atom) + _elements(atom.body))
        else:
            count += sum(map(_elements, atom.children()))
    return count
