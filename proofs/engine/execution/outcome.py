"""What a symbolic execution leaves: writes to outputs, equations of invariants, and what the floats still have to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter

from ..forms.constants import Constants, current
from ..forms.entailment import Facts
from ..forms.equations import Equation, equal, holds
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from ..forms.ring import Rewriting, Undefined, rewritten
from ..forms.sums import all_written_out
from .contents import Write
from .invariants import CutLoop
from .obligations import Obligation


@dataclass
class Execution:
    """The outcome of a symbolic execution.

    The elements of float inputs are taken to be finite, but for those of ``raw`` inputs, which may be any float, of
    ``infinite`` ones, which are all +inf, and of those of ``finite``, which are -inf but where a condition holds, a form
    that is 0 or 1, from the index.
    """

    facts: Facts  # what is known of the integers
    raw: frozenset[str] = frozenset()
    infinite: frozenset[str] = frozenset()
    finite: Mapping[str, Callable[..., Form]] = field(default_factory=dict)
    writes: dict[str, list[Write]] = field(default_factory=dict)  # every store to a global buffer, by its name
    equations: list[Equation] = field(default_factory=list)  # what the loop invariants required
    obligations: list[Obligation] = field(default_factory=list)  # what the range layer has to prove
    # for each reference in lock step with a loop, an element of any state, by the state's number and the index
    ghosts: dict[str, Callable[..., Form]] = field(default_factory=dict)
    inductions: dict[str, CutLoop] = field(default_factory=dict)  # the loops that were cut, by name
    positive: frozenset[str] = frozenset()  # functions that stand for free buffers which invariants say are positive
    externs: Mapping[str, str] = field(default_factory=dict)  # C functions of the kernel's own: what they are taken for
    unmodelled: frozenset[str] = frozenset()  # the waits for products and copies under way, which no condition is about
    types: set[str] = field(default_factory=set)  # that numbers are converted to, or exp and the like are taken in
    most: float = 0  # what the arguments of exp are at most, if the contract bounds no float input
    constants: Constants = field(default_factory=current)  # how far floats are from the numbers they are taken for

    def compare(
        self,
        output: str,
        reference: Callable[..., Form | Value],
        *rewritings: Rewriting,
        meaning: Callable[[Write], Value | None] = attrgetter("value"),
    ) -> list[Equation]:
        """Compare each element that the kernel writes to an output, rewritten, with the reference at the same index.

        ``meaning`` gives what a write, under its conditions, says of the reference's element: its value if nothing else is
        given. It gives None if a write says nothing.
        """
        result = []
        for write in self.writes.get(output, []):
            with self.facts.assuming(*write.path):
                if (meant := meaning(write)) is None:
                    continue
                wanted = reference(*write.index)
                wanted = wanted if isinstance(wanted, Value) else Value(wanted)
                form, finite = rewritten(meant.form, rewritings), rewritten(meant.finite, rewritings)
                shown = self.same(Value(form, finite, meant.sign), wanted)
                statement = f"{output}[{', '.join(map(str, write.index))}] is the reference's"
                result.append(Equation(statement, shown, form, wanted.form, write.site))
        return result or [Equation(f"{output} is written", False, ZERO, ZERO)]

    def same(self, a: Value, b: Value) -> bool:
        """Return whether two values are equal: finite at the same places, where an infinite value has the form 0."""
        finite = self.facts.decide_all(a.finite)
        alike = holds(finite, b.finite, self.facts) and (finite is ONE or a.sign == b.sign)
        if not alike or holds(a.form, b.form, self.facts):
            return alike
        try:
            kernels, references = (all_written_out(self.facts.decide_all(p)) for p in (a.form, b.form))
        except Undefined:  # of an element that a condition excludes
            return False
        return equal(kernels, references)  # without splitting cases: there may be one for each element
