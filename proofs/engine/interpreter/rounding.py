"""How far floats are from reals: the interpreter's algebra with counts of roundings in the place of numbers.

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

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..base.dtypes import is_integer
from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..semantics.algebra import Binary, Comparison, Memory, Reduction, Unary
from .lanes import Lanes, align, sizes_of
from .machine import NumericMachine


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


class RoundingLanes(Lanes):
    """The interpreter's algebra with floats as counts: complex numbers whose real part is the count, the other the kind."""

    def __init__(self, assumed: Assumed) -> None:
        super().__init__()
        self._assumed = assumed
        self._lost: str | None = None
        self._open: list[Tensor] = []  # the conditions that may hold or not
        self._both_ways = False

    def literal(self, value: float, dtype: str) -> Any:
        """Return a constant: off by its rounding unless it is an integer that floats hold."""
        if is_integer(dtype) or dtype == "bool":
            return super().literal(value, dtype)
        kind = Kind.ZERO if value == 0 else Kind.POSITIVE if value > 0 else Kind.NEGATIVE
        exact = value == int(value) == torch.tensor(value, dtype=torch.float32).item()
        return torch.tensor(complex(not exact, kind))

    def infinity(self, dtype: str) -> Any:
        """Return positive infinity."""
        return torch.tensor(complex(0, Kind.INFINITY))

    def compare(self, operator: Comparison, a: Any, b: Any, dtype: str) -> Tensor:
        """Compare; of floats, whether something positive is above 0, or whether a gap is above something positive."""
        if not a.is_complex():
            return super().compare(operator, a, b, dtype)
        a, b = align(a, b)
        kinds, than = (set(x.imag.flatten().tolist()) for x in (a, b))
        if operator == "gt" and Kind.GAP in kinds <= {Kind.GAP, Kind.MINUS_INFINITY} and than == {Kind.POSITIVE}:
            return self._may_hold(a.imag == Kind.GAP)
        if operator == "gt" and kinds == {Kind.MINUS_INFINITY} and than == {Kind.POSITIVE}:
            return torch.zeros(a.shape, dtype=torch.bool)
        if operator != "gt" or not kinds <= {Kind.ZERO, Kind.POSITIVE} or than != {Kind.ZERO}:
            found = " or ".join(Kind(int(k)).title for k in kinds)
            raise Unsupported(f"a comparison of {found} in a count of roundings: {self._lost or describe(self.site)}")
        above: Tensor = a.imag == Kind.POSITIVE
        return above

    def _may_hold(self, lanes: Tensor) -> Tensor:
        """Return a condition that may hold or not, in each of these lanes for itself, and does not hold in others."""
        self._open.append(lanes)
        return lanes

    def _is_open(self, condition: Tensor) -> bool:
        return any(condition is other for other in self._open)

    def unary(self, operator: Unary, a: Any, dtype: str) -> Any:
        """Apply a function."""
        if operator == "not" and self._is_open(a):
            return self._may_hold(torch.ones_like(a))
        return self._each(_UNARY.get(operator, _none), a) if a.is_complex() else super().unary(operator, a, dtype)

    def binary(self, operator: Binary, a: Any, b: Any, dtype: str) -> Any:
        """Apply an operation."""
        if self._is_open(a) or self._is_open(b):
            raise Unsupported(f"a condition on floats with another, in a count of roundings: {describe(self.site)}")
        if not (a.is_complex() or b.is_complex()):
            return super().binary(operator, a, b, dtype)
        return self._each(_BINARY.get(operator, _none), *align(a, b))

    def decided(self, condition: Tensor) -> bool | None:
        """Return whether a condition holds in all active lanes or in none; None if in some, or if that is open."""
        return None if self._is_open(condition) else super().decided(condition)

    def select(self, condition: Tensor, then: Any, otherwise: Any, dtype: str) -> Any:
        """Choose; where the condition is open, return what covers both."""
        if not self._is_open(condition):
            return super().select(condition, then, otherwise, dtype)
        return self._each(_either, *align(super().select(condition, then, otherwise, dtype), otherwise))

    @contextmanager
    def guard(self, condition: Tensor) -> Iterator[None]:
        """Make lanes inactive where the condition fails; where it is open, what is stored covers what was there."""
        before = self._both_ways
        self._both_ways = before or self._is_open(condition)
        try:
            with super().guard(condition):
                yield
        finally:
            self._both_ways = before

    def store(self, memory: Memory[Tensor], index: Sequence[Tensor], value: Tensor) -> None:
        """Write in the active lanes."""
        if self._both_ways:
            value = self._each(_either, *align(self.load(memory, index), value))
        super().store(memory, index, value)

    def cast(self, a: Any, source: str, target: str) -> Any:
        """Convert a value: only a conversion to a shorter float rounds."""
        if not a.is_complex():
            return super().cast(a, source, target)
        if target not in ("float32", "bfloat16"):
            raise Unsupported(f"a float as {target}, in a count of roundings")
        return self._each(_to_bf16, a) if (source, target) == ("float32", "bfloat16") else a

    def reduce(self, kind: Reduction, extent: Tensor, body: Callable[[Tensor], Any], dtype: str) -> Any:
        """Return a sum or a maximum along one more axis."""
        if is_integer(dtype):
            return super().reduce(kind, extent, body, dtype)
        dim = self._depth
        with self.axis("k", torch.tensor(0, dtype=torch.int32), extent) as index:
            value, count = body(index), self._number(extent)
        value = value.reshape((*value.shape, *[1] * (dim + 1 - value.ndim)))
        value = value.expand(*value.shape[:dim], count)
        most = value.real.amax(dim)
        while value.shape[dim] > 1:
            half = value.shape[dim] // 2
            rest = value.narrow(dim, 2 * half, value.shape[dim] - 2 * half)
            both = self._each(
                _BINARY["add" if kind == "sum" else "max"], *(value.narrow(dim, n * half, half) for n in (0, 1))
            )
            value = torch.cat([both, rest], dim)
        value = value.squeeze(dim)
        return self._each(_sum_of(count), torch.complex(most, value.imag)) if kind == "sum" else value

    def allocate(self, memory: Memory[Tensor]) -> None:
        """Make a fresh buffer."""
        super().allocate(memory)
        if not is_integer(memory.dtype):
            self._storage[memory].data = self._storage[memory].data.to(torch.complex128)

    def give(self, memory: Memory[Tensor], tensor: Tensor, kind: Kind) -> None:
        """Give a parameter its tensor: exact numbers of a kind, or integers."""
        self.attach(memory, tensor, initialised=True)
        if not is_integer(memory.dtype):
            self._storage[memory].data = torch.full((tensor.numel(),), complex(0, kind), dtype=torch.complex128)

    def counted(self, memory: Memory[Tensor]) -> tuple[int, str]:
        """Return the largest count of a parameter, and its kind.

        Raises:
            Unsupported: it holds what has no rule, or several kinds.
        """
        data = self._storage[memory].data
        kinds = set(data.imag.flatten().tolist()) - {Kind.ZERO}
        if kinds & {Kind.UNKNOWN} or len(kinds) != 1:
            raise Unsupported(
                f"{memory.name} in a count of roundings: {self._lost or [Kind(int(k)).title for k in kinds]}"
            )
        return int(data.real.max()), Kind(int(kinds.pop())).title

    def _each(self, rule: Rule, *values: Any) -> Any:
        """Apply a rule to each combination of kinds that occurs."""
        values = tuple(torch.broadcast_tensors(*values))  # type: ignore[no-untyped-call]  # torch's
        codes = functools.reduce(lambda code, v: code * len(Kind) + v.imag, values, torch.zeros(()))
        out = torch.zeros(values[0].shape, dtype=torch.complex128)
        for code in sorted(set(codes.flatten().tolist())):
            here = codes == code
            each = [v.imag[here][0] for v in values]
            count, kind = rule(
                self._assumed, *((v.real[here], Kind(int(k))) for v, k in zip(values, each, strict=True))
            )
            if kind == Kind.UNKNOWN and not self._lost:
                self._lost = f"{' and '.join(Kind(int(k)).title for k in each)}: {describe(self.site)}"
            out[here] = torch.complex(
                torch.zeros(int(here.sum()), dtype=torch.float64) + count,
                torch.tensor(float(kind), dtype=torch.float64),
            )
        return out


def _none(assumed: Assumed, *operands: Counted) -> Counted:
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


def _either(assumed: Assumed, a: Counted, b: Counted) -> Counted:
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


def _to_bf16(assumed: Assumed, a: Counted) -> Counted:
    if a[1] in (Kind.POSITIVE, Kind.WEIGHTED):
        return a[0] + BF16, a[1]
    return a if a[1] == Kind.ZERO else (0, Kind.UNKNOWN)


_STEP = {Kind.ZERO: 0, Kind.DOT: 0, Kind.POSITIVE: 1, Kind.WEIGHTED: TRUNCATION}  # of an addition


def _sum_of(terms: int) -> Rule:
    """Return the rule of a sum whose terms have at most this count; no order adds to a term more often than this."""

    def rule(assumed: Assumed, a: Counted) -> Counted:
        x, kind = a
        return (x + (terms - 1) * _STEP[kind], kind) if kind in _STEP else (0, Kind.UNKNOWN)

    return rule


_UNARY: Mapping[str, Rule] = {
    "exp": lambda assumed, a: _exponential(assumed, "exp", a),
    "exp2": lambda assumed, a: _exponential(assumed, "exp2", a),
    "log": _log,
    "rcp": _rcp,
}
_BINARY: Mapping[str, Rule] = {"add": _add, "sub": _sub, "mul": _mul, "div": _div, "max": _max, "maxnan": _max}


def count_roundings(
    kernel: Any, inputs: Mapping[str, Tensor], *, scores: Collection[str], assumed: Assumed
) -> Mapping[str, tuple[int, str]]:
    """Return the largest count of each output of a kernel, and the kind of its numbers, at the sizes of the inputs.

    Args:
        kernel: the PrimFunc, as its factory returns it.
        inputs: by name. Only integers, sizes and which are floats matter: the counts are those of any floats.
        scores: the inputs that are scores; the other floats are data.
        assumed: what the counts assume of all numbers.

    Raises:
        Unsupported: an output depends on what has no rule.
        Fault: the kernel does what none may do.
    """
    lanes = RoundingLanes(assumed)
    machine = NumericMachine(lanes, kernel, sizes_of(kernel, inputs))
    memories = machine.parameters()
    for name, memory in memories.items():
        if name in inputs:
            lanes.give(memory, inputs[name], Kind.SCORE if name in scores else Kind.DATA)
        else:
            lanes.allocate(memory)
    machine.run()
    return {name: lanes.counted(memory) for name, memory in memories.items() if name not in inputs}
