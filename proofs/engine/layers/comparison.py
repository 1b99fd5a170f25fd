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
from ..forms.equality import Undecided
from ..forms.equations import Equation
from ..reference.inputs import integers, symbolic_input
from ..reference.pull_array import Integers, deciding
from ..reference.symbolic_torch import tensor

Compared = tuple[Execution, Sequence[Equation]]
Compare = Callable[[Any, Facts], Compared]
"""Executes a kernel symbolically under some facts and compares its outputs with the reference."""


def facts(contract: Contract) -> Facts:
    """Return what a contract says of its sizes, shapes and elements, for the symbolic reading."""
    bounded = [s for s in contract.inputs if (s.elements.low, s.elements.high) != (None, None)]
    integers = {s.name: s.elements for s in bounded if s.elements.low is not None and not _of_floats(s)}
    ranges = {name: (e.low or 0, None if e.high is None else _form(e.high)) for name, e in integers.items()}
    shapes = {spec.name: [sum(map(_form, dim), normal_form.ZERO) for dim in spec.dims] for spec in contract.inputs}
    known = Facts(ranges, shapes, dict(map(_interval, filter(_of_floats, bounded))))
    for name, size in contract.sizes.items():
        known.bound(normal_form.variable(name), normal_form.form(size.high + 1))
        known.add(normal_form.nonnegative(normal_form.variable(name) - size.low))
    return known


def _of_floats(spec: TensorSpec) -> bool:
    return spec.dtypes[0].is_floating_point


def _interval(spec: TensorSpec) -> tuple[str, tuple[int | None, int | None]]:
    """Return a float input's name, and between which numbers the contract says that its elements lie."""
    low, high = spec.elements.low, spec.elements.high
    if isinstance(high, str):
        raise Unsupported(f"{spec.name}: floats below {high}, a size")
    return spec.name, (low, high)


def _form(value: Any) -> normal_form.Form:
    """Return a size: a variable by its name, a number as it is."""
    return normal_form.variable(value) if isinstance(value, str) else normal_form.form(int(value))


def against(
    reference: Callable[..., Any], contract: Contract, invariants: Mapping[str, Invariant] | None = None
) -> Compare:
    """Return the comparison of every output with an unmodified torch reference, run on inputs in the contract's order."""

    def compare(kernel: Any, known: Facts) -> Compared:
        buffers = {b.name: b for b in kernel.buffer_map.values()}
        types: dict[str, torch.dtype] = {name: getattr(torch, str(b.dtype)) for name, b in buffers.items()}
        shapes = {name: [_form(getattr(n, "name", n)) for n in b.shape] for name, b in buffers.items()}
        given = ((s.name, shapes[s.name], integers(contract, s, types[s.name])) for s in contract.inputs)
        inputs = [symbolic_input(*each) for each in given]
        try:
            with deciding(known):
                results = reference(*inputs)
        except (Unsupported, Undecided):
            raise
        except Exception as error:  # whatever a reference does with what is no tensor of torch
            said = str(error) or type(error).__name__
            raise Unsupported(f"the reference does what symbolic tensors cannot: {said}") from error
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(contract.outputs):
            raise Unsupported(f"the reference returns {len(results)} results, the contract has {len(contract.outputs)}")
        execution = execute(kernel, invariants=invariants, facts=known)
        equations = list(execution.equations)
        for spec, result in zip(contract.outputs, map(tensor, results), strict=True):
            wanted, dtype = tuple(shapes[spec.name]), types[spec.name]
            if result.form_shape != wanted:
                raise Unsupported(f"{spec.name}: shape {list(map(str, wanted))}, the reference's {result.shape}")
            of_kernel, of_result = (n.dtype if n else None for n in (Integers.of(dtype), result.integer))
            if of_kernel is not of_result:  # types of floats are ignored
                kind = of_result or "floats"
                raise Unsupported(f"{spec.name}: the kernel's is of {dtype}, the reference's of {kind}")
            with deciding(known):
                equations += execution.compare(spec.name, result.value)
        return execution, equations

    return compare
