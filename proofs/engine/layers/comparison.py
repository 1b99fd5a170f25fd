"""A kernel beside its reference, both read symbolically."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lemmata.reference.contract import Contract, TensorSpec

from ..base.errors import Unsupported
from ..execution.invariants import Invariant
from ..execution.symbolic import Execution, execute
from ..forms import normal_form
from ..forms.entailment import Facts
from ..forms.equations import Equation
from ..reference.inputs import integers, symbolic_input
from ..reference.pull_array import Integers, PullArray, deciding
from ..reference.symbolic_torch import tensor

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
        known.add(normal_form.nonnegative(normal_form.variable(name) - size.low))
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
            symbolic_input(spec.name, shapes[spec.name], integers(contract, spec, _dtype(kernel, spec.name)))
            for spec in contract.inputs
        ]
        try:
            with deciding(known):
                results = reference(*inputs)
        except (AttributeError, TypeError, ValueError, LookupError) as error:
            raise Unsupported(f"the reference does what symbolic tensors cannot: {error}") from error
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(contract.outputs):
            raise Unsupported(f"the reference returns {len(results)} results, the contract has {len(contract.outputs)}")
        execution = execute(kernel, invariants=invariants, facts=known)
        equations = list(execution.equations)
        for spec, result in zip(contract.outputs, map(tensor, results), strict=True):
            wanted = tuple(map(normal_form.form, shapes[spec.name]))
            if result.form_shape != wanted:
                raise Unsupported(f"{spec.name}: shape {list(map(str, wanted))}, the reference's {result.shape}")
            _check_dtype(spec, result, _dtype(kernel, spec.name))
            equations += execution.compare(spec.name, result.value)
        return execution, equations

    return compare


def _dtype(kernel: Any, name: str) -> torch.dtype:
    """Return the type of a kernel's tensor."""
    (buffer,) = (b for b in kernel.buffer_map.values() if b.name == name)
    return getattr(torch, str(buffer.dtype))  # type: ignore[no-any-return]


def _check_dtype(spec: TensorSpec, result: PullArray, dtype: torch.dtype) -> None:
    """Raise Unsupported unless the reference's result is of floats as the kernel's, or of the same type of integers."""
    wanted, got = (n.dtype if n else None for n in (Integers.of(dtype), result.integer))
    if wanted is not got:
        raise Unsupported(f"{spec.name}: the kernel's is of {dtype}, the reference's of {got or 'floats'}")
