"""PyTorch references run unmodified on symbolic tensors.

A ``SymbolicTensor`` is a pull array of normal forms. It takes part in torch functions through ``__torch_function__`` and
has the operators of a tensor; the methods that the references use are in ``torch_functions``, and those that only rearrange
elements in ``pull_array``. Trusted: that each is, over the reals, the torch function of its name. Types of floats are
ignored; integers keep theirs. Control flow of the reference that depends on sizes needs those sizes constant.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch

from ..base.errors import Unsupported
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.constants import unify
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from . import pull_array as arrays
from .pull_array import Element, Extent, Integers, Part, T, broadcast, hull, settled, together
from .recurrences import recorded
from .reshaping import Reshaping

METHODS: dict[str, Callable[..., Any]] = {}
"""Methods of a tensor by name, which are functions of torch too; ``torch_functions`` fills it."""
_IN_PLACE = "an operation of the reference in place"


def _refused(what: str) -> Callable[..., Any]:
    """Return a method that is not modelled."""

    def refuse(*_: Any) -> Any:
        raise Unsupported(what)

    return refuse


def _operator(function: Callable[[SymbolicTensor, SymbolicTensor], T]) -> Callable[[SymbolicTensor, Any], T]:
    """Return a binary operator, whose right side may be a number."""
    return lambda self, other: function(self, tensor(other))


class SymbolicTensor(Reshaping):
    """A pull array with the operators of a torch tensor, and its methods.

    Tensors put together along their last dimension are ``parts`` of one of which no element is known: functions of each
    element and reductions are those of the parts.
    """

    parts: tuple[SymbolicTensor, ...] = ()

    def view(self, *shape: Any) -> SymbolicTensor:
        """View fp32 numbers as the integers of their bits; or give the elements other dimensions."""
        if not isinstance(dtype := shape[0], torch.dtype):
            return self.reshape(*shape)
        if dtype is not torch.int32 or self.integer:
            raise Unsupported(f"a view as {dtype}")
        return SymbolicTensor(self.form_shape, lambda *i: extended.bits(self.value(*i)), integer=Integers.of(dtype))

    def along(self, dim: int, index: Sequence[Form]) -> list[Part]:
        """Return the elements along a dimension at an index of the others, part by part."""
        if self.parts and dim != self.ndim - 1:
            raise Unsupported(f"a reduction of tensors put together along {dim}")
        return [each for p in self.parts for each in p.along(dim, index)] or super().along(dim, index)

    def to_type(self, dtype: torch.dtype) -> SymbolicTensor:
        """Return the same numbers in another type: those of floats are any reals, which no integers are made of."""
        if dtype is torch.bool:
            return self if isinstance(self, Mask) else self != 0
        if not dtype.is_floating_point and not self.integer:
            raise Unsupported("a conversion of a float tensor to integers")
        integer = None if dtype.is_floating_point or not self.integer else self.integer.converted(dtype)
        if self.parts:
            return put_together([p.to_type(dtype) for p in self.parts])
        return SymbolicTensor((self if integer else settled(self)).form_shape, self._element, integer=integer)

    def _map(self, function: Callable[[Value], Value]) -> SymbolicTensor:
        if self.parts:
            return put_together([p._map(function) for p in self.parts])
        return SymbolicTensor(settled(self).form_shape, lambda *i: function(self.value(*i)))

    def _zip(self, other: Any, function: Callable[[Value, Value], Value], *, whole: bool = True) -> SymbolicTensor:
        """Combine element by element; if ``whole``, the result of integers is one of integers."""
        b = tensor(other)
        if self.parts:
            if b.ndim and b.form_shape[-1] is not ONE:
                raise Unsupported("an operation on tensors put together and a tensor of their width")
            return put_together([p._zip(b, function, whole=whole) for p in self.parts])
        linear, kinds = _LINEAR.get(function), together(self, b)
        integer = kinds[0].combined(kinds[1], linear) if kinds and linear else hull(settled(self), settled(b))
        a, b = broadcast(self, b)
        return SymbolicTensor(
            a.form_shape, lambda *i: function(a.value(*i), b.value(*i)), integer=integer if whole else None
        )

    def __neg__(self) -> SymbolicTensor:
        return tensor(0)._zip(self, _subtract)

    __add__ = __radd__ = _operator(lambda a, b: a._zip(b, extended.add))
    __sub__ = _operator(lambda a, b: a._zip(b, _subtract))
    __rsub__ = _operator(lambda a, b: b._zip(a, _subtract))
    __mul__ = __rmul__ = _operator(lambda a, b: a._zip(b, extended.multiply))

    def __truediv__(self, other: Any) -> SymbolicTensor:
        quotient = self._zip(other, extended.divide, whole=False)
        return recorded(quotient) if isinstance(other, SymbolicTensor) else quotient

    def __rtruediv__(self, other: Any) -> SymbolicTensor:
        return recorded(tensor(other)._zip(self, extended.divide, whole=False))

    def __floordiv__(self, divisor: int | Extent) -> SymbolicTensor:
        by = divisor.form if isinstance(divisor, Extent) else nf.form(divisor if isinstance(divisor, int) else 0)
        if not self.integer or not arrays.natural(by - 1):
            raise Unsupported(f"a quotient, rounded down, by {by if isinstance(divisor, Extent) else divisor}")
        whole, least = self.integer.settled(), int(by.constant or 1)
        floor = whole._replace(low=min(whole.low // least, 0), high=max(whole.high // least, 0))
        return SymbolicTensor(self.form_shape, lambda *i: Value(nf.apply("floordiv", self.at(*i), by)), integer=floor)

    def __pow__(self, exponent: int) -> SymbolicTensor:
        if exponent != int(exponent):
            raise Unsupported(f"the power {exponent}")
        powers = Integers(self.integer.dtype) if self.integer and isinstance(exponent, int) else None
        return SymbolicTensor(self.form_shape, lambda *i: Value(self.value(*i).real ** int(exponent)), integer=powers)

    def __matmul__(self, other: SymbolicTensor) -> SymbolicTensor:
        if min(self.ndim, other.ndim) < 2:
            raise Unsupported("a product with a vector")
        if other.form_shape[-2] is not self.form_shape[-1]:
            raise Unsupported(f"a product of rows of {self.form_shape[-1]} with columns of {other.form_shape[-2]}")
        return sum_of_products([self.unsqueeze(-1), other.unsqueeze(-3)], -2)

    __ge__ = _operator(lambda a, b: _compared(extended.at_least, a, b))
    __le__ = _operator(lambda a, b: _compared(extended.at_least, b, a))
    __lt__ = _operator(lambda a, b: ~_compared(extended.at_least, a, b))
    __gt__ = _operator(lambda a, b: ~_compared(extended.at_least, b, a))

    __eq__ = _operator(lambda a, b: _compared(extended.same, a, b))  # type: ignore[assignment]  # no bool, as torch's
    __ne__ = _operator(lambda a, b: ~_compared(extended.same, a, b))  # type: ignore[assignment]  # no bool, as torch's
    __hash__ = object.__hash__

    __iadd__ = __isub__ = __imul__ = __imatmul__ = __itruediv__ = __ifloordiv__ = __imod__ = _refused(_IN_PLACE)
    __ipow__ = __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _refused(_IN_PLACE)
    __iter__ = _refused("a loop of the reference over a tensor")
    __setitem__ = _refused("an assignment of the reference to elements")
    __bool__ = _refused("a decision of the reference on the value of a symbolic tensor")

    def __getattr__(self, name: str) -> Callable[..., SymbolicTensor]:
        """Return the method of that name in ``METHODS``."""
        if name not in METHODS:
            raise AttributeError(f"a symbolic tensor has no attribute {name!r}")
        return partial(METHODS[name], self)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function in ``FUNCTIONS``, or the method, that bears the name of a torch function."""
        name = function.__name__
        if name in arrays.FUNCTIONS:
            return arrays.FUNCTIONS[name](*args, **(kwargs or {}))
        method = METHODS.get(name) or getattr(cls, name, None) or getattr(cls, f"__{name}__", None)
        if method is None or not args:
            raise Unsupported(f"torch.{name} on a symbolic tensor")
        return method(tensor(args[0]), *args[1:], **(kwargs or {}))


class Mask(SymbolicTensor):
    """A tensor of truth values, as comparisons give; its elements are 0 or 1."""

    def __init__(self, shape: Sequence[Form | int], element: Element, *, integer: Integers | None = None) -> None:
        super().__init__(shape, element, integer=Integers.of(torch.bool))

    def __invert__(self) -> Mask:
        return Mask(self.form_shape, lambda *i: Value(ONE - self.at(*i)))

    def __and__(self, other: Any) -> Mask:
        if not isinstance(other, Mask):
            raise Unsupported(f"a truth value and {type(other).__name__}")
        a, b = broadcast(self, other)
        return Mask(a.form_shape, lambda *i: Value(a.at(*i) * b.at(*i)))

    def __or__(self, other: Any) -> Mask:
        return ~(~self & (~other if isinstance(other, Mask) else other))

    def _zip(self, other: Any, function: Callable[[Value, Value], Value], *, whole: bool = True) -> SymbolicTensor:
        if isinstance(other, Mask) or function in (extended.add, extended.divide):
            raise Unsupported("arithmetic of truth values")
        return super()._zip(other, function, whole=whole)

    __neg__ = __add__ = __radd__ = __sub__ = __rsub__ = __pow__ = _refused("arithmetic of truth values")


def _subtract(a: Value, b: Value) -> Value:
    return extended.add(a, extended.negative(b))


_LINEAR: dict[Callable[[Value, Value], Value], Callable[[float, float], float]]
_LINEAR = {extended.add: operator.add, _subtract: operator.sub, extended.multiply: operator.mul}
"""Functions of two values that are linear in either, and what they do to numbers."""


def tensor(value: Any) -> SymbolicTensor:
    """Return a number, or a symbolic tensor, as a symbolic tensor."""
    if isinstance(value, SymbolicTensor):
        return value
    if isinstance(value, Extent):
        small = arrays.natural(value.form) and arrays.natural(2**31 - 1 - value.form)
        integer = Integers(low=0, high=2**31 - 1) if small else Integers()
        return SymbolicTensor((), lambda: Value(value.form), integer=integer)
    if isinstance(value, Form):
        return SymbolicTensor((), lambda: Value(value), integer=Integers() if nf.is_natural(value) else None)
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, (int, float)):
        raise Unsupported(f"{type(value).__name__} beside a symbolic tensor")
    if isinstance(value, float) and math.isinf(value):
        return SymbolicTensor((), lambda: Value(ZERO, ZERO, 1 if value > 0 else -1))
    constant, exact = nf.form(unify(value)), Integers(low=value, high=value) if isinstance(value, int) else None
    return SymbolicTensor((), lambda: Value(constant), integer=exact)


def put_together(parts: Sequence[SymbolicTensor]) -> SymbolicTensor:
    """Return tensors one after the other along their last dimension."""

    def unknown(*_: Form) -> Value:
        raise Unsupported("an element of tensors put together")

    last = sum((p.form_shape[-1] for p in parts), ZERO)
    result = SymbolicTensor((*parts[0].form_shape[:-1], last), unknown, integer=hull(*parts))
    result.parts = tuple(parts)
    return result


def sum_of_products(factors: Sequence[SymbolicTensor], dims: Any) -> SymbolicTensor:
    """Return the sums along dimensions of products of elements, which are of the tensors' type together."""
    wide, kinds = broadcast(*factors), hull(*factors)

    def product(*i: Form) -> Value:
        return Value(reduce(Form.__mul__, (t.at(*i) for t in wide), ONE))

    of_products = SymbolicTensor(wide[0].form_shape, product)
    return arrays.reduced(of_products, dims, False, arrays.total, Integers(kinds.dtype) if kinds else None)


def filling(value: Any, into: SymbolicTensor) -> SymbolicTensor:
    """Return a number that is written into a tensor, whose type it takes; Unsupported if it would change or is no number."""
    fill = tensor(value)
    if fill.ndim or isinstance(into, Mask) or (into.integer and not fill.integer):
        raise Unsupported(f"{value} written into a tensor of {into.integer.dtype if into.integer else 'floats'}")
    return fill


def where(condition: SymbolicTensor, then: Any, otherwise: Any) -> SymbolicTensor:
    """Return, for each element, one of two by a condition."""
    if not isinstance(condition, Mask):
        raise Unsupported("a choice by a tensor that is not one of truth values")
    integer = hull(tensor(then), tensor(otherwise))
    c, a, b = broadcast(condition, tensor(then), tensor(otherwise))
    return SymbolicTensor(c.form_shape, lambda *i: extended.select(c.at(*i), a.value(*i), b.value(*i)), integer=integer)


def _compared(relation: Callable[..., Form], a: SymbolicTensor, b: SymbolicTensor) -> Mask:
    """Return where a relation holds of two tensors in their common shape; integers must be the forms themselves."""
    both = together(settled(a), settled(b))
    whole = both is not None and all(kind.settled() for kind in both)
    a, b = broadcast(a, b)
    return Mask(a.form_shape, lambda *i: Value(relation(a.value(*i), b.value(*i), integer=whole)))
