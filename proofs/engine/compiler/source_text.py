"""TIR as a programmer would write it, in one line: for names, messages and tables.

It is not trusted: its text is read by people, and no proof looks at it. Where a waiver names a statement by its text, the
verdict lists what is waived; and that a branch is dead, whatever its text, is proved.
"""

from __future__ import annotations

import re
from typing import Any

from tilelang.ir import get_stmt_span, span_to_location
from tvm import arith, tirx

Node = Any  # a tirx.Stmt or a tirx.PrimExpr: TVM's classes have no types

_NUMBER = re.compile(r"T\.(?:b?float|u?int)\d+\(([-+.\de]+)\)")


def text(node: Node) -> str:
    """Return a node as one line of source; a loop or a guard without its body, and numbers without their dtypes."""
    match node:
        case tirx.BufferStore():
            return f"{text(element(node))} = {text(node.value)}"
        case tirx.For():
            stop = arith.Analyzer().simplify(node.min + node.extent)
            return f"for {node.loop_var} in {text(node.min)}:{text(stop)}"
        case tirx.IfThenElse():
            return f"if {text(node.condition)}"
        case tirx.While():
            return f"while {text(node.condition)}"
        case tirx.Bind():
            return f"{node.var} = {text(node.value)}"
        case tirx.Evaluate():
            return text(node.value)
        case tirx.SBlock():
            return f"block {node.name_hint}"
        case tirx.Stmt():
            return type(node).__name__
    source = " ".join(str(node).split())
    return _NUMBER.sub(lambda match: _short(match[1]), source)


def _short(number: str) -> str:
    """Return an integer as it is, a float to the nine digits that tell float32 values apart."""
    return number if number.lstrip("-").isdigit() else f"{float(number):.9g}"


def element(access: Node) -> Node:
    """Return the element that a load reads or a store writes, as a load."""
    return tirx.BufferLoad(access.buffer, list(access.indices))


def printed(node: object) -> str:
    """Return an expression or simple statement as the compiler prints it, without the declarations before it."""
    return str(node).strip().splitlines()[-1].strip()


def describe(site: Any) -> str:
    """Return a node of the IR as a message quotes it: its text, and its source line if it has one."""
    location = span_to_location(get_stmt_span(site)) if isinstance(site, tirx.Stmt) else None
    return f"{text(site)}, {location[0]}:{location[1]}" if location else text(site)
