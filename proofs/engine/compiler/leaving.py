"""Statements that leave a thread, an iteration or a loop, as if statements around what they skip.

``if c: return`` before some statements is those statements under ``not c``, wherever they stand. ``continue`` is the same
within a loop's body. After a ``break`` the iterations that follow do not happen, which the caller has to account for.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ..base.errors import Unsupported
from .nodes import called, children, nodes

NOTHING = tirx.Evaluate(tirx.IntImm("int32", 0))  # a statement that does nothing
RETURN, CONTINUE, BREAKS = "tirx.thread_return", "tirx.continue_loop", ("tl.loop_break", "tirx.break_loop")
_LEAVING = (RETURN, CONTINUE, *BREAKS)


def structured(body: Any) -> Any:
    """Return a statement with nothing in it that leaves a thread or an iteration but ``break``, which ends a loop's body.

    Raises:
        Unsupported: a thread is left within a loop, or in one of two arms of which neither always leaves.
    """
    return _before(body, []) if leaves(body, _LEAVING) else body


def leaves(statement: Any, how: tuple[str, ...] = BREAKS) -> bool:
    """Return whether a call of some names is in a statement; by default whether a loop's body may end the loop."""
    return any(called(n) in how for n in nodes(statement))


def _before(s: Any, rest: list[Any]) -> Any:
    """Return a statement and what comes after it, which is skipped where the statement leaves."""
    if not leaves(s, _LEAVING):
        return _sequence([s, *rest])
    match type(s).__name__:
        case "SeqStmt":
            for child in reversed(list(s.seq)):
                rest = [_before(child, rest)]
            return rest[0]
        case "IfThenElse":
            arms = [s.then_case, s.else_case or NOTHING]
            if len(rest) and not any(map(_always, arms)):
                raise Unsupported(f"an if statement of which an arm may leave or not: {s.condition}")
            then, otherwise = (_before(arm, [] if _always(arm) else rest) for arm in arms)
            return tirx.IfThenElse(s.condition, then, otherwise)
        case "AttrStmt":
            return tirx.AttrStmt(s.node, s.attr_key, s.value, _before(s.body, rest))
        case "SBlock":
            before, after = (s.iter_vars, s.reads, s.writes, s.name_hint), (s.init, s.alloc_buffers, s.match_buffers)
            return tirx.SBlock(*before, _before(s.body, rest), *after, s.annotations)
        case "SBlockRealize" if isinstance(s.predicate, tirx.IntImm) and bool(s.predicate):
            return tirx.SBlockRealize(s.iter_values, s.predicate, _before(s.block, rest))
        case "For" if not leaves(s, (RETURN,)):
            before, after = (s.loop_var, s.min, s.extent, s.kind), (s.thread_binding, s.annotations, s.step)
            return _sequence([tirx.For(*before, _before(s.body, []), *after), *rest])
        case "While" if not leaves(s, (RETURN,)):
            return _sequence([tirx.While(s.condition, _before(s.body, [])), *rest])
        case "Evaluate" if called(s.value) in _LEAVING:
            return s if leaves(s) else NOTHING
    raise Unsupported(f"a thread that is left in {type(s).__name__}")


def _always(s: Any) -> bool:
    """Return whether control never gets beyond a statement."""
    if isinstance(s, tirx.Evaluate):
        return called(s.value) in _LEAVING
    if isinstance(s, tirx.SeqStmt):
        return any(map(_always, s.seq))
    if isinstance(s, tirx.IfThenElse):
        return s.else_case is not None and _always(s.then_case) and _always(s.else_case)
    return isinstance(s, (tirx.AttrStmt, tirx.SBlockRealize, tirx.SBlock)) and all(map(_always, children(s)))


def _sequence(statements: list[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
