"""The skeleton of synchronisation in the IR that is proved: of the device level, after barriers are placed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from tvm import DataType, tirx

from ..base.errors import Unsupported
from ..compiler.nodes import called, nodes
from .skeleton import Apply, Branch, Event, Loop, Name, Node, Skeleton, Term, folded

_WITH_OPERANDS = {
    "tirx.ptx_init_barrier_thread_count": "mbarrier.init",
    "tirx.ptx_arrive_barrier": "mbarrier.arrive",
    "tl.mbarrier_wait_parity": "mbarrier.wait",
    "tl.ptx_fence_barrier_init": "fence.mbarrier_init",
    "tl.ptx_cp_async_barrier_noinc": "cp.async.mbarrier.arrive.noinc",
    "tirx.ptx_commit_group": "cp.async.commit_group",
    "tirx.ptx_wait_group": "cp.async.wait_group",
    "tl.warpgroup_arrive": "wgmma.fence",
    "tl.warpgroup_commit_batch": "wgmma.commit_group",
    "tl.warpgroup_wait": "wgmma.wait_group",
    "tl.wait_wgmma": "wgmma.wait_group",
    "tl.fence_proxy_async": "fence.proxy.async",
    "tl.pdl_sync": "griddepcontrol.wait",
    "tl.pdl_trigger": "griddepcontrol.launch_dependents",
}
_EXCHANGES = {
    "tl.shfl_sync": "shfl.idx",
    "tl.shfl_up_sync": "shfl.up",
    "tl.shfl_xor_sync": "shfl.bfly",
    "tl.ballot": "vote.ballot",
    "tl.atomic_add_elem_op": "atom.add",
}
"""What is exchanged, and where, is arithmetic: it has no operands here."""

_SILENT = re.compile(
    r"tirx\.(call_extern|tvm_access_ptr)|tl\.(initialize_wgmma_descriptor|increase_descriptor_offset|fast_rcp|ptx_stmatrix"
    r"|warpgroup_fence_operand)"
)
"""Instructions that order nothing: values and addresses, and C text that a kernel brings along, which is not read."""

_PURE = 1  # as TVM counts effects
_OPERATORS = {
    **{tirx.Add: "+", tirx.Sub: "-", tirx.Mul: "*", tirx.Div: "//", tirx.FloorDiv: "//", tirx.Mod: "%"},
    **{tirx.FloorMod: "%", tirx.EQ: "==", tirx.NE: "!=", tirx.LT: "<", tirx.LE: "<=", tirx.GT: ">", tirx.GE: ">="},
    **{tirx.And: "and", tirx.Or: "or", tirx.Min: "min", tirx.Max: "max"},
}
_CALLS = {"tirx.shift_left": "<<", "tirx.shift_right": ">>", "tirx.bitwise_and": "&"}


class _Reader:
    """Reads one function; two variables of one name get two."""

    def __init__(self) -> None:
        self._names: dict[Any, Name] = {}

    def name(self, variable: Any) -> Name:
        """Return the name of a variable, the same each time."""
        if variable not in self._names:
            fresh = (Name(f"{variable.name}{i or ''}") for i in itertools.count())
            self._names[variable] = next(name for name in fresh if name not in self._names.values())
        return self._names[variable]

    def term(self, node: Any) -> Term:
        """Return an expression without its casts."""
        match node:
            case tirx.IntImm():
                return int(node.value)
            case tirx.Var():
                return self.name(node)
            case tirx.Cast():
                return self.term(node.value)
            case tirx.BufferLoad():
                data = self.name(node.buffer.data)
                local = node.buffer.scope() == "local.var"
                return data if local else Apply("[]", (data, *map(self.term, node.indices)))
            case tirx.Not():
                return Apply("not", (self.term(node.a),))
            case tirx.Call():
                name = called(node)
                return folded(_CALLS.get(name, name.split(".")[-1]), *map(self.term, node.args))
        if type(node) in _OPERATORS:
            return folded(_OPERATORS[type(node)], self.term(node.a), self.term(node.b))
        return Apply(str(node), ())

    def block(self, statement: Any) -> list[Node]:
        """Return what happens in a statement."""
        match statement:
            case tirx.SeqStmt():
                return [node for child in statement.seq for node in self.block(child)]
            case tirx.AttrStmt():
                if statement.attr_key == "thread_extent":
                    self._names[statement.node.var] = Name(statement.node.thread_tag)
                return self.block(statement.body)
            case tirx.For():
                begin, extent = self.term(statement.min), self.term(statement.extent)
                end = folded("+", begin, extent) if begin else extent
                body, unrolled = self.block(statement.body), statement.kind == tirx.ForKind.UNROLLED
                loop = Loop(self.name(statement.loop_var), begin, end, body, unrolled)
                return [*self.events(statement.extent), *([loop] if body else [])]
            case tirx.IfThenElse():
                arms = self.block(statement.then_case), self.block(statement.else_case) if statement.else_case else []
                return [*self.events(statement.condition), *self.branch(statement.condition, *arms)]
            case tirx.BufferStore():
                return [n for e in (*statement.indices, statement.value) for n in self.events(e)]
            case tirx.Evaluate() | tirx.Bind():
                return self.events(statement.value)
            case tirx.AllocBuffer() | tirx.DeclBuffer():
                return []
        raise Unsupported(f"emitted code of a statement {type(statement).__name__}")

    def branch(self, condition: Any, then: Sequence[Node], otherwise: Sequence[Node]) -> list[Node]:
        """Return a branch, unless nothing happens in it."""
        return [Branch(self.term(condition), (then, otherwise))] if then or otherwise else []

    def events(self, expression: Any) -> list[Node]:
        """Return what happens where an expression is computed, in the order in which the compiler visits it."""
        found: list[Node] = []
        for node in nodes(expression):
            if called(node) == "tirx.if_then_else":  # what happens in its arms was found just before it
                first, then, otherwise = map(self.events, node.args)
                del found[len(found) - len(first) - len(then) - len(otherwise) :]
                found += [*first, *self.branch(node.args[0], then, otherwise)]
            elif isinstance(node, tirx.Call):
                found += self.event(called(node), node)
        return found

    def event(self, name: str, call: Any) -> list[Event]:
        """Return what a call does, without what its arguments do.

        Raises:
            Unsupported: it has an effect that no table here names.
        """
        if name in _WITH_OPERANDS:
            return [Event(_WITH_OPERANDS[name], tuple(map(self.term, call.args)))]
        match name:
            case "tirx.tvm_storage_sync" if str(call.args[0].value) in ("shared", "shared.dyn"):
                return [Event("bar.sync", tuple(map(self.term, call.args[1:])) or (0,))]
            case "tl.set_max_nreg":
                return [Event("setmaxnreg.inc" if int(call.args[1]) else "setmaxnreg.dec", (int(call.args[0]),))]
            case "tl.ptx_cp_async":
                size = DataType(call.args[0].args[0].dtype).bits * int(call.args[2]) // 8
                return [Event("cp.async.zfill" if len(call.args) > 3 else "cp.async", (size,))]
            case "tl.ptx_wgmma_ss" | "tl.ptx_wgmma_rs":
                shape = re.findall(r"\d+", str(call.args[0].value))
                return [Event(f"wgmma.mma_async.{name[-2:]}", tuple(map(int, shape)))]
            case "tirx.call_extern" if str(call.args[0].value).startswith("tl::"):
                return [Event(str(call.args[0].value))]
        if name in _EXCHANGES:
            return [Event(_EXCHANGES[name])]
        if _SILENT.fullmatch(name) or call.op.get_attr("TCallEffectKind") == _PURE:
            return []
        raise Unsupported(f"emitted code of an instruction {name}")


def skeleton(function: Any) -> Skeleton:
    """Return the skeleton of a kernel at the device level.

    Raises:
        Unsupported: there is an instruction or a statement that it does not know.
    """
    reader = _Reader()
    return Skeleton(tuple(map(reader.name, function.params)), reader.block(function.body))
