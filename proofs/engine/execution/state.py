"""The buffers of a kernel at one moment, as the formulas of an invariant see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..forms import normal_form as nf
from ..forms.normal_form import Form


@dataclass(frozen=True)
class State:
    """The kernel's buffers at the head of one iteration.

    ``state["u"](i)`` is an element, ``state.t`` the number of iterations done. ``state.at(s)`` is the state at the head of
    iteration s, ``state.at(s, loop)`` that of an earlier loop, as far as its invariant describes it.
    """

    t: Form
    read: Callable[[str, tuple[Form, ...]], Form]
    at: Callable[..., State]

    def __getitem__(self, name: str) -> Callable[..., Form]:
        return lambda *index: self.read(name, tuple(nf.form(i) for i in index))
