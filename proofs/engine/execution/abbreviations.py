"""Values that a proof abbreviates where a kernel stores them, each shown to be what its abbreviation stands for.

What is computed of them is then read with the abbreviations, and so is the reference: whatever holds of any numbers in their
places holds of these. How such a value comes about, by which choices, matters where it is stored alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..forms import normal_form as nf
from ..forms.equations import Equation
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from ..semantics.algebra import Memory
from .invariants import Invariant
from .outcome import Execution
from .symbolic import Symbols


@dataclass(frozen=True)
class Abbreviation:
    """A function by name, and the value that it stands for, from its arguments.

    ``where``: a condition, a form that is 0 or 1, by which two cases are told apart to show that it does.
    """

    name: str
    value: Callable[..., Value]
    where: Callable[..., Form] = lambda *_: ONE

    def __call__(self, *arguments: Form) -> Value:
        """Return the value in its short form: infinite where what it stands for is."""
        meant = self.value(*arguments)
        return Value(meant.finite * nf.apply(self.name, *arguments), meant.finite, meant.sign)


Abbreviate = Callable[[tuple[Form, ...], Value], tuple[Abbreviation, tuple[Form, ...]] | None]
"""From the index and the value of a store, an abbreviation and its arguments, or None if the value stays as it is."""


class Abbreviating(Symbols):
    """The algebra, in which stores to fragments abbreviate some values."""

    def __init__(self, abbreviate: Abbreviate, execution: Execution, invariants: Mapping[str, Invariant]) -> None:
        super().__init__(execution, invariants)
        self._abbreviate = abbreviate

    def store(self, memory: Memory[Value], index: Sequence[Value], value: Value) -> None:
        """Store the abbreviation, if there is one, and record whether it stands for the value."""
        place = tuple(i.form for i in index)
        found = self._abbreviate(place, value) if memory.scope == "fragment" else None
        if found is not None:
            abbreviation, arguments = found
            meant, where = abbreviation.value(*arguments), abbreviation.where(*arguments)
            statement = f"what is stored at [{', '.join(map(str, place))}] is {nf.apply(abbreviation.name, *arguments)}"
            shown = self._same_where(where, value, meant) and self._same_where(ONE - where, value, meant)
            self.execution.equations.append(Equation(statement, shown, value.form, meant.form))
            short = abbreviation(*arguments)
            value = Value(self.facts.decide_all(short.form), self.facts.decide_all(short.finite), short.sign)
        super().store(memory, index, value)

    def _same_where(self, condition: Form, a: Value, b: Value) -> bool:
        """Return whether two values are equal where a condition holds."""
        with self.facts.assuming(condition):
            return condition is ZERO or self.execution.same(a, b)
