"""Mutation: the kernel with one small error, for every small error that the operators know.

A proof that still holds of a wrong kernel proves nothing, so each mutant of a proved kernel must be refuted or be shown
to be equivalent. Mutants are made of the PrimFunc that a kernel factory returns, before any pass of the compiler, so
that they go through the same lowering and the same proofs as the kernel that ships.

What is mutated: the index arithmetic, guards, loops, grid and threads of a kernel, its constants, operators, buffers
and stores, the operands of tile operations, the kind, axis and clear flag of a reduction, the transposes and the clear
flag of a gemm, and barriers. What is not: buffer shapes, scopes and dtypes, the extents of a region that a tile
operation works on, pipeline stages and other annotations, assertions and assumptions, and the order of statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import tilelang
from tilelang.ir import get_stmt_span, set_prim_func_span, span_to_location
from tvm import ir, tirx
from tvm.tirx import PrimFunc

from ..compiler.rewrite import Put, children, nothing
from ..compiler.source_text import Node, element, text
from .mutation_expressions import (
    CONSTANTS,
    REGION,
    Edit,
    Scope,
    access_text,
    expression_edits,
    is_scalar_variable,
    op_name,
    same,
)
from .mutation_statements import ASSUME, statement_edits

_LIBRARY = Path(tilelang.__file__).parent
# The calls whose constant arguments are values; of any other call they select what it does.
_OF_VALUES = {"tirx.if_then_else", "tirx.pow", "tirx.shift_left", "tirx.shift_right", "tl.tileop.fill"}
_OF_VALUES |= {"tirx.bitwise_and", "tirx.bitwise_or", "tirx.bitwise_xor"}


class Place(NamedTuple):
    """A statement's text and, where the compiler kept them, its source file and line."""

    text: str
    file: str | None
    line: int | None


@dataclass(frozen=True)
class Mutant:
    """A kernel with one error.

    Args:
        name: unique among the mutants of the kernel: the operator, the source before and after, and the source line,
            or where the compiler kept none, the statement.
        operator: the mutation operator that made it, such as ``"index+1"`` or ``"dropped guard"``.
        site: the statement that was changed, as it was.
        prim_func: the whole mutated function.
    """

    name: str
    operator: str
    site: Place
    prim_func: PrimFunc


class Candidate(NamedTuple):
    """A mutant that is not made yet, nor compared with others: its name, as far as that does not number those alike."""

    name: str
    operator: str
    site: Place
    make: Callable[[], PrimFunc]


def candidates(prim_func: PrimFunc) -> Iterator[Candidate]:
    """Yield every error that the operators know in a PrimFunc, in the order of the source, without making the function.

    Raises:
        Unsupported: the function holds a TIR node that the engine does not know.
    """
    params = tuple(prim_func.buffer_map[p] for p in prim_func.params if p in prim_func.buffer_map)
    site = cache(_site)
    for edit, stmt, make in _in_statement(prim_func.body, _whole(prim_func), Scope(buffers=params)):
        yield Candidate(_name(edit, site(stmt)), edit.operator, site(stmt), make)


def mutants(prim_func: PrimFunc) -> list[Mutant]:
    """Return every mutant of a PrimFunc, as its kernel factory returns it, in the order of the source.

    The list depends on the function alone. Mutants that are structurally equal to the function or to an earlier mutant
    are left out; mutants that merely compute the same are not.

    Raises:
        Unsupported: the function holds a TIR node that the engine does not know.
    """
    is_new = _novelty(prim_func)
    names: Counter[str] = Counter()
    result = []
    for name, operator, site, make in candidates(prim_func):
        if is_new(changed := make()):
            names[name] += 1
            unique = name if names[name] == 1 else f"{name}, occurrence {names[name]}"
            result.append(Mutant(unique, operator, site, changed))
    return result


# the edit, the statement as it was, what makes the function after it
_Found = tuple[Edit, Node, Callable[[], PrimFunc]]


def _in_statement(stmt: Node, put: Put, scope: Scope) -> Iterator[_Found]:
    for edit in statement_edits(stmt, scope):
        if not _assigns_itself(edit.node):  # the same as deleting it
            yield edit, stmt, partial(put, edit.node)
    target = element(stmt) if isinstance(stmt, tirx.BufferStore) else None
    for edit, changed in _in_expressions(stmt, replace(scope, target=target)):
        yield edit, stmt, partial(put, changed)
    inner = _entering(stmt, scope)
    for child, put_child in children(stmt):
        if isinstance(child, tirx.Stmt):
            yield from _in_statement(child, _after(put_child, put), inner)


def _in_expressions(node: Node, scope: Scope) -> Iterator[tuple[Edit, Node]]:
    """Yield the edits of the expressions that a statement or an expression holds, each with the node after it."""
    if isinstance(node, tirx.For):  # its bounds are edited as a whole
        return
    for position, (child, put) in enumerate(children(node)):
        if isinstance(child, tirx.Stmt) or _is_selector(node, position, child):
            continue
        for edit in expression_edits(child, scope):
            changed = put(edit.node)
            if isinstance(child, (tirx.Var, *CONSTANTS)):  # says little without what it stands in
                written = access_text if _is_index(node, position) else text
                edit = replace(edit, before=written(node), after=written(changed))
            if not _assigns_itself(changed):
                yield edit, changed
        for edit, changed in _in_expressions(child, scope):
            if not _assigns_itself(whole := put(changed)):
                yield edit, whole


def _is_index(node: Node, position: int) -> bool:
    """Return whether the child at a position is an index of a load or a store."""
    return isinstance(node, (tirx.BufferLoad, tirx.BufferStore)) and position < len(node.indices)


def _is_selector(node: Node, position: int, child: Node) -> bool:
    """Return whether a child says what a call does rather than what it works on, or selects a scalar variable."""
    if _is_index(node, position):
        return is_scalar_variable(node)
    name = op_name(node)
    if name == ASSUME:
        return True
    if name == REGION:  # the access mode and the extents follow the first element
        return position > 0
    return isinstance(node, tirx.Call) and isinstance(child, CONSTANTS) and name not in _OF_VALUES


def _assigns_itself(node: Node) -> bool:
    return isinstance(node, tirx.BufferStore) and same(node.value, element(node))


def _entering(stmt: Node, scope: Scope) -> Scope:
    """Return what is visible inside a statement."""
    match stmt:
        case tirx.For():
            return replace(scope, loops=(*scope.loops, stmt))
        case tirx.SBlock():
            return replace(scope, buffers=(*scope.buffers, *stmt.alloc_buffers))
        case tirx.SeqStmt():
            allocated = (each.buffer for each in stmt.seq if isinstance(each, tirx.AllocBuffer))
            return replace(scope, buffers=(*scope.buffers, *allocated))
    return scope


def _after(inner: Put, outer: Put) -> Put:
    return lambda node: outer(inner(node))


def _whole(prim_func: PrimFunc) -> Put:
    """Return the function that puts a body into a PrimFunc."""

    def put(body: Node | None) -> Node:
        changed = prim_func.with_body(nothing() if body is None else body)
        if prim_func.span is not None:
            set_prim_func_span(changed, prim_func.span)
        return changed

    return put


def _novelty(original: PrimFunc) -> Callable[[PrimFunc], bool]:
    """Return a test whether a function differs from the original and from every function tested before."""
    seen: dict[int, list[PrimFunc]] = {ir.structural_hash(original): [original]}

    def is_new(prim_func: PrimFunc) -> bool:
        alike = seen.setdefault(ir.structural_hash(prim_func), [])
        if any(ir.structural_equal(prim_func, other) for other in alike):
            return False
        alike.append(prim_func)
        return True

    return is_new


def _site(stmt: Node) -> Place:
    file, line = span_to_location(get_stmt_span(stmt)) or (None, None)
    if file is not None and Path(file).is_relative_to(_LIBRARY):  # T.reduce and others are macros of TileLang's own
        file, line = None, None
    return Place(text(stmt), file, line)


def _name(edit: Edit, site: Place) -> str:
    change = f"{edit.before} -> {edit.after}" if edit.after else edit.before
    if site.line is not None:
        return f"{edit.operator} @ {change}, line {site.line}"
    return f"{edit.operator} @ {change}" + ("" if edit.before == site.text else f", in {site.text}")
