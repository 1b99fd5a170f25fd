"""How the index of a write moves over a tensor: which tile, and where in the tile.

An index is split, dimension by dimension, into a part that depends on *outer* variables only (block indices, loops
whose trip count varies) and a part that depends on *inner* ones (threads, lanes, loops of fixed length). The first says
which tile is written, the second where in the tile.

No error here can make a false theorem: what is found is a guess, and coverage.py proves every property of it that it
relies on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import z3

from ..access.instances import constants, symbols
from ..access.reading import HELD
from ..access.trace import Access, Context, Division, Variable
from ..base.errors import Unsupported

_POINTS = 2**22  # the largest tile that is enumerated
_ROLES = 16  # values that are tried of a block index, or of a remainder, that says what the block does
Choice = tuple[z3.ArithRef, z3.ArithRef]  # a variable, and its value


@dataclass(frozen=True)
class Tiling:
    """The tile of a write.

    Attributes:
        inner: the variables that choose the element in the tile; all others choose the tile.
        base: for each dimension, the part of the index that the tile decides, in outer variables and sizes.
        within: for each dimension, the part that the inner variables decide.
        low: for each dimension, the smallest value of that part.
        edge: for each dimension, the number of values from the smallest to the largest.
        local_guards: the guards that depend on inner variables alone; of threads that store the same, that one does.
    """

    inner: tuple[Variable, ...]
    base: tuple[z3.ArithRef, ...]
    within: tuple[z3.ArithRef, ...]
    low: tuple[int, ...]
    edge: tuple[int, ...]
    local_guards: tuple[z3.BoolRef, ...]

    @property
    def volume(self) -> int:
        """The number of elements of the tile."""
        return math.prod(self.edge)


def tiling(access: Access) -> Tiling:
    """Return the tile of a write.

    Raises:
        Unsupported: an inner variable has no fixed range, or a tile is too large to enumerate.
    """
    variables = access.context.variables
    chosen = elected(access.context)
    inner = tuple(v for v in variables if v.kind != "block" and _fixed(v) and not any(x.eq(v.term) for x, _ in chosen))
    outer = tuple(v for v in variables if v not in inner)
    if any(v.kind == "thread" and not _fixed(v) for v in outer):
        raise Unsupported("a number of threads that varies")
    zero = [(v.term, z3.IntVal(0)) for v in outer]
    corner = [(v.term, v.low) for v in inner]
    base = tuple(z3.simplify(z3.substitute(i, *corner)) for i in access.indices)
    at_zero = [z3.substitute(i, *zero) for i in access.indices]
    within = tuple(z3.simplify(i - z3.substitute(i, *corner)) for i in at_zero)
    local = _local(access.context.guards, {v.name for v in inner})
    grid = _Grid(inner)
    passing = grid.passing(local)
    values = [grid.evaluate(w)[passing] for w in within]
    if not passing.any():
        raise Unsupported(f"no thread passes the guards of {access.context.site}")
    low = tuple(int(v.min()) for v in values)
    edge = tuple(int(v.max() - v.min()) + 1 for v in values)
    held = [c.decl().name() for c in constants(access.depends or ()) if c.decl().name().startswith(HELD)]
    if access.depends is not None and {*held} <= {*access.common}:
        place = np.ravel_multi_index([v - v.min() for v in values], edge) if values else np.zeros(passing.sum(), int)
        for v in (v for v in inner if v.kind == "thread"):
            local += _first(v, grid.evaluate(v.term)[passing], place)
    return Tiling(inner, base, within, low, edge, local)


def elected(context: Context) -> list[Choice]:
    """Return the thread that a guard names by a value which the thread itself does not enter, with that value."""
    threads = [v.term for v in context.variables if v.kind == "thread"]
    named = [g.children() for g in context.guards if z3.is_eq(g) and not z3.is_int_value(g.arg(1))]
    return [(x, value) for x, value in named if any(x.eq(t) for t in threads) and not constants([value])]


def _first(thread: Variable, column: npt.NDArray[np.int64], place: npt.NDArray[np.int64]) -> tuple[z3.BoolRef, ...]:
    """Return the guard of the first threads that hit, all together, every place that is hit; nothing if that is all."""
    _, where = np.unique(place, return_inverse=True)
    first = np.full(where.max() + 1, column.max())
    np.minimum.at(first, where, column)
    return () if first.max() == column.max() else (thread.term <= int(first.max()),)


def _fixed(v: Variable) -> bool:
    return v.extent is not None and z3.is_int_value(z3.simplify(v.extent)) and z3.is_int_value(z3.simplify(v.low))


def _local(guards: Sequence[z3.BoolRef], inner: set[str]) -> tuple[z3.BoolRef, ...]:
    """Return the guards, and the members of conjunctions among them, that mention inner variables only."""
    flat = [part for guard in guards for part in (guard.children() if z3.is_and(guard) else [guard])]
    return tuple(g for g in flat if {d.name() for d in symbols([g])} <= inner)


class _Grid:
    """All assignments to some variables of fixed range, as columns of numbers."""

    def __init__(self, variables: Sequence[Variable]) -> None:
        ranges = [(_number(v.low), _number(v.count)) for v in variables]
        self.count = math.prod(extent for _, extent in ranges)
        if self.count > _POINTS:
            raise Unsupported(f"a tile of {self.count} writes")
        axes = np.meshgrid(*(np.arange(low, low + extent) for low, extent in ranges), indexing="ij")
        self._columns = {v.name: a.reshape(-1) for v, a in zip(variables, axes, strict=True)}

    def evaluate(self, term: z3.ExprRef) -> npt.NDArray[np.int64]:
        """Return the value of a term at every assignment.

        Raises:
            Unsupported: the term mentions another variable, or applies an operator without a rule.
        """
        if z3.is_int_value(term):
            return np.full(self.count, term.as_long())
        kind, name = term.decl().kind(), term.decl().name()
        if kind == z3.Z3_OP_UNINTERPRETED:
            if name not in self._columns:
                raise Unsupported(f"a tile whose shape depends on {name}")
            return self._columns[name]
        if kind not in _NUMERIC:
            raise Unsupported(f"no enumeration of {name}")
        return _NUMERIC[kind](*(self.evaluate(a) for a in term.children()))

    def passing(self, guards: Sequence[z3.BoolRef]) -> npt.NDArray[np.bool_]:
        """Return for every assignment whether all guards hold."""
        passing = np.ones(self.count, dtype=np.bool_)
        for guard in guards:
            passing &= self.evaluate(guard).astype(np.bool_)
        return passing


def _number(term: z3.ArithRef) -> int:
    return int(z3.simplify(term).as_long())


def _folded(operator: Callable[..., npt.NDArray[np.int64]]) -> Callable[..., npt.NDArray[np.int64]]:
    def apply(*operands: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        result = operands[0]
        for operand in operands[1:]:
            result = operator(result, operand)
        return result

    return apply


_NUMERIC: dict[int, Callable[..., npt.NDArray[np.int64]]] = {
    z3.Z3_OP_ADD: _folded(np.add),
    z3.Z3_OP_MUL: _folded(np.multiply),
    z3.Z3_OP_SUB: _folded(np.subtract),
    z3.Z3_OP_UMINUS: np.negative,
    z3.Z3_OP_IDIV: np.floor_divide,
    z3.Z3_OP_MOD: np.mod,
    z3.Z3_OP_AND: _folded(np.logical_and),
    z3.Z3_OP_OR: _folded(np.logical_or),
    z3.Z3_OP_NOT: np.logical_not,
    z3.Z3_OP_EQ: np.equal,
    z3.Z3_OP_DISTINCT: np.not_equal,
    z3.Z3_OP_LE: np.less_equal,
    z3.Z3_OP_LT: np.less,
    z3.Z3_OP_GE: np.greater_equal,
    z3.Z3_OP_GT: np.greater,
    z3.Z3_OP_ITE: np.where,
}


def tile_of(
    tile: Tiling,
    outer: Sequence[Variable],
    element: Sequence[z3.ArithRef],
    given: tuple[Sequence[Division], Sequence[Choice], Sequence[z3.BoolRef]],
    known: frozenset[str],
) -> tuple[list[Choice], list[Division]]:
    """Return values of the outer variables, and of quotients of them, that make the tile hold an element.

    Each dimension's base is ``stride * x + offset`` in one variable or quotient ``x``; the tile of ``e`` is at
    ``x = (e - offset - low) div stride``. A quotient and remainder give back their dividend, ``divisor * q + r``.
    Or it is ``stride * (share * x + y) + offset``, where ``x`` and ``y`` are quotient and remainder by a share; and so on
    with ``y``, by shares that are constant.
    What the base does not mention is the smallest that passes the guards on it alone: it says what a block does, not where.
    ``given`` are the divisions, what is chosen already, and the guards.

    Returns:
        The values, and the divisions by a share whose parts are among them.

    Raises:
        Unsupported: a base has another form.
    """
    divisions, chosen, guards, shares = given[0], [*given[1]], given[2], []
    terms = [v.term for v in outer]
    free = terms + [p for d in divisions for p in d.parts]  # all else is given, not ours to choose
    for base, e, low in zip(tile.base, element, tile.low, strict=True):
        unknown = [c for c in constants([base]) if c.decl().name() not in known and not _is_chosen(c, chosen)]
        if not all(any(x.eq(f) for f in free) for x in unknown):
            raise Unsupported(f"a tile at {base}, which is not a multiple of one block index or loop variable")
        values, share = _solution(base, e, low, unknown)
        chosen += values
        shares += share
    for division in divisions:
        parts = division.parts
        if any(_is_chosen(p, chosen) for p in parts) and any(division.dividend.eq(t) for t in terms):
            chosen += [(p, _passing(p, z3.IntVal(0), guards)) for p in parts if not _is_chosen(p, chosen)]
            whole = division.divisor * division.quotient + division.remainder
            chosen.append((division.dividend, z3.substitute(whole, *chosen)))
    for v in outer:
        for x, division in _by_start(v, outer, chosen):
            chosen.append((x, division.quotient))
            shares.append(division)
    return chosen + [(v.term, _passing(v.term, v.low, guards)) for v in outer if not _is_chosen(v.term, chosen)], shares


def _passing(x: z3.ArithRef, low: z3.ArithRef, guards: Sequence[z3.BoolRef]) -> z3.ArithRef:
    """Return the first value from the lowest on that passes the guards on it alone; the lowest if none that is tried does."""
    own = z3.And(*_local(guards, {x.decl().name()}))
    values = (low + n for n in range(_ROLES))
    return next((v for v in values if z3.is_true(z3.simplify(z3.substitute(own, (x, v))))), low)


def _by_start(
    v: Variable, outer: Sequence[Variable], chosen: Sequence[Choice]
) -> Iterator[tuple[z3.ArithRef, Division]]:
    """Yield the block whose share holds the chosen value of a loop that goes through it, from where the share begins."""
    value = next((value for x, value in chosen if x.eq(v.term)), None)
    arms = v.low.children()[1:] if z3.is_app_of(v.low, z3.Z3_OP_ITE) else [v.low]
    for x in (w.term for w in outer if w.kind == "block" and not _is_chosen(w.term, chosen)):
        start = next((arm for arm in arms if any(x.eq(c) for c in constants([arm]))), None)
        if value is not None and start is not None:
            ends = (z3.substitute(start, (x, z3.IntVal(n))) for n in (1, 0))
            names = (z3.Int(f"{value} {o} the share of {x}") for o in ("//", "%"))
            yield x, Division(value, z3.simplify(next(ends) - next(ends), som=True), *names)


def _solution(
    base: z3.ArithRef, e: z3.ArithRef, low: int, unknown: Sequence[z3.ArithRef]
) -> tuple[list[Choice], list[Division]]:
    """Return the values of unknowns at which a tile with this base holds an element, and the division by a varying share."""
    zero = [(x, z3.IntVal(0)) for x in unknown]
    offset = z3.simplify(z3.substitute(base, *zero))
    moved = [[(y, z3.IntVal(1 if y.eq(x) else 0)) for y in unknown] for x in unknown]
    strides = [z3.simplify(z3.substitute(base, *values) - offset, som=True) for values in moved]
    fixed = sorted(s.as_long() for s in strides if z3.is_int_value(s))
    if unknown and (len(fixed) < max(1, len(unknown) - 1) or fixed[0] <= 0):
        raise Unsupported(f"a tile at {base}, which is not a fixed stride times one of {unknown}")
    chosen: list[Choice] = []
    shares: list[Division] = []
    number = (e - offset - low) / fixed[0] if fixed else e
    descending = sorted(zip(unknown, strides, strict=True), key=lambda part: _descending(part[1]))
    for x, stride in descending[:-1]:
        share = z3.simplify(stride / fixed[0])
        if z3.is_int_value(share):
            chosen.append((x, number / share))
            number = number % share
        else:
            names = (f"{e} {o} the share of {x}" for o in ("//", "%"))
            shares.append(Division(number, share, *map(z3.Int, names)))
            chosen.append((x, shares[0].quotient))
            number = shares[0].remainder
    return chosen + [(x, number) for x, _ in descending[-1:]], shares


def _descending(stride: z3.ArithRef) -> float:
    """Return the key that puts the longest stride first, and before it one that varies."""
    return -stride.as_long() if z3.is_int_value(stride) else -math.inf


def _is_chosen(term: z3.ArithRef, chosen: Sequence[Choice]) -> bool:
    return any(term.eq(x) for x, _ in chosen)
