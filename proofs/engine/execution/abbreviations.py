"""Values that a proof abbreviates where a kernel stores them, each shown to be what its abbreviation stands for.

What is computed of them is then read with the abbreviations, and so is the reference: whatever holds of any numbers in their
places holds of these. How such a value comes about, by which choices, matters where it is stored alone. What a kernel computes
where it stores nothing of it, be it NaN, is left aside: the range layer says nothing of it either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.equations import Equation
from ..forms.extended import Value
from ..forms.normal_form import ONE, Form
from ..semantics.algebra import Memory
from .invariants import Invariant
from .outcome import Execution
from .symbolic import Symbols


@dataclass(frozen=True)
class Abbreviation:
    """A function by name, and the value that it stands for, from its arguments.

    ``where``: where it stands for that, a form that is 0 or 1. Elsewhere it is any number, and nothing of it may be stored.
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
    """The algebra, in which stores to fragments and shared memory abbreviate some values."""

    def __init__(self, abbreviate: Abbreviate, execution: Execution, invariants: Mapping[str, Invariant]) -> None:
        super().__init__(execution, invariants)
        self._abbreviate = abbreviate
        self._known: dict[str, Abbreviation] = {}
        self._mentioned: dict[str, frozenset[int]] = {}  # by name, the atoms in its value beside its arguments

    def store(self, memory: Memory[Value], index: Sequence[Value], value: Value) -> None:
        """Store the abbreviation, if there is one, and record whether it stands for the value."""
        place = tuple(i.form for i in index)
        found = self._abbreviate(place, value) if memory.scope in ("fragment", "shared") else None
        if found is not None:
            value = self._abbreviated(place, value, *found)
        elif memory.scope == "global":
            self._check((value.form, value.finite, *place, *self.facts.path))
        super().store(memory, index, value)

    def _abbreviated(
        self, place: tuple[Form, ...], value: Value, by: Abbreviation, arguments: tuple[Form, ...]
    ) -> Value:
        if self._known.setdefault(by.name, by) is not by:
            raise ValueError(f"two abbreviations are named {by.name!r}")
        self._check_closed(by, len(arguments))
        meant, decide = by.value(*arguments), self.facts.decide_all
        statement = f"what is stored at [{', '.join(map(str, place))}] is {nf.apply(by.name, *arguments)}"
        with self.facts.assuming(by.where(*arguments)):
            shown = self.execution.same(value, meant)
        self.execution.equations.append(Equation(statement, shown, value.form, meant.form))
        short = by(*arguments)
        return Value(decide(short.form), decide(short.finite), short.sign)

    def _check_closed(self, by: Abbreviation, arity: int) -> None:
        """Raise Unsupported if a value varies here with more than its arguments: one name would stand for several numbers."""
        if by.name not in self._mentioned:
            value = by.value(*(nf.fresh("a") for _ in range(arity)))
            self._mentioned[by.name] = nf.support(value.form) | nf.support(value.finite)
        loop = [self.inducing.t] if self.inducing else []
        varying = {nf.number(v) for v in (*(axis.variable for axis in self._axes), *loop)} | self._threads
        if strange := varying & self._mentioned[by.name]:
            names = ", ".join(str(nf.of_atom(nf.atom_of(n))) for n in strange)
            raise Unsupported(f"{by.name} stands for what depends on {names}")

    def _check(self, stored: Sequence[Form]) -> None:
        """Raise Unsupported if what is stored for good may come of an abbreviation where that stands for nothing."""
        atoms = map(nf.atom_of, frozenset().union(*map(nf.support, stored)))
        for atom in (a for a in atoms if isinstance(a, nf.Apply) and a.function in self._known):
            if not self.facts.holds(self._known[atom.function].where(*atom.arguments)):
                raise Unsupported(f"a store of what comes of {atom.function}, where that may stand for nothing")
