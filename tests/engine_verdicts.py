"""For the tests of the proof engine: hypotheses of verdict files, and outcomes in a form that reads well."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from lemmata.proofs.engine.base.conditions import Analysis, Outcome
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.smt.solve import solve


def hypotheses(file: ModuleType) -> Hypotheses:
    """Return what may be assumed of a call of a verdict file's kernel."""
    return Hypotheses.of(file.CONTRACT, {}, file.kernel)


def outcomes(layer: Callable[..., Analysis], *args: Any, **options: Any) -> list[Outcome]:
    """All verdicts of a layer, once every access is known to be reachable and nothing is unknown."""
    analysis = layer(*args, **options)
    unreachable = [site.site.text for site in analysis.sites if solve(site).verdict != "refuted"]
    assert not unreachable
    found = [solve(c) for c in analysis.conditions]
    assert not [o for o in found if o.verdict == "unknown"]
    return found


def refuted(layer: Callable[..., Analysis], *args: Any, **options: Any) -> list[Outcome]:
    """The refuted conditions of a layer."""
    return [o for o in outcomes(layer, *args, **options) if o.verdict == "refuted"]


def kinds(found: list[Outcome]) -> set[str]:
    """The kinds of conditions among the outcomes."""
    return {o.condition.kind for o in found}
