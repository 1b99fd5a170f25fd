"""What went wrong with a kernel, and what became of its mutants, as records and as text for people.

It is not trusted. That there are failures, and that a mutant is unexplained, is seen in report.py by their number alone: a
layer holds if it has none and each of its conditions is proved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


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
        fate: "killed", "rejected" (the compiler or the engine refuses it) or "equivalent" (every layer holds of it).
        reason: the first condition that fails, with its layer; or why it is refused.
    """

    name: str
    operator: str
    fate: str
    layer: str
    reason: str


def fates(mutations: Iterable[Mutation]) -> dict[str, int]:
    """Return how many mutants met each fate."""
    counts = {"killed": 0, "rejected": 0, "equivalent": 0}
    for mutation in mutations:
        counts[mutation.fate] += 1
    return counts
