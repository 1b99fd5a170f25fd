"""Help with flat indices: that of row-major order grows with each of its digits.

The index of element [i, j, k] of a tensor of shape [L, M, N], i M N + j N + k, is below L M N. A solver of polynomials has to
find that (i + 1) M N <= L M N and (j + 1) N <= M N, which are not linear; here they are given to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import z3

Monomial = tuple[int, tuple[z3.ArithRef, ...]]  # the coefficient, and the factors that vary


def lemmas(index: z3.ArithRef, shape: Sequence[z3.ArithRef]) -> Iterator[z3.BoolRef]:
    """For each dimension whose stride varies: if its digit is below its extent, so are their products with the stride.

    They hold of any integers, whatever the digits are.
    """
    terms = [_monomial(m) for m in _summands(z3.simplify(index, som=True))]
    for p in range(len(shape) - 1):
        stride = z3.Product(list(shape[p + 1 :]))
        unit, factors = _monomial(z3.simplify(stride, som=True))
        rests = [(c // unit, rest) for c, f in terms if c % unit == 0 and (rest := _without(f, factors)) is not None]
        digits = [c * z3.Product([z3.IntVal(1), *rest]) for c, rest in rests if len(rest) <= 1]
        if factors and digits:
            digit, last = z3.Sum(digits), shape[p] - 1
            yield z3.Implies(z3.And(stride >= 0, digit <= last), digit * stride <= last * stride)


def _summands(term: z3.ArithRef) -> list[z3.ArithRef]:
    return term.children() if z3.is_add(term) else [term]


def _monomial(term: z3.ArithRef) -> Monomial:
    parts = term.children() if z3.is_mul(term) else [term]
    constants = [p.as_long() for p in parts if z3.is_int_value(p)]
    return math.prod(constants), tuple(p for p in parts if not z3.is_int_value(p))


def _without(factors: Sequence[z3.ArithRef], taken: Sequence[z3.ArithRef]) -> tuple[z3.ArithRef, ...] | None:
    """What is left of a product divided by another one; None if that does not divide it."""
    left = Counter(f.get_id() for f in factors)
    left.subtract(t.get_id() for t in taken)
    if min(left.values(), default=0) < 0:
        return None
    by_id = {f.get_id(): f for f in factors}
    return tuple(by_id[i] for i in left.elements())
