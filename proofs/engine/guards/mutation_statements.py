"""Mutation operators on statements: stores, barriers and tile operations deleted; loops, guards, launches changed."""

from __future__ import annotations

from collections.abc import Iterator

from tvm import tirx

from ..compiler.rewrite import rebuilt
from ..compiler.source_text import Node, element, text
from .mutation_expressions import Edit, Scope, access_edits, is_integer, moved, op_name, same

_BARRIER = "tirx.tvm_storage_sync"
ASSUME = "tirx.assume"
LAUNCH = "tl.launch_threads"  # the annotation of a block that holds its numbers of threads


def statement_edits(stmt: Node, scope: Scope) -> Iterator[Edit]:
    """Yield the errors of a statement itself, not those of the expressions and statements in it."""
    match stmt:
        case tirx.BufferStore():
            yield _deleted_store(stmt)
            yield from access_edits(stmt, scope)
        case tirx.Evaluate() if op_name(stmt.value) == _BARRIER:
            yield Edit("dropped barrier", text(stmt), "", None)
        case tirx.Evaluate() if op_name(stmt.value) not in ("", ASSUME):
            yield Edit("dropped statement", text(stmt), "", None)
        case tirx.Bind() if is_integer(stmt.value) and op_name(stmt.value) != "tl.launch_thread_idx":
            for step in (1, -1):
                changed = rebuilt(stmt, value=moved(stmt.value, step))
                yield Edit(f"index{step:+}", text(stmt), text(changed), changed)
        case tirx.For():
            yield from _loop_edits(stmt)
        case tirx.IfThenElse():
            yield from _guard_edits(stmt)
        case tirx.SBlock() if LAUNCH in stmt.annotations:
            yield from _thread_edits(stmt)


def _deleted_store(store: Node) -> Edit:
    """Return the deletion of a store; that of ``x = x * y`` is called a dropped rescale."""
    target, value = element(store), store.value
    rescale = isinstance(value, (tirx.Mul, tirx.Div)) and (same(value.a, target) or same(value.b, target))
    return Edit("dropped rescale" if rescale else "dropped statement", text(store), "", None)


def _loop_edits(loop: Node) -> Iterator[Edit]:
    """Yield one iteration more and fewer, at the end and at the start; a grid one block larger and smaller."""
    grid = loop.thread_binding is not None
    extents = [loop.extent + 1, loop.extent - 1]
    changes: list[tuple[str, dict[str, object]]] = [("grid" if grid else "loop end", {"extent": e}) for e in extents]
    if (floor := _floor_of_ceil(loop.extent)) is not None:
        changes.append(("floor for ceil", {"extent": floor}))
    if not grid:
        changes.append(("loop start", {"min": loop.min + 1, "extent": loop.extent - 1}))
        changes.append(("loop start", {"min": loop.min - 1, "extent": loop.extent + 1}))
    for operator, fields in changes:
        changed = rebuilt(loop, **fields)
        yield Edit(operator, text(loop), text(changed), changed)


def _floor_of_ceil(extent: Node) -> Node | None:
    """Return ``x // c`` for an extent ``(x + c - 1) // c``."""
    match extent:
        case tirx.FloorDiv(a=tirx.Sub(a=tirx.Add(a=x, b=added), b=tirx.IntImm(value=1)), b=divisor):
            return tirx.FloorDiv(x, divisor) if same(added, divisor) else None
        case tirx.FloorDiv(a=tirx.Add(a=x, b=tirx.IntImm(value=added)), b=tirx.IntImm(value=divisor)):
            return tirx.FloorDiv(x, extent.b) if added == divisor - 1 else None
    return None


def _guard_edits(stmt: Node) -> Iterator[Edit]:
    before = text(stmt)
    yield Edit("inverted guard", before, f"if not ({stmt.condition})", rebuilt(stmt, condition=_negation(stmt)))
    yield Edit("dropped guard", before, "always", stmt.then_case)
    if stmt.else_case is not None:
        yield Edit("dropped guard", before, "never", stmt.else_case)


def _negation(stmt: Node) -> Node:
    condition = stmt.condition
    return tirx.EQ(condition, tirx.IntImm(condition.dtype, 0)) if is_integer(condition) else tirx.Not(condition)


def _thread_edits(block: Node) -> Iterator[Edit]:
    """Yield a block of one thread more and fewer, along each dimension that it has."""
    threads = list(block.annotations[LAUNCH])
    for d, count in enumerate(threads):
        for step in (1, -1) if int(count) > 1 else ():
            changed = [*threads[:d], count + step, *threads[d + 1 :]]
            annotations = {**dict(block.annotations.items()), LAUNCH: changed}
            before, after = (f"threads {[int(t) for t in each]}" for each in (threads, changed))
            yield Edit("threads", before, after, rebuilt(block, annotations=annotations))
