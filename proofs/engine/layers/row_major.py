"""The digits of flat indices: help for a solver of polynomials.

The index of element [i, j, k] of a tensor of shape [L, M, N], i M N + j N + k, is below L M N. A solver has to find that
(i + 1) M N <= L M N and (j + 1) N <= M N, which are not linear. Here it is found for which digits, i and j, and which
strides, M N and N, that is worth saying. A digit may be a quotient, as i = x / 2 of a block x of threads: then a solver of
linear inequalities has to find that i < L where x < 2 L, and that rounding counts.

No error here can make a false theorem: what bounds.py says of a digit, or of a quotient, holds of any three integers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import z3

Monomial = tuple[int, tuple[z3.ArithRef, ...]]  # the coefficient, and the factors that vary


class Digit(NamedTuple):
    """A digit of a flat index, its largest value, and the number that it is multiplied by."""

    value: z3.ArithRef
    last: z3.ArithRef
    stride: z3.ArithRef

    @property
    def scaled(self) -> bool:
        """Whether it is multiplied by what varies."""
        return not z3.is_int_value(z3.simplify(self.stride))


class Quotient(NamedTuple):
    """A digit that is a quotient, rounded down: the dividend, the divisor, and the digit's largest value."""

    dividend: z3.ArithRef
    divisor: z3.ArithRef
    last: z3.ArithRef


def digits(
    index: z3.ArithRef, shape: Sequence[z3.ArithRef], strides: Sequence[z3.ArithRef] | None = None
) -> Iterator[Digit]:
    """Yield for each dimension but the last the digit that an index has there; rows follow each other by default.

    A summand of the index is part of one digit, the first that it can be part of.
    """
    terms = [_monomial(m) for m in _summands(z3.simplify(index, som=True))]
    for p in range(len(shape) - 1):
        stride = strides[p] if strides else z3.Product(list(shape[p + 1 :]))
        by = _monomial(z3.simplify(stride, som=True))
        divided = [(term, _divided(term, by)) for term in terms]
        terms = [term for term, part in divided if part is None]
        if parts := [part for _, part in divided if part is not None]:
            yield Digit(z3.simplify(z3.Sum(parts)), shape[p] - 1, stride)


def quotients(found: Iterable[Digit]) -> Iterator[Quotient]:
    """Yield the digits that are quotients by a number."""
    for value, last, _ in found:
        if z3.is_idiv(value) and z3.is_int_value(value.arg(1)):
            yield Quotient(value.arg(0), value.arg(1), last)


def _summands(term: z3.ArithRef) -> list[z3.ArithRef]:
    return term.children() if z3.is_add(term) else [term]


def _monomial(term: z3.ArithRef) -> Monomial:
    parts = _factors(term)
    constants = [p.as_long() for p in parts if z3.is_int_value(p)]
    return math.prod(constants), tuple(p for p in parts if not z3.is_int_value(p))


def _factors(term: z3.ArithRef) -> list[z3.ArithRef]:
    """Return the factors of a product; Z3 has that of a number and of other factors as a product of two."""
    return [f for part in term.children() for f in _factors(part)] if z3.is_mul(term) else [term]


def _divided(term: Monomial, by: Monomial) -> z3.ArithRef | None:
    """Return a monomial divided by another one; None if that is not a whole number times at most one factor."""
    (coefficient, factors), (unit, taken) = term, by
    rest = _without(factors, taken)
    if coefficient % unit or rest is None or len(rest) > 1:
        return None
    return coefficient // unit * z3.Product([z3.IntVal(1), *rest])


def _without(factors: Sequence[z3.ArithRef], taken: Sequence[z3.ArithRef]) -> tuple[z3.ArithRef, ...] | None:
    """Return what is left of a product divided by another one, or None if that does not divide it."""
    left = Counter(f.get_id() for f in factors)
    left.subtract(t.get_id() for t in taken)
    if min(left.values(), default=0) < 0:
        return None
    by_id = {f.get_id(): f for f in factors}
    return tuple(by_id[i] for i in left.elements())
