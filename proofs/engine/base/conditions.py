"""Verification conditions: what is to be proved, where it comes from, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal

import z3

Verdict = Literal["proved", "refuted", "unknown"]


@dataclass(frozen=True)
class Site:
    """A place in a kernel: a statement's text; the conditions of the if statements around it are ``branches``, as text."""

    text: str
    branches: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Condition:
    """One sequent, ``hypotheses |- goal``, over integers, booleans or bit-vectors, free of quantifiers."""

    kind: str  # the property that it is part of: "bounds", "overflow", "race", ...
    statement: str  # the sequent in words, with the names that the kernel uses
    hypotheses: tuple[z3.BoolRef, ...]  # the contract, the ranges of variables in scope, the guards on the way
    goal: z3.BoolRef  # what they must imply
    site: Site  # the statement that gives rise to it


@dataclass(frozen=True)
class Outcome:
    """A solver's verdict on one condition.

    A counterexample to a refuted condition has a value for every variable in it, by name. A primed name is the second of
    two threads, blocks or iterations; ``I[3]`` is an element of a tensor.
    """

    condition: Condition
    verdict: Verdict  # "unknown" is a failure, never a pass
    seconds: float  # over all attempts
    counterexample: Mapping[str, int] | None = None
    solver: str = ""  # that decided, and its seed, such as "z3 seed 0"


@dataclass(frozen=True)
class Analysis:
    """What one check asks about one kernel.

    For each access ``sites`` has a condition of kind "reachable", whose goal is false. It must be **refuted**: if it is
    proved, the hypotheses contradict each other on the way there, and the proofs about the access are hollow.
    """

    conditions: tuple[Condition, ...]  # all of them must be proved
    unmodelled: Set[str]  # names of the intrinsics whose effect no condition accounts for
    sites: tuple[Condition, ...]
    modelled: Set[str] = frozenset()  # of those that the conditions account for, whatever another check leaves out

    def __add__(self, other: Analysis) -> Analysis:
        modelled = self.modelled | other.modelled
        unmodelled = (self.unmodelled | other.unmodelled) - modelled
        return Analysis(self.conditions + other.conditions, unmodelled, self.sites + other.sites, modelled)

    def burying(self, dead: Collection[str]) -> Analysis:
        """Return the analysis that asks of if statements on ``dead`` conditions, as text, only that none is entered."""

        def buried(c: Condition) -> bool:
            return any(branch in dead for branch in c.site.branches)

        single = (c for c in self.conditions if c.kind not in _PAIRS)  # the accesses of a pair are among the sites
        never: dict[tuple[int, ...], Condition] = {}
        for c in filter(buried, (*self.sites, *single)):
            goal = reachable(c.statement.removeprefix(_NEVER), c.hypotheses, c.site)
            never.setdefault(tuple(h.get_id() for h in c.hypotheses), replace(goal, kind="dead"))
        conditions = (*(c for c in self.conditions if not buried(c)), *never.values())
        return Analysis(conditions, self.unmodelled, tuple(site for site in self.sites if not buried(site)))


_NEVER = "never executed: "
_PAIRS = ("race", "async", "uniqueness")


def reachable(what: str, hypotheses: tuple[z3.BoolRef, ...], site: Site) -> Condition:
    """Return the condition that is refuted exactly when the site can be reached under the hypotheses."""
    return Condition("reachable", f"{_NEVER}{what}", hypotheses, z3.BoolVal(False), site)


def distinct(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return the conditions without repetitions of the same sequent at the same site."""
    found: dict[tuple[object, ...], Condition] = {}
    for c in conditions:
        found.setdefault((c.kind, c.site, c.goal.get_id(), *(h.get_id() for h in c.hypotheses)), c)
    return tuple(found.values())


def conjunction(*terms: z3.BoolRef) -> z3.BoolRef:
    """Return that all terms hold. Of none it is ``true``, since SMT-LIB has no empty ``and``."""
    return z3.And(*terms) if terms else z3.BoolVal(True)


def disjunction(*terms: z3.BoolRef) -> z3.BoolRef:
    """Return that some term holds; ``false`` if there are none."""
    return z3.Or(*terms) if terms else z3.BoolVal(False)
