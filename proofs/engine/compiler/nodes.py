"""The nodes of the compiler's IR: which are inside another one, what a call calls, what a statement may change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx


def nodes(root: Any) -> list[Any]:
    """Return all statements and expressions in a node, each after those in it, and the node itself last."""
    found: list[Any] = []
    tirx.stmt_functor.post_order_visit(root, found.append)
    return found


def children(statement: Any) -> list[Any]:
    """Return the statements directly inside a statement."""
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


def statements(root: Any) -> Iterator[Any]:
    """Yield a statement and all statements in it, each before those in it."""
    yield root
    for child in children(root):
        yield from statements(child)


def called(node: Any) -> str:
    """Return the name of the operator that a node calls; "" if it calls none."""
    return str(getattr(getattr(node, "op", None), "name", ""))


def passed(root: Any) -> list[Any]:
    """Return the data pointers that the calls in a node are given."""
    arguments = [(called(call), a) for call in nodes(root) if isinstance(call, tirx.Call) for a in call.args]
    elements = [a.buffer.data for name, a in arguments if name == "tirx.address_of" and isinstance(a, tirx.BufferLoad)]
    return elements + [a for _, a in arguments if isinstance(a, tirx.Var) and str(a.dtype) == "handle"]


def stored(root: Any) -> list[Any]:
    """Return the buffers that the stores in a node write."""
    return [node.buffer for node in nodes(root) if isinstance(node, tirx.BufferStore)]
