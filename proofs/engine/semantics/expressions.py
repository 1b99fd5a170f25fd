"""What expressions and tile operations of a TileLang kernel mean over an abstract algebra, and what they do to memory.

A buffer of another shape over the same data is re-indexed in row-major order. C functions that a kernel brings along are
known by their text. A tile operation is a formula over the elements of the regions that it is given: T.copy skips what lies
outside its source (it reads 0) or its destination, as TileLang defines it; every other access must be in bounds by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Generic, TypeAlias, cast, get_args

from tvm import tirx

from ..base.dtypes import is_integer, lanes
from ..base.errors import Unsupported
from ..compiler.source_text import describe
from .algebra import Algebra, Binary, Comparison, Memory, Reduction, Unary, V

_BINARY: Mapping[str, Binary] = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "FloorDiv": "floordiv", "FloorMod": "floormod",
    "Mod": "truncmod", "Max": "max", "Min": "min", "And": "and", "Or": "or",
}  # fmt: skip
_COMPARISON: Mapping[str, Comparison] = {"LT": "lt", "LE": "le", "GT": "gt", "GE": "ge", "EQ": "eq", "NE": "ne"}
_SAME_NAME: tuple[Unary, ...] = (
    "exp", "exp2", "log", "log2", "sqrt", "rsqrt", "floor", "ceil", "tanh", "sigmoid", "sin", "cos", "erf", "popcount", "clz",
)  # fmt: skip
_OTHER_NAME: Mapping[str, Unary] = {"tl.fast_rcp": "rcp", "tirx.fabs": "abs", "tl.ballot": "ballot"}
_UNARY = {**{f"tirx.{name}": name for name in _SAME_NAME}, **_OTHER_NAME}
Function = Unary | Binary
Region: TypeAlias = tuple[Any, list[V], list[V]]  # a buffer, the first element and the extents of a part of it
# max.NaN of PTX: the larger of two floats, NaN if one of them is
_MAX_NAN = r"""__device__ __forceinline__ float (\w+)\(float a, float b\) \{
  float c; asm\("max\.NaN\.f32 %0, %1, %2;" : "=f"\(c\) : "f"\(a\), "f"\(b\)\); return c;
\}
"""
# ex2 of PTX: 2^x, 0 where that is below 2^-126
_EXP2 = r"""__device__ __forceinline__ float (\w+)\(float x\) \{
  float y; asm\("ex2\.approx\.ftz\.f32 %0, %1;" : "=f"\(y\) : "f"\(x\)\); return y;
\}
"""
_EXTERNS: dict[str, Function] = {_MAX_NAN: "maxnan", _EXP2: "exp2"}


def externs(source: str) -> dict[str, Function]:
    """Return the functions that a kernel's C text defines, by name; Unsupported if it holds anything else."""
    found: dict[str, Function] = {}
    for pattern, operator in _EXTERNS.items():
        found |= {match[1]: operator for match in re.finditer(pattern, source)}
        source = re.sub(pattern, "", source)
    if source.strip():
        raise Unsupported(f"C text of the kernel's own: {source.strip().splitlines()[0]}")
    return found


class Expressions(Generic[V]):
    """Evaluates expressions in an algebra, the reading, given variables and memories."""

    def __init__(self, algebra: Algebra[V]) -> None:
        self.algebra = algebra
        self.externs: dict[str, Function] = {}  # C functions of the kernel's own
        self.variables: dict[Any, V] = {}
        self.memories: dict[Any, Memory[V]] = {}  # by the variable that holds the data
        self.declared: dict[Any, Any] = {}  # the buffers themselves, by that variable
        self._written: set[Any] | None = None  # in a parallel loop: the buffers that it writes
        self._accesses: list[tuple[Any, list[V], bool]] = []
        self._threads: tuple[V, V, V] | None = None

    def evaluate(self, e: Any) -> V:
        """Return the value of an expression."""
        kind, dtype = type(e).__name__, str(e.dtype)
        if lanes(dtype) > 1:
            raise Unsupported(f"vector type {dtype}")
        match kind:
            case "IntImm" | "FloatImm":
                return self.algebra.literal(e.value, dtype)
            case "Var":
                if e not in self.variables:
                    raise Unsupported(f"variable {e.name} without a value")
                return self.variables[e]
            case "BufferLoad":
                return self._load(e.buffer, [self.evaluate(i) for i in e.indices])
            case "Cast":
                return self._cast(self.evaluate(e.value), str(e.value.dtype), dtype)
            case "Not":
                return self._not(self.evaluate(e.a))
            case "Select":
                condition, then, otherwise = map(self.evaluate, (e.condition, e.true_value, e.false_value))
                return self.algebra.select(condition, then, otherwise, dtype)
            case "Call":
                return self._function(e, dtype)
        if kind in _BINARY:
            operator: Binary = "truncdiv" if kind == "Div" and is_integer(dtype) else _BINARY[kind]
            a = self.evaluate(e.a)
            square = kind == "Mul" and tirx.analysis.expr_deep_equal(e.a, e.b)  # of one value, evaluated once
            return self.algebra.binary(operator, a, a if square else self.evaluate(e.b), dtype)
        if kind in _COMPARISON:
            return self.algebra.compare(_COMPARISON[kind], self.evaluate(e.a), self.evaluate(e.b), str(e.a.dtype))
        raise Unsupported(f"expression {kind}: {describe(e)}")

    def _function(self, e: Any, dtype: str) -> V:
        name = str(e.op.name)
        if name == "tirx.if_then_else":
            return self._lazy(e, dtype)
        if name == "tl.infinity":
            return self.algebra.infinity(dtype)
        if name == "tl.launch_thread_idx" and self._threads:
            return self._threads[int(e.args[0])]
        if name == "tirx.reinterpret":
            return self.algebra.bits(self.evaluate(e.args[0]), str(e.args[0].dtype), dtype)
        if name == "tirx.pow":
            return self.algebra.binary("pow", self.evaluate(e.args[0]), self.evaluate(e.args[1]), dtype)
        if name == "tirx.call_extern":
            return self._extern(e, dtype)
        if name in _UNARY:
            return self.algebra.unary(_UNARY[name], self.evaluate(e.args[0]), dtype)
        raise Unsupported(f"function {name}")

    def _extern(self, e: Any, dtype: str) -> V:
        """Apply a C function of one or two floats that the kernel brings along."""
        name, *arguments = e.args
        function = self.externs.get(name.value)
        expected = 1 if function in get_args(Unary) else 2
        if function is None or [dtype, *(str(a.dtype) for a in arguments)] != ["float32"] * (expected + 1):
            raise Unsupported(f"C function {name.value}")
        apply: Callable[..., V] = self.algebra.unary if expected == 1 else self.algebra.binary
        return apply(function, *map(self.evaluate, arguments), dtype)

    def _lazy(self, e: Any, dtype: str) -> V:
        """Evaluate one branch of if_then_else only, where Select evaluates both."""
        condition = self.evaluate(e.args[0])
        known = self.algebra.decided(condition)
        if known is not None:
            return self.evaluate(e.args[1 if known else 2])
        values = []
        for guard, arm in ((condition, e.args[1]), (self._not(condition), e.args[2])):
            with self.algebra.guard(guard):
                values.append(self.evaluate(arm))
        return self.algebra.select(condition, values[0], values[1], dtype)

    def _cast(self, a: V, source: str, target: str) -> V:
        return a if source == target else self.algebra.cast(a, source, target)

    def _add(self, a: V, b: V) -> V:
        return self.algebra.binary("add", a, b, "int32")

    def _sub(self, a: V, b: V) -> V:
        return self.algebra.binary("sub", a, b, "int32")

    def _not(self, condition: V) -> V:
        return self.algebra.unary("not", condition, "bool")

    def _is(self, a: V, b: V) -> bool:
        return self.algebra.decided(self.algebra.compare("eq", a, b, "int32")) is True

    def _place(self, buffer: Any, index: list[V]) -> tuple[Memory[V], list[V]]:
        """Return the memory behind a buffer, and the index in it; a view of another shape is re-indexed in row-major order."""
        if buffer.data not in self.memories:
            raise Unsupported(f"buffer {buffer.name} is not allocated")
        memory = self.memories[buffer.data]
        if buffer.same_as(self.declared[buffer.data]):
            return memory, index
        shape = tuple(self.evaluate(dim) for dim in buffer.shape)
        if str(buffer.dtype) != memory.dtype:
            raise Unsupported(f"a view of {memory.name} with another type")
        if len(shape) == len(memory.shape) and all(map(self._is, shape, memory.shape)):
            return memory, index
        flat = self.algebra.literal(0, "int32")
        for i, extent in zip(index, shape, strict=True):
            flat = self._add(self.algebra.binary("mul", flat, extent, "int32"), i)
        place: list[V] = []
        for extent in reversed(memory.shape[1:]):
            place.insert(0, self.algebra.binary("floormod", flat, extent, "int32"))
            flat = self.algebra.binary("floordiv", flat, extent, "int32")
        return memory, [flat, *place]

    def _load(self, buffer: Any, index: list[V]) -> V:
        memory, place = self._place(buffer, index)
        if self._written is not None and buffer.data in self._written:
            self._accesses.append((buffer.data, place, False))
        return self.algebra.load(memory, place)

    def _store(self, buffer: Any, index: list[V], value: V) -> None:
        memory, place = self._place(buffer, index)
        if self._written is not None:
            self._accesses.append((buffer.data, place, True))
        self.algebra.store(memory, place, value)


class TileOperations(Expressions[V]):
    """Runs T.fill, T.copy, the reductions and T.gemm."""

    def _fill(self, call: Any) -> None:
        """Compute D[i...] = value."""
        data, lower, extents = self._region(call.args[0])
        value = self._cast(self.evaluate(call.args[1]), str(call.args[1].dtype), str(data.dtype))
        with ExitStack() as stack:
            index = self._axes(stack, lower, extents)
            self._store(data, index, value)

    def _copy(self, call: Any) -> None:
        """Compute D[i...] = S[i...] where i is inside D. S reads as 0 outside its shape. Extents of 1 are dropped."""
        source, source_lower, source_extents = self._region(call.args[0])
        target, target_lower, target_extents = self._region(call.args[1])
        one = self.algebra.literal(1, "int32")
        wide, narrow = ([d for d, e in enumerate(x) if not self._is(e, one)] for x in (target_extents, source_extents))
        pairs = zip(wide, narrow, strict=False)
        if len(wide) != len(narrow) or not all(self._is(target_extents[a], source_extents[b]) for a, b in pairs):
            raise Unsupported(f"a copy between regions of different extents: {describe(call)}")
        with ExitStack() as stack:
            index = self._axes(stack, target_lower, target_extents)
            place = list(source_lower)
            for a, b in zip(wide, narrow, strict=True):
                place[b] = self._add(source_lower[b], self._sub(index[a], target_lower[a]))
            inside = self._inside(source, place)
            zero = self.algebra.literal(0, str(source.dtype))
            with self.algebra.guard(inside):
                value = self._load(source, place)
            value = self.algebra.select(inside, value, zero, str(source.dtype))
            with self.algebra.guard(self._inside(target, index)):
                self._store(target, index, self._cast(value, str(source.dtype), str(target.dtype)))

    def _reduce(self, call: Any) -> None:
        """Compute D[i...] = op over k of S[i..., k, ...].

        Unless it is cleared, the old value of D takes part. Operations named "abs..." take absolute values first.
        """
        (source, lower, extents), target = self._region(call.args[0]), self._region(call.args[1])
        name, dim, clear = str(call.args[2].value), int(call.args[3]), bool(int(call.args[4]))
        absolute, kind = name.startswith("abs"), cast(Reduction, name.removeprefix("abs"))
        if kind not in ("sum", "max", "min"):
            raise Unsupported(f"reduction {name}")
        dtype, kept = str(target[0].dtype), len(target[2]) == len(extents)

        def element(offsets: list[V], k: V) -> V:
            place = [*offsets[:dim], k, *offsets[dim + kept :]]  # a full reduction has a target of one element
            place = [self._add(first, i) for first, i in zip(lower, place[: len(lower)], strict=True)]
            value = self._cast(self._load(source, place), str(source.dtype), dtype)
            return self.algebra.unary("abs", value, dtype) if absolute else value

        self._combine(kind, target, clear, extents[dim], element)

    def _gemm(self, call: Any) -> None:
        """Compute C[i, j] += Σ_k A[i, k] B[k, j] in the type of C.

        A and B may be transposed, and C may be cleared first.
        """
        a, b, c = (self._region(region) for region in call.args[:3])
        transpose_a, transpose_b, clear = (bool(int(call.args[i])) for i in (3, 4, 9))
        dtype = str(c[0].dtype)

        def element(region: Region[V], row: V, column: V, transposed: bool) -> V:
            buffer, lower, _ = region
            first, second = (column, row) if transposed else (row, column)
            place = [*lower[:-2], self._add(lower[-2], first), self._add(lower[-1], second)]
            return self._cast(self._load(buffer, place), str(buffer.dtype), dtype)

        def product(offsets: list[V], k: V) -> V:
            left, right = element(a, offsets[-2], k, transpose_a), element(b, k, offsets[-1], transpose_b)
            return self.algebra.binary("mul", left, right, dtype)

        self._combine("sum", c, clear, a[2][-2 if transpose_a else -1], product)

    def _combine(
        self, kind: Reduction, target: Region[V], clear: bool, extent: V, element: Callable[[list[V], V], V]
    ) -> None:
        """Compute D[i...] = op over k of element(i..., k), and of the old D[i...] unless it is cleared."""
        data, lower, extents = target
        dtype = str(data.dtype)
        with ExitStack() as stack:
            index = self._axes(stack, lower, extents)
            offsets = [self._sub(i, first) for i, first in zip(index, lower, strict=True)]
            value = self.algebra.reduce(kind, extent, partial(element, offsets), dtype)
            if not clear:
                value = self.algebra.binary("add" if kind == "sum" else kind, self._load(data, index), value, dtype)
            self._store(data, index, value)

    def _region(self, region: Any) -> Region[V]:
        """Return the buffer, the first element and the extents of a ``tl.region``."""
        load, _, *extents = region.args
        lower = [self.evaluate(i) for i in load.indices]
        sizes = [self.evaluate(e) for e in extents]
        missing = len(lower) - len(sizes)
        return load.buffer, lower, [self.algebra.literal(1, "int32")] * missing + sizes

    def _axes(self, stack: ExitStack, lower: Sequence[V], extents: Sequence[V]) -> list[V]:
        """Return an index for each dimension of a region; one wider than 1 has a variable."""
        zero, one = self.algebra.literal(0, "int32"), self.algebra.literal(1, "int32")
        index = []
        for first, extent in zip(lower, extents, strict=True):
            if self._is(extent, one):
                index.append(first)
            else:
                index.append(self._add(first, stack.enter_context(self.algebra.axis("e", zero, extent))))
        return index

    def _inside(self, buffer: Any, index: Sequence[V]) -> V:
        """Return whether an index lies within a buffer's shape."""
        inside = self.algebra.literal(True, "bool")
        for i, dim in zip(index, buffer.shape, strict=True):
            low = self.algebra.compare("ge", i, self.algebra.literal(0, "int32"), "int32")
            high = self.algebra.compare("lt", i, self.evaluate(dim), "int32")
            inside = self.algebra.binary("and", inside, self.algebra.binary("and", low, high, "bool"), "bool")
        return inside
