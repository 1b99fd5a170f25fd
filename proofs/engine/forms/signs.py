"""The sign of a form, read off its atoms: exp is positive, a sum of terms of one sign has that sign."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

from . import normal_form as nf
from .normal_form import Form
from .ring import Atom, Monomial, Polynomial, Rational

Sign = Literal["positive", "nonnegative"] | None


class Signs:
    """What is known of the sign of forms, given which uninterpreted functions are positive."""

    def __init__(self, positive: frozenset[str]) -> None:
        self._positive = positive
        self._sign: Callable[[int], Sign] = cache(lambda number: self._atom(nf.atom_of(number)))

    def form(self, p: Form) -> Sign:
        """Return the sign of a sum, if all its terms have the same."""
        signs = {self.monomial(m) if c > 0 else None for m, c in p.terms.items()}
        return None if None in signs else "positive" if "positive" in signs else "nonnegative"

    def monomial(self, monomial: Monomial) -> Sign:
        """Return the sign of a product."""
        signs = {self._power(atom, exponent) for atom, exponent in monomial}
        return None if None in signs else "nonnegative" if "nonnegative" in signs else "positive"

    def _power(self, atom: int, exponent: Rational) -> Sign:
        sign = self._sign(atom)
        if sign is None and exponent % 2 == 0 and exponent > 0:
            return "nonnegative"
        return sign if exponent > 0 or sign == "positive" else None

    def _atom(self, atom: Atom) -> Sign:
        match atom:
            case nf.Exp():
                return "positive"
            case Polynomial(inner):
                return self.form(inner)
            case nf.Apply(function, _) if function in self._positive:
                return "positive"
            case nf.Apply("sqrt", (inner,)):
                return self.form(inner)
            case nf.Indicator() | nf.Variable(_, "natural"):
                return "nonnegative"
            case nf.Big("sum", _, extent, body):
                sign = self.form(body)
                return sign if (extent.constant or 0) >= 1 or sign is None else "nonnegative"
            case nf.Max(entries):
                signs = set(map(self.form, entries))
                return "positive" if "positive" in signs else "nonnegative" if "nonnegative" in signs else None
        return None
