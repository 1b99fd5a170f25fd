"""Theorems about an operator's mathematics, each in words, and statements that are tested and not proved.

It is not trusted: these are the words in which a proof proposes something. ``verdicts`` has every condition of a theorem
decided, and reports it beside the statement; what is tested is reported as tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import z3

from ..base.conditions import Condition, Site


@dataclass(frozen=True)
class Theorem:
    """A statement that follows from conditions over the reals, all of which a solver must prove.

    Attributes:
        name: a short name.
        statement: the theorem in words, with its hypotheses.
        conditions: returns the sequents; ``argument`` says how they give the statement.
        argument: the steps between the conditions and the statement that no solver checks, or "".
    """

    name: str
    statement: str
    conditions: Callable[[], Sequence[Condition]]
    argument: str = ""


@dataclass(frozen=True)
class Tested:
    """A statement that was tried on many inputs and is not proved.

    Attributes:
        name: a short name.
        statement: in words, with what was tried.
        check: runs the trial; returns whether it held and what was seen.
    """

    name: str
    statement: str
    check: Callable[[], tuple[bool, str]]


Lemma = Theorem | Tested


@dataclass(frozen=True)
class Examples:
    """Inputs that the interpreter runs a kernel on, and what is asked of the results. They prove nothing.

    Attributes:
        statement: in words, what is asked of the results of which inputs.
        check: runs a kernel, and yields for each run the inputs in words and whether the results are right. It may
            raise ``Fault``.
    """

    statement: str
    check: Callable[[Any], Iterator[tuple[str, bool]]]


def lemma(statement: str, goal: z3.BoolRef, *hypotheses: z3.BoolRef) -> Condition:
    """Return a condition of a theorem."""
    return Condition("lemma", statement, tuple(hypotheses), goal, Site(statement))
