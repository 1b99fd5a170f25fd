"""Views of pull arrays with other dimensions: view, reshape, flatten, unflatten.

Elements keep their order, the last index fastest. Dimensions that stay keep their index. Others are taken together as far
as they hold the same number of elements before and after: an index there is a place in a row, and the row's place, rounded
down by an extent and what that leaves, are indices again. Extents that are divided by must be constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.normal_form import ONE, ZERO, Form
from .pull_array import PullArray, facts_now, natural, sizes_of


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
        new = _inferred(whole.form_shape, sizes_of(shape))
        groups = list(_groups(list(whole.form_shape), list(new)))

        def old(index: Sequence[Form]) -> list[Form]:
            found: list[Form] = []
            for group in groups:
                found += group.indices(index[: len(group.new)])
                index = index[len(group.new) :]
            return found

        result = type(self)(new, lambda *i: whole.value(*old(i)), integer=whole.integer)
        result.source = whole
        return result

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Self:
        """Return the elements with some dimensions, one after the other, as one."""
        first, last = start_dim % max(self.ndim, 1), end_dim % max(self.ndim, 1)
        if first > last:
            raise Unsupported(f"flatten from dimension {first} to {last}")
        whole = math.prod(self.form_shape[first : last + 1], start=ONE)
        return self.reshape(*self.form_shape[:first], whole, *self.form_shape[last + 1 :])

    def unflatten(self, dim: int, sizes: Any) -> Self:
        """Return the elements with one dimension as several, of which one may be -1."""
        d = dim % self.ndim
        parts = _inferred(self.form_shape[d : d + 1], sizes_of([sizes]))
        return self.reshape(*self.form_shape[:d], *parts, *self.form_shape[d + 1 :])


def _quotient(place: Form, divisor: int) -> Form:
    """Return the quotient, rounded down; of what always lies below the divisor that is 0."""
    whole, rest = nf.multiple(place, divisor)
    if facts_now.value is not None:
        with facts_now.value.everywhere():  # an element is kept for later, whatever is known then
            if natural(rest) and natural(divisor - 1 - rest):
                return whole
    return nf.floordiv(place, divisor)


def _inferred(old: Sequence[Form], new: Sequence[Form]) -> list[Form]:
    """Return a new shape with the size that was left open.

    Raises:
        Unsupported: it does not hold the same number of elements, or whether it does is not known.
    """
    missing = [n for n, size in enumerate(new) if size.constant == -1]
    number, known = math.prod(old, start=ONE), math.prod((s for s in new if s.constant != -1), start=ONE)
    if len(missing) == 1 and known is not ZERO:
        rest = number / known
        if not (nf.is_natural(rest) or (rest.constant is not None and rest.constant == int(rest.constant))):
            raise Unsupported(f"a view of {number} elements in rows of {known}")
        new = [rest if n in missing else size for n, size in enumerate(new)]
    if math.prod(new, start=ONE) is not number or len(missing) > 1:
        raise Unsupported(f"a view of shape {list(map(str, old))} as {list(map(str, new))}")
    return list(new)


def _groups(old: list[Form], new: list[Form]) -> list[_Group]:
    """Return dimensions before and after, next to each other, as few together as hold the same number of elements.

    Raises:
        Unsupported: an extent that varies is to be divided by.
    """
    found: list[_Group] = []
    while old or new:
        ends = ((a, b) for total in range(1, len(old) + len(new) + 1) for a in range(total + 1) for b in [total - a])
        fits = (e for e in ends if e[0] <= len(old) and e[1] <= len(new) and _number(old, e[0]) is _number(new, e[1]))
        a, b = next(fits, (len(old), len(new)))
        if _number(old, a) is not _number(new, b):  # which a dimension of size 0 hides
            raise Unsupported("a view of nothing")
        found.append(_Group(old[:a], new[:b]))
        if any(n.constant is None for n in old[1:a]):
            raise Unsupported(f"a view that divides by {', '.join(map(str, old[1:a]))}")
        old, new = old[a:], new[b:]
    return found


def _number(shape: Sequence[Form], dimensions: int) -> Form:
    return math.prod(shape[:dimensions], start=ONE)
