"""Views of pull arrays with other dimensions: view, reshape, flatten, unflatten.

Elements keep their order, the last index fastest. Dimensions that stay keep their index. Others are taken together as far
as they hold the same number of elements before and after: an index there is a place in a row, and the row's place, rounded
down by an extent and what that leaves, are indices again. Extents that are divided by must be constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.normal_form import ZERO, Form
from .pull_array import PullArray, facts_now, natural, sizes_of
from .shapes import inferred, number, together


class _Group(NamedTuple):
    """Dimensions that lie next to each other and hold the same elements, before and after."""

    old: Sequence[Form]
    new: Sequence[Form]

    def indices(self, index: Sequence[Form]) -> list[Form]:
        """Return the old indices of new ones."""
        if len(self.old) == len(self.new) == 1:
            return list(index)
        place = ZERO
        for i, extent in zip(index, self.new, strict=True):
            place = place * extent + i
        found: list[Form] = []
        for extent in self.old[:0:-1]:
            quotient = _quotient(place, int(extent.constant))  # type: ignore[arg-type]  # it is known here
            found.insert(0, place - quotient * extent)
            place = quotient
        return [place, *found] if self.old else []


class Reshaping(PullArray):
    """A pull array that can be seen with other dimensions."""

    source: Reshaping | None = None  # what it is a view of

    def reshape(self, *shape: Any) -> Self:
        """Return the same elements in the same order, with other dimensions, of which one may be -1."""
        whole = self if self.source is None else self.source
        new = _completed(whole.form_shape, sizes_of(shape))
        groups = _groups(whole.form_shape, new)

        def place(*index: Form) -> list[Form]:
            found: list[Form] = []
            for group in groups:
                found += group.indices(index[: len(group.new)])
                index = index[len(group.new) :]
            return found

        result = type(self)(new, lambda *i: whole.value(*place(*i)), integer=whole.integer)
        result.source = whole
        return result

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Self:
        """Return the elements with some dimensions, one after the other, as one."""
        first, last = start_dim % max(self.ndim, 1), end_dim % max(self.ndim, 1)
        if first > last:
            raise Unsupported(f"flatten from dimension {first} to {last}")
        whole = number(self.form_shape[first : last + 1])
        return self.reshape(*self.form_shape[:first], whole, *self.form_shape[last + 1 :])

    def unflatten(self, dim: int, sizes: Any) -> Self:
        """Return the elements with one dimension as several, of which one may be -1."""
        d = dim % self.ndim
        parts = _completed(self.form_shape[d : d + 1], sizes_of([sizes]))
        return self.reshape(*self.form_shape[:d], *parts, *self.form_shape[d + 1 :])


def _quotient(place: Form, divisor: int) -> Form:
    """Return the quotient, rounded down; of what always lies below the divisor that is 0."""
    whole, rest = nf.multiple(place, divisor)
    if facts_now.value is not None:
        with facts_now.value.everywhere():  # an element is kept for later, whatever is known then
            if natural(rest) and natural(divisor - 1 - rest):
                return whole
    return nf.floordiv(place, divisor)


def _completed(old: Sequence[Form], wanted: Sequence[Form]) -> list[Form]:
    """Return a shape of as many elements, with the size that was left open; Unsupported if it is not known to be one."""
    new = inferred(old, wanted)
    left = [n for n, size in zip(new, wanted, strict=True) if size.constant == -1]
    kept = all(size.constant == -1 or n is size for n, size in zip(new, wanted, strict=True))
    one = not left or (len(left) == 1 and nf.is_natural(left[0]) and number(old) is not ZERO)
    if not kept or not one or number(new) is not number(old):
        raise Unsupported(f"a view of shape {list(map(str, old))} as {list(map(str, wanted))}")
    return new


def _groups(old: Sequence[Form], new: Sequence[Form]) -> list[_Group]:
    """Return all dimensions before and after, in groups of as many elements; Unsupported where none are found."""
    found: list[_Group] = []
    for a, b in together(old, new):
        found.append(_Group(old[:a], new[:b]))
        old, new = old[a:], new[b:]
    if old or new or any(number(group.old) is not number(group.new) for group in found):
        raise Unsupported("a view of nothing")  # which a dimension of size 0 hides
    return found
