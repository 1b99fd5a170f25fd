"""A kernel beside its reference, both read symbolically."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lemmata.reference import arithmetic
from lemmata.reference.contract import Contract, TensorSpec

from ..base.errors import Unsupported
from ..execution.invariants import Invariant
from ..execution.symbolic import Execution, Reading, execute
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.equations import Equation
from ..forms.extended import Value
from ..forms.normal_form import ONE, Form
from ..reference.pull_array import Integers, deciding
from ..reference.symbolic_torch import SymbolicTensor, tensor

_LEAST = -(2**63)  # of any type of integers
Finite = Callable[..., Form] | None
Compared = tuple[Execution, Sequence[Equation]]
# executes a kernel symbolically under some facts and compares its outputs with the reference
Compare = Callable[[Any, Facts], Compared]


def symbolic_input(
    name: str, shape: Sequence[Form | int], integer: Integers | None = None, *, raw: bool = False, finite: Finite = None
) -> SymbolicTensor:
    """Return the input of that name, whose elements are the atoms that the kernel's reads are.

    ``raw``: any floats. ``finite``: where they are not -inf, from the index a form that is 0 or 1.
    """
    kind = extended.Raw if raw else Value

    def element(*index: Form) -> Value:
        read = nf.read(name, *index)
        return Value(finite(*index) * read, finite(*index)) if finite else kind(read)

    return SymbolicTensor(shape, element, integer=integer)


def integers(contract: Contract, spec: TensorSpec, dtype: torch.dtype) -> Integers | None:
    """Return what a contract says of a tensor's elements as integers of a type; None of a type of floats."""
    known = Integers.of(dtype)
    low, high = (contract.sizes[n].high if isinstance(n, str) else n for n in (spec.elements.low, spec.elements.high))
    if known is None or low is None:
        return known
    return Integers(dtype, max(known.low, low), known.high if high is None else min(known.high, high - 1))


_IN_FORMS: arithmetic.Operators = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    ast.FloorDiv: lambda a, b: nf.apply("floordiv", a, b),
    ast.Mod: lambda a, b: a - b * nf.apply("floordiv", a, b),
    **{ast.Eq: lambda a, b: nf.zero(a - b), ast.NotEq: lambda a, b: ONE - nf.zero(a - b)},
    **{ast.LtE: lambda a, b: nf.nonnegative(b - a), ast.Lt: lambda a, b: nf.nonnegative(b - a - 1)},
    **{ast.GtE: lambda a, b: nf.nonnegative(a - b), ast.Gt: lambda a, b: nf.nonnegative(a - b - 1)},
}


def facts(contract: Contract, statics: Mapping[str, float] | None = None) -> Facts:
    """Return what a contract says of its sizes, shapes and elements, for the symbolic reading.

    ``statics`` are the values of its static parameters. Relations that mention others are left out.
    """
    ranges: dict[str, tuple[int, Form | None]] = {}
    floats: dict[str, tuple[int | None, int | None]] = {}
    for name, low, high, of in ((s.name, s.elements.low, s.elements.high, s.dtypes[0]) for s in contract.inputs):
        if not of.is_floating_point:
            ranges[name] = _LEAST if low is None else low, None if high is None else _form(high)
        elif isinstance(high, str):
            raise Unsupported(f"{name}: floats below {high}, a size")
        elif (low, high) != (None, None):
            floats[name] = low, high
    shapes = {spec.name: [sum(map(_form, dim), nf.ZERO) for dim in spec.dims] for spec in contract.inputs}
    known = Facts(ranges, shapes, floats)
    for name, size in contract.sizes.items():
        known.bound(nf.variable(name), nf.form(size.high + 1))
        known.add(nf.nonnegative(nf.variable(name) - size.low))
    values = {name: nf.form(int(value)) for name, value in (statics or {}).items() if value == int(value)}
    values |= {name: nf.variable(name) for name in contract.sizes}
    for relation in (r for r in contract.relations if arithmetic.names(r) <= values.keys()):
        known.add(nf.form(arithmetic.evaluate(relation, values, _IN_FORMS)))
    return known


def symbolic_inputs(kernel: Any, contract: Contract) -> dict[str, SymbolicTensor]:
    """Return the inputs of a kernel by name, in the contract's order, of the kernel's shapes and types."""
    buffers = {b.name: b for b in kernel.buffer_map.values()}

    def given(spec: TensorSpec) -> SymbolicTensor:
        buffer = buffers[spec.name]
        shape = [_form(getattr(n, "name", n)) for n in buffer.shape]
        return symbolic_input(spec.name, shape, integers(contract, spec, getattr(torch, str(buffer.dtype))))

    return {spec.name: given(spec) for spec in contract.inputs}


def _form(value: Any) -> Form:
    """Return a size: a variable by its name, a number as it is."""
    return nf.variable(value) if isinstance(value, str) else nf.form(int(value))


def against(
    reference: Callable[..., Any],
    contract: Contract,
    invariants: Mapping[str, Invariant] | None = None,
    reading: Reading | None = None,
) -> Compare:
    """Return the comparison of every output with an unmodified torch reference, run on inputs in the contract's order.

    ``invariants`` and ``reading`` are those of ``execute``.
    """

    def compare(kernel: Any, known: Facts) -> Compared:
        buffers = {b.name: b for b in kernel.buffer_map.values()}
        types: dict[str, torch.dtype] = {name: getattr(torch, str(b.dtype)) for name, b in buffers.items()}
        shapes = {name: [_form(getattr(n, "name", n)) for n in b.shape] for name, b in buffers.items()}
        inputs = symbolic_inputs(kernel, contract)
        try:
            with deciding(known):
                results = reference(*inputs.values())
        except Unsupported:
            raise
        except Exception as error:  # whatever a reference does with what is no tensor of torch
            said = str(error) or type(error).__name__
            raise Unsupported(f"the reference does what symbolic tensors cannot: {said}") from error
        results = results if isinstance(results, tuple) else (results,)
        if len(results) != len(contract.outputs):
            raise Unsupported(f"the reference returns {len(results)} results, the contract has {len(contract.outputs)}")
        execution = execute(kernel, invariants=invariants, facts=known, reading=reading)
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
