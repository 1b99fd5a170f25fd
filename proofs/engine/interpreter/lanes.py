"""The algebra of numbers: what the interpreter computes and stores, for all threads of a block at once.

Values are torch tensors in the kernel's own types. Their first dimension is the threads of a block, the others are the
open parallel indices; a dimension along which a value does not vary has size 1 or is absent. Blocks run one after
another. Threads run in lock step, so that races change nothing; but two lanes that store different values to one
element are found, and ``Ordering`` finds the races of threads that use memory without tile operations. Sums are in
torch's order, and gemm multiplies in the type of its accumulator: floats agree with a GPU up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from tvm import tirx

from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..semantics.algebra import Binary, Comparison, Dimension, Memory, Reduction, Unary
from . import warps
from .arithmetic import BINARY, COMPARISON, UNARY, bits, cast, held, width
from .ordering import Access, Ordering

_DIVISIONS = ("floordiv", "floormod", "truncdiv", "truncmod")


class Fault(Exception):
    """Says that the kernel did what no kernel may do. The message quotes the statement, the buffer and the index."""


class _Storage:
    """The elements of a buffer, flat, and which of them hold a value. A local buffer has them once per thread."""

    def __init__(self, shape: Sequence[int], dtype: str, threads: int) -> None:
        self.shape = list(shape)
        self.size = int(torch.Size(self.shape).numel())
        self.threads = threads
        self.data = torch.zeros(self.size * threads, dtype=held(dtype))
        self.written = torch.zeros(self.size * threads, dtype=torch.bool)
        self._whole = False

    def whole(self) -> bool:
        """Return whether all elements hold a value, which they do from then on."""
        self._whole = self._whole or bool(self.written.all())
        return self._whole


class Lanes:
    """The algebra of tensors over threads and parallel indices."""

    site: object

    def __init__(self, ordering: Ordering | None = None, longest: int | None = None) -> None:
        self.site = None
        self._ordering = ordering
        self._longest = longest
        self._storage: dict[Memory[Tensor], _Storage] = {}
        self._depth = 1  # dimensions in use: the threads, and one per open axis
        self._mask: Tensor = torch.tensor(True)
        self._threads = 1
        self._block: dict[str, int] = {}

    # Values

    def literal(self, value: float, dtype: str) -> Tensor:
        """Return a constant in its type."""
        return _constant(value, math.copysign(1, value), dtype)

    def infinity(self, dtype: str) -> Tensor:
        """Return positive infinity."""
        return self.literal(float("inf"), dtype)

    def unary(self, operator: Unary, a: Tensor, dtype: str) -> Tensor:
        """Return the torch function of that name, applied."""
        if operator == "ballot":
            return warps.ballot(a, self._whole_warps())
        return cast(UNARY[operator](a), dtype)

    def binary(self, operator: Binary, a: Tensor, b: Tensor, dtype: str) -> Tensor:
        """Return the torch operation of that name on both operands, which are converted to the type."""
        if operator in warps.EXCHANGES:
            return warps.exchange(operator, a, b, self._whole_warps())
        a, b = align(a.to(held(dtype)), b.to(held(dtype)))
        if operator in _DIVISIONS:
            b = self._defined(b, b == 0, "division by 0")
        if operator in ("shl", "shr"):
            b = self._defined(b, (b < 0) | (b >= width(dtype)), "a shift by no number of its bits")
        return cast(BINARY[operator](a, b), dtype)

    def _defined(self, operand: Tensor, bad: Tensor, what: str) -> Tensor:
        """Return an operand with 1 for what is bad in inactive lanes. Raise a fault if it is bad in an active one."""
        aligned, mask = align(bad, self._mask)
        if (aligned & mask).any():
            raise self._fault(what)
        return torch.where(bad, 1, operand)

    def _whole_warps(self) -> int:
        """Return the number of threads of a block. Raise a fault unless each warp is active as a whole or not."""
        here = _pad(self._mask, 1)
        if self._depth > 1 or not warps.whole(here.expand(self._threads)):
            raise self._fault("an exchange without all threads of a warp")
        return self._threads

    def compare(self, operator: Comparison, a: Tensor, b: Tensor, dtype: str) -> Tensor:
        """Return whether a comparison holds."""
        a, b = align(a, b)
        return COMPARISON[operator](a, b)

    def cast(self, a: Tensor, source: str, target: str) -> Tensor:
        """Return a converted value: rounded to nearest between floats, and towards 0 to integers."""
        return cast(a, target)

    def bits(self, a: Tensor, source: str, target: str) -> Tensor:
        """Return the bits of a value as another type, as ``Tensor.view`` does."""
        return bits(a, source, target)

    def select(self, condition: Tensor, then: Tensor, otherwise: Tensor, dtype: str) -> Tensor:
        """Return ``torch.where`` of three values."""
        condition, then, otherwise = align(condition, then, otherwise)
        return torch.where(condition, then, otherwise)

    def reduce(self, kind: Reduction, extent: Tensor, body: Callable[[Tensor], Tensor], dtype: str) -> Tensor:
        """Return the reduction of a body along one more axis."""
        dim = self._depth
        with self.axis("k", torch.tensor(0, dtype=torch.int32), extent) as index:
            value = body(index)
            value = _pad(value, dim + 1)
            value = value.expand(*value.shape[:dim], index.shape[dim])
            if not value.shape[dim] and kind != "sum":
                raise self._fault("a maximum or minimum of no elements")
        match kind:
            case "sum":
                return value.sum(dim, dtype=value.dtype)
            case "max":
                return value.amax(dim)
            case "min":
                return value.amin(dim)

    # Control

    def launch(self, threads: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the indices of all threads of a block; x varies fastest."""
        x, y, z = threads
        self._threads = x * y * z
        linear = torch.arange(self._threads, dtype=torch.int32)
        return linear % x, linear // x % y, linear // (x * y)

    def grid(self, dimension: Dimension, extent: Tensor) -> Iterator[Tensor]:
        """Yield one block after another."""
        for k in range(self._number(extent)):
            self._block[dimension] = k
            if self._ordering:
                self._ordering.barrier()
            yield torch.tensor(k, dtype=torch.int32)
        self._block.pop(dimension, None)

    @contextmanager
    def axis(self, name: str, lower: Tensor, extent: Tensor) -> Iterator[Tensor]:
        """Open one more dimension, and yield the index along it."""
        steps = torch.arange(self._number(extent), dtype=torch.int32).reshape((*[1] * self._depth, -1))
        self._depth += 1
        try:
            yield self.binary("add", lower, steps, "int32")
        finally:
            self._depth -= 1

    def serial(self, loop: str, lower: Tensor, extent: Tensor, body: Callable[[Tensor], None]) -> None:
        """Run a loop as one of Python. Lanes with fewer iterations are inactive in the later ones."""
        lower, extent = _once(lower), _once(extent)
        active, extents = _broadcast(self._mask, extent)
        most = max(extents[active].tolist(), default=0)
        if self._longest is not None and most > self._longest:
            raise self._fault(f"a loop of {most} iterations")
        for k in range(most):
            if extent.numel() == 1:
                body(lower + k)
                continue
            with self.guard(extent > k):
                body(lower + k)

    def rounds(
        self,
        loop: str,
        span: tuple[Tensor, Tensor],
        changed: Sequence[Memory[Tensor]],
        body: Callable[[Tensor], None],
    ) -> None:
        """Run rounds of roles one after another."""
        self.serial(loop, *span, body)

    def turn(self) -> None:
        """Do nothing, since roles run in turn."""

    def barrier(self) -> None:
        """Check that all threads come, and forget which accesses came before. Lock step needs no more."""
        if not self._mask.all():
            raise self._fault("a barrier that some threads do not reach")
        if self._ordering:
            self._ordering.barrier()

    def decided(self, condition: Tensor) -> bool | None:
        """Return whether a condition holds in all active lanes or in none; None if in some."""
        mask, condition = _broadcast(self._mask, condition)
        if not (mask & condition).any():
            return False
        return True if (condition | ~mask).all() else None

    def uniform(self, condition: Tensor) -> bool:
        """Return whether the condition does not vary along the threads."""
        return condition.ndim == 0 or bool((condition == condition[:1]).all())

    @contextmanager
    def guard(self, condition: Tensor) -> Iterator[None]:
        """Make lanes inactive where the condition fails."""
        before = self._mask
        mask, condition = align(before, condition)
        self._mask = mask & condition
        try:
            yield
        finally:
            self._mask = before

    def independent(self, store: Sequence[Tensor], access: Sequence[Tensor]) -> bool:
        """Return whether an access has the index of a store in each dimension where the store varies with the axes."""
        for a, b in zip(store, access, strict=True):
            if a is not b and a.ndim > 1 and a.shape[1:].numel() > 1:
                a, b, mask = _broadcast(a, b, self._mask)
                if ((a != b) & mask).any():
                    return False
        return True

    # Memory

    def allocate(self, memory: Memory[Tensor]) -> None:
        """Make a fresh buffer."""
        shape = [self._number(n) for n in memory.shape]
        self._storage[memory] = _Storage(shape, memory.dtype, self._threads if memory.scope == "local" else 1)

    def attach(self, memory: Memory[Tensor], tensor: Tensor, *, initialised: bool) -> None:
        """Give a parameter of the kernel its tensor."""
        storage = _Storage(tensor.shape, memory.dtype, 1)
        storage.data = tensor.to(held(memory.dtype)).reshape(-1).clone()
        storage.written[:] = initialised
        self._storage[memory] = storage

    def detach(self, memory: Memory[Tensor], tensor: Tensor, *, output: bool) -> None:
        """Copy a parameter back. Raise a fault if an element of an output has not been written."""
        storage = self._storage[memory]
        tensor.copy_(storage.data.reshape(tensor.shape))
        if output and not storage.written.all():
            missing = int((~storage.written).sum())
            first = torch.unravel_index((~storage.written).nonzero()[0], tensor.shape)
            index = ", ".join(str(int(i)) for i in first)
            raise Fault(f"{memory.name}[{index}] is never written, nor are {missing - 1} other elements of it")

    def load(self, memory: Memory[Tensor], index: Sequence[Tensor]) -> Tensor:
        """Return elements. Raise a fault if an active lane is out of bounds or finds no value."""
        storage, flat, mask = self._address(memory, index)
        if not storage.size:
            return torch.zeros(flat.shape, dtype=storage.data.dtype)
        if not storage.whole() and (bad := mask & ~storage.written[flat]).any():
            raise self._element_fault("read of uninitialised", memory, index, bad)
        self._order("read", memory, index, flat, mask)
        return storage.data[flat]

    def store(self, memory: Memory[Tensor], index: Sequence[Tensor], value: Tensor) -> None:
        """Write in the active lanes."""
        storage, flat, mask = self._address(memory, index)
        flat, value, mask = _broadcast(flat, value.to(storage.data.dtype), mask)
        place, new = (flat.flatten(), value.reshape(flat.numel())) if mask.all() else (flat[mask], value[mask])
        storage.data[place] = new
        storage.written[place] = True
        stored = storage.data[place]
        clash = (stored != new) & ~(stored.isnan() & new.isnan()) if new.is_floating_point() else stored != new
        if clash.any():
            bad = mask.clone()
            bad[mask] = clash
            raise self._element_fault("different values written at once to", memory, index, bad)
        self._order("write", memory, index, flat, mask)

    def atomic_add(self, memory: Memory[Tensor], index: Sequence[Tensor], value: Tensor) -> None:
        """Add in the active lanes, once for each."""
        storage, flat, mask = self._address(memory, index)
        threads = torch.zeros(self._threads, dtype=torch.bool)
        flat, value, mask, _ = _broadcast(flat, value.to(storage.data.dtype), mask, threads)
        if (bad := mask & ~storage.written[flat]).any():
            raise self._element_fault("addition to uninitialised", memory, index, bad)
        storage.data.index_add_(0, flat[mask], value[mask])
        self._order("add", memory, index, flat, mask)

    def _order(self, kind: Access, memory: Memory[Tensor], index: Sequence[Tensor], flat: Tensor, mask: Tensor) -> None:
        """Record which thread accesses which elements, and raise a fault for a race. Local memory is a thread's own."""
        if self._ordering is None or memory.scope == "local":
            return
        if self._depth > 1:
            raise Unsupported(f"races of parallel loops: {describe(self.site)}")
        flat, mask, thread = _broadcast(flat, mask, torch.arange(self._threads))
        clash = self._ordering.access(kind, memory, self._storage[memory].size, flat[mask], thread[mask])
        if clash.any():
            bad = mask.clone()
            bad[mask] = clash
            raise self._element_fault(f"a race: {kind} of", memory, index, bad)

    def _address(self, memory: Memory[Tensor], index: Sequence[Tensor]) -> tuple[_Storage, Tensor, Tensor]:
        """Return the storage, the flat position of each lane's element, 0 in inactive lanes, and the active lanes."""
        storage = self._storage[memory]
        thread = torch.arange(storage.threads)
        *places, mask = align(*index, self._mask)
        flat = thread if storage.threads > 1 else torch.tensor(0)
        for place, extent in zip(places, storage.shape, strict=True):
            outside = (place < 0) | (place >= extent)
            if outside.any():
                if (bad := mask & outside).any():
                    raise self._element_fault("access out of bounds of", memory, index, bad)
                place = place.clamp(0, max(extent - 1, 0))
            flat, place = align(flat, place)
            flat = flat * extent + place.to(torch.int64)
        flat, mask = _broadcast(flat, mask)
        return storage, flat, mask

    def _number(self, value: Tensor) -> int:
        if value.numel() != 1 and not bool((value == value.reshape(-1)[0]).all()):
            raise Unsupported(f"an extent that differs between threads: {describe(self.site)}")
        return int(value.reshape(-1)[0])

    def _fault(self, what: str) -> Fault:
        block = ", ".join(f"blockIdx.{d} = {k}" for d, k in self._block.items())
        where = describe(self.site) if self.site is not None else "the launch"
        return Fault(f"{what}, in: {where} ({block})")

    def _element_fault(self, what: str, memory: Memory[Tensor], index: Sequence[Tensor], bad: Tensor) -> Fault:
        """Return a fault that names the first lane in which something is wrong."""
        *places, bad = _broadcast(*index, bad)
        lane = tuple(bad.nonzero()[0])
        element = ", ".join(str(int(p[lane])) for p in places)
        shape = ", ".join(str(n) for n in self._storage[memory].shape)
        thread = f" by thread {int(lane[0])}" if bad.ndim and bad.shape[0] > 1 else ""
        return self._fault(f"{what} {memory.name}[{element}] of shape [{shape}]{thread}")


def sizes_of(kernel: Any, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the symbolic dimensions of a kernel by name, as the shapes of its inputs have them."""
    shapes = {str(b.name): b.shape for b in kernel.buffer_map.values()}
    pairs = (pair for name, value in inputs.items() for pair in zip(shapes[name], value.shape, strict=True))
    return {str(dim.name): torch.tensor(extent) for dim, extent in pairs if isinstance(dim, tirx.Var)}


@lru_cache(maxsize=1024, typed=True)
def _constant(value: float, sign: float, dtype: str) -> Tensor:
    """Return a constant, which nothing is written to; the sign tells -0 from 0."""
    return cast(torch.tensor(value), dtype)


def _once(a: Tensor) -> Tensor:
    """Return a number once if all lanes have the same, so that what is computed with it needs no dimension of threads."""
    first = a.flatten()[:1].reshape(()) if a.numel() else a
    return first if bool((a == first).all()) else a


def align(*values: Tensor) -> tuple[Tensor, ...]:
    """Return the values with dimensions of size 1 appended, so that the first ones correspond."""
    rank = max(v.ndim for v in values)
    return tuple(_pad(v, rank) for v in values)


def _broadcast(*values: Tensor) -> tuple[Tensor, ...]:
    """Return all values in their common shape."""
    return tuple(torch.broadcast_tensors(*align(*values)))  # type: ignore[no-untyped-call]


def _pad(value: Tensor, rank: int) -> Tensor:
    return value if value.ndim == rank else value.reshape((*value.shape, *[1] * (rank - value.ndim)))
