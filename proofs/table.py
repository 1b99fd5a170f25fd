"""The fates of mutants as Markdown, for the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from .engine.base.report import Report, fates


def mutation_table(reports: Iterable[tuple[str, Report]]) -> str:
    """Return for each kernel a table by mutation operator and by what refuted the mutants, and the survivors by name."""
    return "\n".join(line for name, report in reports if report.mutations for line in _kernel(name, report)) + "\n"


def _kernel(name: str, report: Report) -> Iterator[str]:
    counts = ", ".join(f"{count} {fate}" for fate, count in fates(report.mutations).items())
    yield f"## {name}"
    yield ""
    yield f"{len(report.mutations)} mutants: {counts}."
    yield ""
    tried = ["run"] if any(mutation.layer == "run" for mutation in report.mutations) else []
    untried = Counter(m.reason for m in report.mutations if m.fate == "untried")
    columns = *tried, "L2", "range", "L0", "L1", "rejected", "equivalent", *(["untried"] if untried else [])
    yield f"| operator | mutants | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 2) + "|"
    for operator in sorted({m.operator for m in report.mutations}):
        chosen = [m for m in report.mutations if m.operator == operator]
        met = Counter(m.layer if m.fate == "killed" else m.fate for m in chosen)
        yield f"| {operator} | {len(chosen)} | {' | '.join(str(met[c] or '') for c in columns)} |"
    yield ""
    refused = [m for m in report.mutations if m.fate in ("killed", "rejected")]
    reasons = Counter(f"{m.layer or 'no layer'}: {m.reason.split(':')[0]}" for m in refused)
    yield "Reasons: " + ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) + "."
    yield ""
    yield from (f"Untried: {count}: {why}.\n" for why, count in untried.items())
    for mutation in report.mutations:
        if mutation.fate == "equivalent":
            yield f"- equivalent: `{mutation.name}`: {mutation.reason}"
    yield ""
