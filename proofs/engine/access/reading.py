"""What is known while a kernel's expressions are read: its buffers, its integers, and what each thread keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import z3
from tvm import tirx

from ..base.dtypes import bits, fits, is_integer, number
from ..base.errors import Unsupported
from ..compiler.nodes import nodes
from ..compiler.source_text import printed
from ..contract.hypotheses import Hypotheses
from ..smt.constructs import value_of
from .state import Key, LocalState, Place, place
from .trace import Access, Context, Mode, Recorder, Region, Variable

Value: TypeAlias = z3.ExprRef | None
_LOST = "private memory that a loop changes"  # how often is not known


@dataclass(frozen=True)
class Descriptor:
    """An operand in shared memory.

    Args:
        region: the buffer that it is part of.
        start: where it begins, in bytes from the beginning of the allocation.
        width: of a row of an atom in bytes, None where the layout has no atoms.
        strides: between atoms, in bytes: along rows (or columns), and along the sum if that comes first.
        context: where the descriptor was made.
        used: whether a product has read through it.
    """

    region: Region
    start: z3.ArithRef
    width: int | None
    strides: tuple[int, int]
    context: Context
    used: bool = False


class Reading(ABC):
    """A reading of expressions as terms. Everything met on the way is filed with the recorder.

    Args:
        recorder: where accesses and obligations go.
        hypotheses: what is known of the elements of tensors.
        written: names of global buffers that the kernel writes, whose elements therefore change.
        bound: the variables that the kernel binds.
    """

    def __init__(
        self, recorder: Recorder, hypotheses: Hypotheses, written: frozenset[str], bound: frozenset[int]
    ) -> None:
        self.recorder, self.hypotheses, self.written, self._bound = recorder, hypotheses, written, bound
        self.values: dict[int, Value] = {}  # by the identity of the IR's variable
        self.regions: dict[int, tuple[str, int]] = {}  # data pointer -> allocation and byte offset in it
        self.buffers: dict[int, tirx.Buffer] = {}  # data pointer -> a buffer declared on it
        self.locals = LocalState(self._private, self._followed)
        self.counters: Mapping[int, tuple[z3.ArithRef, z3.ArithRef]] = {}  # data pointer -> least and largest value
        self.kept_by_threads: frozenset[int] = frozenset()  # data pointers of private integers that are stored
        self.lane: dict[int, Variable] = {}
        self.descriptors: dict[int, Descriptor] = {}  # data pointer -> the operand of a product
        self.reads: dict[tuple[Key, Place], Value] = {}  # of shared memory, since something may have changed it
        self.common: frozenset[int] = frozenset()  # data pointers of what is the same in all threads of a block
        self.origins: dict[int, str] = {}  # data pointer -> the name of what is read, if that is not modelled
        self._quiet = False

    @abstractmethod
    def value(self, e: tirx.PrimExpr) -> Value:
        """Return the value of an expression; None unless it is an integer or a boolean."""

    def integer(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """Return the value of an expression that must be an integer."""
        value = self.value(e)
        if value is None:
            raise Unsupported(f"no integer: {printed(e)}")
        return number(value)

    def boolean(self, e: tirx.PrimExpr) -> z3.BoolRef:
        """Return the value of a condition."""
        value = self.value(e)
        if value is None:
            raise Unsupported(f"no condition: {printed(e)}")
        return value if z3.is_bool(value) else value != 0

    def constant(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """Return the value of an expression that no machine evaluates, such as a shape: without obligations."""
        self._quiet, before = True, self._quiet
        value = z3.simplify(self.integer(e))
        self._quiet = before
        return value

    def over_sizes(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """Return the value of an expression of sizes and constants alone.

        Raises:
            Unsupported: something else is in it.
        """
        if any(isinstance(node, (tirx.BufferLoad, tirx.Call)) for node in nodes(e)):
            raise Unsupported(f"{printed(e)} is not a matter of sizes")
        return self.constant(e)

    def opaque(self, name: str, dtype: str) -> Value:
        """Return a value of which only the type is known."""
        if not is_integer(dtype):
            return None
        name = self.recorder.unique(name)
        if dtype.startswith("bool"):
            return z3.Bool(name)
        term = z3.Int(name)
        self.recorder.facts.append(fits(term, dtype))
        return term

    def _private(self, key: Key, is_set: bool) -> Value:
        """Return a value read from a thread's own memory."""
        lost = key[0] in self.kept_by_threads and key[0] not in self.counters
        value = self.opaque(self.origins.get(key[0], value_of(_LOST) if lost else "local"), key[1])
        if is_set and key[0] in self.counters and value is not None and not z3.is_bool(value):
            low, high = self.counters[key[0]]
            self.recorder.facts.append(z3.And(value >= low, value <= high))
        return value

    def _followed(self, data: int) -> int | None:
        """Return the number of elements of a buffer whose values lie between bounds, if they are set."""
        if data not in self.counters:
            return None
        size = z3.simplify(z3.Product([z3.IntVal(1), *(self.constant(n) for n in self.buffers[data].shape)]))
        return size.as_long() if z3.is_int_value(size) else -1

    def region(self, buffer: tirx.Buffer) -> Region:
        """Return where a buffer lies."""
        data = buffer.data
        allocation, offset = self.regions.get(hash(data), (data.name, 0))
        shape, width = tuple(self.constant(n) for n in buffer.shape), bits(str(buffer.dtype))
        if width % 8 and not buffer.scope().startswith("local"):  # two elements of one byte are written together
            raise Unsupported(f"{buffer.name}: elements of {width} bits")
        return Region(buffer.name, buffer.scope(), width, shape, allocation, offset)

    def shared(self, buffer: tirx.Buffer, indices: tuple[z3.ArithRef, ...]) -> Value:
        """Return a value read from memory that other threads write: the same as before if nothing lies between.

        That no other thread writes between is what layer L1 shows.
        """
        at = (hash(buffer.data), str(buffer.dtype)), place(indices)
        if at not in self.reads:
            self.reads[at] = self.opaque(self.origins.get(at[0][0], buffer.name), at[0][1])
        return self.reads[at]

    def access(
        self,
        mode: Mode,
        buffer: tirx.Buffer,
        indices: list[tirx.PrimExpr],
        depends: tuple[z3.ExprRef, ...] | None = None,
    ) -> tuple[z3.ArithRef, ...]:
        """File one read or write of a buffer and return its indices."""
        terms = tuple(self.integer(i) for i in indices)
        self.recorder.access(Access(mode, self.region(buffer), terms, self.recorder.context, depends=depends))
        return terms

    def kept(self, buffer: tirx.Buffer) -> bool:
        """Return whether a buffer is a tensor that the kernel only reads."""
        name = buffer.data.name
        return buffer.scope() == "global" and name in self.hypotheses.shapes and name not in self.written

    def between_constants(self, buffers: Iterable[tirx.Buffer]) -> dict[int, tuple[int, int]]:
        """Return the least and the largest element of each tensor that the kernel only reads, where that is a constant."""
        ranges = {
            hash(b.data): self.hypotheses.ranges.get(b.data.name, (None, None)) for b in filter(self.kept, buffers)
        }
        ends = {data: tuple(z3.simplify(e) for e in r if e is not None) for data, r in ranges.items()}
        constant = {data: [e.as_long() for e in r] for data, r in ends.items() if all(map(z3.is_int_value, r))}
        return {data: (r[0], r[1] - 1) for data, r in constant.items() if len(r) == 2}

    def checked(self, e: tirx.PrimExpr, term: z3.ArithRef) -> z3.ArithRef:
        """Return the value of an integer operation, which must fit its type. An unsigned one is taken modulo 2^n."""
        dtype = str(e.dtype)
        if dtype.startswith("uint"):
            return term % 2 ** bits(dtype)
        if not self._quiet:
            self.recorder.require("overflow", f"{printed(e)} does not overflow {e.dtype}", fits(term, str(e.dtype)))
        return term
