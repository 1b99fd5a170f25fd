"""A second opinion on a kernel beside its reference: both run over a prime field, at sizes that are given.

It shares with the proofs what statements mean (``semantics``), and none of their algebra: the reference runs as it is, torch
function by torch function, and sums are added up. So a wrong law of the normal form shows as a difference, and so does an
invariant that is wrongly thought to hold. It proves nothing of other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tvm import tirx

from lemmata.reference.contract import Contract, TensorSpec

from ..base.dtypes import is_integer
from ..base.errors import Unsupported
from ..semantics.algebra import Binary, Memory, Unary
from .field import PRIMES, PrimeField, Residues
from .lanes import Fault, Lanes, align, sizes_of
from .machine import NumericMachine

_AGAIN = 2  # how often other numbers are tried, where a divisor is 0 modulo the prime
_UNARY = ("exp", "exp2", "log", "log2", "sigmoid", "sqrt", "rsqrt")
_BINARY = {"div": "div", "max": "fmax", "min": "fmin", "maxnan": "maximum"}


class FieldLanes(Lanes):
    """The interpreter's algebra with floats of a prime field. Integers and truth values are those of the interpreter."""

    def __init__(self, field: PrimeField) -> None:
        super().__init__()
        self.field = field

    def literal(self, value: float, dtype: str) -> Any:
        """Return a constant."""
        return super().literal(value, dtype) if is_integer(dtype) else self.field.number(value)

    def unary(self, operator: Unary, a: Any, dtype: str) -> Any:
        """Apply a function."""
        if is_integer(dtype):
            return super().unary(operator, a, dtype)
        if operator == "rcp":
            return self.field.div(1, a)
        if operator in _UNARY:
            return getattr(self.field, operator)(a)
        raise Unsupported(f"{operator} of a float, in a second opinion")

    def binary(self, operator: Binary, a: Any, b: Any, dtype: str) -> Any:
        """Apply an operation."""
        if is_integer(dtype):
            return super().binary(operator, a, b, dtype)
        if operator in ("add", "sub", "mul"):
            return self.field.ring(getattr(torch, operator), *align(a, b))
        if operator in _BINARY:
            return getattr(self.field, _BINARY[operator])(*align(a, b))
        raise Unsupported(f"{operator} of floats, in a second opinion")

    def cast(self, a: Any, source: str, target: str) -> Any:
        """Convert a value. Types of floats are ignored, and no float becomes an integer."""
        return super().cast(a, source, target) if is_integer(target) else self.field.number(a)

    def allocate(self, memory: Memory[Tensor]) -> None:
        """Make a fresh buffer."""
        super().allocate(memory)
        storage: Any = self._storage[memory]
        storage.data = storage.data if is_integer(memory.dtype) else self.field.number(storage.data)

    def result(self, memory: Memory[Tensor]) -> Any:
        """Return what a parameter holds. Raise a fault if an element has not been written."""
        storage = self._storage[memory]
        if not storage.written.all():
            raise Fault(f"{memory.name} has elements that are never written")
        return storage.data.reshape(storage.shape)


def run(
    field: PrimeField, kernel: Any, inputs: Mapping[str, Any], sizes: Mapping[str, int] | None = None
) -> Mapping[str, Any]:
    """Run a kernel over a field and return what its parameters hold then, by name; inputs are changed where it writes them.

    The shapes of the inputs tell the kernel's sizes; ``sizes`` has those that no input has.
    """
    lanes = FieldLanes(field)
    further = {name: torch.tensor(size) for name, size in (sizes or {}).items()}
    machine = NumericMachine(lanes, kernel, further | sizes_of(kernel, inputs))
    memories = machine.parameters()
    for name, memory in memories.items():
        if name in inputs:
            lanes.attach(memory, inputs[name], initialised=True)
        else:
            lanes.allocate(memory)
    machine.run()
    return {name: lanes.result(memory) for name, memory in memories.items()}


def _drawn(
    field: PrimeField, spec: TensorSpec, sizes: Mapping[str, float], random: torch.Generator, spread: float
) -> Any:
    """Return an input that a contract admits; integers are small or just beyond a size."""
    dims = [(spec.leading,), *spec.dims] if spec.leading else spec.dims
    shape = [int(sum(sizes[n] if isinstance(n, str) else n for n in dim)) for dim in dims]
    elements, dtype = spec.elements, spec.dtypes[0]
    if dtype.is_floating_point:
        near = spread * torch.randn(shape, generator=random, dtype=torch.float64)
        return field.drawn(near.abs() if elements.nonnegative else near)
    low = max(torch.iinfo(dtype).min if elements.low is None else elements.low, -2)
    high = sizes[elements.high] if isinstance(elements.high, str) else elements.high
    most = max(sizes.values(), default=0) + 3
    return torch.randint(low, int(most if high is None else min(high, most)), shape, generator=random, dtype=dtype)


def _difference(output: str, got: Any, wanted: Any) -> str | None:
    """Say where two results differ.

    Raises:
        Unsupported: of an element no residue is known on both sides.
    """
    if got.shape != wanted.shape:
        return f"{output}: shape {list(got.shape)}, the reference's {list(wanted.shape)}"
    wrong, unknown = got != wanted, torch.tensor(False)
    if isinstance(got, Residues):
        wanted = got.field.number(wanted)
        pairs = list(zip(got.parts, wanted.parts, strict=True))
        known = [~a.isnan() & ~b.isnan() for a, b in pairs[:2]]
        infinite = [x.near.isinf() & x.parts[0].isnan() & x.parts[1].isnan() for x in (got, wanted)]
        wrong = (infinite[0] != infinite[1]) | (infinite[0] & wrong) | (got.near.isnan() != wanted.near.isnan())
        for each, (a, b) in zip(known, pairs, strict=False):
            wrong = wrong | (each & (a != b))
        unknown = ~(known[0] | known[1] | infinite[0])
    if wrong.any():
        return f"{output}{wrong.nonzero()[0].tolist()} and {int(wrong.sum()) - 1} other elements"
    if unknown.any():
        raise Unsupported(f"{int(unknown.sum())} elements of {output} without a residue, in a second opinion")
    return None


def second_opinion(
    kernel: Any,
    contract: Contract,
    reference: Callable[..., Any],
    *,
    sizes: Mapping[str, int],
    statics: Mapping[str, float] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    spread: float = 1.0,
) -> Sequence[str]:
    """Return where a kernel and its reference differ over two prime fields; nothing if they agree.

    Args:
        kernel: the PrimFunc, as its factory returns it, whose parameters bear the names of the contract's tensors; or a
            function from a field and the inputs by name to the outputs by name, which may `run` several kernels.
        contract: what the kernel takes and returns.
        reference: plain torch to all outputs, on the inputs in the contract's order, and then on what those outputs held before
            of which elements may keep that.
        sizes: those of the call.
        statics: the static parameters that shapes name.
        given: inputs that are to be so; the others are drawn.
        seed: of what is drawn.
        spread: the standard deviation of the floats that are drawn. Their doubles decide comparisons, no residue depends on it.

    Raises:
        Fault: the kernel does what none may do on these inputs.
        Unsupported: the kernel or the reference does what a field has no meaning for.
    """
    known = {**(statics or {}), **sizes}

    def differences(prime: int, again: int = 0) -> list[str]:
        field, random = PrimeField(prime, seed + again), torch.Generator().manual_seed(prime + seed + again)
        before = [spec for spec in contract.outputs if spec.name in contract.updated]
        drawn = {spec.name: _drawn(field, spec, known, random, spread) for spec in (*contract.inputs, *before)}
        inputs = drawn | dict(given or {})
        try:
            wanted = reference(*inputs.values())
            got = run(field, kernel, inputs, sizes) if isinstance(kernel, tirx.PrimFunc) else kernel(field, inputs)
            pairs = zip(contract.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True)
            found = [_difference(spec.name, got[spec.name], value) for spec, value in pairs]
        except Unsupported:
            if again == _AGAIN:
                raise
            return differences(prime, again + 1)
        return [f"{each} modulo {prime}" for each in found if each]

    return [each for prime in PRIMES for each in differences(prime)]
