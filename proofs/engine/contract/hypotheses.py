"""The contract of an operator as formulas over a kernel's run-time sizes: what proofs may assume of a call."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeAlias

import z3
from tvm import tirx

from lemmata.reference.contract import Contract, TensorSpec

from ..base.conditions import Condition, Site
from ..base.errors import Unsupported
from ..smt.bitvectors import subterms
from ..smt.solve import solve

Range: TypeAlias = tuple[z3.ArithRef | None, z3.ArithRef | None]

MEMORY = 2**40  # a tensor that exists has at most so many elements: 1 TiB in one-byte elements


@dataclass(frozen=True)
class Hypotheses:
    """What a contract says of a kernel.

    Nothing is assumed of the values of floating-point tensors, and of integer tensors only what the contract says of
    their elements. Distinct tensors are taken not to overlap; the bindings allocate the outputs.

    Args:
        sizes: the run-time sizes by name, as integers.
        facts: their ranges, the equality of the kernel's shapes with the contract's, and the memory axiom.
        ranges: for each integer tensor, the half-open range of its elements; None where the contract leaves it open.
        shapes: each tensor's shape as the kernel declares it.
        outputs: the names of the tensors that the kernel must write.
        promises: for each output, the half-open range that its elements must lie in; None where any will do.
    """

    sizes: Mapping[str, z3.ArithRef]
    facts: tuple[z3.BoolRef, ...]
    ranges: Mapping[str, Range]
    shapes: Mapping[str, tuple[z3.ArithRef, ...]]
    outputs: tuple[str, ...]
    promises: Mapping[str, Range] = field(default_factory=dict)

    @classmethod
    def of(cls, contract: Contract, statics: Mapping[str, float], prim_func: tirx.PrimFunc) -> Hypotheses:
        """Return the hypotheses of a contract, at given static parameters, about a kernel.

        The kernel's symbolic dimensions must bear the names of the contract's sizes, its buffers those of the tensors.

        Raises:
            Unsupported: the kernel and the contract do not describe the same tensors.
        """
        values = {n: z3.IntVal(int(v)) for n, v in statics.items() if float(v).is_integer()}
        sizes = {name: z3.Int(name) for name in contract.sizes}
        facts = [z3.And(sizes[n] >= s.low, sizes[n] <= s.high) for n, s in contract.sizes.items()]
        buffers, declared = {b.name: b for b in prim_func.buffer_map.values()}, {spec.name for spec in contract.tensors}
        scalars = {p.name for p in prim_func.params if p not in prim_func.buffer_map}
        if both := sorted(scalars & {*sizes}):
            raise Unsupported(f"{', '.join(both)}: a scalar of the kernel, a size of the contract")
        if declared != set(buffers):
            raise Unsupported(f"the contract declares tensors {sorted(declared)}, the kernel {sorted(buffers)}")
        shapes: dict[str, tuple[z3.ArithRef, ...]] = {}
        for spec in contract.tensors:
            shapes[spec.name] = tuple(_dimension(d, sizes) for d in buffers[spec.name].shape)
            names, dtype = [str(t).removeprefix("torch.") for t in spec.dtypes], str(buffers[spec.name].dtype)
            if dtype not in names:
                raise Unsupported(f"{spec.name}: the kernel declares {dtype}, the contract {' or '.join(names)}")
            strides = [_product(shapes[spec.name][d + 1 :][::-1]) for d in range(len(shapes[spec.name]))]
            given = [z3.simplify(_dimension(s, {})) for s in buffers[spec.name].strides]
            if given and not all(z3.is_true(z3.simplify(a == b)) for a, b in zip(given, strides, strict=True)):
                raise Unsupported(f"{spec.name}: the kernel declares strides {given}, expected {strides}")
            equalities = _same_shape(spec, shapes[spec.name], {**values, **sizes})
            for equality in equalities:  # may give names to sizes of the kernel's own, but not restrict the contract's
                constants = (c for c in subterms([equality]) if c.decl().kind() == z3.Z3_OP_UNINTERPRETED)
                condition = Condition("shape", str(equality), tuple(facts), equality, Site(spec.name))
                free = {c.decl().name() for c in constants} <= {*contract.sizes}
                if free and solve(condition, witness=False).verdict != "proved":
                    raise Unsupported(f"{spec.name}: the kernel needs {equality}, which the contract leaves open")
            facts += equalities
            facts.append(_product(shapes[spec.name]) <= MEMORY)
        outputs = tuple(spec.name for spec in contract.outputs)

        def bound(value: int | str | None) -> z3.ArithRef | None:
            return sizes[value] if isinstance(value, str) else None if value is None else z3.IntVal(value)

        ends = {spec.name: (bound(spec.elements.low), bound(spec.elements.high)) for spec in contract.tensors}
        ranges, promises = ({s.name: ends[s.name] for s in specs} for specs in (contract.inputs, contract.outputs))
        return cls(sizes, tuple(facts), ranges, shapes, outputs, promises)

    def of_element(self, tensor: str, indices: Sequence[z3.ArithRef], value: z3.ArithRef) -> list[z3.BoolRef]:
        """Return what the contract says of ``value``, the element of ``tensor`` at ``indices``, if it is in bounds.

        A tensor may be taken as a row: its range holds of all its elements.
        """
        flat = len(indices) != len(self.shapes[tensor])
        if flat and len(indices) != 1:
            raise Unsupported(f"{tensor} is read through {len(indices)} indices")
        shape = (self.elements(tensor),) if flat else self.shapes[tensor]
        inside = [z3.And(i >= 0, i < n) for i, n in zip(indices, shape, strict=True)]
        bounds = within(value, self.ranges.get(tensor, (None, None)))
        return [z3.Implies(inside[0] if flat else z3.And(*inside), z3.And(*bounds))] if bounds else []

    def elements(self, tensor: str) -> z3.ArithRef:
        """Return the number of elements of a tensor."""
        return _product(self.shapes[tensor])


def within(value: z3.ArithRef, interval: Range) -> list[z3.BoolRef]:
    """Return that a value lies in a half-open range, as far as that has ends."""
    low, high = interval
    return ([value >= low] if low is not None else []) + ([value < high] if high is not None else [])


def _product(terms: Iterable[z3.ArithRef]) -> z3.ArithRef:
    return z3.simplify(reduce(operator.mul, terms, z3.IntVal(1)))


def _dimension(extent: tirx.PrimExpr, sizes: dict[str, z3.ArithRef]) -> z3.ArithRef:
    """Return a dimension as the kernel declares it. A new name becomes a size, which an equality is to pin down."""
    if isinstance(extent, tirx.IntImm):
        return z3.IntVal(int(extent.value))
    if isinstance(extent, tirx.Var):
        return sizes.setdefault(extent.name, z3.Int(extent.name))
    operators = {tirx.Add: operator.add, tirx.Sub: operator.sub, tirx.Mul: operator.mul}
    if type(extent) in operators:
        return operators[type(extent)](_dimension(extent.a, sizes), _dimension(extent.b, sizes))
    raise Unsupported(f"dimension {extent}")


def _same_shape(spec: TensorSpec, shape: Sequence[z3.ArithRef], values: Mapping[str, z3.ArithRef]) -> list[z3.BoolRef]:
    """Return the equalities of the kernel's shape with the contract's. Leading dimensions arrive flattened into one."""
    expected = [z3.Sum([z3.IntVal(t) if isinstance(t, int) else values[t] for t in dim]) for dim in spec.dims]
    if spec.leading:
        expected.insert(0, values[spec.leading])
    if len(expected) != len(shape):
        raise Unsupported(f"{spec.name}: the kernel declares {len(shape)} dimensions, the contract {len(expected)}")
    equalities = [z3.simplify(a == b) for a, b in zip(shape, expected, strict=True)]
    if any(z3.is_false(e) for e in equalities):
        raise Unsupported(f"{spec.name}: the kernel declares shape {list(shape)}, the contract {spec.pretty}")
    return [e for e in equalities if not z3.is_true(e)]
