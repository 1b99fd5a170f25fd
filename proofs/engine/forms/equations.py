"""Equations between a kernel's value and its reference's, proved under what is known of the integers in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import normal_form as nf
from .cases import by_cases
from .entailment import Facts
from .equality import equal
from .normal_form import Form
from .pretty import pretty

_SPLITS = 8
"""How many undecided conditions an equation may be split by, one inside the other."""
_ENUMERATED = 8
"""A dimension of at most this constant extent is checked element by element."""


@dataclass(frozen=True)
class Equation:
    """One thing that was to be shown, and whether it was.

    Attributes:
        statement: what was to be shown, in words.
        holds: whether it was shown.
        kernel: the kernel's term.
        reference: the reference's, or the invariant's, term.
        site: the statement of the kernel, or "".
    """

    statement: str
    holds: bool
    kernel: Form
    reference: Form
    site: str = ""

    def __str__(self) -> str:
        if self.holds:
            return f"proved: {self.statement}"
        where = f"\n  at        {self.site}" if self.site else ""
        return (
            f"NOT proved: {self.statement}{where}"
            f"\n  kernel    {pretty(self.kernel)}\n  reference {pretty(self.reference)}"
        )


def holds(a: Form, b: Form, facts: Facts, splits: int = _SPLITS) -> bool:
    """Whether a = b under the facts; conditions that the facts leave open are split into cases.

    Raises:
        Undecided: the check would take too many terms.
    """
    a, b = facts.decide_all(a), facts.decide_all(b)
    if a is b:
        return True
    condition = next(_open_conditions(a - b), None) if splits else None
    if condition is None:
        return equal(a, b) or by_cases(a - b, facts) is nf.ZERO
    number = next(iter(condition.terms))[0][0]
    for case, value in ((condition, nf.ONE), (nf.ONE - condition, nf.ZERO)):
        with facts.assuming(case):
            values = {number: value}
            sides = [nf.substitute(side, values) for side in (a, b)]
            if value is nf.ONE:
                sides = [_apply_equation(side, condition) for side in sides]
            if not holds(sides[0], sides[1], facts, splits - 1):
                return False
    return True


def _open_conditions(p: Form) -> Iterator[Form]:
    for number in sorted(nf.support(p)):
        atom = nf.atom_of(number)
        if isinstance(atom, nf.Indicator) and atom.integer and not nf.has_bound(number):
            yield nf.of_atom(atom)


def _apply_equation(p: Form, condition: Form) -> Form:
    """Where [q = 0] and q has a variable with coefficient 1 or -1, replace that variable by what it equals."""
    (((number, _),),) = condition.terms
    atom = nf.atom_of(number)
    assert isinstance(atom, nf.Indicator)
    if atom.relation != "eq":
        return p
    for monomial, coefficient in atom.form.terms.items():
        if len(monomial) == 1 and monomial[0][1] == 1 and abs(coefficient) == 1:
            variable = monomial[0][0]
            rest = atom.form - nf.monomial_form(monomial, coefficient)
            if isinstance(nf.atom_of(variable), nf.Variable) and variable not in nf.support(rest):
                return nf.substitute(p, {variable: -rest * coefficient})
    return p


def elements(
    shape: Sequence[Form], facts: Facts, names: str = "ijklmn", parts: Mapping[int, int] | None = None
) -> Iterator[tuple[Form, ...]]:
    """Indices that stand for all elements: constants along small dimensions, a bounded variable along others.

    ``parts`` has the dimensions of constant extent that are divided into parts of so many elements, with a variable each.
    """

    def go(dim: int, index: tuple[Form, ...]) -> Iterator[tuple[Form, ...]]:
        if dim == len(shape):
            yield index
            return
        extent = shape[dim].constant
        if extent is not None and extent <= _ENUMERATED:
            for i in range(int(extent)):
                yield from go(dim + 1, (*index, nf.form(i)))
        elif parts and extent is not None and dim in parts:
            for first in range(0, int(extent), parts[dim]):
                variable = nf.fresh(names[dim % len(names)])
                facts.bound(variable, nf.form(min(parts[dim], int(extent) - first)))
                yield from go(dim + 1, (*index, first + variable))
        else:
            variable = nf.fresh(names[dim % len(names)])
            facts.bound(variable, shape[dim])
            yield from go(dim + 1, (*index, variable))

    yield from go(0, ())
