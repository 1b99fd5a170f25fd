"""What a reading of a kernel must provide: values, index variables, control, memory.

``semantics`` says what each statement means in these terms, once. ``interpret`` reads it with numbers, ``symbolic`` with
normal forms. It is not trusted: it declares names and types for the type checker, and holds no code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

V = TypeVar("V")

Scope = Literal["global", "shared", "fragment", "local"]
"""Who sees a buffer: the grid, a block, a block by tile operations (spread over its threads), one thread."""

Unary = Literal[
    "exp",
    "exp2",
    "log",
    "log2",
    "sqrt",
    "rsqrt",
    "rcp",
    "abs",
    "floor",
    "ceil",
    "tanh",
    "sigmoid",
    "sin",
    "cos",
    "erf",
    "not",
    "popcount",
    "clz",
    "ballot",
]
"""``ballot`` is of a truth value: a bit for each lane of the warp."""
Binary = Literal[
    "add",
    "sub",
    "mul",
    "div",
    "floordiv",
    "floormod",
    "truncdiv",
    "truncmod",
    "max",
    "maxnan",
    "min",
    "pow",
    "and",
    "or",
    "bitand",
    "bitor",
    "bitxor",
    "shl",
    "shr",
    "shfl",
    "shfl_up",
    "shfl_down",
    "shfl_xor",
]
"""``max`` and ``min`` of floats drop a NaN, as CUDA's do; ``maxnan`` keeps it. The ``shfl`` are the first operand in another
lane of the warp, which the second one names."""
Dimension = Literal["x", "y", "z"]
Comparison = Literal["lt", "le", "gt", "ge", "eq", "ne"]
Reduction = Literal["sum", "max", "min"]


@dataclass(frozen=True, eq=False)
class Memory(Generic[V]):
    """One buffer: a parameter of the kernel, or one allocation."""

    name: str
    shape: tuple[V, ...]
    dtype: str
    scope: Scope


class Algebra(Protocol[V]):
    """A reading. ``V`` is its type of values: integers, truth values and floats alike.

    Attributes:
        site: the node of the IR that runs now, for messages.
    """

    site: object

    def literal(self, value: float, dtype: str) -> V:
        """Return a constant."""
        ...

    def infinity(self, dtype: str) -> V:
        """Return positive infinity."""
        ...

    def unary(self, operator: Unary, a: V, dtype: str) -> V:
        """Apply a function to one value of that type."""
        ...

    def binary(self, operator: Binary, a: V, b: V, dtype: str) -> V:
        """Apply an operation to two values of that type."""
        ...

    def compare(self, operator: Comparison, a: V, b: V, dtype: str) -> V:
        """Return a truth value about two values of that type."""
        ...

    def cast(self, a: V, source: str, target: str) -> V:
        """Convert a value from one type to another."""
        ...

    def bits(self, a: V, source: str, target: str) -> V:
        """Read the bits of a value as another type of the same width."""
        ...

    def select(self, condition: V, then: V, otherwise: V, dtype: str) -> V:
        """Return one of two values."""
        ...

    def launch(self, threads: tuple[int, int, int]) -> tuple[V, V, V]:
        """Return the three thread indices of a block with that many threads."""
        ...

    def grid(self, dimension: Dimension, extent: V) -> Iterator[V]:
        """Yield the block indices of one grid dimension; the body runs once for each."""
        ...

    def axis(self, name: str, lower: V, extent: V) -> AbstractContextManager[V]:
        """Yield all values of a parallel index at once."""
        ...

    def reduce(self, kind: Reduction, extent: V, body: Callable[[V], V], dtype: str) -> V:
        """Return the sum, maximum or minimum of the body over an index from 0 to the extent, excluded."""
        ...

    def serial(self, loop: str, lower: V, extent: V, body: Callable[[V], None]) -> None:
        """Run the body for each value of a sequential index."""
        ...

    def rounds(self, loop: str, span: tuple[V, V], changed: Sequence[Memory[V]], body: Callable[[V], None]) -> None:
        """Run rounds of roles, for each value of an index from the first of two on, as many as the second says.

        ``changed`` is the memory that they write.
        """
        ...

    def decided(self, condition: V) -> bool | None:
        """Return True or False if the condition is so wherever control is now, else None."""
        ...

    def uniform(self, condition: V) -> bool:
        """Return whether a condition is the same for all threads of a block."""
        ...

    def guard(self, condition: V) -> AbstractContextManager[None]:
        """Let what happens inside happen only where the condition holds."""
        ...

    def independent(self, store: Sequence[V], access: Sequence[V]) -> bool:
        """Return whether no two iterations of the open axes touch one element, one by ``store``, the other by ``access``."""
        ...

    def allocate(self, memory: Memory[V]) -> None:
        """Make a fresh, uninitialised buffer."""
        ...

    def load(self, memory: Memory[V], index: Sequence[V]) -> V:
        """Read elements."""
        ...

    def store(self, memory: Memory[V], index: Sequence[V], value: V) -> None:
        """Write elements."""
        ...

    def barrier(self) -> None:
        """Let all threads of the block wait for one another."""
        ...

    def turn(self) -> None:
        """Take note that the turn of a role ends, and another one goes on (``turns``)."""
        ...
