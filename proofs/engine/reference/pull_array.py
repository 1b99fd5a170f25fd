"""Pull arrays: a shape and a function from indices to elements. Rearranging one composes its function with another.

Sums and maxima along dimensions are made here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache, reduce
from typing import Any, NamedTuple, Self, TypeVar

import torch

from ..base.errors import Unsupported
from ..base.setting import Setting
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form

Element = Callable[..., Value]
T = TypeVar("T", bound="PullArray")
Part = tuple[Form, Callable[[Form], Value]]  # so many values, which a function gives by their numbers
Combine = Callable[..., Value]  # makes one value of those of several parts


FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Functions of torch by name, for arguments that are symbolic; ``torch_functions`` fills it."""


class Dispatched:
    """Something that torch hands to ``FUNCTIONS`` where it is an argument; a symbolic tensor beside it may know better."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = FUNCTIONS.get(function.__name__)
        return NotImplemented if known is None else known(*args, **(kwargs or {}))


class Extent(Dispatched):
    """A size that is not constant.

    A reference may compute with it, but not decide on it: the proof is for every size. But it may ask whether the size is
    0 where ``deciding`` knows.
    """

    def __init__(self, form: Form) -> None:
        self.form = form

    def __add__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, PullArray) else Extent(self.form + _form(other))

    def __sub__(self, other: Any) -> Extent:
        return Extent(self.form - _form(other))

    def __mul__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, PullArray) else Extent(self.form * _form(other))

    def __floordiv__(self, divisor: int) -> Extent:
        return Extent(nf.floordiv(self.form, divisor))

    __radd__, __rmul__ = __add__, __mul__

    def __bool__(self) -> bool:
        """Return whether it is not 0, where that is known."""
        known = facts_now.value.decide(nf.nonnegative(self.form - 1)) if facts_now.value else None
        return self._decision() if known is None else known

    def _decision(self, *_: Any) -> Any:
        raise Unsupported(f"a decision of the reference on the size {self.form}")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __index__ = _decision
    __hash__ = object.__hash__


def _form(n: Any) -> Form:
    return n.form if isinstance(n, Extent) else nf.form(n)


facts_now = Setting[Facts | None](None)


def deciding(facts: Facts) -> AbstractContextManager[Facts | None]:
    """Let the facts decide, inside, whether a size is 0."""
    return facts_now.set_to(facts)


class Device(Dispatched):
    """The device of symbolic tensors: torch.arange on it makes a symbolic one."""


class Integers(NamedTuple):
    """The type of integers in torch, and between which numbers the forms lie that they are equal to modulo 2^n.

    Sums and products in a type of n bits are those of the forms modulo 2^n, whatever wraps on the way. So an integer is
    its form itself if that fits the type. Integers of 64 bits are taken to fit.
    """

    dtype: torch.dtype = torch.int64
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def of(cls, dtype: torch.dtype) -> Integers | None:
        """Return any integers of a type; None of a type of floats."""
        if dtype is torch.bool:
            return cls(dtype, 0, 1)
        return None if dtype.is_floating_point else cls(dtype, torch.iinfo(dtype).min, torch.iinfo(dtype).max)

    def settled(self) -> Integers:
        """Return the same integers, for a use that is not the same modulo 2^n; Unsupported if they may not be their forms."""
        whole = Integers.of(self.dtype)
        if whole and self.dtype.itemsize < 8 and not (whole.low <= self.low and self.high <= whole.high):
            raise Unsupported(f"the reference computes in {self.dtype}, where integers may wrap")
        return self

    def converted(self, dtype: torch.dtype) -> Integers:
        """Return the same integers in another type, modulo less if that is narrower."""
        return (self if dtype.itemsize <= self.dtype.itemsize else self.settled())._replace(dtype=dtype)

    def combined(self, other: Integers, operator: Callable[[float, float], float]) -> Integers:
        """Return what an operator that is linear in either operand makes of integers of one type."""
        ends = [operator(a, b) for a in (self.low, self.high) for b in (other.low, other.high)]
        known = not any(map(math.isnan, ends))
        return Integers(self.dtype, min(ends) if known else -math.inf, max(ends) if known else math.inf)


class PullArray:
    """An array of any element type: its shape, its element at an index, and the type if that is one of integers."""

    def __init__(self, shape: Sequence[Form | int], element: Element, *, integer: Integers | None = None) -> None:
        self.form_shape: tuple[Form, ...] = tuple(_form(n) for n in shape)
        self.integer = integer
        self._element = cache(element)

    def value(self, *index: Form) -> Value:
        """Return the element at an index."""
        return self._element(*(nf.form(i) for i in index))

    def at(self, *index: Form) -> Form:
        """Return the element at an index, which must be finite."""
        return self.value(*index).real

    @property
    def shape(self) -> tuple[Any, ...]:
        """Constant sizes as int, others as extents."""
        return tuple(Extent(n) if n.constant is None else int(n.constant) for n in self.form_shape)

    @property
    def device(self) -> Device:
        """Where torch's factories make symbolic tensors."""
        return Device()

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.form_shape)

    @property
    def mT(self) -> Self:  # noqa: N802
        """The last two dimensions swapped."""
        return self.transpose(-1, -2)

    def pulled(self, shape: Sequence[Form | int], place: Callable[..., Sequence[Form]]) -> Self:
        """Return the array of a shape whose element at an index is this one's at the place of that index."""
        return type(self)(shape, lambda *i: self.value(*place(*i)), integer=self.integer)

    def along(self, dim: int, index: Sequence[Form]) -> list[Part]:
        """Return the elements along a dimension at an index of the others, in one part."""
        return [(self.form_shape[dim], lambda k: self.value(*index[:dim], k, *index[dim:]))]

    def unsqueeze(self, dim: int) -> Self:
        """Add a dimension of size 1."""
        return self[(*[slice(None)] * (dim % (self.ndim + 1)), None)]

    def squeeze(self, dim: int) -> Self:
        """Drop a dimension, if its size is 1."""
        d = dim % self.ndim
        size = self.form_shape[d]
        if size is not ONE:
            if size.constant is None and not natural(size - 2):
                raise Unsupported(f"squeeze of a dimension of {size}, which may be 1")
            return self
        return self[(*[slice(None)] * d, 0)]

    def permute(self, *dims: int) -> Self:
        """Reorder the dimensions."""
        order = [d % self.ndim for d in dims]
        places = [order.index(d) for d in range(self.ndim)]
        return self.pulled([self.form_shape[d] for d in order], lambda *i: [i[place] for place in places])

    def transpose(self, a: int, b: int) -> Self:
        """Swap two dimensions."""
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.permute(*order)

    def expand(self, *shape: Any) -> Self:
        """Repeat dimensions of size 1, and add new ones in front."""
        wanted = sizes_of(shape)
        new = len(wanted) - self.ndim
        old = (ONE,) * new + self.form_shape
        sizes = [o if n.constant == -1 else n for n, o in zip(wanted, old, strict=True)]
        for n, o in zip(sizes, old, strict=True):
            if o is not ONE and n is not o:
                raise ValueError(f"cannot expand a dimension of size {o} to {n}")
        places = [None if o is ONE else new + d for d, o in enumerate(self.form_shape)]
        return self.pulled(sizes, lambda *i: [ZERO if place is None else i[place] for place in places])

    def gather(self, dim: int, index: PullArray) -> Self:
        """Take element index[i] along a dimension."""
        d = dim % self.ndim
        return self.pulled(settled(index).form_shape, lambda *i: [*i[:d], index.at(*i), *i[d + 1 :]])

    def __getitem__(self, key: Any) -> Self:
        keys = list(key) if isinstance(key, tuple) else [key]
        places = [n for n, k in enumerate(keys) if k is Ellipsis] or [len(keys)]
        rest = self.ndim - sum(k is not None and k is not Ellipsis for k in keys)
        return _index(self, [*keys[: places[0]], *[slice(None)] * rest, *keys[places[0] + 1 :]])


def sizes_of(shape: Sequence[Any]) -> list[Form]:
    """Return the sizes of a shape that is given in one piece or size by size."""
    return list(map(_form, shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape))


def _index(t: T, keys: list[Any]) -> T:
    """Index with None for new dimensions, integers, slices with step 1, and tensors of integers side by side.

    Those tensors are broadcast.
    """
    tensors = [n for n, key in enumerate(keys) if isinstance(key, PullArray)]
    if tensors and tensors[-1] - tensors[0] >= len(tensors):
        raise Unsupported("indexing with tensors that are not side by side")
    common = broadcast_shapes(*(keys[n].form_shape for n in tensors))
    shape: list[Form] = []
    places: list[Callable[[tuple[Form, ...]], Form]] = []
    for number, given in enumerate(keys):
        key = given.form if isinstance(given, Extent) else given
        if key is None:
            shape.append(ONE)
            continue
        extent, new = t.form_shape[len(places)], len(shape)
        if isinstance(key, slice):
            start, stop = _bounds(key, extent)
            places.append(lambda i, new=new, start=start: i[new] + start)  # type: ignore[misc]
            shape.append(stop - start)
        elif isinstance(key, PullArray) and key.integer and key.integer.dtype in (torch.int32, torch.int64):
            shape += common if number == tensors[0] else ()
            wide, end = settled(key).expand(*common), len(shape)
            places.append(lambda i, wide=wide, end=end: wide.at(*i[end - len(common) : end]))  # type: ignore[misc]
        elif isinstance(key, (int, Form)) and not isinstance(key, bool):
            element = nf.form(key) if isinstance(key, Form) or key >= 0 else extent + key
            places.append(lambda _, element=element: element)  # type: ignore[misc]
        else:
            raise Unsupported(f"indexing with {type(key).__name__}")
    return t.pulled(shape, lambda *i: [at(i) for at in places])


def settled(array: T) -> T:
    """Return an array whose elements are the forms themselves, not only modulo a power of two; else raise Unsupported."""
    if array.integer:
        array.integer.settled()
    return array


def together(*arrays: PullArray) -> list[Integers] | None:
    """Return the integers of arrays in the type that torch gives them together; None if one is of floats."""
    kinds = [a.integer for a in arrays if a.integer]
    if len(kinds) < len(arrays):
        return None
    numbers = [k for k in kinds if k.dtype is not torch.bool] or kinds
    wide = [a.integer for a in arrays if a.integer in numbers and a.ndim] or numbers  # a number takes the others' type
    dtype = reduce(torch.promote_types, (k.dtype for k in wide))
    return [k._replace(dtype=dtype) if k not in wide else k.converted(dtype) for k in kinds]


def hull(*arrays: PullArray) -> Integers | None:
    """Return integers that may be those of any of the arrays; None if one is of floats."""
    kinds = together(*arrays)
    return Integers(kinds[0].dtype, min(k.low for k in kinds), max(k.high for k in kinds)) if kinds else None


def broadcast(*arrays: T) -> list[T]:
    """Return arrays in their common shape."""
    shape = broadcast_shapes(*(a.form_shape for a in arrays))
    return [a.expand(*shape) for a in arrays]


def broadcast_shapes(*shapes: Sequence[Form]) -> tuple[Form, ...]:
    """Return the common shape of several."""
    rank = max(map(len, shapes), default=0)
    dims = zip(*((ONE,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((n for n in dim if n is not ONE), ONE) for dim in dims)


def _bounds(key: slice, extent: Form) -> tuple[Form, Form]:
    """Return where a slice begins and ends, as torch cuts it to the extent; Unsupported if what to cut is not known."""
    if key.step not in (None, 1):
        raise Unsupported("a slice with a step")
    start = ZERO if key.start is None else _cut(key.start, extent)
    stop = extent if key.stop is None else _cut(key.stop, extent)
    if start.constant is not None and stop.constant is not None and stop.constant < start.constant:
        stop = start
    if not natural(stop - start):
        raise Unsupported(f"a slice from {start} to {stop}, which may end before it begins")
    return start, stop


def _cut(end: Any, extent: Form) -> Form:
    """Return the end of a slice, from the beginning of a dimension, and within it."""
    place = extent + end if isinstance(end, int) and end < 0 else _form(end)
    if place.constant is not None and extent.constant is not None:
        return nf.form(min(max(place.constant, 0), extent.constant))
    if not (natural(place) and natural(extent - place)):
        raise Unsupported(f"a slice at {place} of a dimension of {extent}, which may be outside")
    return place


def natural(p: Form) -> bool:
    """Return whether a number is known to be at least 0."""
    return nf.is_natural(p) or (facts_now.value is not None and facts_now.value.holds(nf.nonnegative(p)))


def reduced(array: T, dim: Any, keepdim: bool, combine: Combine, integer: Integers | None = None) -> T:
    """Return an array with some dimensions combined, all if ``dim`` is None, which stay as dimensions of size 1 or go.

    ``integer`` are the integers that the combined elements are, if they are any.
    """
    if dim == ():
        raise Unsupported("a reduction over no dimensions, which torch takes for all")
    given = range(array.ndim) if dim is None else dim if isinstance(dim, (tuple, list)) else [dim]
    dims = sorted(d % array.ndim for d in given)
    for d in reversed(dims):

        def element(*i: Form, t: T = array, d: int = d) -> Value:
            return combine(*t.along(d, i))

        shape = array.form_shape[:d] + array.form_shape[d + 1 :]
        array = type(array)(shape, element, integer=integer)
    for d in dims if keepdim else ():
        array = array.unsqueeze(d)
    return array


def total(*parts: Part) -> Value:
    """Return the sum of values, which must be finite."""

    def of(extent: Form, element: Callable[[Form], Value]) -> Form:
        return nf.summation(extent, lambda k: element(k).real)

    return Value(sum((of(*part) for part in parts), ZERO))


def mean(*parts: Part) -> Value:
    """Return the mean of values, which must be finite."""
    return Value(total(*parts).form / sum((extent for extent, _ in parts), ZERO))


def largest(*parts: Part) -> Value:
    """Return the largest of values, written out if they are few and in one part."""
    (extent, element), *others = parts
    size = extent.constant
    if not others and size is not None and size <= nf.LONGEST_MAX:
        return reduce(extended.maximum, (element(nf.form(k)) for k in range(1, int(size))), element(ZERO))
    if others or element(nf.fresh("k")).finite is not ONE:
        return extended.largest(*parts)
    return Value(nf.big_maximum(extent, lambda k: element(k).real))
