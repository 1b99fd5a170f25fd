"""The programs of a block's roles as one, in an order in which they may run.

Each role has statements of its own, with at most one sequential loop among them that meets the others at barriers in shared
memory (mbarriers). Run in turn, each until it waits for an arrival that is still to come, the roles execute all their
statements once: those before the loops, those of each iteration, those after. All of that may be one round of several: the
body of another sequential loop of each role. Rounds then run one after another.

The room ``order`` shows of the kernel that is compiled what this rests on: that a barrier that is met in the loops has one
phase for each iteration; that a wait is for the phase of its iteration, or of the one before, as it is in the first one of
the first round; and that accesses which conflict are ordered, so that any other order that the barriers admit has the same
results.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tvm import arith, ir, tirx

from ..base.errors import Unsupported
from ..compiler.instructions import does, names
from ..compiler.nodes import called, nodes

MEETING = names("arrive", "copied", "wait")
_SERIAL = 0  # tirx.ForKind
_WRITTEN = 2  # a bit of what a tile operation does with a region
Key = tuple[Any, int]  # a barrier: its array and its number


class Program(NamedTuple):
    """What a role does before, in an iteration of, and after its loop; and the loop, if there is one.

    ``rounds`` is the loop around all that, if there is one, and ``prelude`` what comes before it.
    """

    parts: tuple[Sequence[Any], Sequence[Any], Sequence[Any]]
    loop: Any | None
    rounds: Any | None = None
    prelude: Sequence[Any] = ()


class Foreign(Unsupported):
    """Raised where roles use registers of one name: each thread has its own, and those of one role may not be filled."""

    kind = "uninitialised"


def programs(statement: Any, names: Collection[Any], threads: int) -> list[Program]:
    """Return the programs of the roles into which a statement splits the threads of a block; none if it does not.

    ``names`` are the variables that hold the number of a thread.
    """
    bodies: list[Any] = []
    begin = 0
    while isinstance(statement, tirx.IfThenElse) and statement.else_case is not None:
        condition = statement.condition
        if not (isinstance(condition, tirx.LT) and condition.a in names and isinstance(condition.b, tirx.IntImm)):
            break
        end = int(condition.b)
        if not begin < end < threads:
            raise Unsupported(f"a role of the threads from {begin} to {end} of {threads}")
        bodies.append(statement.then_case)
        begin, statement = end, statement.else_case
    return [_program(body) for body in (*bodies, statement)] if any(map(meets, bodies)) else []


def take_turns(roles: Sequence[Program]) -> list[list[list[Any]]]:
    """Return the roles' statements in an order in which they may run: before, in an iteration of, and after the loops.

    Each turn of a role is a list of its own. Unsupported are roles that wait for one another for ever, waits for a phase that
    is not known, barriers under a condition, loops of different ranges, and registers that several roles use. Those that a
    role fills hold nothing for the threads of the whole block afterwards (``filled``).
    """
    _check_registers(roles)
    loops = [role.loop for role in roles if role.loop is not None]
    rounds = [role.rounds for role in roles if role.rounds is not None]
    if rounds and len(rounds) < len(roles):
        raise Unsupported("roles of which some have rounds")
    first = {loop.loop_var: loop.min for loop in rounds}
    _require_alike(rounds, {})
    _require_alike(loops, {loop.loop_var: rounds[0].loop_var for loop in rounds})
    first |= {loop.loop_var: tirx.stmt_functor.substitute(loop.min, first) for loop in loops}
    met = _arrivals(part for role in roles for part in role.parts)
    return [list(_turns([role.parts[part] for role in roles], first, met)) for part in range(3)]


def _require_alike(loops: Sequence[Any], names: Mapping[Any, Any]) -> None:
    """Refuse loops of different ranges, where variables go by other names."""
    for loop in loops[1:]:
        for a, b in ((loop.min, loops[0].min), (loop.extent, loops[0].extent)):
            if not ir.structural_equal(*(tirx.stmt_functor.substitute(x, names) for x in (a, b))):
                raise Unsupported(f"loops of roles of different ranges: {loop.extent}, {loops[0].extent}")


def _check_registers(roles: Sequence[Program]) -> None:
    """Refuse registers of one name that several roles use: what one role fills, the threads of another do not have."""
    users: dict[Any, int] = {}
    for number, role in enumerate(roles):
        for buffer, _ in _registers(role):
            if users.setdefault(buffer.data, number) != number:
                raise Foreign(f"registers that several roles use: {buffer.name}")


def filled(roles: Sequence[Program]) -> set[Any]:
    """Return the data pointers of the registers that a role fills: afterwards not all threads of the block have that."""
    return {buffer.data for role in roles for buffer, written in _registers(role) if written}


def changed(roles: Sequence[Program]) -> set[Any]:
    """Return the data pointers of what a round writes, registers and memory alike."""
    return {buffer.data for role in roles for buffer, written in _used(role) if written}


def _registers(role: Program) -> Iterator[tuple[Any, bool]]:
    """Yield the registers that a role uses, and whether they are filled there."""
    yield from (use for use in _used(role) if use[0].scope().startswith("local"))


def _used(role: Program) -> Iterator[tuple[Any, bool]]:
    """Yield the buffers that a role uses, and whether they are written there."""
    for node in (node for part in (role.prelude, *role.parts) for statement in part for node in nodes(statement)):
        region = called(node) == "tl.region"
        if region or isinstance(node, tirx.BufferLoad | tirx.BufferStore):
            buffer = node.args[0].buffer if region else node.buffer
            written = int(node.args[1]) & _WRITTEN if region else isinstance(node, tirx.BufferStore)
            yield buffer, bool(written)


def _turns(parts: Sequence[Sequence[Any]], first: Mapping[Any, Any], met: Collection[Key]) -> Iterator[list[Any]]:
    """Run one part of all programs, in turn, to its end, and yield of each turn what is no barrier.

    A wait for the present phase, which is the first one and of parity 0, ends when all have arrived that do so.
    """

    def stopped(statement: Any) -> bool:
        waits = _meeting(statement) and does(called(statement.value)) == "wait"
        if not waits:
            return False
        parity = arith.Analyzer().simplify(tirx.stmt_functor.substitute(statement.value.args[1], known))
        if not isinstance(parity, tirx.IntImm):
            raise Unsupported(f"a wait for a phase that is not known: {parity}")
        key = _key(statement)
        return int(parity) == 0 and (key in _arrivals(left) or key not in met)

    left, known = list(map(list, parts)), dict(first)
    while any(left):
        before = sum(map(len, left))
        for statements in left:
            turn: list[Any] = []
            while statements and not stopped(statements[0]):
                statement = statements.pop(0)
                if isinstance(statement, tirx.Bind):
                    known[statement.var] = tirx.stmt_functor.substitute(statement.value, known)
                turn += [] if _meeting(statement) else [statement]
            if turn:
                yield turn
        if sum(map(len, left)) == before:
            raise Unsupported(f"roles that wait for one another for ever: {next(s[0] for s in left if s)}")


def _arrivals(parts: Iterable[Iterable[Any]]) -> set[Key]:
    """Return the barriers that are arrived at in some statements."""
    return {_key(s) for part in parts for s in part if _meeting(s) and does(called(s.value)) != "wait"}


def _program(body: Any) -> Program:
    before, loop, after = _around(body)
    first, inner, last = _around(loop.body) if loop is not None else ([], None, [])
    if inner is None:
        return Program((_plain(before), _plain(first), _plain(after)), loop)
    if any(map(meets, before)) or after:
        raise Unsupported("a role with barriers, or anything else, outside its rounds")
    return Program((_plain(first), _plain(_flat(inner.body)), _plain(last)), inner, loop, before)


def _around(body: Any) -> tuple[list[Any], Any | None, list[Any]]:
    """Return what comes before, and what after, the loop over barriers, and that loop; all is before one that there is not."""
    statements = _flat(body)
    at = [n for n, s in enumerate(statements) if isinstance(s, tirx.For) and int(s.kind) == _SERIAL and meets(s)]
    if len(at) > 1:
        raise Unsupported("a role with more than one loop over barriers")
    return (statements[: at[0]], statements[at[0]], statements[at[0] + 1 :]) if at else (statements, None, [])


def _flat(statement: Any) -> list[Any]:
    return [s for part in statement.seq for s in _flat(part)] if isinstance(statement, tirx.SeqStmt) else [statement]


def _plain(statements: Any) -> list[Any]:
    """Return the statements, in none of which a barrier is hidden."""
    result = list(statements)
    for statement in result:
        if not _meeting(statement) and meets(statement):
            raise Unsupported(f"a barrier between roles under a condition: {statement}")
    return result


def _meeting(statement: Any) -> bool:
    """Return whether it is an arrival at a barrier or a wait."""
    return isinstance(statement, tirx.Evaluate) and called(statement.value) in MEETING


def meets(statement: Any) -> bool:
    """Return whether a barrier between roles is in a statement."""
    return any(called(node) in MEETING for node in nodes(statement))


def _key(statement: Any) -> Key:
    barrier = statement.value.args[0]
    if not isinstance(barrier, tirx.BufferLoad) or not isinstance(barrier.indices[0], tirx.IntImm):
        raise Unsupported(f"a barrier whose number is not constant: {statement}")
    return barrier.buffer.data, int(barrier.indices[0])
