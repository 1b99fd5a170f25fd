"""The functions of torch that make a symbolic tensor of several, or of none, by the names under which torch calls them.

Trusted: that each is, over the reals, the torch function of its name. Importing this module lets references call them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..base.errors import Unsupported
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.extended import Value, under
from ..forms.normal_form import ZERO, Form
from ..forms.sums import some_of
from . import pull_array as arrays
from .pull_array import FUNCTIONS, Integers, hull, natural, reduced, settled, sizes_of
from .recurrences import recorded
from .symbolic_torch import METHODS, Mask, SymbolicTensor, filling, put_together, sum_of_products, tensor, where


def to(t: SymbolicTensor, *targets: Any, **more: Any) -> SymbolicTensor:
    """Convert to a dtype; devices and the like change nothing."""
    for target in (*targets, *more.values()):
        if isinstance(target, SymbolicTensor):
            t = t.type_as(target)
        elif isinstance(target, torch.dtype):
            t = t.to_type(target)
    return t


def new_zeros(t: SymbolicTensor, *shape: Any) -> SymbolicTensor:
    """Return zeros of a shape, of the type of a tensor."""
    return SymbolicTensor(sizes_of(shape), lambda *_: Value(ZERO), integer=t.integer)


def unfold(t: SymbolicTensor, dim: int, size: int, step: int) -> SymbolicTensor:
    """Return each stretch of ``size`` elements of a dimension, along a new last one."""
    if step != 1:
        raise Unsupported(f"unfold with step {step}")
    d = dim % t.ndim
    shape = [*t.form_shape[:d], t.form_shape[d] - size + 1, *t.form_shape[d + 1 :], nf.form(size)]
    return t.pulled(shape, lambda *i: [*i[:d], i[d] + i[-1], *i[d + 1 : -1]])


def clamp(t: SymbolicTensor, min: Any = None, max: Any = None) -> SymbolicTensor:
    """Return min(max(x, low), high)."""
    t = t if min is None else t._zip(min, extended.maximum)
    return t if max is None else -(-t)._zip(-tensor(max), extended.maximum)


def total(t: SymbolicTensor, dim: Any = None, keepdim: bool = False) -> SymbolicTensor:
    """Return the sum along dimensions; that of integers is one of 64 bits."""
    wide = t.to_type(torch.int64) if t.integer else t
    return reduced(wide, dim, keepdim, arrays.total, Integers() if t.integer else None)


def mean(t: SymbolicTensor, dim: Any = None, keepdim: bool = False) -> SymbolicTensor:
    """Return the mean along dimensions."""
    if t.integer:
        raise Unsupported("the mean of integers")
    return reduced(t, dim, keepdim, arrays.mean)


def some(t: SymbolicTensor, dim: Any = None, keepdim: bool = False) -> Mask:
    """Return whether one is true along dimensions, which is whether their number is at least 1."""
    if t.integer is None or t.integer.dtype is not torch.bool:
        raise Unsupported("any of numbers")
    return total(t, dim, keepdim) >= 1


def softmax(t: SymbolicTensor, dim: int, dtype: Any = None) -> SymbolicTensor:
    """Return exp(x) / Σ exp(x): over the reals the subtracted maximum cancels."""
    powers = t.exp()
    return recorded(powers._zip(powers.sum(dim, keepdim=True), extended.divide, whole=False))


def log_of_sum(value: Value) -> Value:
    """Return the logarithm of what is not negative: -inf where that is 0."""
    positive = some_of(value.real)
    return Value(positive * nf.log(under(positive, value.form)), positive)


def split(t: SymbolicTensor, sizes: Sequence[Any], dim: Any = 0) -> tuple[SymbolicTensor, ...]:
    """Return the parts of which a tensor was put together."""
    if dim not in (-1, t.ndim - 1) or [tensor(n).at() for n in sizes] != [p.form_shape[-1] for p in t.parts]:
        raise Unsupported("a split elsewhere than where tensors were put together")
    return t.parts


def _of_each(name: str) -> Callable[[SymbolicTensor], SymbolicTensor]:
    """Return the method that takes a function of each element."""
    return lambda t: t._map(lambda a: extended.FUNCTIONS[name](a, "float64"))


_TYPES = {
    **dict.fromkeys(("float", "double", "bfloat16", "half"), torch.float64),
    **{"long": torch.int64, "int": torch.int32, "bool": torch.bool},
}
METHODS |= {
    **{name: _of_each(name) for name in ("exp", "log", "sqrt", "rsqrt")},
    **{name: lambda t, dtype=dtype: t.to_type(dtype) for name, dtype in _TYPES.items()},
    **dict.fromkeys(("clone", "contiguous", "detach"), lambda t: t),
    "type_as": lambda t, other: t.to_type(other.integer.dtype if other.integer else torch.float64),
    "sigmoid": lambda t: 1 / (1 + (-t).exp()),
    "nan_to_num": lambda t, *_: t._map(lambda a: Value(a.real)),  # no number is NaN
    "size": lambda t, dim=None: t.shape if dim is None else t.shape[dim],
    "relu": lambda t: t.clamp(0),
    "masked_fill": lambda t, mask, value: where(mask, filling(value, t), t),
    "amax": lambda t, dim=None, keepdim=False: reduced(settled(t), dim, keepdim, arrays.largest, t.integer),
    "amin": lambda t, dim=None, keepdim=False: -(-t).amax(dim, keepdim),
    "logsumexp": lambda t, dim, keepdim=False: t.exp().sum(dim, keepdim)._map(log_of_sum),
    **{"to": to, "new_zeros": new_zeros, "unfold": unfold, "clamp": clamp, "split": split},
    **{"sum": total, "mean": mean, "any": some, "softmax": softmax},
}


def arange(*ends: Any, device: Any = None, dtype: torch.dtype = torch.int64) -> SymbolicTensor:
    """Return 0, 1, ..., end - 1, or the integers from another start on."""
    if dtype.is_floating_point or len(ends) > 2 or any(isinstance(end, float) for end in ends):
        raise Unsupported("torch.arange of floats, or with a step")
    start, end = (tensor(x).at() for x in (0, *ends)[-2:])
    known = [float(x.constant) for x in (start, end - 1) if x.constant is not None]
    integer = Integers(dtype, *known) if len(known) == 2 else Integers(dtype)
    return SymbolicTensor((end - start,), lambda i: Value(start + i), integer=integer)


def pad(
    t: SymbolicTensor, amounts: Sequence[int], mode: str = "constant", value: float | None = None
) -> SymbolicTensor:
    """Pad the last dimensions with a constant, as torch.nn.functional.pad does."""
    sizes = sizes_of(amounts)
    if mode != "constant" or not all(map(natural, sizes)):
        raise Unsupported(f"pad {tuple(map(str, sizes))} of mode {mode}")
    if len(amounts) > 2:
        inner = pad(t.transpose(-1, -len(amounts) // 2), amounts[-2:], mode, value)
        return pad(inner.transpose(-1, -len(amounts) // 2), amounts[:-2], mode, value)
    before, after = sizes
    if before is after is ZERO:
        return t
    *lead, extent = t.form_shape
    fill = filling(value or 0, t)

    def element(*i: Form) -> Value:
        j = i[-1] - before
        inside = nf.nonnegative(j) * nf.nonnegative(extent - 1 - j)
        return extended.select(inside, t.value(*i[:-1], j), fill.value())

    return SymbolicTensor((*lead, extent + before + after), element, integer=hull(t, fill))


def cat(tensors: Sequence[SymbolicTensor], dim: int = 0) -> SymbolicTensor:
    """Put tensors one after the other along their last dimension."""
    if dim not in (-1, tensors[0].ndim - 1):
        raise Unsupported(f"torch.cat along dimension {dim}")
    return put_together(tensors)


def unfold_backward(t: SymbolicTensor, sizes: Sequence[Any], dim: int, size: int, step: int) -> SymbolicTensor:
    """Return, for each element that ``unfold`` read, the sum of ``t`` over the stretches that it is in."""
    if step != 1 or t.integer:
        raise Unsupported(f"unfold_backward of integers or with step {step}")
    shape = sizes_of(sizes)
    d, last = dim % len(shape), size - 1
    if list(t.form_shape) != [*shape[:d], shape[d] - last, *shape[d + 1 :], nf.form(size)]:
        raise Unsupported(f"unfold_backward of shape {list(map(str, t.form_shape))} into {list(map(str, shape))}")
    wide = pad(t, (0, 0) * (t.ndim - 1 - d) + (last, last))
    parts = wide.pulled([*shape, nf.form(size)], lambda *i: [*i[:d], i[d] - i[-1] + last, *i[d + 1 :]])
    return total(parts, -1)


def einsum(equation: str, *operands: SymbolicTensor) -> SymbolicTensor:
    """Compute what torch.einsum does of an equation with an explicit result."""
    inputs, output = equation.replace(" ", "").split("->")
    letters = inputs.split(",")
    pairs = [pair for word, t in zip(letters, operands, strict=True) for pair in zip(word, t.form_shape, strict=True)]
    if len({*pairs}) > len({c for c, _ in pairs}):
        raise Unsupported(f"einsum of one dimension of several sizes: {equation}")
    sizes = dict(pairs)
    order = [*output, *(c for c in sizes if c not in output)]

    def placed(word: str, t: SymbolicTensor) -> SymbolicTensor:
        return t.pulled([sizes[c] for c in order], lambda *i: [i[order.index(c)] for c in word])

    return sum_of_products(list(map(placed, letters, operands)), [*range(len(output), len(order))])


def logaddexp(a: Any, b: Any) -> SymbolicTensor:
    """Return log(exp a + exp b), as torch computes it: the maximum, and what the other one adds."""
    high = tensor(a)._zip(b, extended.maximum)
    low = -(-tensor(a))._zip(-tensor(b), extended.maximum)
    return high + ((low - high).exp() + 1).log()


FUNCTIONS |= {
    **{"arange": arange, "pad": pad, "where": where, "einsum": einsum, "cat": cat},
    "unfold_backward": unfold_backward,
    "zeros_like": lambda t: t.new_zeros(*t.form_shape),
    "rsub": lambda a, b: tensor(b) - a,
    "maximum": lambda a, b: tensor(a)._zip(b, extended.maximum),
    "logaddexp": logaddexp,
    "div": lambda a, b: tensor(a) / b,
    "true_divide": lambda a, b: tensor(a) / b,
    "subtract": lambda a, b: tensor(a) - b,
    "multiply": lambda a, b: tensor(a) * b,
}
