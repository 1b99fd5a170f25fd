"""The interpreter: the semantics read with numbers, on the CPU.

Values are torch tensors in the kernel's own types. Their first dimension is the threads of a block, the others are the
open parallel indices; a dimension along which a value does not vary has size 1 or is absent. Blocks run one after
another. Threads run in lock step, so races are not found, but two lanes that store different values to one element are.
Sums are in torch's order, and gemm multiplies in the type of its accumulator: floats agree with a GPU up to rounding.
Types of 8 bits are held in float32 and rounded at each cast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .algebra import Binary, Comparison, Dimension, Memory, Reduction, Unary
from .errors import Unsupported
from .expressions import describe
from .semantics import Machine

_TYPES = {
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_NARROW = {
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
_UNARY: dict[Unary, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "rcp": torch.reciprocal,
    "abs": torch.abs,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "not": torch.logical_not,
}
_BINARY: dict[Binary, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "floormod": torch.remainder,
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "truncmod": torch.fmod,
    "max": torch.fmax,  # CUDA's fmaxf and fminf drop a NaN
    "min": torch.fmin,
    "maxnan": torch.maximum,
    "pow": torch.pow,
    "and": torch.logical_and,
    "or": torch.logical_or,
}
_COMPARISON: dict[Comparison, Callable[[Tensor, Tensor], Tensor]] = {
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
}


class Fault(Exception):
    """The kernel did on these inputs what no kernel may do; the message quotes the statement, the buffer and the index."""


def interpret(prim_func: Any, *tensors: Tensor, outputs: Sequence[str] | None = None) -> None:
    """Run a kernel on CPU tensors, one for each parameter, and fill its outputs in place.

    Args:
        prim_func: the kernel, as its factory returns it or after the launch has been materialised.
        tensors: contiguous tensors of the kernel's types; symbolic dimensions are taken from their shapes.
        outputs: parameters to be filled completely; by default those that the kernel writes and does not read. They
            count as uninitialised at the start.

    Raises:
        Fault: an access out of bounds, a read of uninitialised memory, an output element left unwritten, an integer
            division by 0, two lanes that write different values to one element.
        Unsupported: the kernel is outside of what is modelled.
        TypeError: a tensor has the wrong type.
        ValueError: a tensor has the wrong shape.
    """
    buffers = list(prim_func.buffer_map.values())
    sizes = _bind(buffers, tensors)
    lanes = Lanes()
    machine: Machine[Tensor] = Machine(lanes, prim_func, {n: torch.tensor(v) for n, v in sizes.items()})
    memories = machine.parameters()
    written = _outputs(prim_func) if outputs is None else set(outputs)
    for name, tensor in zip((str(b.name) for b in buffers), tensors, strict=True):
        lanes.attach(memories[name], tensor, initialised=name not in written)
    machine.run()
    for name, tensor in zip((str(b.name) for b in buffers), tensors, strict=True):
        lanes.detach(memories[name], tensor, output=name in written)


def _bind(buffers: Sequence[Any], tensors: Sequence[Tensor]) -> dict[str, int]:
    """The sizes of the symbolic dimensions; checks types and shapes."""
    sizes: dict[str, int] = {}
    if len(buffers) != len(tensors):
        raise ValueError(f"expected {len(buffers)} tensors, got {len(tensors)}")
    for buffer, tensor in zip(buffers, tensors, strict=True):
        dtype = _NARROW.get(str(buffer.dtype)) or _torch_type(str(buffer.dtype))
        if tensor.dtype != dtype:
            raise TypeError(f"{buffer.name}: expected {dtype}, got {tensor.dtype}")
        if tensor.ndim != len(buffer.shape) or not tensor.is_contiguous():
            raise ValueError(f"{buffer.name}: expected a contiguous tensor of {len(buffer.shape)} dimensions")
        for dim, extent in zip(buffer.shape, tensor.shape, strict=True):
            wanted = sizes.setdefault(str(dim.name), extent) if hasattr(dim, "name") else int(dim)
            if wanted != extent:
                raise ValueError(f"{buffer.name}: expected {wanted} along {dim}, got {extent}")
    return sizes


def _outputs(prim_func: Any) -> set[str]:
    """The parameters that the kernel writes and does not read."""
    from tvm import tirx

    stored: set[str] = set()
    loaded: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferStore):
            stored.add(str(node.buffer.name))
        elif isinstance(node, tirx.Call) and str(node.op.name) == "tl.region":
            access = int(node.args[1])  # 1 reads, 2 writes, 3 does both
            name = str(node.args[0].buffer.name)
            regions.append(node.args[0])
            if access & 1:
                loaded.add(name)
            if access & 2:
                stored.add(name)
        elif isinstance(node, tirx.BufferLoad) and not any(node.same_as(r) for r in regions):
            loads.append(node)

    regions: list[Any] = []
    loads: list[Any] = []
    tirx.stmt_functor.post_order_visit(prim_func.body, visit)
    loaded |= {str(n.buffer.name) for n in loads if not any(n.same_as(r) for r in regions)}
    parameters = {str(b.name) for b in prim_func.buffer_map.values()}
    return (stored - loaded) & parameters


def _torch_type(dtype: str) -> torch.dtype:
    if dtype in _NARROW:
        return torch.float32
    if dtype not in _TYPES:
        raise Unsupported(f"type {dtype}")
    return _TYPES[dtype]


class _Storage:
    """The elements of a buffer, flat, and which of them hold a value. A local buffer has them once per thread."""

    def __init__(self, shape: Sequence[int], dtype: str, threads: int) -> None:
        self.shape = list(shape)
        self.size = int(torch.Size(self.shape).numel())
        self.threads = threads
        self.data = torch.zeros(self.size * threads, dtype=_torch_type(dtype))
        self.written = torch.zeros(self.size * threads, dtype=torch.bool)


class Lanes:
    """The algebra of tensors over threads and parallel indices."""

    site: object

    def __init__(self) -> None:
        self.site = None
        self._storage: dict[Memory[Tensor], _Storage] = {}
        self._depth = 1  # dimensions in use: the threads, and one per open axis
        self._mask: Tensor = torch.tensor(True)
        self._threads = 1
        self._block: dict[str, int] = {}

    # Values

    def literal(self, value: float, dtype: str) -> Tensor:
        """A constant in its type."""
        return self.cast(torch.tensor(value), "", dtype)

    def infinity(self, dtype: str) -> Tensor:
        """Positive infinity."""
        return self.literal(float("inf"), dtype)

    def unary(self, operator: Unary, a: Tensor, dtype: str) -> Tensor:
        """The torch function of that name."""
        return _UNARY[operator](a)

    def binary(self, operator: Binary, a: Tensor, b: Tensor, dtype: str) -> Tensor:
        """The torch operation, both operands in the type."""
        a, b = _align(a.to(_torch_type(dtype)), b.to(_torch_type(dtype)))
        if operator in ("floordiv", "floormod", "truncdiv", "truncmod"):
            zero = b == 0
            aligned, mask = _align(zero, self._mask)
            if (aligned & mask).any():
                raise self._fault("division by 0")
            b = torch.where(zero, 1, b)
        return self.cast(_BINARY[operator](a, b), "", dtype)

    def compare(self, operator: Comparison, a: Tensor, b: Tensor, dtype: str) -> Tensor:
        """A comparison."""
        a, b = _align(a, b)
        return _COMPARISON[operator](a, b)

    def cast(self, a: Tensor, source: str, target: str) -> Tensor:
        """A conversion, rounding to nearest between floats and towards 0 to integers."""
        if target in _NARROW:
            return a.to(torch.float32).to(_NARROW[target]).to(torch.float32)
        return a.to(_torch_type(target))

    def bits(self, a: Tensor, source: str, target: str) -> Tensor:
        """Tensor.view."""
        if source in _NARROW or target in _NARROW:
            raise Unsupported(f"the bits of {source} as {target}")
        return a.view(_torch_type(target))

    def select(self, condition: Tensor, then: Tensor, otherwise: Tensor, dtype: str) -> Tensor:
        """torch.where."""
        condition, then, otherwise = _align(condition, then, otherwise)
        return torch.where(condition, then, otherwise)

    def reduce(self, kind: Reduction, extent: Tensor, body: Callable[[Tensor], Tensor], dtype: str) -> Tensor:
        """The reduction along one more axis."""
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
        """All threads; x varies fastest."""
        x, y, z = threads
        self._threads = x * y * z
        linear = torch.arange(self._threads, dtype=torch.int32)
        return linear % x, linear // x % y, linear // (x * y)

    def grid(self, dimension: Dimension, extent: Tensor) -> Iterator[Tensor]:
        """One block after another."""
        for k in range(self._number(extent)):
            self._block[dimension] = k
            yield torch.tensor(k, dtype=torch.int32)
        self._block.pop(dimension, None)

    @contextmanager
    def axis(self, name: str, lower: Tensor, extent: Tensor) -> Iterator[Tensor]:
        """One more dimension."""
        steps = torch.arange(self._number(extent), dtype=torch.int32).reshape((*[1] * self._depth, -1))
        self._depth += 1
        try:
            yield self.binary("add", lower, steps, "int32")
        finally:
            self._depth -= 1

    def serial(self, loop: str, lower: Tensor, extent: Tensor, body: Callable[[Tensor], None]) -> None:
        """A Python loop; lanes with fewer iterations are masked in the later ones."""
        for k in range(int(extent.max()) if extent.numel() else 0):
            with self.guard(extent > k):
                if self._mask.any():
                    body(lower + k)

    def decided(self, condition: Tensor) -> bool | None:
        """Whether it holds in all active lanes, or in none."""
        mask, condition = _broadcast(self._mask, condition)
        if not (mask & condition).any():
            return False
        return True if (condition | ~mask).all() else None

    def uniform(self, condition: Tensor) -> bool:
        """Whether the condition does not vary along the threads."""
        return condition.ndim == 0 or bool((condition == condition[:1]).all())

    @contextmanager
    def guard(self, condition: Tensor) -> Iterator[None]:
        """Lanes where the condition fails become inactive."""
        before = self._mask
        mask, condition = _align(before, condition)
        self._mask = mask & condition
        try:
            yield
        finally:
            self._mask = before

    def independent(self, store: Sequence[Tensor], access: Sequence[Tensor]) -> bool:
        """Along every dimension in which the store varies with the axes, the access is at the same index."""
        for a, b in zip(store, access, strict=True):
            if a.ndim > 1 and a.shape[1:].numel() > 1:
                a, b, mask = _broadcast(a, b, self._mask)
                if ((a != b) & mask).any():
                    return False
        return True

    # Memory

    def allocate(self, memory: Memory[Tensor]) -> None:
        """A fresh buffer."""
        shape = [self._number(n) for n in memory.shape]
        self._storage[memory] = _Storage(shape, memory.dtype, self._threads if memory.scope == "local" else 1)

    def attach(self, memory: Memory[Tensor], tensor: Tensor, *, initialised: bool) -> None:
        """A parameter of the kernel."""
        storage = _Storage(tensor.shape, memory.dtype, 1)
        storage.data = tensor.to(_torch_type(memory.dtype)).reshape(-1).clone()
        storage.written[:] = initialised
        self._storage[memory] = storage

    def detach(self, memory: Memory[Tensor], tensor: Tensor, *, output: bool) -> None:
        """Copy a parameter back; every element of an output must have been written."""
        storage = self._storage[memory]
        tensor.copy_(storage.data.reshape(tensor.shape))
        if output and not storage.written.all():
            missing = int((~storage.written).sum())
            first = torch.unravel_index((~storage.written).nonzero()[0], tensor.shape)
            index = ", ".join(str(int(i)) for i in first)
            raise Fault(f"{memory.name}[{index}] is never written, nor are {missing - 1} other elements of it")

    def load(self, memory: Memory[Tensor], index: Sequence[Tensor]) -> Tensor:
        """Read; active lanes must be in bounds and find a value there."""
        storage, flat, mask = self._address(memory, index)
        if not storage.size:
            return torch.zeros(flat.shape, dtype=storage.data.dtype)
        bad = mask & ~storage.written[flat]
        if bad.any():
            raise self._element_fault("read of uninitialised", memory, index, bad)
        return storage.data[flat]

    def store(self, memory: Memory[Tensor], index: Sequence[Tensor], value: Tensor) -> None:
        """Write in the active lanes."""
        storage, flat, mask = self._address(memory, index)
        flat, value, mask = _broadcast(flat, value.to(storage.data.dtype), mask)
        place, new = flat[mask], value[mask]
        storage.data[place] = new
        storage.written[place] = True
        stored = storage.data[place]
        clash = (stored != new) & ~(stored.isnan() & new.isnan()) if new.is_floating_point() else stored != new
        if clash.any():
            bad = mask.clone()
            bad[mask] = clash
            raise self._element_fault("different values written at once to", memory, index, bad)

    def _address(self, memory: Memory[Tensor], index: Sequence[Tensor]) -> tuple[_Storage, Tensor, Tensor]:
        """The flat position of each lane's element, 0 in inactive lanes, and the active lanes."""
        storage = self._storage[memory]
        thread = torch.arange(storage.threads)
        *places, mask = _align(*index, self._mask)
        flat = thread if storage.threads > 1 else torch.tensor(0)
        for place, extent in zip(places, storage.shape, strict=True):
            bad = torch.logical_and(mask, (place < 0) | (place >= extent))
            if bad.any():
                raise self._element_fault("access out of bounds of", memory, index, bad)
            flat, place = _align(flat, place)
            flat = flat * extent + place.clamp(0, max(extent - 1, 0)).to(torch.int64)
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
        """A message about the first lane in which something is wrong."""
        *places, bad = _broadcast(*index, bad)
        lane = tuple(bad.nonzero()[0])
        element = ", ".join(str(int(p[lane])) for p in places)
        shape = ", ".join(str(n) for n in self._storage[memory].shape)
        thread = f" by thread {int(lane[0])}" if bad.ndim and bad.shape[0] > 1 else ""
        return self._fault(f"{what} {memory.name}[{element}] of shape [{shape}]{thread}")


def _align(*values: Tensor) -> tuple[Tensor, ...]:
    """Dimensions of size 1 appended, so that the first ones correspond."""
    rank = max(v.ndim for v in values)
    return tuple(_pad(v, rank) for v in values)


def _broadcast(*values: Tensor) -> tuple[Tensor, ...]:
    """All values in their common shape."""
    return tuple(torch.broadcast_tensors(*_align(*values)))  # type: ignore[no-untyped-call]


def _pad(value: Tensor, rank: int) -> Tensor:
    return value if value.ndim == rank else value.reshape((*value.shape, *[1] * (rank - value.ndim)))
