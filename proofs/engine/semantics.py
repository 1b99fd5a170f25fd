"""What a TileLang kernel means, statement by statement, over an abstract algebra.

The level is the tile level: the PrimFunc as its factory returns it, or after the launch has been materialised. A block's
threads run in lock step: between two statements every thread has finished the first. That is what a kernel free of races
does; races are the business of another layer. T.copy skips what lies outside its source (it reads 0) or its destination,
as TileLang defines it; every other access must be in bounds by itself. Barriers therefore mean nothing here.

Not modelled, and rejected: atomics, warp intrinsics, asynchronous copies by hand, pointers, scopes other than
global, shared, fragment and local, tile operations under a condition that differs between threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Generic, cast

from tilelang.ir import get_stmt_span, span_to_location
from tvm import tirx

from .algebra import Algebra, Binary, Comparison, Dimension, Memory, Reduction, Scope, Unary, V
from .errors import Unsupported
from .source_text import text

_SCOPES: dict[str, Scope] = {
    "global": "global",
    "shared": "shared",
    "shared.dyn": "shared",
    "local": "local",
    "local.var": "local",
    "local.fragment": "fragment",
}
_BINARY: dict[type, Binary] = {
    tirx.Add: "add",
    tirx.Sub: "sub",
    tirx.Mul: "mul",
    tirx.FloorDiv: "floordiv",
    tirx.FloorMod: "floormod",
    tirx.Mod: "truncmod",
    tirx.Max: "max",
    tirx.Min: "min",
    tirx.And: "and",
    tirx.Or: "or",
}
_COMPARISON: dict[type, Comparison] = {
    tirx.LT: "lt",
    tirx.LE: "le",
    tirx.GT: "gt",
    tirx.GE: "ge",
    tirx.EQ: "eq",
    tirx.NE: "ne",
}
_UNARY: dict[str, Unary] = {
    "tirx.exp": "exp",
    "tirx.exp2": "exp2",
    "tirx.log": "log",
    "tirx.log2": "log2",
    "tirx.sqrt": "sqrt",
    "tirx.rsqrt": "rsqrt",
    "tl.fast_rcp": "rcp",
    "tirx.fabs": "abs",
    "tirx.floor": "floor",
    "tirx.ceil": "ceil",
    "tirx.tanh": "tanh",
    "tirx.sigmoid": "sigmoid",
    "tirx.sin": "sin",
    "tirx.cos": "cos",
    "tirx.erf": "erf",
}
_SERIAL, _PARALLEL, _VECTORIZED, _UNROLLED, _THREAD = range(5)  # tirx.ForKind
_BARRIERS = ("tirx.tvm_storage_sync",)
_DIMENSIONS = ("x", "y", "z")
_TRANSPARENT = ("tl.assume", "pragma_unroll_explicit", "pragma_auto_unroll")


def describe(site: Any) -> str:
    """A node of the IR as a message quotes it: its source line if it has one, and its text."""
    location = span_to_location(get_stmt_span(site)) if isinstance(site, tirx.Stmt) else None
    return f"{text(site)}, {location[0]}:{location[1]}" if location else text(site)


def is_integer(dtype: str) -> bool:
    """Whether a type is one of integers or truth values."""
    return dtype.startswith(("int", "uint", "bool"))


def children(statement: Any) -> list[Any]:
    """The statements directly inside a statement."""
    match type(statement).__name__:
        case "SeqStmt":
            return list(statement.seq)
        case "IfThenElse":
            return [s for s in (statement.then_case, statement.else_case) if s is not None]
        case "SBlockRealize":
            return [statement.block]
        case "For" | "While" | "AttrStmt" | "SBlock":
            return [statement.body]
    return []


def serial_loops(prim_func: Any) -> dict[Any, str]:
    """The sequential loops by name: that of the variable, with #0, #1, ... in order where several share it."""
    loops: list[Any] = []

    def visit(statement: Any) -> None:
        if isinstance(statement, tirx.For) and int(statement.kind) == _SERIAL:
            loops.append(statement)
        for child in children(statement):
            visit(child)

    visit(prim_func.body)
    names = [str(loop.loop_var.name) for loop in loops]
    return {
        loop: name if names.count(name) == 1 else f"{name}#{names[:i].count(name)}"
        for i, (loop, name) in enumerate(zip(loops, names, strict=True))
    }


class Machine(Generic[V]):
    """Runs a kernel in an algebra.

    Args:
        algebra: the reading.
        sizes: the values of the symbolic dimensions, by name.
    """

    def __init__(self, algebra: Algebra[V], prim_func: Any, sizes: dict[str, V]) -> None:
        self.algebra = algebra
        self.sizes = sizes
        self.variables: dict[Any, V] = {}
        self.memories: dict[Any, Memory[V]] = {}  # by the variable that holds the data
        self.loops = serial_loops(prim_func)
        self.prim_func = prim_func
        self._written: set[Any] | None = None  # in a parallel loop: the buffers that it writes
        self._accesses: list[tuple[Any, list[V], bool]] = []
        self._threads: tuple[V, V, V] | None = None
        self._divergent = 0  # enclosing conditions that may differ between threads

    def parameters(self) -> dict[str, Memory[V]]:
        """Declare the parameters; their symbolic dimensions are taken from ``sizes``."""
        result = {}
        for buffer in self.prim_func.buffer_map.values():
            for dim in buffer.shape:
                if isinstance(dim, tirx.Var):
                    self.variables[dim] = self.sizes[dim.name]
            memory = self.declare(buffer)
            result[memory.name] = memory
        return result

    def run(self) -> None:
        """Execute the body."""
        self._threads = self.algebra.launch(_threads(self.prim_func))
        self.execute(self.prim_func.body)

    def declare(self, buffer: Any) -> Memory[V]:
        """A buffer of the IR as a memory of the algebra."""
        if str(buffer.scope()) not in _SCOPES:
            raise Unsupported(f"buffer {buffer.name} in scope {buffer.scope()}")
        shape = tuple(self.evaluate(dim) for dim in buffer.shape)
        memory = Memory(str(buffer.name), shape, str(buffer.dtype), _SCOPES[str(buffer.scope())])
        self.memories[buffer.data] = memory
        return memory

    # Statements

    def execute(self, statement: Any) -> None:
        """Run one statement."""
        match type(statement).__name__:
            case "SeqStmt" | "SBlockRealize":
                for child in children(statement):
                    self.execute(child)
            case "SBlock":
                self._block(statement)
            case "AttrStmt":
                self._attribute(statement)
            case "For":
                self._loop(statement)
            case "IfThenElse":
                self._conditional(statement)
            case "While":
                self._while(statement)
            case "Bind":
                self.algebra.site = statement
                self.variables[statement.var] = self.evaluate(statement.value)
            case "BufferStore":
                self.algebra.site = statement
                index = [self.evaluate(i) for i in statement.indices]
                self._store(statement.buffer, index, self.evaluate(statement.value))
            case "Evaluate":
                self.algebra.site = statement
                self._call(statement.value)
            case name:
                raise Unsupported(f"statement {name}")

    def _block(self, block: Any) -> None:
        if block.iter_vars or block.match_buffers or block.init is not None:
            raise Unsupported(
                f"block {block.name_hint} with iteration variables, matched buffers or an initial statement"
            )
        for buffer in block.alloc_buffers:
            self.algebra.allocate(self.declare(buffer))
        self.execute(block.body)

    def _attribute(self, statement: Any) -> None:
        key = str(statement.attr_key)
        if key == "thread_extent":
            tag, variable = str(statement.node.thread_tag), statement.node.var
            self._bind_thread(tag, variable, statement.value, statement.body)
        elif key in _TRANSPARENT:
            self.execute(statement.body)
        else:
            raise Unsupported(f"attribute {key}")

    def _bind_thread(self, tag: str, variable: Any, extent: Any, body: Any) -> None:
        kind, dimension = tag.split(".")
        if kind == "threadIdx" and self._threads:
            self.variables[variable] = self._threads[_DIMENSIONS.index(dimension)]
            self.execute(body)
        elif kind == "blockIdx":
            for index in self.algebra.grid(cast(Dimension, dimension), self.evaluate(extent)):
                self.variables[variable] = index
                self.execute(body)
        else:
            raise Unsupported(f"thread axis {tag}")

    def _loop(self, loop: Any) -> None:
        kind = int(loop.kind)
        if getattr(loop, "step", None) is not None and int(loop.step) != 1:
            raise Unsupported(f"a loop with step {loop.step}: {describe(loop)}")
        if kind == _THREAD:
            self._bind_thread(str(loop.thread_binding.thread_tag), loop.loop_var, loop.extent, loop.body)
        elif kind == _PARALLEL:
            self._parallel(loop)
        elif kind in (_SERIAL, _UNROLLED, _VECTORIZED):
            self.algebra.serial(
                self.loops.get(loop, str(loop.loop_var.name)) if kind == _SERIAL else "",
                self.evaluate(loop.min),
                self.evaluate(loop.extent),
                lambda index: self._iteration(loop, index),
            )
        else:
            raise Unsupported(f"loop of kind {kind}")

    def _iteration(self, loop: Any, index: V) -> None:
        self.variables[loop.loop_var] = index
        self.execute(loop.body)

    def _parallel(self, loop: Any) -> None:
        """All iterations at once. No iteration may read, or write again, what another one writes."""
        if self._written is not None:
            raise Unsupported(f"a parallel loop inside another one's body: {describe(loop)}")
        with ExitStack() as axes:
            body = loop
            while isinstance(body, tirx.For) and int(body.kind) == _PARALLEL:
                lower, extent = self.evaluate(body.min), self.evaluate(body.extent)
                axis = self.algebra.axis(str(body.loop_var.name), lower, extent)
                self.variables[body.loop_var] = axes.enter_context(axis)
                body = body.body
            self._written, self._accesses = _stored(body), []
            try:
                self.execute(body)
                self._check_independence(loop)
            finally:
                self._written = None

    def _check_independence(self, loop: Any) -> None:
        stores = [(data, index) for data, index, is_store in self._accesses if is_store]
        for data, store in stores:
            for other, access, _ in self._accesses:
                if other.same_as(data) and not self.algebra.independent(store, access):
                    name = self.memories[data].name
                    raise Unsupported(f"iterations may depend on one another through {name}: {describe(loop)}")

    def _conditional(self, statement: Any) -> None:
        self.algebra.site = statement.condition
        condition = self.evaluate(statement.condition)
        known = self.algebra.decided(condition)
        if known is not False:
            self._guarded(condition, known is True, statement.then_case)
        if known is not True and statement.else_case is not None:
            self._guarded(self._not(condition), known is False, statement.else_case)

    def _guarded(self, condition: V, known: bool, body: Any) -> None:
        divergent = not known and not self.algebra.uniform(condition)
        self._divergent += divergent
        with self.algebra.guard(condition):
            self.execute(body)
        self._divergent -= divergent

    def _while(self, statement: Any) -> None:
        condition = self.evaluate(statement.condition)
        if self.algebra.decided(condition) is not False:
            with self.algebra.guard(condition):
                self.execute(statement.body)
                self._while(statement)

    def _call(self, call: Any) -> None:
        if isinstance(call, tirx.IntImm):
            return
        name = str(call.op.name)
        operations: dict[str, Callable[[Any], None]] = {
            "tl.tileop.fill": self._fill,
            "tl.tileop.copy": self._copy,
            "tl.tileop.reduce": self._reduce,
            "tl.tileop.gemm": self._gemm,
        }
        if name in _BARRIERS:
            return
        if name not in operations:
            raise Unsupported(f"call of {name}")
        if self._divergent or self._written is not None:
            raise Unsupported(f"{name} in a parallel loop or where threads may diverge: {describe(call)}")
        operations[name](call)

    # Tile operations: formulas over the elements

    def _fill(self, call: Any) -> None:
        """D[i...] = value."""
        data, lower, extents = self._region(call.args[0])
        value = self._cast(self.evaluate(call.args[1]), str(call.args[1].dtype), str(data.dtype))
        with ExitStack() as stack:
            index = self._axes(stack, lower, extents)
            self._store(data, index, value)

    def _copy(self, call: Any) -> None:
        """D[i...] = S[i...] where i is inside D; S reads as 0 outside its shape. Extents of 1 are dropped on either side."""
        source, source_lower, source_extents = self._region(call.args[0])
        target, target_lower, target_extents = self._region(call.args[1])
        one = self.algebra.literal(1, "int32")
        wide = [d for d, e in enumerate(target_extents) if not self._is(e, one)]
        narrow = [d for d, e in enumerate(source_extents) if not self._is(e, one)]
        if [None] * len(wide) != [None] * len(narrow) or not all(
            self._is(target_extents[a], source_extents[b]) for a, b in zip(wide, narrow, strict=True)
        ):
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
        """D[i...] = op over k of S[i..., k, ...], with D's old value unless cleared; "abs" takes absolute values first."""
        source, source_lower, source_extents = self._region(call.args[0])
        target, target_lower, target_extents = self._region(call.args[1])
        name, dim, clear = str(call.args[2].value), int(call.args[3]), bool(int(call.args[4]))
        absolute, kind = name.startswith("abs"), cast(Reduction, name.removeprefix("abs"))
        if kind not in ("sum", "max", "min"):
            raise Unsupported(f"reduction {name}")
        dtype = str(target.dtype)
        with ExitStack() as stack:
            index = self._axes(stack, target_lower, target_extents)
            offsets = [self._sub(i, lower) for i, lower in zip(index, target_lower, strict=True)]
            if len(target_extents) == len(source_extents):
                del offsets[dim]
            offsets = offsets[: len(source_extents) - 1]  # a full reduction has a target of one element

            def element(k: V) -> V:
                place = [*offsets[:dim], k, *offsets[dim:]]
                place = [self._add(lower, i) for lower, i in zip(source_lower, place, strict=True)]
                value = self._cast(self._load(source, place), str(source.dtype), dtype)
                return self.algebra.unary("abs", value, dtype) if absolute else value

            value = self.algebra.reduce(kind, source_extents[dim], element, dtype)
            if not clear:
                combine: Binary = "add" if kind == "sum" else kind
                value = self.algebra.binary(combine, self._load(target, index), value, dtype)
            self._store(target, index, value)

    def _gemm(self, call: Any) -> None:
        """C[i, j] += Σ_k A[i, k] B[k, j], in the type of C; A and B possibly transposed, C possibly cleared first."""
        a, a_lower, a_extents = self._region(call.args[0])
        b, b_lower, _ = self._region(call.args[1])
        c, c_lower, c_extents = self._region(call.args[2])
        transpose_a, transpose_b, clear = (bool(int(call.args[i])) for i in (3, 4, 9))
        dtype = str(c.dtype)
        depth = a_extents[-2 if transpose_a else -1]

        def element(buffer: Any, lower: Sequence[V], row: V, column: V, transposed: bool) -> V:
            first, second = (column, row) if transposed else (row, column)
            place = [*lower[:-2], self._add(lower[-2], first), self._add(lower[-1], second)]
            return self._cast(self._load(buffer, place), str(buffer.dtype), dtype)

        with ExitStack() as stack:
            index = self._axes(stack, c_lower, c_extents)
            i, j = (self._sub(index[d], c_lower[d]) for d in (-2, -1))
            value = self.algebra.reduce(
                "sum",
                depth,
                lambda k: self.algebra.binary(
                    "mul", element(a, a_lower, i, k, transpose_a), element(b, b_lower, k, j, transpose_b), dtype
                ),
                dtype,
            )
            if not clear:
                value = self.algebra.binary("add", self._load(c, index), value, dtype)
            self._store(c, index, value)

    def _region(self, region: Any) -> tuple[Any, list[V], list[V]]:
        """A ``tl.region``: its buffer, its first element, its extents."""
        load, _, *extents = region.args
        lower = [self.evaluate(i) for i in load.indices]
        sizes = [self.evaluate(e) for e in extents]
        missing = len(lower) - len(sizes)
        return load.buffer, lower, [self.algebra.literal(1, "int32")] * missing + sizes

    def _axes(self, stack: ExitStack, lower: Sequence[V], extents: Sequence[V]) -> list[V]:
        """An index variable for each dimension of a region wider than 1."""
        one = self.algebra.literal(1, "int32")
        zero = self.algebra.literal(0, "int32")
        index = []
        for first, extent in zip(lower, extents, strict=True):
            if self._is(extent, one):
                index.append(first)
            else:
                index.append(self._add(first, stack.enter_context(self.algebra.axis("e", zero, extent))))
        return index

    def _inside(self, buffer: Any, index: Sequence[V]) -> V:
        """Whether an index lies within a buffer's shape."""
        inside = self.algebra.literal(True, "bool")
        for i, dim in zip(index, buffer.shape, strict=True):
            low = self.algebra.compare("ge", i, self.algebra.literal(0, "int32"), "int32")
            high = self.algebra.compare("lt", i, self.evaluate(dim), "int32")
            inside = self.algebra.binary("and", inside, self.algebra.binary("and", low, high, "bool"), "bool")
        return inside

    # Memory

    def _place(self, buffer: Any, index: list[V]) -> tuple[Memory[V], list[V]]:
        """The memory behind a buffer; a view of another shape is re-indexed in row-major order."""
        if buffer.data not in self.memories:
            raise Unsupported(f"buffer {buffer.name} is not allocated")
        memory = self.memories[buffer.data]
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

    # Expressions

    def evaluate(self, e: Any) -> V:
        """The value of an expression."""
        dtype = str(e.dtype)
        if "x" in dtype.removeprefix("bfloat").removeprefix("float").removeprefix("uint").removeprefix("int"):
            raise Unsupported(f"vector type {dtype}")
        kind = type(e)
        if kind in (tirx.IntImm, tirx.FloatImm):
            return self.algebra.literal(e.value, dtype)
        if kind is tirx.Var:
            if e not in self.variables:
                raise Unsupported(f"variable {e.name} without a value")
            return self.variables[e]
        if kind is tirx.BufferLoad:
            return self._load(e.buffer, [self.evaluate(i) for i in e.indices])
        if kind is tirx.Cast:
            return self._cast(self.evaluate(e.value), str(e.value.dtype), dtype)
        if kind is tirx.Div:
            operator: Binary = "truncdiv" if is_integer(dtype) else "div"
            return self.algebra.binary(operator, self.evaluate(e.a), self.evaluate(e.b), dtype)
        if kind in _BINARY:
            return self.algebra.binary(_BINARY[kind], self.evaluate(e.a), self.evaluate(e.b), dtype)
        if kind in _COMPARISON:
            a, b = self.evaluate(e.a), self.evaluate(e.b)
            return self.algebra.compare(_COMPARISON[kind], a, b, str(e.a.dtype))
        if kind is tirx.Not:
            return self._not(self.evaluate(e.a))
        if kind is tirx.Select:
            condition, then, otherwise = map(self.evaluate, (e.condition, e.true_value, e.false_value))
            return self.algebra.select(condition, then, otherwise, dtype)
        if kind is tirx.Call:
            return self._function(e, dtype)
        raise Unsupported(f"expression {kind.__name__}: {describe(e)}")

    def _function(self, e: Any, dtype: str) -> V:
        name = str(e.op.name)
        if name == "tirx.if_then_else":
            return self._lazy(e, dtype)
        if name == "tl.infinity":
            return self.algebra.infinity(dtype)
        if name == "tl.launch_thread_idx" and self._threads:
            return self._threads[int(e.args[0])]
        if name == "tirx.pow":
            return self.algebra.binary("pow", self.evaluate(e.args[0]), self.evaluate(e.args[1]), dtype)
        if name in _UNARY:
            return self.algebra.unary(_UNARY[name], self.evaluate(e.args[0]), dtype)
        raise Unsupported(f"function {name}")

    def _lazy(self, e: Any, dtype: str) -> V:
        """if_then_else evaluates one branch only, where Select evaluates both."""
        condition = self.evaluate(e.args[0])
        known = self.algebra.decided(condition)
        if known is not None:
            return self.evaluate(e.args[1 if known else 2])
        with self.algebra.guard(condition):
            then = self.evaluate(e.args[1])
        with self.algebra.guard(self._not(condition)):
            otherwise = self.evaluate(e.args[2])
        return self.algebra.select(condition, then, otherwise, dtype)

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


def _threads(prim_func: Any) -> tuple[int, int, int]:
    """The number of threads of a block, per dimension."""
    found = [1, 1, 1]

    def visit(statement: Any) -> None:
        if isinstance(statement, tirx.SBlock) and "tl.launch_threads" in statement.annotations:
            found[:] = [int(n) for n in statement.annotations["tl.launch_threads"]]
        if isinstance(statement, tirx.AttrStmt) and str(statement.attr_key) == "thread_extent":
            kind, dimension = str(statement.node.thread_tag).split(".")
            if kind == "threadIdx":
                found[_DIMENSIONS.index(dimension)] = int(statement.value)
        for child in children(statement):
            visit(child)

    visit(prim_func.body)
    return found[0], found[1], found[2]


def _stored(body: Any) -> set[Any]:
    """The data of the buffers that a statement writes."""
    found: set[Any] = set()

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferStore):
            found.add(node.buffer.data)

    tirx.stmt_functor.post_order_visit(body, visit)
    return found
