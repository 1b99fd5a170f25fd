"""Float constants as exact rationals, those that mean the same number unified.

A kernel writes 1.44269504 where its reference has no constant at all, and 0.1 rounded to float32 where the reference has
0.1 in double precision. A constant is taken at its exact binary value, unless one within a relative ``TOLERANCE`` of it
is known already: then that one is taken, and the deviation is recorded, so that a verdict can state it.
"""

from __future__ import annotations

import bisect
from fractions import Fraction

TOLERANCE = Fraction(1, 2**23)
"""The relative distance below which two constants are one: the spacing of float32."""


class Constants:
    """The constants met so far.

    Attributes:
        deviation: the largest relative difference between a constant and the one that stands for it.
    """

    def __init__(self) -> None:
        self._known: list[Fraction] = []
        self.deviation: Fraction = Fraction(0)

    def unify(self, value: float | Fraction) -> Fraction:
        """The rational that stands for ``value``; a fraction with a small denominator comes first, then a known constant."""
        exact = Fraction(value)
        simple = exact.limit_denominator(1000)
        if exact == 0 or exact == simple:
            return exact
        place = bisect.bisect(self._known, exact)
        for candidate in (simple, *self._known[max(place - 1, 0) : place + 1]):
            distance = abs(candidate - exact) / abs(exact)
            if distance < TOLERANCE:
                self.deviation = max(self.deviation, distance)
                return candidate
        self._known.insert(place, exact)
        return exact


CONSTANTS = Constants()
LN2 = Fraction(0.6931471805599453)
"""log(2) at its nearest double: exp2(x) is read as exp(LN2 x)."""
