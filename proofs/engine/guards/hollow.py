"""Against hollow proofs: hypotheses that contradict each other prove anything.

There are four guards. Every access can happen under the hypotheses. The hypotheses admit the probe sizes that the
contract names, a ragged one and the largest advertised: a contract so strong that only trivial calls meet it passes
every other guard. The hypotheses of a condition hold of some execution, so that those that prove it do not prove its
negation too. And mutants must die (``mutation``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import z3

from lemmata.reference.contract import Contract

from ..base.conditions import Analysis, Condition, Outcome, Site
from ..base.report import Failure
from ..contract.hypotheses import Hypotheses

Solve = Callable[..., Outcome]  # of a condition, and whether a witness is wanted

# The hypotheses of these kinds are those of one execution, and so never contradict each other. Those of a pair of
# accesses may: that only one of two branches is taken is just what proves the pair harmless.
_NEVER = z3.BoolVal(False)
_SINGLE = (
    "bounds",
    "own bounds",
    "guarded bounds",
    "overflow",
    "division",
    "cast",
    "value",
    "launch",
    "range",
    "phase",
)


@dataclass(frozen=True)
class Guarded:
    """How many checks were made, and what they found."""

    checks: int
    failures: tuple[Failure, ...]


def guard(contract: Contract, hypotheses: Hypotheses, analysis: Analysis, solve: Solve) -> Guarded:
    """Return what the first three guards find in one layer."""
    checks: list[tuple[Condition, str]] = [
        *((site, "no execution reaches this") for site in analysis.sites),
        *((_admits(probe, hypotheses), "the contract does not admit a probe") for probe in contract.probes),
        *((_possible(c), "the hypotheses prove the negation too") for c in analysis.conditions if c.kind in _SINGLE),
    ]
    return Guarded(len(checks), tuple(_failures(checks, solve)))


def _admits(probe: object, hypotheses: Hypotheses) -> Condition:
    assert isinstance(probe, dict)
    at = tuple(hypotheses.sizes[name] == value for name, value in probe.items())
    statement = ", ".join(f"{name} = {value}" for name, value in probe.items())
    return Condition("reachable", statement, (*hypotheses.facts, *at), z3.BoolVal(False), Site("contract"))


def _possible(condition: Condition) -> Condition:
    return replace(condition, kind="reachable", goal=_NEVER)


def _failures(checks: Sequence[tuple[Condition, str]], solve: Solve) -> Iterator[Failure]:
    """Yield the checks that fail. What is true together is true of fewer hypotheses too, so the longest are asked first."""
    given = [frozenset(h.get_id() for h in check.hypotheses) for check, _ in checks]
    answers: dict[frozenset[int], str] = {}
    for number in sorted(range(len(checks)), key=lambda n: -len(given[n])):
        key = given[number]
        if key not in answers:
            known = any(key < other and answer == "refuted" for other, answer in answers.items())
            answers[key] = "refuted" if known else solve(checks[number][0], witness=False).verdict
    for (check, meaning), key in zip(checks, given, strict=True):
        if answers[key] != "refuted":  # "refuted" means that there is an execution
            yield Failure("hollow", f"{meaning}: {check.statement}", str(check.site), answers[key])
