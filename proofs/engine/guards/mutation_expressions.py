"""Mutation operators on expressions: for one TIR expression, the small errors that could have been made there.

An operator looks at a single node and yields what could stand in its place; where the node is in the function, and that
the change is really one, is the business of ``mutate``. Every replacement of an expression has its dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from tvm import ir, tirx

from ..base.dtypes import bits
from ..compiler.rewrite import rebuilt
from ..compiler.source_text import Node, element, text

REGION = "tl.region"
REDUCE = "tl.tileop.reduce"
GEMM = "tl.tileop.gemm"
CONSTANTS = (tirx.IntImm, tirx.FloatImm, tirx.StringImm)

_ORDER_MATTERS = (tirx.Sub, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.LT, tirx.LE, tirx.GT, tirx.GE)
_CALL_ORDER_MATTERS = {"tirx.pow", "tirx.atan2", "tirx.fmod", "tirx.ldexp", "tirx.shift_left", "tirx.shift_right"}
_OTHER_OPERATOR = {
    tirx.Add: tirx.Sub,
    tirx.Sub: tirx.Add,
    tirx.Div: tirx.Mul,
    tirx.FloorDiv: tirx.FloorMod,
    tirx.FloorMod: tirx.FloorDiv,
    tirx.Max: tirx.Min,
    tirx.Min: tirx.Max,
    tirx.And: tirx.Or,
    tirx.Or: tirx.And,
    tirx.EQ: tirx.NE,
    tirx.NE: tirx.EQ,
}
_OTHER_CALL = {
    "tirx.exp": "tirx.exp2",
    "tirx.exp2": "tirx.exp",
    "tirx.log": "tirx.log2",
    "tirx.log2": "tirx.log",
    "tirx.sqrt": "tirx.rsqrt",
    "tirx.rsqrt": "tirx.sqrt",
    "tirx.bitwise_and": "tirx.bitwise_or",
    "tirx.bitwise_or": "tirx.bitwise_and",
    "tirx.shift_left": "tirx.shift_right",
    "tirx.shift_right": "tirx.shift_left",
}
_OTHER_REDUCTION = {
    "sum": ("max",),
    "max": ("min", "sum"),
    "min": ("max",),
    "abssum": ("sum",),
    "absmax": ("max",),
    "bitand": ("bitor",),
    "bitor": ("bitand",),
    "bitxor": ("bitor",),
}
_STRICTNESS = {tirx.LT: tirx.LE, tirx.LE: tirx.LT, tirx.GT: tirx.GE, tirx.GE: tirx.GT}
# The step of the right-hand side that moves the bound in the direction in which changing strictness does not.
_BOUND_STEP = {tirx.LT: -1, tirx.LE: +1, tirx.GT: +1, tirx.GE: -1}
_LOGIC_CALLS = ("tirx.bitwise_and", "tirx.bitwise_or")


@dataclass(frozen=True)
class Edit:
    """One error: the operator that made it, the source before and after, and what replaces the node (None: nothing)."""

    operator: str
    before: str
    after: str
    node: Node | None


@dataclass(frozen=True)
class Scope:
    """What is visible at a node: the buffers, the loops around it from the outermost, and the element being stored."""

    buffers: tuple[Node, ...] = ()
    loops: tuple[Node, ...] = ()
    target: Node | None = None


def op_name(node: Node) -> str:
    """Return the name of the intrinsic that a call calls, or an empty string."""
    return str(node.op.name) if isinstance(node, tirx.Call) and isinstance(node.op, ir.Op) else ""


def access_text(access: Node) -> str:
    """Return a load as it is written, a store without its value."""
    return f"{text(element(access))} = ..." if isinstance(access, tirx.BufferStore) else text(access)


def is_integer(node: Node) -> bool:
    """Return whether an expression is a signed or unsigned integer and not a boolean."""
    return str(node.dtype).startswith(("int", "uint"))


def same(a: Node, b: Node) -> bool:
    """Return whether two expressions are the same, over the same variables and buffers."""
    return bool(tirx.analysis.expr_deep_equal(a, b))  # structural_equal would identify any two free buffers


def expression_edits(expr: Node, scope: Scope) -> Iterator[Edit]:
    """Yield the errors of an expression itself, not those of its operands."""
    kind = type(expr)
    if kind is tirx.BufferLoad:
        yield from access_edits(expr, scope)
    elif kind in (tirx.IntImm, tirx.FloatImm):
        yield from _constant_edits(expr)
    elif kind is tirx.Var:
        yield from _variable_edits(expr, scope)
    elif kind is tirx.Call:
        yield from _call_edits(expr)
    elif kind is tirx.Select:
        swapped = tirx.Select(expr.condition, expr.false_value, expr.true_value)
        yield _edit("inverted guard", expr, swapped)
        yield _edit("dropped guard", expr, expr.true_value)
    elif kind is tirx.Not:
        yield _edit("inverted guard", expr, expr.a)
    elif hasattr(expr, "a") and hasattr(expr, "b"):
        yield from _binary_edits(expr, scope)


def _edit(operator: str, before: Node, after: Node) -> Edit:
    return Edit(operator, text(before), text(after), after)


def moved(expr: Node, step: int) -> Node:
    """Return ``expr + step``, written as a subtraction where step is negative."""
    return expr + step if step > 0 else expr - -step


def is_scalar_variable(access: Node) -> bool:
    """Return whether a load or a store is of a scalar variable, which the source writes without an index."""
    return str(access.buffer.scope()) == "local.var"


def access_edits(access: Node, scope: Scope) -> Iterator[Edit]:
    """Yield a load or a store one off, with two indices swapped, and of another buffer of the same shape."""

    def edit(operator: str, **changes: object) -> Edit:
        changed = rebuilt(access, **changes)
        return Edit(operator, access_text(access), access_text(changed), changed)

    indices, shape = list(access.indices), access.buffer.shape
    if not is_scalar_variable(access):
        for d, index in enumerate(indices):
            for step in (1, -1):
                yield edit(f"index{step:+}", indices=[*indices[:d], moved(index, step), *indices[d + 1 :]])
    for d, e in combinations(range(len(indices)), 2):
        if same(shape[d], shape[e]):
            swapped = list(indices)
            swapped[d], swapped[e] = indices[e], indices[d]
            yield edit("wrong axis", indices=swapped)
    for other in _neighbours(access.buffer, scope):
        yield edit("wrong buffer", buffer=other)


def _neighbours(buffer: Node, scope: Scope) -> list[Node]:
    """Return the last buffer before and the first after one that have its shape and dtype."""
    alike = [b for b in scope.buffers if b.dtype == buffer.dtype and _same_all(b.shape, buffer.shape)]
    own = next((i for i, other in enumerate(alike) if other.same_as(buffer)), None)
    return [] if own is None else alike[max(own - 1, 0) : own] + alike[own + 1 : own + 2]


def _same_all(first: Node, second: Node) -> bool:
    return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))


def _constant_edits(constant: Node) -> Iterator[Edit]:
    value = constant.value
    if is_integer(constant):
        others = [other for other in (value + 1, value - 1) if _representable(other, str(constant.dtype))]
    elif abs(value) == float("inf"):
        others = [-value]
    else:
        others = {0.0: [1.0], 1.0: [0.0, 2.0], -1.0: [0.0, 1.0]}.get(value, [2 * value, 0.0])
    if str(constant.dtype) != "bool":
        for other in others:
            yield _edit("constant", constant, type(constant)(constant.dtype, other))


def _representable(value: int, dtype: str) -> bool:
    width = bits(dtype)
    low, high = (0, 2**width) if dtype.startswith("uint") else (-(2 ** (width - 1)), 2 ** (width - 1))
    return dtype == "bool" or low <= value < high


def _variable_edits(var: Node, scope: Scope) -> Iterator[Edit]:
    """Yield another loop's variable of the same range, as in ``c[i]`` for ``c[j]``."""
    own = next((loop for loop in scope.loops if loop.loop_var.same_as(var)), None)
    if own is None:
        return
    for loop in scope.loops:
        if loop is not own and same(loop.extent, own.extent) and loop.loop_var.dtype == var.dtype:
            yield _edit("wrong variable", var, loop.loop_var)


def _binary_edits(expr: Node, scope: Scope) -> Iterator[Edit]:
    kind, a, b = type(expr), expr.a, expr.b
    if kind in _ORDER_MATTERS:
        yield _edit("swapped operands", expr, kind(b, a))
    if kind in _STRICTNESS:
        yield _edit("off by one", expr, _STRICTNESS[kind](a, b))
        if is_integer(b):
            yield _edit("off by one", expr, kind(a, moved(b, _BOUND_STEP[kind])))
        return
    other = _OTHER_OPERATOR.get(kind)
    if kind is tirx.Mul:
        other = tirx.Add if is_integer(expr) else tirx.Div
    if other is not None and not (kind is tirx.Div and is_integer(expr)):
        yield _edit("other operator", expr, other(a, b))
    if kind in (tirx.EQ, tirx.NE):
        return
    yield _edit(_dropping(expr, a, scope), expr, a)
    if kind in (tirx.Add, tirx.Mul, tirx.Max, tirx.Min, tirx.And, tirx.Or):
        yield _edit(_dropping(expr, b, scope), expr, b)
    if kind is tirx.Mul and is_integer(expr):
        yield from _stride_edits(expr)
    if kind in (tirx.Add, tirx.Sub, tirx.Mul):
        yield from _late_widening(expr)


def _dropping(expr: Node, kept: Node, scope: Scope) -> str:
    """Return the name of the operator that leaves one operand of ``expr``."""
    if isinstance(expr, (tirx.And, tirx.Or)):
        return "dropped guard"
    if isinstance(expr, (tirx.Mul, tirx.Div)) and scope.target is not None and same(kept, scope.target):
        return "dropped rescale"
    return "dropped operand"


def _stride_edits(product: Node) -> Iterator[Edit]:
    """Yield the coefficient of an index one off: the constant factor, or either factor where none is constant."""
    constant = [field for field in ("a", "b") if isinstance(getattr(product, field), tirx.IntImm)]
    for field in constant or ("a", "b"):
        for step in (1, -1):
            yield _edit("stride", product, rebuilt(product, **{field: moved(getattr(product, field), step)}))


def _late_widening(expr: Node) -> Iterator[Edit]:
    """Yield ``int64(a) * int64(b)`` computed as ``int64(a * b)``."""
    operands = [_narrow(side) for side in (expr.a, expr.b)]
    if str(expr.dtype) == "int64" and all(side is not None for side in operands):
        yield _edit("late widening", expr, tirx.Cast("int64", type(expr)(*operands)))


def _narrow(expr: Node) -> Node | None:
    """Return the int32 expression that an int64 one was widened from."""
    if isinstance(expr, tirx.Cast) and str(expr.value.dtype) == "int32":
        return expr.value
    if isinstance(expr, tirx.IntImm) and abs(expr.value) < 2**31:
        return tirx.IntImm("int32", expr.value)
    return None


def _call_edits(call: Node) -> Iterator[Edit]:
    name, args = op_name(call), list(call.args)
    if name in _OTHER_CALL:
        yield _edit("other operator", call, rebuilt(call, op=ir.Op.get(_OTHER_CALL[name])))
    if name in _CALL_ORDER_MATTERS:
        yield _edit("swapped operands", call, rebuilt(call, args=args[::-1]))
    if name in _LOGIC_CALLS and str(call.dtype) == "bool":
        for arg in args:
            yield _edit("dropped guard", call, arg)
    if len(args) == 1 and not isinstance(args[0], CONSTANTS) and args[0].dtype == call.dtype:
        yield _edit("dropped function", call, args[0])
    if name == "tirx.if_then_else":
        yield _edit("inverted guard", call, rebuilt(call, args=[args[0], args[2], args[1]]))
        yield _edit("dropped guard", call, args[1])
    if name == REDUCE:
        yield from _reduce_edits(call)
    for position in {REDUCE: (4,), GEMM: (3, 4, 9)}.get(name, ()):  # clear; transposes, clear
        if isinstance(args[position], tirx.IntImm):
            flag = tirx.IntImm("bool", not args[position].value)
            yield _edit("flag", call, rebuilt(call, args=[*args[:position], flag, *args[position + 1 :]]))


def _reduce_edits(call: Node) -> Iterator[Edit]:
    """Yield other reductions, and the same along another axis where the result has the right shape."""
    source, target, kind, axis, *rest = call.args
    for other in _OTHER_REDUCTION.get(kind.value, ()):
        yield _edit("other reduction", call, rebuilt(call, args=[source, target, tirx.StringImm(other), axis, *rest]))
    extents, wanted = list(source.args[2:]), list(target.args[2:])
    one = tirx.IntImm("int32", 1)
    for d in range(len(extents)):
        removed, kept = ([*extents[:d], *middle, *extents[d + 1 :]] for middle in ((), (one,)))
        if d != axis.value % len(extents) and (_same_all(removed, wanted) or _same_all(kept, wanted)):
            changed = rebuilt(call, args=[source, target, kind, tirx.IntImm("int32", d), *rest])
            yield _edit("wrong axis", call, changed)
