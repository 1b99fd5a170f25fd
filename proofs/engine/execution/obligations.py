"""What an operation still has to show over the floats, and which of that is waived.

It is not trusted: these are records without code. ``ranges`` makes a condition of each obligation, and every verdict
lists what is waived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..forms.extended import Value
from ..forms.normal_form import Form

Kind = Literal["exp", "nonzero", "positive", "nonnegative"]
"""The operand is at most 0, as an argument of exp, or more if the contract bounds inputs; or it is not 0, positive, or not
negative."""


@dataclass(frozen=True)
class Obligation:
    """What must hold for an operation to mean over the floats what it means over the reals.

    Attributes:
        kind: what is required.
        value: the operand; nothing is required of it where it is -inf.
        path: the conditions under which the operation runs.
        site: the statement.
    """

    kind: Kind
    value: Value
    path: tuple[Form, ...]
    site: str


@dataclass(frozen=True)
class Waiver:
    """A statement whose range conditions are not proved, and why that is harmless.

    Attributes:
        text: part of the statement's text.
        kind: which of its conditions.
        reason: why.
    """

    text: str
    kind: Kind
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip() or not self.text.strip():
            raise ValueError("a waiver needs the statement it is for, and a reason")
