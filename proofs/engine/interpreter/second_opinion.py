"""A second opinion on a kernel beside its reference: both run over a prime field, at sizes that are given.

It shares with the proofs the meaning of statements (``semantics``), and none of their algebra: the reference runs as it is,
torch function by torch function, and sums are added up. So a wrong law of the normal form, or an invariant that is wrongly
thought to hold, shows as a difference. It says nothing of other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tvm import tirx

from lemmata.reference.contract import Contract, TensorSpec

from ..base.dtypes import is_integer
from ..base.errors import Unsupported
from ..semantics.algebra import Binary, Memory, Unary
from ..semantics.semantics import Machine
from .field import PRIMES, PrimeField, Residues
from .lanes import Fault, Lanes

Values = Mapping[str, Any]
_AGAIN = 2  # with other numbers, where a divisor is 0 modulo the prime
_UNARY = ("exp", "exp2", "log", "log2", "sigmoid", "abs")
_BINARY = ("add", "sub", "mul", "div", "max", "min", "maxnan")


class Undetermined(Unsupported):
    """Says that a result has no residue: a divisor is 0 modulo the prime, or the field has no meaning for the result."""


class Difference(NamedTuple):
    """Where a kernel and its reference differ: the output, its first element that does, how many do, modulo which prime."""

    output: str
    index: tuple[int, ...]
    count: int
    prime: int

    def __str__(self) -> str:
        return f"{self.output}{list(self.index)} and {self.count - 1} more elements differ modulo {self.prime}"


class FieldLanes(Lanes):
    """The interpreter's algebra with floats of a prime field; integers and truth values are as they are there."""

    def __init__(self, field: PrimeField) -> None:
        super().__init__()
        self.field = field

    def literal(self, value: float, dtype: str) -> Any:
        """Return a constant."""
        return super().literal(value, dtype) if is_integer(dtype) else self.field.constant(value)

    def unary(self, operator: Unary, a: Any, dtype: str) -> Any:
        """Apply a function."""
        if is_integer(dtype):
            return super().unary(operator, a, dtype)
        if operator == "rcp":
            return self.field.div(1, a)
        if operator not in _UNARY:
            raise Unsupported(f"{operator} of a float, in a second opinion")
        return getattr(self.field, operator)(a)

    def binary(self, operator: Binary, a: Any, b: Any, dtype: str) -> Any:
        """Apply an operation."""
        if is_integer(dtype):
            return super().binary(operator, a, b, dtype)
        if operator not in _BINARY:
            raise Unsupported(f"{operator} of floats, in a second opinion")
        rank = max(a.ndim, b.ndim)
        a, b = (x.reshape((*x.shape, *[1] * (rank - x.ndim))) for x in (a, b))
        if operator in ("add", "sub", "mul"):
            return self.field.ring(getattr(torch, operator), a, b)
        return getattr(self.field, operator)(a, b)

    def cast(self, a: Any, source: str, target: str) -> Any:
        """Convert a value; one float is as good as another, and none becomes an integer."""
        if is_integer(target):
            if not is_integer(source):
                raise Unsupported("a float made an integer, in a second opinion")
            return super().cast(a, source, target)
        return self.field.number(a)

    def bits(self, a: Any, source: str, target: str) -> Any:
        """Read the bits of integers as another type."""
        if not (is_integer(source) and is_integer(target)):
            raise Unsupported("the bits of a float, in a second opinion")
        return super().bits(a, source, target)

    def allocate(self, memory: Memory[Tensor]) -> None:
        """Make a fresh buffer."""
        super().allocate(memory)
        if not is_integer(memory.dtype):
            storage: Any = self._storage[memory]
            storage.data = self.field.zeros(storage.data.shape)

    def result(self, memory: Memory[Tensor]) -> Any:
        """Return what a parameter holds. Raise a fault if an element has not been written."""
        storage = self._storage[memory]
        if not storage.written.all():
            raise Fault(f"{memory.name} has elements that are never written")
        return storage.data.reshape(storage.shape)


def run(kernel: Any, inputs: Values) -> Values:
    """Run a kernel on inputs of a field and return its outputs, by name: those of its parameters that are no inputs.

    Raises:
        Fault: as the interpreter does.
        Unsupported: the kernel does what the field has no meaning for.
    """
    lanes = FieldLanes(next(x.field for x in inputs.values() if isinstance(x, Residues)))
    shapes = {str(b.name): b.shape for b in kernel.buffer_map.values()}
    sizes = {
        str(dim.name): torch.tensor(extent)
        for name, value in inputs.items()
        for dim, extent in zip(shapes[name], value.shape, strict=True)
        if hasattr(dim, "name")
    }
    machine: Machine[Tensor] = Machine(lanes, kernel, sizes)
    memories = machine.parameters()
    for name, memory in memories.items():
        if name in inputs:
            lanes.attach(memory, inputs[name], initialised=True)
        else:
            lanes.allocate(memory)
    machine.run()
    return {name: lanes.result(memory) for name, memory in memories.items() if name not in inputs}


def _drawn(field: PrimeField, spec: TensorSpec, sizes: Mapping[str, float], random: torch.Generator) -> Any:
    """Return an input that a contract admits; integers are small or just beyond a size."""
    dims = [(spec.leading,), *spec.dims] if spec.leading else spec.dims
    shape = [int(sum(sizes[n] if isinstance(n, str) else n for n in dim)) for dim in dims]
    elements, dtype = spec.elements, spec.dtypes[0]
    if dtype.is_floating_point:
        near = torch.randn(shape, generator=random, dtype=torch.float64)
        return field.drawn(near.abs() if elements.nonnegative else near)
    low = -2 if elements.low is None else max(elements.low, -2)
    high = sizes[elements.high] if isinstance(elements.high, str) else elements.high
    most = max(sizes.values()) + 3
    return torch.randint(low, int(most if high is None else min(high, most)), shape, generator=random, dtype=dtype)


def _difference(output: str, got: Any, wanted: Any, prime: int) -> Difference | None:
    """Return where two results differ.

    Raises:
        Undetermined: of an element no residue is known on both sides.
    """
    wrong, unknown = got != wanted, torch.tensor(False)
    if isinstance(wanted, Residues):
        wrong, unknown = _compared(got, wanted)
    if wrong.any():
        return Difference(output, tuple(map(int, wrong.nonzero()[0])), int(wrong.sum()), prime)
    if unknown.any():
        raise Undetermined(f"{int(unknown.sum())} elements of {output} have no residue, in a second opinion")
    return None


def _compared(got: Residues, wanted: Residues) -> tuple[Tensor, Tensor]:
    """Return which elements differ, and which cannot be compared."""
    if got.shape != wanted.shape:
        raise ValueError(f"reference: expected results of shape {list(got.shape)}, got {list(wanted.shape)}")
    known, wrong = torch.tensor(False), got.near.isnan() != wanted.near.isnan()
    for a, b in zip(got.parts[:2], wanted.parts[:2], strict=True):
        both = ~a.isnan() & ~b.isnan()
        known, wrong = known | both, wrong | (both & (a != b))
    infinite = [x.parts[0].isnan() & x.parts[1].isnan() & x.near.isinf() for x in (got, wanted)]
    wrong = wrong | (infinite[0] != infinite[1]) | (infinite[0] & (got.near != wanted.near))
    return wrong, ~known & ~infinite[0]


def second_opinion(
    kernel: Any,
    contract: Contract,
    reference: Callable[..., Any],
    *,
    sizes: Mapping[str, int],
    statics: Mapping[str, float] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Sequence[Difference]:
    """Return where a kernel and its reference differ over two prime fields; nothing where they agree.

    Args:
        kernel: the PrimFunc, as its factory returns it, whose parameters bear the names of the contract's tensors; or what
            makes of inputs by name the outputs by name, and may `run` several kernels.
        contract: what the kernel takes and returns.
        reference: plain torch on the inputs, in the contract's order, to all outputs.
        sizes: those of the call.
        statics: the static parameters that shapes name.
        given: inputs of integers that are to be so, and are not drawn.
        seed: of what is drawn.

    Raises:
        Fault: the kernel does what none may do on these inputs.
        Unsupported: the kernel or the reference does what a field has no meaning for.
    """
    compute = partial(run, kernel) if isinstance(kernel, tirx.PrimFunc) else kernel
    known = {**(statics or {}), **sizes}

    def differences(prime: int, again: int) -> list[Difference]:
        """Return where they differ over one field."""
        field, random = PrimeField(prime, seed + again), torch.Generator().manual_seed(seed + again)
        inputs = {spec.name: _drawn(field, spec, known, random) for spec in contract.inputs} | dict(given or {})
        wanted, got = reference(*inputs.values()), compute(inputs)
        pairs = zip(contract.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True)
        try:
            return list(filter(None, [_difference(s.name, got[s.name], value, prime) for s, value in pairs]))
        except Undetermined:
            if again == _AGAIN:
                raise
            return differences(prime, again + 1)

    return [found for prime in PRIMES for found in differences(prime, 0)]
