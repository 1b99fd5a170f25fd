"""Rules for counts of roundings: what is known of a number that floats compute, and of what is computed with it.

A rounding to float32 multiplies by a factor between 1 - u and 1 / (1 - u), with u = 2^-24, if nothing over- or underflows. So a
number that θ roundings went into is off by a factor between (1 - u)^θ and (1 - u)^-θ: by at most γ = θ u / (1 - θ u) of itself
(N. Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Only numbers that are all of one sign may be added so:

- positive: off by θ factors. Exponentials, their sums, products and quotients are.
- weighted: a sum of positive numbers, its weights, times data. Each weight is off by θ factors, so that the sum is off by
  at most γ times the sum of the weights times the sizes of the data.
- data: exact inputs that only take part in products.
- negative: a constant below 0.
- dot: a sum of products of data. It becomes a score as its error is assumed.
- score: what exponentials are taken of, of any sign. Its absolute error is at most θ log(1 / (1 - u)), and so that of its
  exponential θ factors.
- gap: the difference of two scores without error, of any sign: off by θ factors.

A maximum is a score without error: it counts as the number that the floats have. Softmax over the reals is the same whatever
number is subtracted from all scores. So a gap may be compared with a positive constant, to choose a maximum: both ways are
followed, and a number that is chosen so, or written only so, has the larger count of both. That both lead to the same
number over the reals is not looked at here: the caller says why. What has no rule becomes unknown, and an output that is
unknown is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

import torch


class Kind(IntEnum):
    """What is known of a number: see above. The order is that in which products look at their factors."""

    ZERO = 0
    POSITIVE = 1
    WEIGHTED = 2
    DATA = 3
    DOT = 4
    NEGATIVE = 5
    SCORE = 6
    GAP = 7
    MINUS_INFINITY = 8
    INFINITY = 9
    UNKNOWN = 10

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.name.lower().replace("_", " ")


Counted = tuple[Any, Kind]
"""A count, or a tensor of counts, and what they are of."""
Rule = Callable[..., Counted]
"""From what is assumed and the operands to the result."""

ULPS = {"exp": 1, "exp2": 2, "log": 1, "rcp": 1}
"""What CUDA's functions may be off by, in units in the last place: its programming guide, and PTX of ex2 and rcp.approx."""
TRUNCATION = 3
"""The count of an addition on tensor cores, which is assumed to be off by less than a unit in the last place."""


@dataclass(frozen=True)
class Assumed:
    """What a count of roundings assumes.

    Attributes:
        largest: no score is larger in size, nor is one after its scaling, nor a difference or a sum of two, nor a logarithm,
            nor a maximum that has a weight. Scores are in the units of their exponential: bits for exp2.
        dot: the count of a dot product of data as a score, after its scaling.
    """

    largest: int
    dot: int = 0


def gamma(count: int) -> Fraction:
    """Return the relative error that so many roundings to float32 stay below."""
    u = Fraction(1, 2**24)
    return count * u / (1 - count * u)


def roundings(relative: Fraction) -> int:
    """Return a count whose factors reach as far as one of 1 ± relative: (1 - u)^count is at most 1 - relative."""
    u = Fraction(1, 2**24)
    count = math.ceil(relative / u)
    while 1 - count * u + count * (count - 1) * u * u / 2 > 1 - relative:  # at least (1 - u)^count
        count += 1
    return count


BF16 = roundings(Fraction(1, 2**8))


def none(assumed: Assumed, *operands: Counted) -> Counted:
    """Return that nothing is known."""
    return 0, Kind.UNKNOWN


def _as_score(assumed: Assumed, operand: Counted) -> Counted:
    """Return a dot product, a gap, 0 or a negative constant as a score, and anything else as it is."""
    count, kind = operand
    if kind == Kind.GAP:
        return count * assumed.largest, Kind.SCORE
    more = {Kind.DOT: assumed.dot, Kind.ZERO: 0, Kind.NEGATIVE: 0}.get(kind)
    return operand if more is None else (count + more, Kind.SCORE)


def _add(assumed: Assumed, a: Counted, b: Counted) -> Counted:
    match a[1], b[1]:
        case Kind.ZERO, _:
            return b
        case (_, Kind.ZERO) | (Kind.DOT, Kind.DOT):
            return a
        case Kind.POSITIVE, Kind.POSITIVE:
            return torch.maximum(a[0], b[0]) + 1, Kind.POSITIVE
        case Kind.WEIGHTED, Kind.WEIGHTED:
            return torch.maximum(a[0], b[0]) + TRUNCATION, Kind.WEIGHTED
    return _sub(assumed, a, b)


def _sub(assumed: Assumed, a: Counted, b: Counted) -> Counted:
    if (a[1], b[1]) == (Kind.ZERO, Kind.GAP):
        return b
    (x, of), (y, by) = _as_score(assumed, a), _as_score(assumed, b)
    match of, by:
        case Kind.SCORE, Kind.SCORE if not (x.any() or y.any()):
            return x + 1, Kind.GAP
        case Kind.SCORE, Kind.SCORE:
            return x + y + assumed.largest, Kind.SCORE
        case Kind.MINUS_INFINITY, Kind.SCORE:
            return 0, Kind.MINUS_INFINITY
    return 0, Kind.UNKNOWN


def _mul(assumed: Assumed, a: Counted, b: Counted) -> Counted:
    if a[1] > b[1]:
        a, b = b, a
    if a[1] == Kind.ZERO:
        return 0, Kind.ZERO if b[1] < Kind.MINUS_INFINITY else Kind.UNKNOWN
    if (a[1], b[1]) == (Kind.NEGATIVE, Kind.INFINITY):
        return 0, Kind.MINUS_INFINITY
    if a[1] in (Kind.POSITIVE, Kind.NEGATIVE) and b[1] == Kind.GAP:
        return a[0] + b[0] + 1, Kind.GAP
    (x, of), (y, by) = a, _as_score(assumed, b)
    match of, by:
        case Kind.POSITIVE, Kind.POSITIVE | Kind.WEIGHTED:
            return x + y + 1, by
        case Kind.POSITIVE, Kind.DATA:
            return x + 1, Kind.WEIGHTED
        case Kind.DATA, Kind.DATA:
            return 0, Kind.DOT
        case Kind.POSITIVE, Kind.SCORE if b[1] == Kind.DOT or not y.any():  # the error of another would be scaled
            return y + (x + 1) * assumed.largest, Kind.SCORE
        case Kind.POSITIVE, Kind.MINUS_INFINITY:
            return 0, Kind.MINUS_INFINITY
    return 0, Kind.UNKNOWN


def _div(assumed: Assumed, a: Counted, b: Counted) -> Counted:
    match a[1], b[1]:
        case Kind.ZERO, Kind.POSITIVE:
            return a
        case ((Kind.POSITIVE | Kind.WEIGHTED), Kind.POSITIVE):
            return a[0] + b[0] + 1, a[1]
    return 0, Kind.UNKNOWN


def _max(assumed: Assumed, a: Counted, b: Counted) -> Counted:
    kinds = {_as_score(assumed, a)[1], _as_score(assumed, b)[1]}
    if kinds == {Kind.MINUS_INFINITY}:
        return a
    return 0, Kind.SCORE if kinds <= {Kind.SCORE, Kind.MINUS_INFINITY} else Kind.UNKNOWN


def either(assumed: Assumed, a: Counted, b: Counted) -> Counted:
    """Return what covers both numbers; 0 is a weighted sum without error."""
    (x, of), (y, by) = a, b
    if {of, by} <= {Kind.ZERO, Kind.WEIGHTED}:
        return torch.maximum(x, y), max(of, by)
    (x, of), (y, by) = (a, b) if of == by else (_as_score(assumed, a), _as_score(assumed, b))
    return (torch.maximum(x, y), of) if of == by else (0, Kind.UNKNOWN)


def _exponential(assumed: Assumed, operator: str, a: Counted) -> Counted:
    x, kind = _as_score(assumed, a)
    if kind == Kind.MINUS_INFINITY:
        return 0, Kind.ZERO
    return (x + 2 * ULPS[operator] + 1, Kind.POSITIVE) if kind == Kind.SCORE else (0, Kind.UNKNOWN)


def _log(assumed: Assumed, a: Counted) -> Counted:
    x, kind = a
    if kind == Kind.ZERO:
        return 0, Kind.MINUS_INFINITY
    rounded = x + (2 * ULPS["log"] + 1) * assumed.largest
    return (rounded, Kind.SCORE) if kind == Kind.POSITIVE else (0, Kind.UNKNOWN)


def _rcp(assumed: Assumed, a: Counted) -> Counted:
    return (a[0] + 2 * ULPS["rcp"] + 1, a[1]) if a[1] == Kind.POSITIVE else (0, Kind.UNKNOWN)


def to_bf16(assumed: Assumed, a: Counted) -> Counted:
    """Return a number rounded to bf16."""
    if a[1] in (Kind.POSITIVE, Kind.WEIGHTED):
        return a[0] + BF16, a[1]
    return a if a[1] == Kind.ZERO else (0, Kind.UNKNOWN)


_STEP = {Kind.ZERO: 0, Kind.DOT: 0, Kind.POSITIVE: 1, Kind.WEIGHTED: TRUNCATION}  # of an addition


def sum_of(terms: int) -> Rule:
    """Return the rule of a sum whose terms have at most this count; no order adds to a term more often than this."""

    def rule(assumed: Assumed, a: Counted) -> Counted:
        x, kind = a
        return (x + (terms - 1) * _STEP[kind], kind) if kind in _STEP else (0, Kind.UNKNOWN)

    return rule


UNARY: Mapping[str, Rule] = {
    "exp": lambda assumed, a: _exponential(assumed, "exp", a),
    "exp2": lambda assumed, a: _exponential(assumed, "exp2", a),
    "log": _log,
    "rcp": _rcp,
}
BINARY: Mapping[str, Rule] = {"add": _add, "sub": _sub, "mul": _mul, "div": _div, "max": _max, "maxnan": _max}
