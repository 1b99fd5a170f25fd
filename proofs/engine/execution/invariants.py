"""What holds at the head of every iteration of a loop, as the proof of an operator proposes it.

It is not trusted: these are the words in which a proof proposes something. ``induction`` checks all that they say, and
reads buffers without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..forms import normal_form as nf
from ..forms.normal_form import Form
from ..reference.recurrences import Recurrence


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


Formula = Callable[..., Form]
"""A function of a ``State`` and of the indices of an element."""


@dataclass(frozen=True)
class Determined:
    """The content of a buffer as a formula, for the elements where a condition, a form that is 0 or 1, holds.

    Attributes:
        value: the formula.
        where: the condition.
        parts: dimensions that are checked in parts of so many elements each, since the kernel writes them so.
    """

    value: Formula
    where: Formula | None = None
    parts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Auxiliary:
    """A free buffer that the kernel does not have.

    Attributes:
        like: the buffer whose shape it has.
        initial: its elements at the entry, from the state there.
        step: its elements after an iteration, from the state before.
    """

    like: str
    initial: Formula
    step: Formula


@dataclass(frozen=True)
class Ghost:
    """A reference in lock step.

    Attributes:
        recurrence: its states.
        value: element [i...] of its state, from the kernel's.
        at: leading indices of the reference's state that this thread or block works on; ``value`` gets those after them.
    """

    recurrence: Recurrence
    value: Formula
    at: tuple[Form, ...] = ()


@dataclass(frozen=True)
class Invariant:
    """What holds at the head of every iteration of a loop.

    Attributes:
        free: buffers of any content. One that the loop does not write is made opaque all the same.
        determined: buffers given by a formula.
        staged: buffers that the first role to run fills in each iteration, given by a formula where its turn ends.
        ghosts: references in lock step.
        auxiliary: buffers that only the proof has.
        positive: free or auxiliary buffers whose elements are positive, which the range layer proves and uses.
        definitions: functions by which the formulas abbreviate others, by name. They are opaque but in the checks that
            need what they stand for.
        unfold: another loop and an iteration s of it, at least 1, from the state: in the checks the free buffers of that
            loop at the head of s are replaced by what the body made them from those of s - 1.
    """

    free: tuple[str, ...] = ()
    determined: Mapping[str, Determined] = field(default_factory=dict)
    staged: Mapping[str, Determined] = field(default_factory=dict)
    ghosts: tuple[Ghost, ...] = ()
    auxiliary: Mapping[str, Auxiliary] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    definitions: Mapping[str, Callable[..., Form]] = field(default_factory=dict)
    unfold: tuple[str, Callable[[State], Form]] | None = None


class CutLoop(Protocol):
    """A loop that was cut by its invariant, and ran so often, as other loops see it."""

    extent: Form

    def symbolic(self, t: Form) -> State:
        """Return the state at the head of iteration t as the invariant describes it."""
        ...

    def unfolded(self, p: Form, s: Form) -> Form:
        """Return the form with the free buffers at the head of iteration s, at least 1, over those of s - 1."""
        ...
