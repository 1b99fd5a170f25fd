"""The contract of an operator as formulas over a kernel's run-time sizes: what proofs may assume of a call."""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeAlias

import z3
from tvm import tirx

from lemmata.reference import arithmetic
from lemmata.reference.contract import IN_TORCH, Contract, TensorSpec

from ..base.conditions import Condition, Site, conjunction
from ..base.errors import Unsupported
from ..smt.bitvectors import subterms
from ..smt.solve import solve

Range: TypeAlias = tuple[z3.ArithRef | None, z3.ArithRef | None]

MEMORY = 2**40  # a tensor that exists has at most so many elements: 1 TiB in one-byte elements


@dataclass(frozen=True, eq=False)
class Hypotheses:
    """What a contract says of a kernel.

    Nothing is assumed of the values of floating-point tensors, and of integer tensors only what the contract says of
    their elements. Distinct tensors are taken not to overlap; the bindings allocate the outputs. An end of a range is None
    where any number will do.
    """

    sizes: Mapping[str, z3.ArithRef]  # the run-time sizes by name, as integers
    facts: tuple[z3.BoolRef, ...]  # their ranges, that the kernel's shapes are the contract's, and the memory axiom
    ranges: Mapping[str, Range]  # for each integer tensor, the half-open range of its elements
    shapes: Mapping[str, tuple[z3.ArithRef, ...]]  # as the kernel declares them
    outputs: tuple[str, ...]  # the names of the tensors that the kernel must write
    promises: Mapping[str, Range] = field(default_factory=dict)  # for each output, what its elements must lie in
    strides: Mapping[str, tuple[z3.ArithRef, ...]] = field(default_factory=dict)  # where a kernel has its own
    updated: tuple[str, ...] = ()  # the outputs of which elements may keep what they held before
    distinct: Mapping[str, z3.ArithRef] = field(default_factory=dict)  # below which no natural element comes twice

    @classmethod
    def of(cls, contract: Contract, statics: Mapping[str, float], prim_func: tirx.PrimFunc) -> Hypotheses:
        """Return the hypotheses of a contract, at given static parameters, about a kernel.

        The kernel's symbolic dimensions must bear the names of the contract's sizes, its buffers those of the tensors;
        Unsupported if both do not describe the same tensors.
        """
        values = {n: z3.IntVal(int(v)) for n, v in statics.items() if float(v).is_integer()}
        sizes = {name: z3.Int(name) for name in contract.sizes}
        facts = [z3.And(sizes[n] >= s.low, sizes[n] <= s.high) for n, s in contract.sizes.items()]
        buffers, declared = {b.name: b for b in prim_func.buffer_map.values()}, {spec.name for spec in contract.tensors}
        facts += [arithmetic.evaluate(relation, {**values, **sizes}, _IN_Z3) for relation in contract.relations]
        scalars = {p.name for p in prim_func.params if p not in prim_func.buffer_map}
        if both := sorted(scalars & _of_shapes(prim_func)):
            raise Unsupported(f"{', '.join(both)}: a scalar of the kernel, a size of the contract")
        if declared != set(buffers):
            raise Unsupported(f"the contract declares tensors {sorted(declared)}, the kernel {sorted(buffers)}")
        shapes: dict[str, tuple[z3.ArithRef, ...]] = {}
        strides: dict[str, tuple[z3.ArithRef, ...]] = {}
        for spec in contract.tensors:
            shapes[spec.name] = tuple(_dimension(d, sizes) for d in buffers[spec.name].shape)
            names, dtype = [str(t).removeprefix("torch.") for t in spec.dtypes], str(buffers[spec.name].dtype)
            if IN_TORCH.get(dtype, dtype) not in names:
                raise Unsupported(f"{spec.name}: the kernel declares {dtype}, the contract {' or '.join(names)}")
            equalities = _same_shape(spec, shapes[spec.name], {**values, **sizes})
            for equality in equalities:  # may give names to sizes of the kernel's own, but not restrict the contract's
                constants = (c for c in subterms([equality]) if c.decl().kind() == z3.Z3_OP_UNINTERPRETED)
                condition = Condition("shape", str(equality), tuple(facts), equality, Site(spec.name))
                free = {c.decl().name() for c in constants} <= {*contract.sizes}
                if free and solve(condition, witness=False).verdict != "proved":
                    raise Unsupported(f"{spec.name}: the kernel needs {equality}, which the contract leaves open")
            facts += equalities
            facts.append(_product(shapes[spec.name]) <= MEMORY)
            if of_its_own := _strides(buffers[spec.name], shapes[spec.name], sizes):
                strides[spec.name] = of_its_own
                facts.append(_reach(shapes[spec.name], of_its_own) <= MEMORY)
        for spec in contract.outputs:
            if spec.name in strides:
                _check_apart(spec, shapes[spec.name], strides[spec.name], facts)
        outputs = tuple(spec.name for spec in contract.outputs)

        def bound(value: int | str | None) -> z3.ArithRef | None:
            return sizes[value] if isinstance(value, str) else None if value is None else z3.IntVal(value)

        ends = {spec.name: (bound(spec.elements.low), bound(spec.elements.high)) for spec in contract.tensors}
        ranges, promises = ({s.name: ends[s.name] for s in specs} for specs in (contract.inputs, contract.outputs))
        distinct = {s.name: sizes[s.elements.distinct] for s in contract.inputs if s.elements.distinct}
        return cls(sizes, tuple(facts), ranges, shapes, outputs, promises, strides, contract.updated, distinct)

    def of_element(self, tensor: str, indices: Sequence[z3.ArithRef], value: z3.ArithRef) -> list[z3.BoolRef]:
        """Return what the contract says of ``value``, the element of ``tensor`` at ``indices``, if it is in bounds.

        A tensor may be taken as a row: its range holds of all its elements. Between rows at strides there may be anything.
        Of elements that are distinct the index is a function.
        """
        flat = len(indices) != len(self.shapes[tensor])
        if flat and tensor in self.strides:
            return []
        if flat and len(indices) != 1:
            raise Unsupported(f"{tensor} is read through {len(indices)} indices")
        shape = (self.elements(tensor),) if flat else self.shapes[tensor]
        inside = [z3.And(i >= 0, i < n) for i, n in zip(indices, shape, strict=True)]
        known = within(value, self.ranges.get(tensor, (None, None)))
        if tensor in self.distinct:
            whole = "in the row " if flat else ""
            places = [
                z3.Function(f"place {d} of {whole}{tensor}", z3.IntSort(), z3.IntSort()) for d in range(len(indices))
            ]
            same = z3.And(*(place(value) == index for place, index in zip(places, indices, strict=True)))
            known.append(z3.Implies(z3.And(value >= 0, value < self.distinct[tensor]), same))
        return [z3.Implies(inside[0] if flat else z3.And(*inside), z3.And(*known))] if known else []

    def elements(self, tensor: str) -> z3.ArithRef:
        """Return the number of elements of a tensor, with what lies between its rows if these are at strides."""
        shape = self.shapes[tensor]
        return _reach(shape, self.strides[tensor]) if tensor in self.strides else _product(shape)


def _of_shapes(prim_func: tirx.PrimFunc) -> set[str]:
    """Return the names of the dimensions and strides of a kernel's tensors, scalars that are both not counted."""
    scalars = {hash(p) for p in prim_func.params}
    found: list[tirx.PrimExpr] = []
    for extent in (e for b in prim_func.buffer_map.values() for e in (*b.shape, *b.strides)):
        tirx.stmt_functor.post_order_visit(tirx.Evaluate(extent), found.append)
    return {str(n.name) for n in found if isinstance(n, tirx.Var) and hash(n) not in scalars}


def within(value: z3.ArithRef, interval: Range) -> list[z3.BoolRef]:
    """Return that a value lies in a half-open range, as far as that has ends."""
    low, high = interval
    return ([value >= low] if low is not None else []) + ([value < high] if high is not None else [])


def _product(terms: Iterable[z3.ArithRef]) -> z3.ArithRef:
    return z3.simplify(reduce(operator.mul, terms, z3.IntVal(1)))


_IN_Z3 = {**arithmetic.OPERATORS, ast.FloorDiv: operator.truediv}  # Z3 rounds down where the divisor is positive
_OF_SIZES = {
    **{tirx.Add: operator.add, tirx.Sub: operator.sub, tirx.Mul: operator.mul},
    **{tirx.FloorDiv: operator.truediv, tirx.FloorMod: operator.mod},
}


def _dimension(extent: tirx.PrimExpr, sizes: dict[str, z3.ArithRef]) -> z3.ArithRef:
    """Return a dimension as the kernel declares it. A new name becomes a size, which an equality is to pin down."""
    if isinstance(extent, tirx.IntImm):
        return z3.IntVal(int(extent.value))
    if isinstance(extent, tirx.Var):
        return sizes.setdefault(extent.name, z3.Int(extent.name))
    if type(extent) in _OF_SIZES:
        return _OF_SIZES[type(extent)](_dimension(extent.a, sizes), _dimension(extent.b, sizes))
    raise Unsupported(f"dimension {extent}")


def _same_shape(spec: TensorSpec, shape: Sequence[z3.ArithRef], values: Mapping[str, z3.ArithRef]) -> list[z3.BoolRef]:
    """Return the equalities of the kernel's shape with the contract's. Leading dimensions arrive flattened into one."""
    expected = [
        z3.Sum([z3.IntVal(0), *(arithmetic.evaluate(str(t), values, _IN_Z3) for t in dim)]) for dim in spec.dims
    ]
    if spec.leading:
        expected.insert(0, values[spec.leading])
    if len(expected) != len(shape):
        raise Unsupported(f"{spec.name}: the kernel declares {len(shape)} dimensions, the contract {len(expected)}")
    equalities = [z3.simplify(a == b) for a, b in zip(shape, expected, strict=True)]
    if any(z3.is_false(e) for e in equalities):
        raise Unsupported(f"{spec.name}: the kernel declares shape {list(shape)}, the contract {spec.pretty}")
    return [e for e in equalities if not z3.is_true(e)]


def _strides(
    buffer: tirx.Buffer, shape: Sequence[z3.ArithRef], sizes: dict[str, z3.ArithRef]
) -> tuple[z3.ArithRef, ...] | None:
    """Return the strides that the kernel declares, which are sizes of the contract; None of a contiguous tensor."""
    contiguous = [_product(shape[dim + 1 :][::-1]) for dim in range(len(shape))]
    declared = tuple(z3.simplify(_dimension(s, dict(sizes))) for s in buffer.strides)
    same = all(z3.is_true(z3.simplify(a == b, som=True)) for a, b in zip(declared, contiguous, strict=False))
    return None if same else declared


def _reach(shape: Sequence[z3.ArithRef], strides: Sequence[z3.ArithRef]) -> z3.ArithRef:
    """Return how many elements lie from the first to the last one of a tensor, both included; none if it has none."""
    last = z3.Sum([z3.IntVal(1), *((n - 1) * s for n, s in zip(shape, strides, strict=True))])
    return z3.If(conjunction(*(n > 0 for n in shape)), last, z3.IntVal(0))


def _check_apart(
    spec: TensorSpec, shape: Sequence[z3.ArithRef], strides: Sequence[z3.ArithRef], facts: Sequence[z3.BoolRef]
) -> None:
    """Raise Unsupported unless the rows of an output lie apart: strides that overlap make two elements one."""
    for d, stride in enumerate(strides):
        goal = z3.Or(shape[d] <= 1, stride >= _reach(shape[d + 1 :], strides[d + 1 :]))
        if solve(Condition("shape", str(goal), tuple(facts), goal, Site(spec.name)), witness=False).verdict != "proved":
            raise Unsupported(f"{spec.name}: expected rows that lie apart, got strides {list(strides)}")
