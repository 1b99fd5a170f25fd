"""Sums and maxima of pull arrays along dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from ..base.errors import Unsupported
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from .pull_array import T, settled

Combine = Callable[[Form, Callable[[Form], Value]], Value]
"""Makes one value of so many, which a function gives by their numbers."""


def reduced(array: T, dim: Any, keepdim: bool, combine: Combine) -> T:
    """Return an array with some dimensions combined, all if ``dim`` is None, which stay as dimensions of size 1 or go."""
    if dim == ():
        raise Unsupported("a reduction over no dimensions, which torch takes for all")
    given = range(array.ndim) if dim is None else dim if isinstance(dim, (tuple, list)) else [dim]
    dims = sorted(d % array.ndim for d in given)
    for d in reversed(dims):
        array = _along(array, d, combine)
    for d in dims if keepdim else ():
        array = array.unsqueeze(d)
    return array


def _along(array: T, d: int, combine: Combine) -> T:
    extent = array.form_shape[d]
    shape = array.form_shape[:d] + array.form_shape[d + 1 :]
    element = lambda *i: combine(extent, lambda k: array.value(*i[:d], k, *i[d:]))  # noqa: E731
    return type(array)(shape, element, integer=settled(array).integer)


def total(extent: Form, element: Callable[[Form], Value]) -> Value:
    """Return the sum of so many elements, which must be finite."""
    return Value(nf.summation(extent, lambda k: element(k).real))


def largest(extent: Form, element: Callable[[Form], Value]) -> Value:
    """Return the largest of so many elements, written out if they are few."""
    size = extent.constant
    if size is not None and size <= nf.LONGEST_MAX:
        return reduce(extended.maximum, (element(nf.form(k)) for k in range(1, int(size))), element(ZERO))
    if element(nf.fresh("k")).finite is not ONE:
        return extended.largest((extent, element))
    return Value(nf.big_maximum(extent, lambda k: element(k).real))
