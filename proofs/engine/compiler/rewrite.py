"""TIR trees as data: the children of a node, and the node rebuilt with one child replaced.

TIR nodes are immutable, so a tree with one change is built from the changed node upwards. Source spans, which TVM's
constructors do not copy, are kept. Loop variables, buffers, annotations and assertions are part of their node and are
never visited.

No error here can make a false theorem: mutants alone are made with it, each of which is proved or refuted as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tilelang.ir import get_stmt_span, set_stmt_span
from tvm import tirx

from ..base.errors import Unsupported
from .source_text import Node

Put = Callable[[Node | None], Node]  # the tree with the argument in a child's place; None deletes a statement

_BINARY = (
    *(tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max),
    *(tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.And, tirx.Or),
)
# For each class the arguments of its constructor, which are also its fields, and those of them that are visited.
_FIELDS: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    tirx.SeqStmt: (("seq",), ("seq",)),
    tirx.For: (
        ("loop_var", "min", "extent", "kind", "body", "thread_binding", "annotations", "step"),
        ("min", "extent", "body"),
    ),
    tirx.While: (("condition", "body"), ("condition", "body")),
    tirx.IfThenElse: (("condition", "then_case", "else_case"), ("condition", "then_case", "else_case")),
    tirx.BufferStore: (("buffer", "value", "indices", "predicate"), ("indices", "value")),
    tirx.Bind: (("var", "value"), ("value",)),
    tirx.Evaluate: (("value",), ("value",)),
    tirx.AttrStmt: (("node", "attr_key", "value", "body"), ("body",)),
    tirx.SBlock: (
        ("iter_vars", "reads", "writes", "name_hint", "body", "init", "alloc_buffers", "match_buffers", "annotations"),
        ("init", "body"),
    ),
    tirx.SBlockRealize: (("iter_values", "predicate", "block"), ("block",)),
    tirx.BufferLoad: (("buffer", "indices", "predicate"), ("indices",)),
    tirx.Call: (("dtype", "op", "args", "annotations"), ("args",)),
    tirx.Cast: (("dtype", "value"), ("value",)),
    tirx.Select: (
        ("condition", "true_value", "false_value"),
        ("condition", "true_value", "false_value"),
    ),
    tirx.Let: (("var", "value", "body"), ("value", "body")),
    tirx.Ramp: (("base", "stride", "lanes"), ("base", "stride")),
    tirx.Broadcast: (("value", "lanes"), ("value",)),
    tirx.Not: (("a",), ("a",)),
    **dict.fromkeys(_BINARY, (("a", "b"), ("a", "b"))),
}
_LEAVES = (
    *(tirx.Var, tirx.SizeVar, tirx.IntImm, tirx.FloatImm, tirx.StringImm),
    *(tirx.AllocBuffer, tirx.DeclBuffer, tirx.AssertStmt),
)


def rebuilt(node: Node, **changes: object) -> Node:
    """Return a node with the named fields changed and its source span kept."""
    fields, _ = _FIELDS[type(node)]
    new = type(node)(*(changes.get(field, getattr(node, field)) for field in fields))
    keep_span(node, new)
    return new


def keep_span(old: Node, new: Node) -> None:
    """Give the statement ``new`` the source span of the statement ``old``."""
    if isinstance(old, tirx.Stmt) and (span := get_stmt_span(old)) is not None:
        set_stmt_span(new, span)


def children(node: Node) -> Iterator[tuple[Node, Put]]:
    """Yield the children of a node in the order of the source, each with the function that puts another in its place.

    Raises:
        Unsupported: the engine does not know the class of the node.
    """
    if type(node) in _LEAVES:
        return
    if type(node) not in _FIELDS:
        raise Unsupported(f"TIR node {type(node).__name__}: {node}")
    for field in _FIELDS[type(node)][1]:
        value = getattr(node, field)
        if field in ("seq", "indices", "args"):
            for position, child in enumerate(value):
                yield child, _putter(node, field, list(value), position)
        elif value is not None:
            yield value, _putter(node, field)


def _putter(node: Node, field: str, items: list[Node] | None = None, position: int = 0) -> Put:
    """Return the function that puts a node into a field, or into one position of a field that is a list."""

    def put(child: Node | None) -> Node:
        if items is None:
            return rebuilt(node, **{field: nothing() if child is None else child})
        others = items[:position] + ([] if child is None else [child]) + items[position + 1 :]
        if field == "seq" and len(others) == 1:  # a SeqStmt of one statement is that statement
            return others[0]
        return rebuilt(node, **{field: others})

    return put


def nothing() -> Node:
    """Return a statement that does nothing."""
    return tirx.Evaluate(tirx.IntImm("int32", 0))
