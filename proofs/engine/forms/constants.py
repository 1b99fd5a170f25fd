"""Float constants as exact rationals, those that mean the same number unified.

A kernel may write 1.44269504 where its reference has no constant at all, or 0.1 rounded to float32. A constant is taken at
its exact binary value, unless a fraction with a small denominator or a constant of the same proof is so close to it that
its type cannot tell the two apart. Then it is taken for that one. How close that is depends on the type: 2^-52 relative for
a double and 2^-23 for a float, the spacings of those types just above 1; and 2^-23 for narrower types too. Of two constants
the coarser type decides. What is proved is about the numbers that constants are taken for; a verdict states the deviation.
"""

from __future__ import annotations

import bisect
from contextlib import AbstractContextManager
from decimal import ROUND_CEILING, Context
from fractions import Fraction

from ..base.setting import Setting
from .ring import Form, of_terms

DOUBLE, FLOAT = Fraction(1, 2**52), Fraction(1, 2**23)
"""The relative distances below which two constants of a type are one."""
LN2 = Fraction(0.6931471805599453)  # log(2) at its nearest double: exp2(x) is read as exp(LN2 x)


class Constants:
    """The constants met so far, and the largest relative difference between one and the number that it is taken for."""

    def __init__(self) -> None:
        self._known: list[tuple[Fraction, Fraction]] = []  # by rising value, with the distance that its type allows
        self.deviation: Fraction = Fraction(0)

    def unify(self, value: float | Fraction, dtype: str = "float64") -> Fraction:
        """Return the number that a constant of that type is taken for."""
        exact = Fraction(value)
        if exact == 0:
            return exact
        own = DOUBLE if dtype == "float64" else FLOAT
        place = bisect.bisect(self._known, (exact, own))
        candidates = [(exact.limit_denominator(1000), own), *self._known[max(place - 1, 0) : place + 1]]
        if candidates[0][0] == exact:
            candidates.reverse()  # a fraction, which may be another constant rounded
        for candidate, theirs in candidates:
            distance = abs(candidate - exact) / abs(exact)
            if distance < max(own, theirs):
                self.deviation = max(self.deviation, distance)
                return candidate
        self._known.insert(place, (exact, own))
        return exact

    def statements(self) -> list[str]:
        """Return what a verdict has to say of the constants: the largest deviation, if there is any."""
        if not self.deviation:
            return []
        most = Context(prec=2, rounding=ROUND_CEILING).create_decimal_from_float(float(self.deviation))
        return [f"assumed: constants that differ by at most {most:.1e} (relative) from a number denote that number"]


_table = Setting(Constants())  # one for each proof; the first is for what is tried outside of any


def one_proof() -> AbstractContextManager[Constants]:
    """Unify the constants met inside with one another, and with none that was met before."""
    return _table.set_to(Constants())


def current() -> Constants:
    """Return the constants of the proof under way."""
    return _table.value


def unify(value: float | Fraction, dtype: str = "float64") -> Fraction:
    """Return the number that a constant of that type is taken for in the proof under way."""
    return current().unify(value, dtype)


def unified(p: Form, dtype: str) -> Form:
    """Return the form with its coefficients, products of constants of that type, each taken for a known number."""
    return of_terms({monomial: unify(Fraction(coefficient), dtype) for monomial, coefficient in p.terms.items()})
