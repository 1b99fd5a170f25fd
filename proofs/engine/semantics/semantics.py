"""What a TileLang kernel means, statement by statement, over an abstract algebra.

The level is the tile level: the PrimFunc as its factory returns it, or after the launch has been materialised. A block's
threads run in lock step: between two statements every thread has finished the first. That is what a kernel free of races
does; races are the business of another layer. Barriers therefore change no value. Products and copies that are under way
while the threads go on are read as done where they are issued; that the kernel waits for them before it uses them is not
looked at here. This file says what each statement means; ``expressions`` says it of expressions, memory and the
operations on tiles.

Not modelled, and rejected: pointers, scopes other than global, shared, fragment and local, tile operations under a condition
that differs between threads, and what ``interpreter`` alone reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

from tvm import tirx

from ..base.errors import Unsupported
from ..compiler.instructions import does, names
from ..compiler.nodes import children, statements, stored
from ..compiler.source_text import describe
from .algebra import Algebra, Dimension, Memory, Scope, V
from .expressions import TileOperations, externs
from .loops import serial_loops as serial_loops
from .turns import MEETING, Program, changed, filled, programs, take_turns

_SCOPES: Mapping[str, Scope] = {
    **{"global": "global", "shared": "shared", "shared.dyn": "shared"},
    **{"local": "local", "local.var": "local", "local.fragment": "fragment"},
}
_SERIAL, _PARALLEL, _VECTORIZED, _UNROLLED, _THREAD = range(5)  # tirx.ForKind
_WAITS = names("commit", "await", "finish", "fence", "hint", "grids")
_TILED = ("fill", "copy", "reduce", "gemm", "wgmma_gemm")
_OPERATIONS = {f"tl.tileop.{name}": f"_{name.removeprefix('wgmma_')}" for name in _TILED}
_DIMENSIONS = ("x", "y", "z")
_TRANSPARENT = ("tl.assume", "tl.min_blocks_per_sm", "pragma_unroll_explicit", "pragma_auto_unroll")
_SOURCE = "pragma_import_c"  # C text that the kernel brings along
_MEETING_SCOPE = "shared.barrier"  # barriers in shared memory
# T.annotate_safe_value, say, would change what T.copy pads with
_HARMLESS = {"tl.launch_threads", "layout_map", _SOURCE, "barrier_init"}


class Machine(TileOperations[V]):
    """Runs a kernel in an algebra; ``sizes`` are the values of the symbolic dimensions, by name."""

    def __init__(self, algebra: Algebra[V], prim_func: Any, sizes: dict[str, V]) -> None:
        super().__init__(algebra)
        self.sizes = sizes
        self.loops = serial_loops(prim_func)
        self.prim_func = prim_func
        self.waits: set[str] = set()  # for what is under way while the threads go on
        self._divergent = 0  # enclosing conditions that may differ between threads

    def parameters(self) -> dict[str, Memory[V]]:
        """Declare the parameters; their symbolic dimensions are taken from ``sizes``."""
        buffers = list(self.prim_func.buffer_map.values())
        self.variables |= {d: self.sizes[d.name] for b in buffers for d in b.shape if isinstance(d, tirx.Var)}
        return {memory.name: memory for memory in map(self.declare, buffers)}

    def run(self) -> None:
        """Execute the body."""
        self._extents = _threads(self.prim_func)
        self._threads = self.algebra.launch(self._extents)
        self.execute(self.prim_func.body)

    def declare(self, buffer: Any) -> Memory[V]:
        """Make of a buffer of the IR a memory of the algebra."""
        if str(buffer.scope()) not in _SCOPES:
            raise Unsupported(f"buffer {buffer.name} in scope {buffer.scope()}")
        shape = tuple(self.evaluate(dim) for dim in buffer.shape)
        memory = Memory(str(buffer.name), shape, str(buffer.dtype), _SCOPES[str(buffer.scope())])
        self.memories[buffer.data] = memory
        self.declared[buffer.data] = buffer
        return memory

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
            raise Unsupported(f"block {block.name_hint} with iteration variables, matched buffers or an initial value")
        if unknown := sorted(set(map(str, block.annotations)) - _HARMLESS):
            raise Unsupported(f"block {block.name_hint} with annotations {unknown}")
        if _SOURCE in block.annotations:
            self.externs |= externs(str(block.annotations[_SOURCE]))
        for buffer in block.alloc_buffers:
            if str(buffer.scope()) != _MEETING_SCOPE:
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
            name = self.loops.get(loop, str(loop.loop_var.name)) if kind == _SERIAL else ""
            lower, extent = self.evaluate(loop.min), self.evaluate(loop.extent)
            self.algebra.serial(name, lower, extent, partial(self._iteration, loop))
        else:
            raise Unsupported(f"loop of kind {kind}")

    def _iteration(self, loop: Any, index: V) -> None:
        self.variables[loop.loop_var] = index
        self.execute(loop.body)

    def _parallel(self, loop: Any) -> None:
        """Run all iterations at once. No iteration may read, or write again, what another one writes."""
        if self._written is not None:
            raise Unsupported(f"a parallel loop inside another one's body: {describe(loop)}")
        with ExitStack() as axes:
            body = loop
            while isinstance(body, tirx.For) and int(body.kind) == _PARALLEL:
                lower, extent = self.evaluate(body.min), self.evaluate(body.extent)
                axis = self.algebra.axis(str(body.loop_var.name), lower, extent)
                self.variables[body.loop_var] = axes.enter_context(axis)
                body = body.body
            self._written, self._accesses = {buffer.data for buffer in stored(body)}, []
            try:
                self.execute(body)
            finally:
                self._written = None
            for (data, store, is_store), (other, access, _) in itertools.product(self._accesses, repeat=2):
                if is_store and other.same_as(data) and not self.algebra.independent(store, access):
                    name = self.memories[data].name
                    raise Unsupported(f"iterations may depend on one another through {name}: {describe(loop)}")

    def _take_turns(self, roles: Sequence[Program]) -> None:
        """Run threads of several roles, each of which does what it does while the others stand still."""
        self.waits.update(MEETING)
        before, inside, after = take_turns(roles)
        loops = [role.loop for role in roles if role.loop is not None]
        rounds = [role.rounds for role in roles if role.rounds is not None]

        def iteration(index: V) -> None:
            self.variables |= {loop.loop_var: index for loop in loops}
            for turn in inside:
                for each in turn:
                    self.execute(each)
                self.algebra.turn()

        def once(index: V | None = None) -> None:
            if index is not None:
                self.variables |= {loop.loop_var: index for loop in rounds}
            for each in itertools.chain(*before):
                self.execute(each)
            for loop in loops[:1]:
                self.algebra.serial(self.loops[loop], self.evaluate(loop.min), self.evaluate(loop.extent), iteration)
            for each in itertools.chain(*after):
                self.execute(each)

        for each in itertools.chain(*(role.prelude for role in roles)):
            self.execute(each)
        if rounds:
            lower, extent = self.evaluate(rounds[0].min), self.evaluate(rounds[0].extent)
            found = [self.memories[data] for data in changed(roles)]
            self.algebra.rounds(self.loops[rounds[0]], (lower, extent), found, once)
        else:
            once()
        for data in filled(roles):
            self.algebra.allocate(self.memories[data])

    def _conditional(self, statement: Any) -> None:
        threads = [v for v, value in self.variables.items() if self._threads and value is self._threads[0]]
        if found := programs(statement, threads, self._extents[0]):
            self._take_turns(found)
            return
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

    def _call(self, call: Any) -> None:
        if isinstance(call, tirx.IntImm):
            return
        name = str(call.op.name)
        if does(name) == "barrier":
            self.algebra.barrier()
        elif name in _WAITS and self._written is None:
            self.waits.add(name)
        elif name not in _OPERATIONS:
            raise Unsupported(f"call of {name}")
        elif self._divergent or self._written is not None:
            raise Unsupported(f"{name} in a parallel loop or where threads may diverge: {describe(call)}")
        else:
            getattr(self, _OPERATIONS[name])(call)


def _threads(prim_func: Any) -> tuple[int, int, int]:
    """Return the number of threads of a block along each dimension."""
    found = [1, 1, 1]
    for statement in statements(prim_func.body):
        if isinstance(statement, tirx.SBlock) and "tl.launch_threads" in statement.annotations:
            found[:] = [int(n) for n in statement.annotations["tl.launch_threads"]]
        if isinstance(statement, tirx.AttrStmt) and str(statement.attr_key) == "thread_extent":
            kind, dimension = str(statement.node.thread_tag).split(".")
            if kind == "threadIdx":
                found[_DIMENSIONS.index(dimension)] = int(statement.value)
    return found[0], found[1], found[2]
