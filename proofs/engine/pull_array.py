"""Pull arrays: a shape and a function from indices to elements. Rearranging one composes its function with another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Self, TypeVar

from . import normal_form as nf
from .errors import Unsupported
from .extended import Value
from .normal_form import ONE, ZERO, Form

Element = Callable[..., Value]
T = TypeVar("T", bound="PullArray")


class Dispatched:
    """Torch leaves a function that is given one to the symbolic tensors."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .symbolic_torch import SymbolicTensor

        return SymbolicTensor.__torch_function__(function, types, args, kwargs)


class Extent(Dispatched):
    """A size that is not constant. A reference may compute with it, but not decide on it: the proof is for every size."""

    def __init__(self, form: Form) -> None:
        self.form = form

    def __add__(self, other: Any) -> Extent:
        return Extent(self.form + _form(other))

    def __sub__(self, other: Any) -> Extent:
        return Extent(self.form - _form(other))

    def __mul__(self, other: Any) -> Extent:
        return Extent(self.form * _form(other))

    __radd__, __rmul__ = __add__, __mul__

    def _decision(self, *_: Any) -> Any:
        raise Unsupported(f"a decision of the reference on the size {self.form}")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __index__ = _decision
    __hash__ = object.__hash__


def _form(n: Any) -> Form:
    return n.form if isinstance(n, Extent) else nf.form(n)


class Device(Dispatched):
    """The device of symbolic tensors: torch.arange on it makes a symbolic one."""


class PullArray:
    """An array of any element type: its shape, and its element at an index."""

    def __init__(self, shape: Sequence[Form | int], element: Element, *, integer: bool = False) -> None:
        self.form_shape: tuple[Form, ...] = tuple(_form(n) for n in shape)
        self.integer = integer
        self._element = cache(element)

    def value(self, *index: Form) -> Value:
        """The element at an index."""
        return self._element(*(nf.form(i) for i in index))

    def at(self, *index: Form) -> Form:
        """The element at an index, which must be finite."""
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

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one size."""
        return self.shape if dim is None else self.shape[dim]

    def unsqueeze(self, dim: int) -> Self:
        """A new dimension of size 1."""
        d = dim % (self.ndim + 1)
        shape = (*self.form_shape[:d], ONE, *self.form_shape[d:])
        return type(self)(shape, lambda *i: self.value(*i[:d], *i[d + 1 :]), integer=self.integer)

    def squeeze(self, dim: int) -> Self:
        """A dimension of size 1 dropped."""
        d = dim % self.ndim
        if self.form_shape[d] is not ONE:
            return self
        shape = self.form_shape[:d] + self.form_shape[d + 1 :]
        return type(self)(shape, lambda *i: self.value(*i[:d], ZERO, *i[d:]), integer=self.integer)

    def permute(self, *dims: int) -> Self:
        """Dimensions reordered."""
        order = [d % self.ndim for d in dims]

        def element(*i: Form) -> Value:
            return self.value(*(i[order.index(d)] for d in range(self.ndim)))

        return type(self)([self.form_shape[d] for d in order], element, integer=self.integer)

    def transpose(self, a: int, b: int) -> Self:
        """Two dimensions swapped."""
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.permute(*order)

    def expand(self, *shape: Any) -> Self:
        """Dimensions of size 1 repeated; new ones in front."""
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        new = len(shape) - self.ndim
        old = (ONE,) * new + self.form_shape
        sizes = [o if isinstance(n, int) and n == -1 else _form(n) for n, o in zip(shape, old, strict=True)]
        for n, o in zip(sizes, old, strict=True):
            if o is not ONE and n is not o:
                raise ValueError(f"cannot expand a dimension of size {o} to {n}")

        def element(*i: Form) -> Value:
            return self.value(*(ZERO if o is ONE else j for o, j in zip(self.form_shape, i[new:], strict=True)))

        return type(self)(sizes, element, integer=self.integer)

    def gather(self, dim: int, index: PullArray) -> Self:
        """Element index[i] along a dimension."""
        d = dim % self.ndim
        element: Element = lambda *i: self.value(*i[:d], index.at(*i), *i[d + 1 :])  # noqa: E731
        return type(self)(index.form_shape, element, integer=self.integer)

    def __getitem__(self, key: Any) -> Self:
        keys = list(key) if isinstance(key, tuple) else [key]
        taken = sum(k is not None and k is not Ellipsis for k in keys)
        if Ellipsis in [k if k is Ellipsis else None for k in keys]:
            place = next(n for n, k in enumerate(keys) if k is Ellipsis)
            keys[place : place + 1] = [slice(None)] * (self.ndim - taken)
        keys += [slice(None)] * (self.ndim - sum(k is not None for k in keys))
        return _index(self, keys)


def _index(t: T, keys: list[Any]) -> T:
    """New dimensions, integers, slices with step 1, and at most one tensor of integers."""
    shape: list[Form] = []
    places: list[Callable[[tuple[Form, ...]], Form]] = []
    dim = 0
    for place, given in enumerate(keys):
        key = given.form if isinstance(given, Extent) else given
        if key is None:
            shape.append(ONE)
            continue
        extent = t.form_shape[dim]
        dim += 1
        if isinstance(key, slice):
            start, stop = _bounds(key, extent)
            new = len(shape)
            places.append(lambda i, new=new, start=start: i[new] + start)  # type: ignore[misc]
            shape.append(stop - start)
        elif (
            isinstance(key, PullArray)
            and key.integer
            and not hasattr(key, "__or__")
            and not any(isinstance(k, PullArray) for k in keys[:place])
        ):
            first, last = len(shape), len(shape) + key.ndim
            places.append(lambda i, key=key, first=first, last=last: key.at(*i[first:last]))  # type: ignore[misc]
            shape += key.form_shape
        elif isinstance(key, (int, Form)):
            element = nf.form(key) if isinstance(key, Form) or key >= 0 else extent + key
            places.append(lambda _, element=element: element)  # type: ignore[misc]
        else:
            raise Unsupported(f"indexing with {type(key).__name__}")
    return type(t)(shape, lambda *i: t.value(*(at(i) for at in places)), integer=t.integer)


def _bounds(key: slice, extent: Form) -> tuple[Form, Form]:
    if key.step not in (None, 1):
        raise Unsupported("a slice with a step")
    ends = []
    for given, default in ((key.start, ZERO), (key.stop, extent)):
        end = given.form if isinstance(given, Extent) else given
        if end is None:
            ends.append(default)
        elif isinstance(end, Form) or end >= 0:
            size = extent.constant
            ends.append(nf.form(min(end, int(size))) if isinstance(end, int) and size is not None else nf.form(end))
        else:
            ends.append(extent + end)
    return ends[0], ends[1]
