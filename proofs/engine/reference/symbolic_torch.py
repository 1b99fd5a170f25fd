"""PyTorch references run unmodified on symbolic tensors.

A ``SymbolicTensor`` is a pull array of normal forms. It takes part in torch functions through ``__torch_function__`` and
has the methods of a tensor that the references use; those that only rearrange elements are in ``pull_array``. Trusted:
that each function below is, over the reals, the torch function of its name. Types of floats are ignored; integers keep
theirs. Control flow of the reference that depends on sizes needs those sizes constant.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from ..base.errors import Unsupported
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.constants import unify
from ..forms.extended import Value, under
from ..forms.normal_form import ONE, ZERO, Form
from ..forms.sums import some_of
from . import pull_array as arrays
from .pull_array import Element, Extent, Integers, T, broadcast, hull, settled, together
from .recurrences import recorded
from .reshaping import Reshaping

Integer: TypeAlias = int  # in the class below, int and bool are methods
Truth: TypeAlias = bool


_IN_PLACE = "an operation of the reference in place"


def _refused(what: str) -> Callable[..., Any]:
    """Return a method that is not modelled."""

    def refuse(*_: Any) -> Any:
        raise Unsupported(what)

    return refuse


def _operator(function: Callable[[SymbolicTensor, SymbolicTensor], T]) -> Callable[[SymbolicTensor, Any], T]:
    """Return a binary operator, whose right side may be a number."""
    return lambda self, other: function(self, tensor(other))


def _of_each(name: str) -> Callable[[SymbolicTensor], SymbolicTensor]:
    """Return the method that takes a function of each element."""
    return lambda self: self._map(lambda a: extended.FUNCTIONS[name](a, "float64"))


def _log(total: Value) -> Value:
    """Return the logarithm of what is not negative: -inf where that is 0."""
    some = some_of(total.real)
    return Value(some * nf.log(under(some, total.form)), some)


class SymbolicTensor(Reshaping):
    """A pull array with the functions of a torch tensor."""

    def float(self) -> SymbolicTensor:
        """Return the same tensor, for conversions to a float type change nothing over the reals."""
        return SymbolicTensor(settled(self).form_shape, self._element)

    double = bfloat16 = half = float

    def view(self, *shape: Any) -> SymbolicTensor:
        """View fp32 numbers as the integers of their bits; or give the elements other dimensions."""
        if not isinstance(dtype := shape[0], torch.dtype):
            return self.reshape(*shape)
        if dtype is not torch.int32 or self.integer:
            raise Unsupported(f"a view as {dtype}")
        return SymbolicTensor(self.form_shape, lambda *i: extended.bits(self.value(*i)), integer=Integers.of(dtype))

    def clone(self) -> SymbolicTensor:
        """Return the same tensor."""
        return self

    contiguous = detach = clone

    def _to_integers(self, dtype: torch.dtype) -> SymbolicTensor:
        """Return the same integers in another type; the integer of a float is not modelled."""
        if not self.integer:
            raise Unsupported("a conversion of a float tensor to integers")
        return SymbolicTensor(self.form_shape, self._element, integer=self.integer.converted(dtype))

    def long(self) -> SymbolicTensor:
        """Return the same integers in 64 bits."""
        return self._to_integers(torch.int64)

    def int(self) -> SymbolicTensor:
        """Return the same integers in 32 bits."""
        return self._to_integers(torch.int32)

    def bool(self) -> Mask:
        """Return whether each element is not 0."""
        return self != 0

    def to(self, *targets: Any, **more: Any) -> SymbolicTensor:
        """Convert to a dtype; devices and the like change nothing."""
        result = self
        for target in (*targets, *more.values()):
            if isinstance(target, SymbolicTensor):
                result = result.type_as(target)
            elif isinstance(target, torch.dtype):
                result = result._to(target)
        return result

    def type_as(self, other: SymbolicTensor) -> SymbolicTensor:
        """Convert to the type of another tensor."""
        return self._to(other.integer.dtype if other.integer else torch.float64)

    def _to(self, dtype: torch.dtype) -> SymbolicTensor:
        if dtype is torch.bool:
            return self.bool()
        return self.float() if dtype.is_floating_point else self._to_integers(dtype)

    def _map(self, function: Callable[[Value], Value]) -> SymbolicTensor:
        return SymbolicTensor(settled(self).form_shape, lambda *i: function(self.value(*i)))

    def _zip(self, other: Any, function: Callable[[Value, Value], Value], *, whole: Truth = True) -> SymbolicTensor:
        """Combine element by element; if ``whole``, the result of integers is one of integers."""
        both, (a, b) = self._combined(tensor(other), function), broadcast(self, tensor(other))
        integer = both if whole else None
        return SymbolicTensor(a.form_shape, lambda *i: function(a.value(*i), b.value(*i)), integer=integer)

    def _combined(self, other: SymbolicTensor, function: Callable[[Value, Value], Value]) -> Integers | None:
        """Return the integers that a function makes of two tensors; None if one of them is of floats."""
        kinds = together(self, other)
        if kinds is None or function not in _LINEAR:
            return hull(settled(self), settled(other))
        return kinds[0].combined(kinds[1], _LINEAR[function])

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

    def __floordiv__(self, divisor: Integer) -> SymbolicTensor:
        if not self.integer or not isinstance(divisor, int) or divisor < 1:
            raise Unsupported(f"a quotient, rounded down, by {divisor}")
        floor = self.integer.settled()._replace(low=self.integer.low // divisor, high=self.integer.high // divisor)
        return SymbolicTensor(self.form_shape, lambda *i: Value(nf.floordiv(self.at(*i), divisor)), integer=floor)

    def __pow__(self, exponent: Integer) -> SymbolicTensor:
        if exponent != int(exponent):
            raise Unsupported(f"the power {exponent}")
        powers = Integers(self.integer.dtype) if self.integer and isinstance(exponent, int) else None
        return SymbolicTensor(self.form_shape, lambda *i: Value(self.value(*i).real ** int(exponent)), integer=powers)

    def __matmul__(self, other: SymbolicTensor) -> SymbolicTensor:
        if min(self.ndim, other.ndim) < 2:
            raise Unsupported("a product with a vector")
        depth = self.form_shape[-1]
        if other.form_shape[-2] is not depth:
            raise Unsupported(f"a product of rows of {depth} with columns of {other.form_shape[-2]}")
        lead = arrays.broadcast_shapes(self.form_shape[:-2], other.form_shape[:-2])
        a, b = (t.expand(*lead, *t.form_shape[-2:]) for t in (self, other))

        def element(*i: Form) -> Value:
            return Value(nf.summation(depth, lambda k: a.at(*i[:-1], k) * b.at(*i[:-2], k, i[-1])))

        shape = (*lead, self.form_shape[-2], other.form_shape[-1])
        return SymbolicTensor(shape, element, integer=arrays.products(self, other))

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

    exp, log, sqrt, rsqrt = map(_of_each, ("exp", "log", "sqrt", "rsqrt"))

    def sigmoid(self) -> SymbolicTensor:
        """Return 1 / (1 + exp(-x))."""
        return 1 / (1 + (-self).exp())

    def nan_to_num(self, *_: Any) -> SymbolicTensor:
        """Return the same numbers, none of which is NaN."""
        return self._map(lambda a: Value(a.real))

    def new_zeros(self, *shape: Any) -> SymbolicTensor:
        """Return zeros of a shape."""
        sizes: list[Any] = list(shape)
        return SymbolicTensor(sizes, lambda *_: Value(ZERO), integer=self.integer)

    def unfold(self, dim: Integer, size: Integer, step: Integer) -> SymbolicTensor:
        """Return each stretch of ``size`` elements of a dimension, along a new last one."""
        if step != 1:
            raise Unsupported(f"unfold with step {step}")
        d = dim % self.ndim
        shape: list[Any] = [*self.form_shape[:d], self.form_shape[d] - size + 1, *self.form_shape[d + 1 :], size]
        return SymbolicTensor(shape, lambda *i: self.value(*i[:d], i[d] + i[-1], *i[d + 1 : -1]), integer=self.integer)

    def relu(self) -> SymbolicTensor:
        """Return max(x, 0)."""
        return self.clamp(0)

    def clamp(self, min: Any = None, max: Any = None) -> SymbolicTensor:
        """Return min(max(x, low), high)."""
        result = self if min is None else self._zip(min, extended.maximum)
        return result if max is None else -(-result)._zip(-tensor(max), extended.maximum)

    def masked_fill(self, mask: SymbolicTensor, value: Any) -> SymbolicTensor:
        """Return the value where the mask is set, the element elsewhere."""
        return where(mask, filling(value, self), self)

    def sum(self, dim: Any = None, keepdim: Truth = False) -> SymbolicTensor:
        """Return the sum along dimensions."""
        wide = self.long() if self.integer else self
        return arrays.reduced(wide, dim, keepdim, arrays.total)

    def mean(self, dim: Any = None, keepdim: Truth = False) -> SymbolicTensor:
        """Return the mean along dimensions."""
        if self.integer:
            raise Unsupported("the mean of integers")
        return arrays.reduced(self, dim, keepdim, lambda n, f: Value(arrays.total(n, f).form / n))

    def amax(self, dim: Any = None, keepdim: Truth = False) -> SymbolicTensor:
        """Return the maximum along dimensions."""
        return arrays.reduced(self, dim, keepdim, arrays.largest)

    def amin(self, dim: Any = None, keepdim: Truth = False) -> SymbolicTensor:
        """Return the minimum along dimensions."""
        return -(-self).amax(dim, keepdim)

    def softmax(self, dim: Integer, dtype: Any = None) -> SymbolicTensor:
        """Return exp(x) / Σ exp(x): over the reals the subtracted maximum cancels."""
        powers = self.exp()
        return recorded(powers._zip(powers.sum(dim, keepdim=True), extended.divide, whole=False))

    def logsumexp(self, dim: Any, keepdim: Truth = False) -> SymbolicTensor:
        """Return log Σ exp(x)."""
        return self.exp().sum(dim, keepdim)._map(_log)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function in ``FUNCTIONS``, or the method, that bears the name of a torch function."""
        name = function.__name__
        if name in arrays.FUNCTIONS:
            return arrays.FUNCTIONS[name](*args, **(kwargs or {}))
        method = getattr(cls, name, None) or getattr(cls, f"__{name}__", None)
        if method is None or not args:
            raise Unsupported(f"torch.{name} on a symbolic tensor")
        first = args[0] if isinstance(args[0], SymbolicTensor) else tensor(args[0])
        return method(first, *args[1:], **(kwargs or {}))


class Mask(SymbolicTensor):
    """A tensor of truth values, as comparisons give; its elements are 0 or 1."""

    def __init__(self, shape: Sequence[Form | Integer], element: Element, *, integer: Integers | None = None) -> None:
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

    def bool(self) -> Mask:
        """Return the same tensor."""
        return self

    def any(self, dim: Any = None, keepdim: Truth = False) -> Mask:
        """Return whether one is true along dimensions, which is whether their number is at least 1."""
        return self.long().sum(dim, keepdim) >= 1

    def _zip(self, other: Any, function: Callable[[Value, Value], Value], *, whole: Truth = True) -> SymbolicTensor:
        if isinstance(other, Mask) or function in (extended.add, extended.divide):
            raise Unsupported("arithmetic of truth values")
        return super()._zip(other, function, whole=whole)

    __neg__ = __add__ = __radd__ = __sub__ = __rsub__ = __pow__ = _refused("arithmetic of truth values")


def _subtract(a: Value, b: Value) -> Value:
    return extended.add(a, extended.negative(b))


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
    c, a = broadcast(condition, tensor(then))
    c, b = broadcast(c, tensor(otherwise))
    a = a.expand(*c.form_shape)
    return SymbolicTensor(c.form_shape, lambda *i: extended.select(c.at(*i), a.value(*i), b.value(*i)), integer=integer)


def _compared(relation: Callable[..., Form], a: SymbolicTensor, b: SymbolicTensor) -> Mask:
    """Return where a relation holds of two tensors in their common shape; integers must be the forms themselves."""
    both = together(settled(a), settled(b))
    whole = both is not None and all(kind.settled() for kind in both)
    a, b = broadcast(a, b)
    return Mask(a.form_shape, lambda *i: Value(relation(a.value(*i), b.value(*i), integer=whole)))
