"""Warps of several roles, as the statements of one program: an order in which they may run.

The threads of a block fall into roles, each with statements of its own, which meet at barriers in shared memory
(mbarriers). A role is a list of statements with at most one sequential loop in it, of the same range in every role. Run in
turn, each until a barrier stops it, the roles execute their statements in some order. If every two accesses that conflict
are ordered by barriers, which is the business of layer 1, any other order that the barriers admit has the same results.

The order is found by counting: iteration by iteration for the first ones, and then by induction, as the state of the
barriers repeats itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from tvm import arith, ir, tirx

from ..base.errors import Unsupported
from ..compiler.instructions import does, names
from ..compiler.nodes import called, nodes

MEETING = names("arrive", "copied", "wait")
_SERIAL = 0  # tirx.ForKind
_BEFORE, _INSIDE, _AFTER = range(3)  # the loop
_TRIED = 4  # iterations: twice as many as a phase has parities

Key = tuple[Any, int]
"""A barrier: its array and its number."""


@dataclass(frozen=True)
class Role:
    """One role.

    Attributes:
        threads: how many have it.
        parts: what it does before, in and after its loop.
        loop: the loop, if there is one.
    """

    threads: int
    parts: Sequence[Sequence[Any]]
    loop: Any | None


class Turns(NamedTuple):
    """The statements of all roles in an order in which they may run: before, in an iteration of, and after the loops.

    Each turn of a role is a list of its own.
    """

    before: Sequence[Sequence[Any]]
    inside: Sequence[Sequence[Any]]
    after: Sequence[Sequence[Any]]
    loops: Sequence[Any]


def split(statement: Any, is_thread: Callable[[Any], bool], threads: int) -> list[Role]:
    """The roles into which a statement splits the threads of a block; none if it does not."""
    bodies: list[tuple[int, Any]] = []
    begin = 0
    while isinstance(statement, tirx.IfThenElse) and statement.else_case is not None:
        condition = statement.condition
        if not (isinstance(condition, tirx.LT) and is_thread(condition.a) and isinstance(condition.b, tirx.IntImm)):
            break
        end = int(condition.b)
        if not begin < end < threads:
            raise Unsupported(f"a role of the threads from {begin} to {end} of {threads}")
        bodies.append((end - begin, statement.then_case))
        begin, statement = end, statement.else_case
    if not bodies or not any(meets(body) for _, body in bodies):
        return []
    return [_role(count, body) for count, body in [*bodies, (threads - begin, statement)]]


def take_turns(roles: Sequence[Role], counts: Mapping[Any, Sequence[int]]) -> Turns:
    """An order of the roles' statements.

    Args:
        roles: the roles.
        counts: how many threads arrive at each barrier of an array in a phase, by the array's data.

    Raises:
        Unsupported: the roles wait for one another for ever, a barrier is met under a condition, loops differ in their
            range, or what a barrier has seen does not repeat from iteration to iteration.
    """
    loops = [role.loop for role in roles if role.loop is not None]
    for loop in loops[1:]:
        if not all(ir.structural_equal(a, b) for a, b in ((loop.min, loops[0].min), (loop.extent, loops[0].extent))):
            raise Unsupported(f"loops of roles of different ranges: {loop.extent}, {loops[0].extent}")
    barriers = _Barriers(counts)
    before = barriers.run(roles, _BEFORE)
    iterations = []
    for i in range(_TRIED if loops else 0):
        seen = dict(barriers.arrived)
        iterations.append(barriers.run(roles, _INSIDE, {r.loop.loop_var: r.loop.min + i for r in roles if r.loop}))
        for key, count in barriers.arrived.items():
            if (now := count - seen.get(key, 0)) not in (0, barriers.count(key)):
                raise Unsupported(f"a barrier of {barriers.count(key)} arrivals sees {now} in an iteration")
    if any(not _same(order, iterations[0]) for order in iterations[1:]):
        raise Unsupported("roles that meet in another order in a later iteration")
    met = [{_key(s) for r in roles for s in r.parts[part] if _meeting(s)} for part in (_BEFORE, _INSIDE, _AFTER)]
    if barriers.arrived.keys() & met[_INSIDE] & (met[_BEFORE] | met[_AFTER]):
        raise Unsupported("a barrier that is met in a loop and outside")
    return Turns(before, iterations[0] if iterations else [], barriers.run(roles, _AFTER), loops)


@dataclass
class _Barriers:
    """How many threads have arrived at each barrier."""

    counts: Mapping[Any, Sequence[int]]
    arrived: dict[Key, int] = field(default_factory=dict)

    def count(self, key: Key) -> int:
        """How many arrivals end a phase."""
        for data, counts in self.counts.items():
            if data.same_as(key[0]):
                return int(counts[key[1]])
        raise Unsupported(f"a barrier {key[0].name} that is not initialised")

    def run(self, roles: Sequence[Role], part: int, variables: Mapping[Any, Any] = {}) -> list[list[Any]]:
        """Run a part of all roles, in turn, to its end; of each turn what is no barrier."""
        result: list[list[Any]] = []
        known = dict(variables)
        left = [(role.threads, list(role.parts[part])) for role in roles]
        while any(statements for _, statements in left):
            progress = False
            for threads, statements in left:
                turn: list[Any] = []
                while statements and self._passes(statements[0], threads, known):
                    progress, statement = True, statements.pop(0)
                    if isinstance(statement, tirx.Bind):
                        known[statement.var] = tirx.stmt_functor.substitute(statement.value, known)
                    turn += [] if _meeting(statement) else [statement]
                result += [turn] if turn else []
            if not progress:
                raise Unsupported(f"roles that wait for one another for ever: {next(s[0] for _, s in left if s)}")
        return result

    def _passes(self, statement: Any, threads: int, variables: dict[Any, Any]) -> bool:
        """Whether a role gets past a statement now; if so, its arrival counts."""
        if not _meeting(statement):
            return True
        key, name = _key(statement), str(statement.value.op.name)
        if does(name) == "wait":
            parity = arith.Analyzer().simplify(tirx.stmt_functor.substitute(statement.value.args[1], variables))
            if not isinstance(parity, tirx.IntImm):
                raise Unsupported(f"a wait for a phase that is not known: {parity}")
            return self.arrived.get(key, 0) // self.count(key) % 2 != int(parity)
        self.arrived[key] = self.arrived.get(key, 0) + threads
        return True


def _role(threads: int, body: Any) -> Role:
    statements = list(_flat(body))
    at = [n for n, s in enumerate(statements) if isinstance(s, tirx.For) and int(s.kind) == _SERIAL and meets(s)]
    if len(at) > 1:
        raise Unsupported("a role with more than one loop over barriers")
    if not at:
        return Role(threads, (_plain(statements), [], []), None)
    before, loop, after = statements[: at[0]], statements[at[0]], statements[at[0] + 1 :]
    return Role(threads, (_plain(before), _plain(_flat(loop.body)), _plain(after)), loop)


def _flat(statement: Any) -> Iterator[Any]:
    if isinstance(statement, tirx.SeqStmt):
        for part in statement.seq:
            yield from _flat(part)
    else:
        yield statement


def _plain(statements: Any) -> list[Any]:
    """The statements, in none of which a barrier is hidden."""
    result = list(statements)
    for statement in result:
        if not _meeting(statement) and meets(statement):
            raise Unsupported(f"a barrier between roles under a condition: {statement}")
    return result


def _meeting(statement: Any) -> bool:
    """Whether it is an arrival at a barrier or a wait."""
    return isinstance(statement, tirx.Evaluate) and called(statement.value) in MEETING


def meets(statement: Any) -> bool:
    """Whether a barrier between roles is in a statement."""
    return any(called(node) in MEETING for node in nodes(statement))


def _key(statement: Any) -> Key:
    barrier = statement.value.args[0]
    if not isinstance(barrier, tirx.BufferLoad) or not isinstance(barrier.indices[0], tirx.IntImm):
        raise Unsupported(f"a barrier whose number is not constant: {statement}")
    return barrier.buffer.data, int(barrier.indices[0])


def _same(a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> bool:
    pairs = zip_longest(chain(*a), chain(*b))
    return [len(turn) for turn in a] == [len(turn) for turn in b] and all(x.same_as(y) for x, y in pairs)
