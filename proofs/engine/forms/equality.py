"""Deciding whether two normal forms denote the same rational function of their atoms.

First by identity; then by evaluation at two points modulo a prime, which refutes almost every false equation at once
and never proves one; then exactly: the difference is multiplied by its denominators, expanded, and compared with 0.
Atoms that are not the same object count as independent: a false answer says that the laws of ``normal_form`` do not
suffice, not that the functions differ somewhere.
"""

from __future__ import annotations

import random
from fractions import Fraction
from math import lcm

from . import normal_form as nf
from .normal_form import Form
from .ring import Monomial, Polynomial, Rational, children, of_terms

PRIME = 2**61 - 1
LIMIT = 20_000
"""The largest number of terms that an expansion may have."""


class Undecided(Exception):
    """The expansion that would decide an equation is too large. Never a verdict."""


def equal(a: Form, b: Form) -> bool:
    """Whether a = b as rational functions of their atoms.

    Raises:
        Undecided: it holds at two random points modulo a prime, and the exact check would take too many terms.
    """
    difference = a - b
    if difference is nf.ZERO:
        return True
    if any(_modular(difference, seed) != 0 for seed in (0, 1)):
        return False
    return _vanishes(difference)


def _vanishes(p: Form) -> bool:
    """Whether p, its denominators cleared and its polynomials expanded, is 0."""
    while True:
        inside = sorted({a for m in p.terms for a, _ in m if isinstance(nf.atom_of(a), Polynomial)})
        if not inside:
            return p is nf.ZERO
        outermost = inside[-1]  # an atom is numbered after those inside it
        p = _eliminate(p, outermost)


def _eliminate(p: Form, number: int) -> Form:
    """p times a power of one polynomial, with that polynomial expanded."""
    degrees = {m: int(dict(m).get(number, 0)) for m in p.terms}
    least = min(degrees.values())
    polynomial = children(nf.atom_of(number))[0]
    groups: dict[int, dict[Monomial, Rational]] = {}
    for monomial, coefficient in p.terms.items():
        rest = tuple(q for q in monomial if q[0] != number)
        groups.setdefault(degrees[monomial] - least, {})[rest] = coefficient
    by_degree = {degree: of_terms(terms) for degree, terms in groups.items()}
    result = nf.ZERO
    for degree in range(max(by_degree), -1, -1):  # Horner
        if len(result.terms) * len(polynomial.terms) > LIMIT:
            raise Undecided(f"more than {LIMIT} terms")
        result = result * polynomial + by_degree.get(degree, nf.ZERO)
    return result


def _modular(p: Form, seed: int) -> int:
    """The value of p modulo PRIME, with a random value for every atom but polynomials."""
    rates: dict[int, int] = {}  # by how much an exp is rooted: its exponents have this common denominator
    polynomials, pending = set(), [p]
    while pending:
        for monomial in pending.pop().terms:
            for atom, exponent in monomial:
                rates[atom] = lcm(rates.get(atom, 1), Fraction(exponent).denominator)
                if isinstance(nf.atom_of(atom), Polynomial) and atom not in polynomials:
                    polynomials.add(atom)
                    pending.append(children(nf.atom_of(atom))[0])
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


def _residue(coefficient: Rational) -> int:
    exact = Fraction(coefficient)
    return exact.numerator * pow(exact.denominator, -1, PRIME) % PRIME
