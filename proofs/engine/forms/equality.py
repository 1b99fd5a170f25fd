"""Deciding whether two normal forms denote the same rational function of their atoms.

The difference is multiplied by its denominators, expanded, and compared with 0. Almost every false equation is refuted
before that, by the values of its sides at two points (``refutation``). Atoms that are not the same object count as
independent. So a negative answer says that the laws of ``normal_form`` do not suffice. It does not say that the functions
differ somewhere.
"""

from __future__ import annotations

from . import normal_form as nf
from .normal_form import Form
from .refutation import differs
from .ring import Monomial, Polynomial, Rational, children, of_terms

LIMIT = 20_000
"""The largest number of terms that an expansion may have."""


class Undecided(Exception):
    """Raised where the expansion that would decide an equation is too large. It is never a verdict."""


def equal(a: Form, b: Form) -> bool:
    """Return whether a = b as rational functions of their atoms.

    Raises:
        Undecided: it holds at two random points modulo a prime, and the exact check would take too many terms.
    """
    difference = a - b
    if difference is nf.ZERO:
        return True
    return not differs(difference) and _vanishes(difference)


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
    by_degree = {degree: of_terms(terms) for degree, terms in groups.items()}
    result = nf.ZERO
    for degree in range(max(by_degree), -1, -1):  # Horner
        if len(result.terms) * len(polynomial.terms) > LIMIT:
            raise Undecided(f"more than {LIMIT} terms")
        result = result * polynomial + by_degree.get(degree, nf.ZERO)
    return result
