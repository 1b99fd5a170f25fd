"""Values that come from constructs which are not modelled, by the names of unknowns; and what a verdict may say of them.

It is not trusted: it turns conditions that are refuted into unknown ones, and both are failures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import z3

from ..base.conditions import Condition, Outcome
from ..base.dtypes import span
from .bitvectors import subterms
from .witness import integer

_VALUE = re.compile(r"(.+)\(\)(#\d+)?'*")  # with the number and the primes by which unknowns are told apart
_TYPES = [f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)]
_RANGES = [*({low, most + 1} for low, most in map(span, _TYPES)), *({0, width} for width in (8, 16, 32, 64))]
"""The numbers in a hypothesis that says of a value that it fits a type, or that it is a number of bits."""


def constructs(terms: Iterable[z3.ExprRef]) -> list[str]:
    """Return the constructs that are not modelled and whose values occur in terms."""
    unknowns = (t.decl().name() for t in subterms(terms) if z3.is_const(t))
    return sorted({found[1] for name in unknowns if (found := _VALUE.fullmatch(name))})


def cautious(outcome: Outcome) -> Outcome:
    """Return the outcome, unknown if it is refuted by values of constructs that are not modelled, and may not be theirs."""
    condition = outcome.condition
    if outcome.verdict != "refuted" or not (found := _decisive(condition)):
        return outcome
    statement = f"{condition.statement}; this depends on {', '.join(found)}, which is not modelled"
    return replace(outcome, condition=replace(condition, statement=statement), verdict="unknown")


def _decisive(condition: Condition) -> list[str]:
    """Return the constructs whose values occur in a condition, but for hypotheses that say no more than their types."""
    return constructs([condition.goal, *(h for h in condition.hypotheses if not _is_range(h))])


def _is_range(hypothesis: z3.BoolRef) -> bool:
    """Return whether a hypothesis says of one value no more than what its type says, or that it counts bits."""
    parts = subterms([hypothesis])
    unknowns = [t for t in parts if z3.is_const(t) and t.decl().kind() == z3.Z3_OP_UNINTERPRETED]
    numbers = {integer(t) for t in parts if z3.is_int_value(t) or z3.is_bv_value(t)}
    return z3.is_and(hypothesis) and len(unknowns) == 1 and numbers in _RANGES
