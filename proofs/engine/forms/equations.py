"""Equations between a kernel's value and its reference's, proved under what is known of the integers in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from . import normal_form as nf
from .cases import by_cases, case
from .choices import open_condition, solutions
from .entailment import Facts
from .equality import equal
from .normal_form import Form
from .statement import Equation as Equation

_SPLITS = 8
"""How many undecided conditions an equation may be split by, one inside the other."""
_ENUMERATED = 8
"""A dimension of at most this constant extent is checked element by element."""


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
