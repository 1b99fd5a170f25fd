"""A kernel beside its reference, both read symbolically."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lemmata.reference.contract import Contract

from ..base.errors import Unsupported
from ..execution.invariants import Invariant
from ..execution.symbolic import Execution, execute
from ..forms import normal_form
from ..forms.entailment import Facts
from ..forms.equations import Equation
from ..reference.symbolic_torch import symbolic_input, tensor

Compared = tuple[Execution, Sequence[Equation]]
Compare = Callable[[Any, Facts], Compared]
"""Executes a kernel symbolically under some facts and compares its outputs with the reference."""


def facts(contract: Contract) -> Facts:
    """Return what a contract says of its sizes, shapes and integer elements, for the symbolic reading."""
    integers = {s.name: s.elements for s in contract.inputs if s.elements.low is not None}
    ranges = {name: (e.low or 0, None if e.high is None else _form(e.high)) for name, e in integers.items()}
    shapes = {spec.name: [sum(map(_form, dim), normal_form.ZERO) for dim in spec.dims] for spec in contract.inputs}
    known = Facts(ranges, shapes)
    for name, size in contract.sizes.items():
        known.bound(normal_form.variable(name), normal_form.form(size.high + 1))
        known.add(normal_form.indicator("ge", normal_form.variable(name) - size.low, integer=True))
    return known


def _form(value: int | str) -> normal_form.Form:
    return normal_form.variable(value) if isinstance(value, str) else normal_form.form(value)


def against(
    reference: Callable[..., Any], contract: Contract, invariants: Mapping[str, Invariant] | None = None
) -> Compare:
    """Return the comparison of every output with an unmodified torch reference, run on inputs in the contract's order."""

    def compare(kernel: Any, known: Facts) -> Compared:
        shapes = {
            b.name: [normal_form.variable(d.name) if hasattr(d, "name") else int(d) for d in b.shape]
            for b in kernel.buffer_map.values()
        }
        inputs = [
            symbolic_input(spec.name, shapes[spec.name], integer=not spec.dtypes[0].is_floating_point)
            for spec in contract.inputs
        ]
        try:
            results = reference(*inputs)
        except (AttributeError, TypeError) as error:
            raise Unsupported(f"the reference does what symbolic tensors cannot: {error}") from error
        results = results if isinstance(results, tuple) else (results,)
        execution = execute(kernel, invariants=invariants, facts=known)
        equations = list(execution.equations)
        for spec, result in zip(contract.outputs, map(tensor, results), strict=True):
            wanted = tuple(map(normal_form.form, shapes[spec.name]))
            if result.form_shape != wanted:
                raise Unsupported(f"{spec.name}: shape {list(map(str, wanted))}, the reference's {result.shape}")
            equations += execution.compare(spec.name, result.value)
        return execution, equations

    return compare
