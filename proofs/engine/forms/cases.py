"""Conditions taken out of where they stand: a second, stronger normal form for what is decided case by case.

    g([c]) = [c] g(1) + (1 - [c]) g(0)

for every condition c inside g, in an index, in another condition or in the body of a sum. Applied until no condition is
inside another atom, a form is a polynomial in conditions that no longer nest; two forms that agree in every case are then
the same. Conditions count as independent. It can take exponentially many steps, so it is tried last, and stops after
``LIMIT`` of them.
"""

from __future__ import annotations

from collections.abc import Callable

from . import normal_form as nf
from .choices import nested_condition
from .entailment import Facts
from .normal_form import ONE, ZERO, Form
from .ring import Rewriting, support, support_of

LIMIT = 300
"""How often a condition is taken out."""


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
        condition = nested_condition(p) if p not in self._done and self._steps < LIMIT else None
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
