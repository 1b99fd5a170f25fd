"""The functions of torch that make a symbolic tensor of several, or of none, by the names under which torch calls them.

Trusted: that each is, over the reals, the torch function of its name. Importing this module lets references call them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch

from ..base.errors import Unsupported
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from .pull_array import FUNCTIONS, Integers, hull, natural, products, sizes_of
from .symbolic_torch import Integer, Mask, SymbolicTensor, Truth, filling, tensor, where


class Joined(SymbolicTensor):
    """Tensors one after the other along their last dimension: sums and maxima along it are those of the parts."""

    def __init__(self, parts: Sequence[SymbolicTensor]) -> None:
        self.parts = tuple(parts)
        last = sum((p.form_shape[-1] for p in parts), ZERO)
        super().__init__((*parts[0].form_shape[:-1], last), self._unknown, integer=hull(*parts))

    def _unknown(self, *_: Form) -> Value:
        raise Unsupported("an element of tensors put together")

    def _map(self, function: Callable[[Value], Value]) -> SymbolicTensor:
        return Joined([p._map(function) for p in self.parts])

    def _zip(self, other: Any, function: Callable[[Value, Value], Value], *, whole: Truth = True) -> SymbolicTensor:
        """Combine with a tensor that is the same all along the last dimension."""
        b = tensor(other)
        if b.ndim and b.form_shape[-1] is not ONE:
            raise Unsupported("an operation on tensors put together and a tensor of their width")
        return Joined([p._zip(b, function, whole=whole) for p in self.parts])

    def _last(self, dim: Any) -> None:
        if dim not in (-1, self.ndim - 1):
            raise Unsupported(f"a reduction of tensors put together along {dim}")

    def split(self, sizes: Sequence[Any], dim: Any = 0) -> tuple[SymbolicTensor, ...]:
        """Return the parts again."""
        self._last(dim)
        if [tensor(n).at() for n in sizes] != [p.form_shape[-1] for p in self.parts]:
            raise Unsupported("a split elsewhere than where tensors were put together")
        return self.parts

    def sum(self, dim: Any = None, keepdim: Truth = False) -> SymbolicTensor:
        """Return the sum along the last dimension."""
        self._last(dim)
        first, *rest = (p.sum(-1, keepdim) for p in self.parts)
        return reduce(SymbolicTensor.__add__, rest, first)

    def any(self, dim: Any = None, keepdim: Truth = False) -> Mask:
        """Return whether one is true along the last dimension."""
        if not all(isinstance(p, Mask) for p in self.parts):
            raise Unsupported("any of numbers")
        return Joined([p.long() for p in self.parts]).sum(dim, keepdim) >= 1

    def amax(self, dim: Any = None, keepdim: Truth = False) -> SymbolicTensor:
        """Return the maximum along the last dimension."""
        self._last(dim)

        def element(*i: Form) -> Value:
            parts = ((p.form_shape[-1], lambda k, p=p: p.value(*i, k)) for p in self.parts)
            return extended.largest(*parts)

        result = SymbolicTensor(self.form_shape[:-1], element)
        return result.unsqueeze(-1) if keepdim else result


def arange(*ends: Any, device: Any = None, dtype: torch.dtype = torch.int64) -> SymbolicTensor:
    """Return 0, 1, ..., end - 1, or the integers from another start on."""
    if dtype.is_floating_point or len(ends) > 2 or any(isinstance(end, float) for end in ends):
        raise Unsupported("torch.arange of floats, or with a step")
    start, end = (tensor(x).at() for x in (0, *ends)[-2:])
    known = [float(x.constant) for x in (start, end - 1) if x.constant is not None]
    integer = Integers(dtype, *known) if len(known) == 2 else Integers(dtype)
    return SymbolicTensor((end - start,), lambda i: Value(start + i), integer=integer)


def pad(
    t: SymbolicTensor, amounts: Sequence[Integer], mode: str = "constant", value: float | None = None
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


def cat(tensors: Sequence[SymbolicTensor], dim: Integer = 0) -> Joined:
    """Put tensors one after the other along their last dimension."""
    if dim not in (-1, tensors[0].ndim - 1):
        raise Unsupported(f"torch.cat along dimension {dim}")
    return Joined(tensors)


def unfold_backward(
    t: SymbolicTensor, sizes: Sequence[Any], dim: Integer, size: Integer, step: Integer
) -> SymbolicTensor:
    """Return, for each element that ``unfold`` read, the sum of ``t`` over the stretches that it is in."""
    if step != 1 or t.integer:
        raise Unsupported(f"unfold_backward of integers or with step {step}")
    d = dim % (t.ndim - 1)
    stretches = t.form_shape[d]
    shape = sizes_of(sizes)
    if [*t.form_shape[:d], stretches + size - 1, *t.form_shape[d + 1 : -1], nf.form(size)] != [
        *shape,
        t.form_shape[-1],
    ]:
        raise Unsupported(f"unfold_backward of shape {list(map(str, t.form_shape))} into {list(map(str, shape))}")

    def element(*i: Form) -> Value:
        def part(k: Form) -> Form:
            first = i[d] - k
            there = nf.nonnegative(first) * nf.nonnegative(stretches - 1 - first)
            return there * t.at(*i[:d], first, *i[d + 1 :], k)

        return Value(nf.summation(size, part))

    return SymbolicTensor(shape, element)


def einsum(equation: str, *operands: SymbolicTensor) -> SymbolicTensor:
    """Compute what torch.einsum does of an equation with an explicit result."""
    inputs, output = equation.replace(" ", "").split("->")
    letters = inputs.split(",")
    pairs = [pair for word, t in zip(letters, operands, strict=True) for pair in zip(word, t.form_shape, strict=True)]
    if len({*pairs}) > len({c for c, _ in pairs}):
        raise Unsupported(f"einsum of one dimension of several sizes: {equation}")
    sizes = dict(pairs)
    summed = [c for c in sizes if c not in output]

    def total(index: dict[str, Form], rest: list[str]) -> Form:
        if rest:
            return nf.summation(sizes[rest[0]], lambda k: total({**index, rest[0]: k}, rest[1:]))
        product = ONE
        for word, t in zip(letters, operands, strict=True):
            product = product * t.at(*(index[c] for c in word))
        return product

    shape = [sizes[c] for c in output]
    element = lambda *i: Value(total(dict(zip(output, i, strict=True)), summed))  # noqa: E731  one expression, named for the next line
    return SymbolicTensor(shape, element, integer=products(*operands))


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
