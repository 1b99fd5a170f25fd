"""The reading in which sums of floats keep their order: x + y is an opaque function of x and y, but that x + 0 = x.

A kernel that it reads computes on floats with additions alone. So what it leaves is that function of the inputs in floats
too, whatever they are rounded to, but for the sign of a zero: -0 + 0 is 0. A conversion must be to a type that holds all
numbers of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..base.dtypes import is_integer
from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.extended import Value
from ..forms.normal_form import ZERO, Form
from ..semantics.algebra import Binary, Reduction, Unary
from .symbolic import Symbols

_WIDER = {("bfloat16", "float32"), ("float16", "float32")}


def plus(a: Form, b: Form) -> Form:
    """Return a + b of floats."""
    return a if b is ZERO else nf.apply("plus", a, b)


class InOrder(Symbols):
    """The algebra of normal forms, but for floats."""

    def unary(self, operator: Unary, a: Value, dtype: str) -> Value:
        """Negate a truth value."""
        if operator != "not":
            raise Unsupported(f"{operator} where sums of floats keep their order")
        return super().unary(operator, a, dtype)

    def binary(self, operator: Binary, a: Value, b: Value, dtype: str) -> Value:
        """Add two floats, or apply an operation on integers."""
        if is_integer(dtype):
            return super().binary(operator, a, b, dtype)
        if operator != "add":
            raise Unsupported(f"{operator} of {dtype} where sums of floats keep their order")
        return Value(plus(a.real, b.real))

    def cast(self, a: Value, source: str, target: str) -> Value:
        """Return the same number in a type that holds it."""
        if not (is_integer(source) and is_integer(target)) and (source, target) not in _WIDER:
            raise Unsupported(f"a cast from {source} to {target} where sums of floats keep their order")
        return super().cast(a, source, target)

    def reduce(self, kind: Reduction, extent: Value, body: Callable[[Value], Value], dtype: str) -> Any:
        """Refuse, for the order in which threads reduce is not known."""
        raise Unsupported(f"a {kind} across threads where sums of floats keep their order")
