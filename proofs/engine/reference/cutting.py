"""A reference cut into steps, to be proved one by one.

Inside ``cutting``, the result of every softmax and of every division by a tensor is recorded, and replaced by opaque
elements ``x0(i, j)``, ``x1(i, j)``, ... A step of the reference is then a function of its predecessor, whatever that was
(``recurrences``).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, cast

from ..base.setting import Setting
from ..forms import normal_form as nf
from ..forms.extended import Value
from .pull_array import PullArray, T


class Cut(NamedTuple):
    """A softmax or division of the reference: the result, and the name of the elements that the rest of it sees."""

    name: str
    tensor: PullArray


_cuts = Setting[list[Cut] | None](None)


def recorded(result: T) -> T:
    """Return a result, or its elements as a cut if there is to be one here."""
    if _cuts.value is None:
        return result
    name = f"x{len(_cuts.value)}"
    _cuts.value.append(Cut(name, result))
    return type(result)(result.form_shape, lambda *i: Value(nf.apply(name, *i)))


def cutting() -> AbstractContextManager[list[Cut]]:
    """Make every softmax and every division by a tensor, inside, a cut; they are listed in order."""
    return cast(AbstractContextManager[list[Cut]], _cuts.set_to([]))
