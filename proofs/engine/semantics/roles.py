"""Warps of several roles, as the statements of one program: an order in which they may run.

The threads of a block fall into roles, each with statements of its own, which meet at barriers in shared memory
(mbarriers). A role is a list of statements with at most one sequential loop in it, of the same range in every role. Run in
turn, each until a barrier stops it, the roles execute their statements in some order. If every two accesses that conflict
are ordered by barriers, which is the business of layer 1, any other order that the barriers admit has the same results.

The order is found by counting: iteration by iteration for the first ones, and then by induction, as the state of the
barriers repeats itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tilelang  # noqa: F401  (only then is the tvm that it bundles importable)
from tvm import arith, ir, tirx

from ..base.errors import Unsupported
from ..compiler.instructions import does, names

MEETING = names("arrive", "copied", "wait")
_SERIAL = 0  # tirx.ForKind
_TRIED = 4  # iterations: twice as many as a phase has parities

Turn = Sequence[Any]  # statements of one role
Barrier = tuple[Any, int]  # its array and its number


class Role(NamedTuple):
    """How many threads have a role; what they do before, in and after their loop; and the loop, if there is one."""

    threads: int
    before: Sequence[Any]
    inside: Sequence[Any]
    after: Sequence[Any]
    loop: Any | None


class Turns(NamedTuple):
    """The turns of all roles in an order in which they may run: before, in an iteration of, and after the loops."""

    before: Sequence[Turn]
    inside: Sequence[Turn]
    after: Sequence[Turn]
    loops: Sequence[Any]


def split(statement: Any, is_thread: Callable[[Any], bool], threads: int) -> list[Role]:
    """Return the roles into which a statement splits the threads of a block; none if it does not."""
    bodies: list[tuple[int, Any]] = []
    begin = 0
    while isinstance(statement, tirx.IfThenElse) and statement.else_case is not None:
        condition = statement.condition
        bounded = isinstance(condition, tirx.LT) and is_thread(condition.a)
        if not bounded or not isinstance(condition.b, tirx.IntImm):
            break
        end = int(condition.b)
        if not begin < end < threads:
            raise Unsupported(f"a role of the threads from {begin} to {end} of {threads}")
        bodies.append((end - begin, statement.then_case))
        begin, statement = end, statement.else_case
    if not any(meets(body) for _, body in bodies):
        return []
    return [_role(count, body) for count, body in [*bodies, (threads - begin, statement)]]


def take_turns(roles: Sequence[Role], counts: Mapping[Any, Sequence[int]]) -> Turns:
    """Return an order of the roles' statements.

    Args:
        roles: the roles.
        counts: how many threads arrive at each barrier of an array in a phase, by the array's data.

    Raises:
        Unsupported: the roles wait for one another for ever, a barrier is met under a condition, loops differ in their
            range, or what a barrier has seen does not repeat from iteration to iteration.
    """
    loops = [role.loop for role in roles if role.loop is not None]
    if any(not ir.structural_equal([x.min, x.extent], [loops[0].min, loops[0].extent]) for x in loops):
        raise Unsupported(f"loops of roles of different ranges: {', '.join(str(loop.extent) for loop in loops)}")
    barriers = _Barriers(counts)
    before = barriers.run([(r.threads, r.before) for r in roles])
    iterations: list[list[Turn]] = []
    for i in range(_TRIED if loops else 0):
        seen, index = barriers.arrived.copy(), {loop.loop_var: loop.min + i for loop in loops}
        iterations.append(barriers.run([(r.threads, r.inside) for r in roles], index))
        for barrier, count in (barriers.arrived - seen).items():
            if count != barriers.count(barrier):
                raise Unsupported(f"a barrier of {barriers.count(barrier)} arrivals sees {count} in an iteration")
    if any(order != iterations[0] for order in iterations):
        raise Unsupported("roles that meet in another order in a later iteration")
    if _met(s for r in roles for s in r.inside) & _met(s for r in roles for s in (*r.before, *r.after)):
        raise Unsupported("a barrier that is met in a loop and outside")
    after = barriers.run([(r.threads, r.after) for r in roles])
    return Turns(before, iterations[0] if iterations else [], after, loops)


class _Barriers:
    """How many threads have arrived at each barrier.

    Args:
        counts: how many end a phase, for each barrier of an array.
    """

    def __init__(self, counts: Mapping[Any, Sequence[int]]) -> None:
        self._counts, self.arrived = counts, Counter[Barrier]()

    def count(self, barrier: Barrier) -> int:
        """Return how many arrivals end a phase."""
        data, number = barrier
        if data not in self._counts:
            raise Unsupported(f"a barrier {data.name} that is not initialised")
        return int(self._counts[data][number])

    def run(self, roles: Iterable[tuple[int, Turn]], variables: Mapping[Any, Any] = {}) -> list[Turn]:
        """Run lists of statements in turn to their ends; return for each turn what is no barrier."""
        known = dict(variables)
        result: list[Turn] = []
        left = [(threads, list(statements)) for threads, statements in roles]
        while any(statements for _, statements in left):
            stuck = True
            for threads, statements in left:
                turn = []
                while statements and self._passes(statements[0], threads, known):
                    statement, stuck = statements.pop(0), False
                    if isinstance(statement, tirx.Bind):
                        known[statement.var] = tirx.stmt_functor.substitute(statement.value, known)
                    if not _meeting(statement):
                        turn.append(statement)
                result += [turn] if turn else []
            if stuck:
                raise Unsupported(f"roles that wait for one another for ever: {next(s[0] for _, s in left if s)}")
        return result

    def _passes(self, statement: Any, threads: int, variables: Mapping[Any, Any]) -> bool:
        """Return whether a role gets past a statement now; if so, its arrival counts."""
        if not _meeting(statement):
            return True
        barrier, call = _barrier(statement), statement.value
        if does(str(call.op.name)) == "wait":
            parity = arith.Analyzer().simplify(tirx.stmt_functor.substitute(call.args[1], variables))
            if not isinstance(parity, tirx.IntImm):
                raise Unsupported(f"a wait for a phase that is not known: {parity}")
            return self.arrived[barrier] // self.count(barrier) % 2 != int(parity)
        self.arrived[barrier] += threads
        return True


def _role(threads: int, body: Any) -> Role:
    statements = list(_flat(body))
    at = [n for n, s in enumerate(statements) if isinstance(s, tirx.For) and int(s.kind) == _SERIAL and meets(s)]
    if len(at) > 1:
        raise Unsupported("a role with more than one loop over barriers")
    place, loop = (at[0], statements[at[0]]) if at else (len(statements), None)
    parts = statements[:place], [] if loop is None else list(_flat(loop.body)), statements[place + 1 :]
    for statement in (s for part in parts for s in part):
        if not _meeting(statement) and meets(statement):
            raise Unsupported(f"a barrier between roles under a condition: {statement}")
    return Role(threads, *parts, loop)


def _flat(statement: Any) -> Iterator[Any]:
    """Yield the statements of a sequence, or the one statement that it is."""
    if isinstance(statement, tirx.SeqStmt):
        for part in statement.seq:
            yield from _flat(part)
    else:
        yield statement


def _meeting(statement: Any) -> bool:
    """Return whether it is an arrival at a barrier or a wait."""
    return isinstance(statement, tirx.Evaluate) and _is_meeting(statement.value)


def _is_meeting(node: Any) -> bool:
    return isinstance(node, tirx.Call) and getattr(node.op, "name", "") in MEETING


def meets(statement: Any) -> bool:
    """Return whether a barrier between roles is in a statement."""
    found: list[bool] = []
    tirx.stmt_functor.post_order_visit(statement, lambda node: found.append(_is_meeting(node)))
    return any(found)


def _met(statements: Iterable[Any]) -> set[Barrier]:
    """Return the barriers at which some of the statements arrive or wait."""
    return {_barrier(s) for s in statements if _meeting(s)}


def _barrier(statement: Any) -> Barrier:
    barrier = statement.value.args[0]
    if not isinstance(barrier, tirx.BufferLoad) or not isinstance(barrier.indices[0], tirx.IntImm):
        raise Unsupported(f"a barrier whose number is not constant: {statement}")
    return barrier.buffer.data, int(barrier.indices[0])
