"""One walk over a kernel at thread or device level: every access, every integer operation, every event.

Modelled: sequence, if, serial, unrolled, vectorised and while loops, launch axes, thread-private and shared buffers,
block-wide barriers, threads and iterations that end early; of asynchronous hardware, copies by cp.async, products by wgmma
and stores by TMA with what puts them in order.
What orders accesses is kept as events for the room `order`. Other instructions of asynchronous hardware are named in the
trace and otherwise left out. Anything else raises Unsupported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal

import z3
from tvm import tirx

from ..base.conditions import Site, conjunction
from ..base.dtypes import bits, fits, is_integer, number
from ..base.errors import Unsupported
from ..compiler.leaving import BREAKS, leaves, structured
from ..compiler.nodes import called, nodes, passed, stored
from ..compiler.source_text import printed
from ..contract.hypotheses import Hypotheses, within
from ..smt.constructs import constructs
from .intrinsics import event
from .private import counters
from .reading import OF_OPERANDS, Reading
from .trace import Branch, Event, Loop, Node, Trace, Variable, value_of

_AXES: Mapping[str, Literal["block", "thread"]] = {"blockIdx": "block", "threadIdx": "thread"}
_BARRIER = "tirx.tvm_storage_sync"
_SILENT_ATTRIBUTES = {"thread_extent", "lexical_alloc_scope", "storage_alignment", "volatile_scope", "compute_scope"}
_SOURCE = "pragma_import_c"  # C text of the kernel's own, which may hold anything
# loops that a thread runs itself: what is parallel has been shared out among threads before, and is printed as it stands
_LOOPS = {tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED, tirx.ForKind.VECTORIZED, tirx.ForKind.PARALLEL}


@lru_cache(maxsize=4)  # the layers ask for the same levels of a kernel in turn
def walk(func: tirx.PrimFunc, hypotheses: Hypotheses) -> Trace:
    """Walk one function of the compiler's IR; Unsupported if it uses something that is not modelled.

    The trace is for several to read, and for none to change.
    """
    body = structured(func.body)
    walker = _Walker(func, hypotheses)
    walker.launch_axes(body)
    walker.counters = counters(body, walker.over_sizes, walker.between_constants(_declared(body, func)))
    walker.kept_by_threads = frozenset(hash(b.data) for b in stored(body) if b.scope().startswith("local"))
    walker.statement(body)
    calls = (n for n in nodes(body) if isinstance(n, tirx.Call) and not OF_OPERANDS.fullmatch(called(n)))
    elements = (a.buffer.data for c in calls for a in c.args if isinstance(a, tirx.BufferLoad))
    walker.settle({hash(pointer) for pointer in (*passed(body), *elements)})
    return walker.recorder


class _Walker(Reading):
    """Statements, in program order."""

    def __init__(self, func: tirx.PrimFunc, hypotheses: Hypotheses) -> None:
        body, inside = func.body, nodes(func.body)
        written = {b.data.name for b in stored(body) if b.scope() == "global"} | {v.name for v in passed(body)}
        loops, binds = (n.loop_var for n in inside if isinstance(n, tirx.For)), (tirx.Bind, tirx.Let)
        bound = frozenset(map(hash, (*loops, *(n.var for n in inside if isinstance(n, binds)))))
        super().__init__(Trace(), hypotheses, frozenset(written.union(hypotheses.outputs)), bound)
        for name in (*hypotheses.sizes, *hypotheses.shapes):
            self.recorder.unique(name)
        self.branches: tuple[str, ...] = ()
        self.buffers |= {hash(buffer.data): buffer for buffer in func.buffer_map.values()}

    def statement(self, s: tirx.Stmt) -> None:
        """Walk one statement."""
        match type(s).__name__:
            case "SeqStmt":
                for child in s.seq:
                    self.statement(child)
            case "AllocBuffer":
                self._allocate(s.buffer)
            case "DeclBuffer":
                self.buffers[hash(s.buffer.data)] = s.buffer
            case "Evaluate" if called(s.value) in BREAKS:
                pass  # what follows in its loop stands under a guard, and so do all iterations of it
            case "Evaluate":
                with self.at(printed(s.value)):
                    (event if called(s.value) == _BARRIER else Reading.value)(self, s.value)
            case "AssertStmt":
                with self.at(f"assert {printed(s.condition)}"):
                    self.boolean(s.condition)
            case name if name in _WALKED:
                _WALKED[name](self, s)
            case name:
                raise Unsupported(f"statement {name}")

    @contextmanager
    def at(self, description: str) -> Iterator[None]:
        """Let accesses within belong to this statement, whose vector lanes are in scope."""
        recorder, depth = self.recorder, len(self.recorder.variables)
        recorder.site = Site(description, self.branches)
        yield
        del recorder.variables[depth:]
        self.lane.clear()

    def _block(self, s: tirx.SBlockRealize) -> None:
        block = s.block
        if len(block.iter_vars) or len(block.match_buffers) or block.init is not None:
            raise Unsupported(f"block {block.name_hint} with iteration variables")
        with self.at(f"block {block.name_hint}"):
            predicate = self.boolean(s.predicate)
        for buffer in block.alloc_buffers:
            self._allocate(buffer)
        with self.recorder.under(*([] if z3.is_true(predicate) else [predicate])):
            self.statement(block.body)

    def _allocate(self, buffer: tirx.Buffer) -> None:
        self.buffers[hash(buffer.data)] = buffer
        self.locals.begin(hash(buffer.data))
        allocation = self.recorder.unique(buffer.data.name)
        self.regions[hash(buffer.data)] = (allocation, 0)
        if buffer.scope().startswith("shared"):
            size = z3.simplify(z3.Product([z3.IntVal(1), *(self.constant(n) for n in buffer.shape)]))
            if not z3.is_int_value(size):
                raise Unsupported(f"shared buffer {buffer.name} of varying size")
            self.recorder.static |= {allocation} if buffer.scope() == "shared" else set()
            self.recorder.shared_bytes[allocation] = -(-size.as_long() * bits(str(buffer.dtype)) // 8)

    def _attribute(self, s: tirx.AttrStmt) -> None:
        if s.attr_key == "tl.assume":
            with self.at(f"assume {printed(s.node)}"):
                goal = self.boolean(s.node)
                self.recorder.require("assume", f"{printed(s.node)}, which the kernel assumes", goal)
        elif s.attr_key == _SOURCE or not (s.attr_key in _SILENT_ATTRIBUTES or s.attr_key.startswith("pragma_")):
            self.recorder.unmodelled.add(f"attribute {s.attr_key}")
        self.statement(s.body)

    def launch_axes(self, body: tirx.Stmt) -> None:
        """Bring all block and thread indices into scope at once, since a statement before an axis is run by all of it too."""
        inside = nodes(body)
        for node in (n for n in inside if isinstance(n, tirx.AttrStmt) and n.attr_key == "thread_extent"):
            self._launch_axis(node.node, node.node.var, node.value)
        for node in (n for n in inside if isinstance(n, tirx.For) and n.kind == tirx.ForKind.THREAD_BINDING):
            if not z3.is_true(z3.simplify(self.integer(node.min) == 0)):
                raise Unsupported(f"loop over {node.loop_var.name} of threads from {printed(node.min)} on")
            self._launch_axis(node.thread_binding, node.loop_var, node.extent)
        self.recorder.launch = dict(sorted(self.recorder.launch.items()))
        self.recorder.variables += self.recorder.launch.values()

    def _launch_axis(self, of: tirx.IterVar, axis: tirx.Var, value: tirx.PrimExpr) -> None:
        tag = str(of.thread_tag)
        if (kind := _AXES.get(tag.split(".")[0])) is None:
            raise Unsupported(f"launch axis {tag}")
        with self.at(f"{tag} extent {printed(value)}"):
            extent = self.integer(value)
        launch = self.recorder.launch
        if tag not in launch:
            launch[tag] = Variable(self.recorder.unique(axis.name), kind, z3.IntVal(0), extent)
        if not z3.is_true(z3.simplify(launch[tag].count == extent)):
            raise Unsupported(f"{tag} is launched with two extents")
        self.values[hash(axis)] = launch[tag].term

    # Control.

    def _for(self, s: tirx.For) -> None:
        if s.kind == tirx.ForKind.THREAD_BINDING:  # each thread runs the body once
            self.statement(s.body)
            return
        if s.kind not in _LOOPS or (s.step is not None and int(s.step) != 1):
            raise Unsupported(f"loop over {s.loop_var.name} of kind {s.kind} or with a step")
        with self.at(f"for {s.loop_var.name} in range({printed(s.min)}, {printed(s.min)} + {printed(s.extent)})"):
            low, extent = self.integer(s.min), self.integer(s.extent)
            end = fits(low + extent, str(s.loop_var.dtype))
            self.recorder.require("overflow", f"the end of {s.loop_var.name} fits {s.loop_var.dtype}", end)
        if s.kind != tirx.ForKind.VECTORIZED and z3.is_true(z3.simplify(extent == 1)):  # no loop
            self.values[hash(s.loop_var)] = low
            self.statement(s.body)
            return
        variable = Variable(self.recorder.unique(s.loop_var.name), "loop", low, extent)
        self.values[hash(s.loop_var)] = variable.term
        with self._iteration(variable, s.body):
            self.statement(s.body)

    def _while(self, s: tirx.While) -> None:
        if any(called(node) == _BARRIER and len(node.args) == 1 for node in nodes(s)):
            raise Unsupported("barrier in a while loop")
        with self._iteration(Variable(self.recorder.unique("iteration"), "loop", z3.IntVal(0), None), s):
            with self.at(f"while {printed(s.condition)}"):
                condition = self.boolean(s.condition)
            with self.recorder.under(condition):
                self.statement(s.body)

    @contextmanager
    def _iteration(self, variable: Variable, s: tirx.Stmt) -> Iterator[None]:
        """Let what is inside be any iteration of a loop, of which a statement is all that may change what is kept."""
        loop, changed = Loop(variable, []), {hash(v) for v in (*passed(s), *(b.data for b in stored(s)))}
        self.recorder.block.append(loop)
        self.reads.clear()
        goes_on = [z3.Bool(self.recorder.unique(value_of("loop_break")))] if leaves(s) else []
        certain = replace(variable, extent=None) if goes_on else variable  # how often it runs for certain
        inside = self.recorder.over(variable), self.recorder.into(loop.body), self.locals.loop(certain, changed)
        with inside[0], inside[1], inside[2], self.recorder.under(*goes_on):
            yield
        self.reads.clear()
        if goes_on and any(_ordering(loop.body)):
            raise Unsupported("a loop that ends early, with instructions that order accesses")

    def _conditional(self, s: tirx.IfThenElse) -> None:
        with self.at(f"if {printed(s.condition)}"):
            condition = self.boolean(s.condition)
        node, this, around = Branch(condition, ([], [])), printed(s.condition), self.branches
        self.recorder.block.append(node)

        def arm(branch: str, guard: z3.BoolRef, body: tirx.Stmt | None, block: list[Node]) -> None:
            if body is not None:
                self.branches = (*around, branch)
                with self.recorder.under(guard), self.recorder.into(block):
                    self.statement(body)
                self.branches = around

        then = partial(arm, this, condition, s.then_case, node.arms[0])
        otherwise = partial(arm, f"not ({this})", z3.Not(condition), s.else_case, node.arms[1])
        self.locals.branch(condition, then, otherwise)

    # Effects.

    def _bind(self, s: tirx.Bind) -> None:
        if called(s.value) == "tirx.handle_add_byte_offset":
            base, offset = s.value.args
            allocation, before = self.regions.get(hash(base), (base.name, 0))
            shift = self.constant(offset)
            if not z3.is_int_value(shift):
                raise Unsupported(f"buffer {s.var.name} at a varying offset")
            self.regions[hash(s.var)] = (allocation, before + shift.as_long())
            return
        with self.at(f"{s.var.name} = {printed(s.value)}"):
            value = self.value(s.value)
            if is_integer(str(s.var.dtype)) and value is None:
                raise Unsupported(f"{s.var.name} = {printed(s.value)}")
            self.values[hash(s.var)] = value

    def _store(self, s: tirx.BufferStore) -> None:
        if s.predicate is not None:
            raise Unsupported(f"predicated store to {s.buffer.name}")
        indices = ", ".join(printed(i) for i in s.indices)
        with self.at(f"{s.buffer.name}[{indices}] = {printed(s.value)}"):
            value = self.value(s.value)
            depends = self.depends(s.value, value)
            terms = self.access("write", s.buffer, s.indices, depends)
            low, high = self.hypotheses.promises.get(s.buffer.data.name, (None, None))
            if s.buffer.scope() == "global" and not (low is high is None):  # the contract says where its elements lie
                if value is None:
                    raise Unsupported(f"{s.buffer.name}, whose elements the contract bounds, is no integer")
                span = f"[{'' if low is None else low}, {'' if high is None else high})"
                goal = conjunction(*within(number(value), (low, high)))
                self.recorder.require("value", f"what is stored to {s.buffer.name} is in {span}", goal)
            if value is not None and (found := constructs([value])):
                self.origins[hash(s.buffer.data)] = value_of(", ".join(found))
            if s.buffer.scope().startswith("local"):
                data = hash(s.buffer.data)
                anew = all(hash(n.buffer.data) != data for n in nodes(s.value) if isinstance(n, tirx.BufferLoad))
                self.keep(s.buffer, depends)
                self.locals.write((data, str(s.buffer.dtype)), terms, value, self.lane.values(), anew)
            else:
                self.reads.clear()


_WALKED: Mapping[str, Callable[[_Walker, Any], None]] = {
    **{"SBlockRealize": _Walker._block, "AttrStmt": _Walker._attribute, "Bind": _Walker._bind},
    **{"For": _Walker._for, "While": _Walker._while, "IfThenElse": _Walker._conditional, "BufferStore": _Walker._store},
}


def _ordering(block: Sequence[Node]) -> Iterator[Event]:
    """Yield the events in a block."""
    for node in block:
        inner = node.arms if isinstance(node, Branch) else (node.body,) if isinstance(node, Loop) else ()
        yield from [node] if isinstance(node, Event) else (e for arm in inner for e in _ordering(arm))


def _declared(body: tirx.Stmt, func: tirx.PrimFunc) -> list[tirx.Buffer]:
    """Return the buffers that a function has from its caller, at either level."""
    return [*func.buffer_map.values(), *(n.buffer for n in nodes(body) if isinstance(n, tirx.DeclBuffer))]
