"""Forms that differ, found out quickly: their values at two random points, modulo a prime.

It is not trusted. All that it can bring about is that an equation is not proved: ``equations`` asks it first, and proves
an equation by expansion only.
"""

from __future__ import annotations

import random
from fractions import Fraction
from math import lcm

from . import normal_form as nf
from .normal_form import Form
from .ring import Polynomial, Rational

PRIME = 2**61 - 1


def differs(p: Form) -> bool:
    """Return whether a form is found not to be 0."""
    return any(_value(p, seed) != 0 for seed in (0, 1))


def _value(p: Form, seed: int) -> int:
    """Return the value of a form modulo PRIME, where each atom but polynomials has a random value."""
    rates = _rates(p)
    values: dict[int, int] = {}

    def value(atom: int) -> int:
        if atom not in values:
            inner = nf.atom_of(atom)
            if isinstance(inner, Polynomial):
                values[atom] = total(inner.form)
            else:
                values[atom] = random.Random(f"{seed}:{atom}").randrange(1, PRIME)
        return values[atom]

    def total(q: Form) -> int:
        result = 0
        for monomial, coefficient in q.terms.items():
            term = _residue(coefficient)
            for atom, exponent in monomial:
                term = term * pow(value(atom), int(exponent * rates[atom]), PRIME) % PRIME
            result += term
        return result % PRIME

    return total(p)


def _rates(p: Form) -> dict[int, int]:
    """Return by how much each exp is rooted, so that its exponents become integers: their common denominator."""
    rates: dict[int, int] = {}
    polynomials, pending = set(), [p]
    while pending:
        for monomial in pending.pop().terms:
            for atom, exponent in monomial:
                rates[atom] = lcm(rates.get(atom, 1), Fraction(exponent).denominator)
                if isinstance(nf.atom_of(atom), Polynomial) and atom not in polynomials:
                    polynomials.add(atom)
                    pending.append(nf.atom_of(atom).children()[0])
    return rates


def _residue(coefficient: Rational) -> int:
    exact = Fraction(coefficient)
    return exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME
