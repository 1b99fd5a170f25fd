"""Counting: at how many points of a box some guards hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import z3

from ..access.trace import Variable
from ..base.errors import Unsupported

_POINTS = 2**22  # the largest box that is enumerated


class Grid:
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


def points(variables: Sequence[Variable], guards: Sequence[z3.BoolRef]) -> int:
    """Return the number of assignments to the variables at which all guards hold.

    Raises:
        Unsupported: a range is not fixed, or a guard depends on something else, or there are too many to enumerate.
    """
    return int(Grid(variables).passing(guards).sum())


def _number(term: z3.ArithRef) -> int:
    value = z3.simplify(term)
    if not z3.is_int_value(value):
        raise Unsupported(f"a tile whose shape depends on {term}")
    return int(value.as_long())


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
