"""An equation that was to be shown, as a record that says what became of it.

It is not trusted: it holds what others found, and its text is for people.
"""

from __future__ import annotations

from dataclasses import dataclass

from .pretty import pretty
from .ring import Form


@dataclass(frozen=True)
class Equation:
    """One thing that was to be shown, and whether it was.

    Attributes:
        statement: what was to be shown, in words.
        holds: whether it was shown.
        kernel: the kernel's term.
        reference: the reference's, or the invariant's, term.
        site: the statement of the kernel, or "".
    """

    statement: str
    holds: bool
    kernel: Form
    reference: Form
    site: str = ""

    def __str__(self) -> str:
        if self.holds:
            return f"proved: {self.statement}"
        where = f"\n  at        {self.site}" if self.site else ""
        return (
            f"NOT proved: {self.statement}{where}"
            f"\n  kernel    {pretty(self.kernel)}\n  reference {pretty(self.reference)}"
        )
