"""Counting: at how many points of a box some guards hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import z3

from ..access.instances import constants
from ..access.trace import Variable
from ..base.conditions import conjunction
from ..base.errors import Unsupported


def points(variables: Sequence[Variable], guards: Sequence[z3.BoolRef]) -> int:
    """Return the number of assignments to some variables of fixed range at which all guards hold.

    Raises:
        Unsupported: a range is not fixed, or a guard depends on something else.
    """
    guard = conjunction(*guards)
    names = {c.decl().name() for c in constants([guard])}
    guarded = [v for v in variables if v.name in names]
    free = math.prod(len(_values(v)) for v in variables if v.name not in names)
    terms, boxes = [v.term for v in guarded], [_values(v) for v in guarded]
    return free * sum(_holds(guard, terms, point) for point in itertools.product(*boxes))


def _values(v: Variable) -> range:
    low, count = z3.simplify(v.low), z3.simplify(v.count)
    if not (z3.is_int_value(low) and z3.is_int_value(count)):
        raise Unsupported(f"a tile whose shape depends on {v.low if z3.is_int_value(count) else v.count}")
    return range(low.as_long(), low.as_long() + count.as_long())


def _holds(guard: z3.BoolRef, terms: Sequence[z3.ArithRef], point: Sequence[int]) -> bool:
    value = z3.simplify(z3.substitute(guard, *zip(terms, map(z3.IntVal, point), strict=True)))
    if not (z3.is_true(value) or z3.is_false(value)):
        raise Unsupported(f"a tile whose shape depends on {value}")
    return bool(z3.is_true(value))
