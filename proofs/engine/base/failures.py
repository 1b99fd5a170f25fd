"""What went wrong with a kernel, what became of its mutants, and what may be left aside, as records and as text.

It is not trusted. That there are failures, and that a mutant is unexplained, is seen in report.py by their number alone: a
layer holds if it has none and each of its conditions is proved. What a layer leaves aside is named in its verdict, accepted
or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .conditions import Outcome


@dataclass(frozen=True)
class Failure:
    """One condition that was not proved, or one sign that a proof is hollow.

    Attributes:
        kind: "bounds", "race", "equivalence", ..., or "hollow", or "unsupported".
        statement: what does not hold, in the kernel's own terms.
        site: the statement of the kernel.
        verdict: "refuted", "not proved", "unknown" or "unsupported"; for runs, "wrong" or "found".
        counterexample: sizes, threads and loop variables by their names in the kernel.
    """

    kind: str
    statement: str
    site: str = ""
    verdict: str = "refuted"
    counterexample: Mapping[str, int] | None = None

    def __str__(self) -> str:
        values = ", ".join(f"{name} = {value}" for name, value in (self.counterexample or {}).items())
        return "\n".join(
            part
            for part in (
                f"{self.verdict} {self.kind}: {self.statement}",
                self.site and f"  at {self.site}",
                values and f"  when {values}",
            )
            if part
        )


@dataclass(frozen=True)
class Mutation:
    """What became of one planted error.

    Attributes:
        fate: "killed", "rejected" (the compiler or the engine refuses it), "equivalent" (every layer holds of it) or
            "untried".
        reason: the first condition that fails, with its layer; or why it is refused, or was not tried.
    """

    name: str
    operator: str
    fate: str
    layer: str
    reason: str


@dataclass(frozen=True)
class Accepted:
    """Something that layers may leave aside.

    Attributes:
        pattern: matches its names in verdicts, but for prefixes such as ``tl.``.
        layers: those in which it is accepted.
        why: the reason.
    """

    pattern: str
    layers: tuple[str, ...]
    why: str

    def of(self, layer: str, name: str) -> bool:
        """Return whether this is what a layer leaves aside under a name."""
        pattern = rf"(tl|tirx)?(\.|::)?(attribute (tl\.)?)?({self.pattern})"
        return layer in self.layers and re.fullmatch(pattern, name) is not None


def failures(outcomes: Iterable[Outcome]) -> list[Failure]:
    """Return a failure for each condition that was not proved."""
    failed = ((o.condition, o) for o in outcomes if o.verdict != "proved")
    return [Failure(c.kind, c.statement, str(c.site), o.verdict, o.counterexample) for c, o in failed]


def fates(mutations: Iterable[Mutation]) -> dict[str, int]:
    """Return how many mutants met each fate; of those that were not tried nothing is said if there are none."""
    counts = {"killed": 0, "rejected": 0, "equivalent": 0}
    for mutation in mutations:
        counts[mutation.fate] = counts.get(mutation.fate, 0) + 1
    return counts


def unexplained(mutations: Iterable[Mutation]) -> tuple[str, ...]:
    """Return the names of the mutants that survive without a reason, and of those that were not tried."""
    return tuple(m.name for m in mutations if m.fate == "untried" or (m.fate == "equivalent" and not m.reason))
