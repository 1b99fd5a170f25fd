"""Which buffers the body of a loop changes, found by running it where all of them are opaque.

It is not trusted. ``induction`` runs an iteration of its own, and refuses a loop that writes a buffer which was not found to
be written; of one that was found and is not written, less is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.extended import Value
from ..forms.normal_form import Form
from ..semantics.algebra import Memory
from .contents import Buffers, Contents, Write


class Opaque(Contents):
    """A content of which nothing is known but how often it was changed: after each change, elements are any numbers."""

    def __init__(self, name: str, everywhere: Write) -> None:
        super().__init__(name, [everywhere])
        self.changes = 0

    def forget(self, path: tuple[Form, ...]) -> None:
        """Count a change."""
        self.changes += 1

    def write(self, write: Write) -> None:
        """Count a change."""
        self.changes += 1

    def read(self, index: tuple[Form, ...], facts: Facts) -> Value:
        """Return a number of which only its place and the count of changes are known; the element must exist."""
        super().read(index, facts)
        return Value(nf.apply(f"{self.name}@{self.changes}", *index))


def changed_by(
    algebra: Buffers, everywhere: Callable[[Memory[Value]], Write], body: Callable[[], None]
) -> set[Memory[Value]]:
    """Return the buffers that a body writes, or makes uninitialised; ``everywhere`` writes any numbers to all of one.

    What the algebra holds is another thing afterwards.
    """
    opaque = {memory: Opaque(memory.name, everywhere(memory)) for memory in algebra.contents}
    algebra.contents = dict(opaque)
    algebra.execution = replace(algebra.execution, writes={}, equations=[], obligations=[])
    body()
    return {memory for memory, content in opaque.items() if content.changes}
