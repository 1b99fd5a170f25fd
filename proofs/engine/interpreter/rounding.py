"""How far floats are from reals: the interpreter's algebra with counts of roundings in the place of numbers.

The counts and their rules stand in ``rounding_rules``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..base.dtypes import is_integer
from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..semantics.algebra import Binary, Comparison, Memory, Reduction, Unary
from .lanes import Lanes, align, sizes_of
from .machine import NumericMachine
from .rounding_rules import BINARY, UNARY, Assumed, Kind, Rule, either, none, sum_of, to_bf16


class RoundingLanes(Lanes):
    """The interpreter's algebra with floats as counts: complex numbers whose real part is the count, the other the kind."""

    def __init__(self, assumed: Assumed) -> None:
        super().__init__()
        self._assumed = assumed
        self._lost: str | None = None
        self._open: list[Tensor] = []  # the conditions that may hold or not
        self._both_ways = False

    def literal(self, value: float, dtype: str) -> Any:
        """Return a constant: off by its rounding unless it is an integer that floats hold."""
        if is_integer(dtype) or dtype == "bool":
            return super().literal(value, dtype)
        kind = Kind.ZERO if value == 0 else Kind.POSITIVE if value > 0 else Kind.NEGATIVE
        exact = value == int(value) == torch.tensor(value, dtype=torch.float32).item()
        return torch.tensor(complex(not exact, kind))

    def infinity(self, dtype: str) -> Any:
        """Return positive infinity."""
        return torch.tensor(complex(0, Kind.INFINITY))

    def compare(self, operator: Comparison, a: Any, b: Any, dtype: str) -> Tensor:
        """Compare; of floats, whether something positive is above 0, or whether a gap is above something positive."""
        if not a.is_complex():
            return super().compare(operator, a, b, dtype)
        a, b = align(a, b)
        kinds, than = (set(x.imag.flatten().tolist()) for x in (a, b))
        if operator == "gt" and Kind.GAP in kinds <= {Kind.GAP, Kind.MINUS_INFINITY} and than == {Kind.POSITIVE}:
            return self._may_hold(a.imag == Kind.GAP)
        if operator == "gt" and kinds == {Kind.MINUS_INFINITY} and than == {Kind.POSITIVE}:
            return torch.zeros(a.shape, dtype=torch.bool)
        if operator != "gt" or not kinds <= {Kind.ZERO, Kind.POSITIVE} or than != {Kind.ZERO}:
            found = " or ".join(Kind(int(k)).title for k in kinds)
            raise Unsupported(f"a comparison of {found} in a count of roundings: {self._lost or describe(self.site)}")
        above: Tensor = a.imag == Kind.POSITIVE
        return above

    def _may_hold(self, lanes: Tensor) -> Tensor:
        """Return a condition that may hold or not, in each of these lanes for itself, and does not hold in others."""
        self._open.append(lanes)
        return lanes

    def _is_open(self, condition: Tensor) -> bool:
        return any(condition is other for other in self._open)

    def unary(self, operator: Unary, a: Any, dtype: str) -> Any:
        """Apply a function."""
        if operator == "not" and self._is_open(a):
            return self._may_hold(torch.ones_like(a))
        return self._each(UNARY.get(operator, none), a) if a.is_complex() else super().unary(operator, a, dtype)

    def binary(self, operator: Binary, a: Any, b: Any, dtype: str) -> Any:
        """Apply an operation."""
        if self._is_open(a) or self._is_open(b):
            raise Unsupported(f"a condition on floats with another, in a count of roundings: {describe(self.site)}")
        if not (a.is_complex() or b.is_complex()):
            return super().binary(operator, a, b, dtype)
        return self._each(BINARY.get(operator, none), *align(a, b))

    def decided(self, condition: Tensor) -> bool | None:
        """Return whether a condition holds in all active lanes or in none; None if in some, or if that is open."""
        return None if self._is_open(condition) else super().decided(condition)

    def select(self, condition: Tensor, then: Any, otherwise: Any, dtype: str) -> Any:
        """Choose; where the condition is open, return what covers both."""
        if not self._is_open(condition):
            return super().select(condition, then, otherwise, dtype)
        return self._each(either, *align(super().select(condition, then, otherwise, dtype), otherwise))

    @contextmanager
    def guard(self, condition: Tensor) -> Iterator[None]:
        """Make lanes inactive where the condition fails; where it is open, what is stored covers what was there."""
        before = self._both_ways
        self._both_ways = before or self._is_open(condition)
        try:
            with super().guard(condition):
                yield
        finally:
            self._both_ways = before

    def store(self, memory: Memory[Tensor], index: Sequence[Tensor], value: Tensor) -> None:
        """Write in the active lanes."""
        if self._both_ways:
            value = self._each(either, *align(self.load(memory, index), value))
        super().store(memory, index, value)

    def cast(self, a: Any, source: str, target: str) -> Any:
        """Convert a value: only a conversion to a shorter float rounds."""
        if not a.is_complex():
            return super().cast(a, source, target)
        if target not in ("float32", "bfloat16"):
            raise Unsupported(f"a float as {target}, in a count of roundings")
        return self._each(to_bf16, a) if (source, target) == ("float32", "bfloat16") else a

    def reduce(self, kind: Reduction, extent: Tensor, body: Callable[[Tensor], Any], dtype: str) -> Any:
        """Return a sum or a maximum along one more axis."""
        if is_integer(dtype):
            return super().reduce(kind, extent, body, dtype)
        dim = self._depth
        with self.axis("k", torch.tensor(0, dtype=torch.int32), extent) as index:
            value, count = body(index), self._number(extent)
        value = value.reshape((*value.shape, *[1] * (dim + 1 - value.ndim)))
        value = value.expand(*value.shape[:dim], count)
        most = value.real.amax(dim)
        while value.shape[dim] > 1:
            half = value.shape[dim] // 2
            rest = value.narrow(dim, 2 * half, value.shape[dim] - 2 * half)
            both = self._each(
                BINARY["add" if kind == "sum" else "max"], *(value.narrow(dim, n * half, half) for n in (0, 1))
            )
            value = torch.cat([both, rest], dim)
        value = value.squeeze(dim)
        return self._each(sum_of(count), torch.complex(most, value.imag)) if kind == "sum" else value

    def allocate(self, memory: Memory[Tensor]) -> None:
        """Make a fresh buffer."""
        super().allocate(memory)
        if not is_integer(memory.dtype):
            self._storage[memory].data = self._storage[memory].data.to(torch.complex128)

    def give(self, memory: Memory[Tensor], tensor: Tensor, kind: Kind) -> None:
        """Give a parameter its tensor: exact numbers of a kind, or integers."""
        self.attach(memory, tensor, initialised=True)
        if not is_integer(memory.dtype):
            self._storage[memory].data = torch.full((tensor.numel(),), complex(0, kind), dtype=torch.complex128)

    def counted(self, memory: Memory[Tensor]) -> tuple[int, str]:
        """Return the largest count of a parameter, and its kind.

        Raises:
            Unsupported: it holds what has no rule, or several kinds.
        """
        data = self._storage[memory].data
        kinds = set(data.imag.flatten().tolist()) - {Kind.ZERO}
        if kinds & {Kind.UNKNOWN} or len(kinds) != 1:
            raise Unsupported(
                f"{memory.name} in a count of roundings: {self._lost or [Kind(int(k)).title for k in kinds]}"
            )
        return int(data.real.max()), Kind(int(kinds.pop())).title

    def _each(self, rule: Rule, *values: Any) -> Any:
        """Apply a rule to each combination of kinds that occurs."""
        values = tuple(torch.broadcast_tensors(*values))  # type: ignore[no-untyped-call]  # torch's
        codes = functools.reduce(lambda code, v: code * len(Kind) + v.imag, values, torch.zeros(()))
        out = torch.zeros(values[0].shape, dtype=torch.complex128)
        for code in sorted(set(codes.flatten().tolist())):
            here = codes == code
            each = [v.imag[here][0] for v in values]
            count, kind = rule(
                self._assumed, *((v.real[here], Kind(int(k))) for v, k in zip(values, each, strict=True))
            )
            if kind == Kind.UNKNOWN and not self._lost:
                self._lost = f"{' and '.join(Kind(int(k)).title for k in each)}: {describe(self.site)}"
            out[here] = torch.complex(
                torch.zeros(int(here.sum()), dtype=torch.float64) + count,
                torch.tensor(float(kind), dtype=torch.float64),
            )
        return out


def count_roundings(
    kernel: Any, inputs: Mapping[str, Tensor], *, scores: Collection[str], assumed: Assumed
) -> Mapping[str, tuple[int, str]]:
    """Return the largest count of each output of a kernel, and the kind of its numbers, at the sizes of the inputs.

    Args:
        kernel: the PrimFunc, as its factory returns it.
        inputs: by name. Only integers, sizes and which are floats matter: the counts are those of any floats.
        scores: the inputs that are scores; the other floats are data.
        assumed: what the counts assume of all numbers.

    Raises:
        Unsupported: an output depends on what has no rule.
        Fault: the kernel does what none may do.
    """
    lanes = RoundingLanes(assumed)
    machine = NumericMachine(lanes, kernel, sizes_of(kernel, inputs))
    memories = machine.parameters()
    for name, memory in memories.items():
        if name in inputs:
            lanes.give(memory, inputs[name], Kind.SCORE if name in scores else Kind.DATA)
        else:
            lanes.allocate(memory)
    machine.run()
    return {name: lanes.counted(memory) for name, memory in memories.items() if name not in inputs}
