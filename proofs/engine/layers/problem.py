"""A kernel and all that is claimed of it, as every layer is given them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import z3

from lemmata.reference.contract import Contract

from ..base.conditions import Condition, Outcome
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from ..execution.ranges import Waiver
from ..forms.constants import one_proof
from ..forms.ring import at_most
from .comparison import Compare, Compared, facts
from .lemmas import Examples, Lemma
from .scripts import write

_ATOMS = 1_000_000  # that an execution may make anew; the largest, of csa over the window and one range, makes 182 000


@dataclass(frozen=True)
class Problem:
    """A kernel and all that is claimed of it."""

    kernel: Any  # the PrimFunc, as its factory returns it
    contract: Contract
    statics: Mapping[str, float]  # values of the contract's static parameters
    compare: Compare | None  # None where equality with a reference is not claimed
    lemmas: Sequence[Lemma]
    examples: Examples | None  # inputs to run the kernel on
    pass_configs: Mapping[str, object]  # TileLang's, of the build that ships
    waivers: Sequence[Waiver]  # obligations of the range layer that are not proved, each with its reason
    dead: Mapping[str, str]  # conditions of if statements that never hold, by their text, each with the reason
    arch: str
    solve: Callable[..., Outcome]  # decides one condition, as smt.solve.solve does
    smt: Path | None = None  # a folder to write the conditions to
    brief: bool = False  # whether a layer may stop at its first failure

    @cached_property
    def hypotheses(self) -> Hypotheses:
        """The contract as formulas over this kernel's sizes."""
        return Hypotheses.of(self.contract, self.statics, self.kernel)

    @property
    def compared(self) -> Compared:
        """The outcome of the symbolic execution, which layers L2 and range share; Unsupported if not all is modelled."""
        if isinstance(self._compared, Unsupported):
            raise self._compared
        return self._compared

    @cached_property
    def _compared(self) -> Compared | Unsupported:
        assert self.compare is not None
        try:
            with at_most(_ATOMS), one_proof():
                return self.compare(self.kernel, facts(self.contract, self.statics))
        except Unsupported as error:
            return error

    def outcomes(self, name: str, conditions: Sequence[Condition], **how: bool) -> list[Outcome]:
        """Return the outcomes of conditions, up to the first failure if one is enough; write them to ``smt`` first.

        ``how`` goes to what decides them.
        """
        if self.smt is not None:
            statics = "".join(f"-{key}={value:g}" for key, value in self.statics.items())
            write(tuple(conditions), self.smt / f"{self.kernel.attrs['global_symbol']}{statics}", name)
        outcomes = []
        for outcome in self._each(conditions, **how):
            outcomes.append(outcome)
            if self.brief and outcome.verdict != "proved":
                break
        return outcomes

    def _each(self, conditions: Sequence[Condition], **how: bool) -> Iterator[Outcome]:
        """Yield the outcome of each condition. Those with the same hypotheses are proved at once, where few steps do that."""
        keys = [frozenset(h.get_id() for h in c.hypotheses) for c in conditions]
        alike: dict[frozenset[int], list[z3.BoolRef]] = {}
        for key, condition in zip(keys, conditions, strict=True):
            alike.setdefault(key, []).append(condition.goal)
        known: dict[frozenset[int], Outcome] = {}
        for key, condition in zip(keys, conditions, strict=True):
            if key not in known and len(alike[key]) > 1:
                known[key] = self.solve(replace(condition, goal=z3.And(*alike[key])), witness=False, few=True, **how)
            proved = key in known and known[key].verdict == "proved"
            yield replace(known[key], condition=condition) if proved else self.solve(condition, **how)


def proved(outcomes: Iterable[Outcome]) -> int:
    """Return how many conditions were proved."""
    return sum(o.verdict == "proved" for o in outcomes)
