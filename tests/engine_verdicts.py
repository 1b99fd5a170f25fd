"""For the tests of the proof engine: contracts read off small kernels, and verdicts in a form that reads well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lemmata.proofs.engine.base.conditions import Analysis, Outcome
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.smt.solve import solve
from lemmata.reference.contract import Contract, Elements, Size, TensorSpec

STRICT = {"tl.disable_safe_memory_legalize": True}
MANUAL = {**STRICT, "tl.disable_thread_storage_sync": True}  # only the barriers that the kernel asks for
LARGEST = 2**31 - 256


def hypotheses(
    prim_func: Any,
    *outputs: str,
    sizes: Mapping[str, Size] | None = None,
    elements: Mapping[str, Elements] | None = None,
) -> Hypotheses:
    """The contract of a kernel whose symbolic dimensions may be anything, but for the sizes and elements given."""
    specs, found = {}, {}
    for buffer in prim_func.buffer_map.values():
        dims = [str(int(d.value)) if hasattr(d, "value") else d.name for d in buffer.shape]
        found |= {d: Size(high=LARGEST) for d in dims if not d.isdigit()}
        dtype = getattr(torch, str(buffer.dtype))
        spec = TensorSpec(buffer.name, " ".join(dims), (dtype,), (elements or {}).get(buffer.name, Elements()))
        specs[buffer.name] = spec
    inputs = tuple(s for n, s in specs.items() if n not in outputs)
    contract = Contract("test", {**found, **(sizes or {})}, {}, inputs, tuple(specs[n] for n in outputs))
    return Hypotheses.of(contract, {}, prim_func)


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


def only(found: list[Outcome]) -> tuple[Outcome, Mapping[str, int]]:
    """The only outcome, and its counterexample."""
    (outcome,) = found
    assert outcome.counterexample is not None
    return outcome, outcome.counterexample
