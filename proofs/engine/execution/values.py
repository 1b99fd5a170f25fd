"""Values of the threads of a block: terms in the index of a thread, numbers known of every thread, and folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import z3

from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..semantics.algebra import Binary, Comparison
from . import folds, words
from .folds import Fold, Value
from .meanings import Meanings, Thing

_CONCRETE: dict[str, Callable[[Any, Any], Any]] = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "min": np.minimum, "max": np.maximum},
    **{"floordiv": np.floor_divide, "floormod": np.mod, "and": np.logical_and, "or": np.logical_or},
    **{
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
    },
    "shl": np.left_shift,
}
"""Operations on numbers of int32, which do not overflow."""


class Values(Meanings):
    """What operations do to the values of one run, but for exchanges between threads."""

    site: object

    def literal(self, value: float, dtype: str) -> Thing:
        """Return a constant."""
        known = np.array(value) if dtype in ("int32", "bool") else None
        return Value(words.literal(value, dtype), known)

    def infinity(self, dtype: str) -> Thing:
        """Return positive infinity."""
        return Value(words.infinity(dtype))

    def compare(self, operator: Comparison, a: Thing, b: Thing, dtype: str) -> Thing:
        """Return a truth value about two values."""
        return self.computed(operator, self.plain(a), self.plain(b), dtype)

    def computed(self, operator: Binary | Comparison, a: Value, b: Value, dtype: str) -> Value:
        """Return an operation on terms, and what it gives in every thread if that is known of both."""
        term = words.binary(operator, a.term, b.term, dtype)
        if a.known is None or b.known is None or operator not in _CONCRETE or dtype not in ("int32", "bool"):
            return Value(term)
        known = _CONCRETE[operator](a.known.astype(np.int64), b.known.astype(np.int64))
        fits = known.dtype == np.bool_ or bool((np.abs(known) < 2**31).all())
        return Value(term, known if fits else None)

    def combine(self, operator: Binary, a: Thing, b: Thing, dtype: str) -> Thing:
        """Return an operation on two values of which one is a fold: another fold, or a term."""
        if folds.is_zero(b) and operator in ("add", "sub"):
            return a
        if folds.is_zero(a) and operator == "add":
            return b
        for alike in (lambda z: z, self.regrouped):
            x, y = (folds.single(z, self.threads) if isinstance(z, Value) else z for z in map(alike, (a, b)))
            if (result := folds.combine(operator, x, y)) is not None:
                return result
        return self.computed(operator, self.plain(a), self.plain(b), dtype)

    def cast(self, a: Thing, source: str, target: str) -> Thing:
        """Convert a value from one type to another."""
        if isinstance(a, Fold):
            if words.width(source) != words.width(target):
                raise Unsupported("a fold in another width")
            return a
        same = a.known is not None and target == "int32"
        return Value(words.cast(a.term, source, target), a.known if same else None)

    def bits(self, a: Thing, source: str, target: str) -> Thing:
        """Read the bits of a value as another type of the same width."""
        return Value(self.plain(a).term)

    def select(self, condition: Thing, then: Thing, otherwise: Thing, dtype: str) -> Thing:
        """Return one of two values."""
        if isinstance(then, Value) and isinstance(otherwise, Value):
            return merged(self.plain(condition), then, otherwise)
        which = self.plain(condition).known
        if which is None:
            raise Unsupported(f"a choice between folds: {describe(self.site)}")
        return self.chosen(which, then, otherwise)

    def chosen(self, which: np.ndarray, then: Thing, otherwise: Thing) -> Fold:
        """Return one fold in some threads, and another one in the others."""
        pair = []
        for a, b in ((then, otherwise), (otherwise, then)):
            if isinstance(a, Value) and folds.is_zero(a) and isinstance(b, Fold) and b.op in (None, "add"):
                a = Fold("add", b.term, np.zeros_like(b.rows))
            pair.append(folds.single(a, self.threads) if isinstance(a, Value) else a)
        return folds.chosen(np.broadcast_to(which, (self.threads,)), *pair)


def merged(condition: Value, then: Value, otherwise: Value) -> Value:
    """Return one of two terms."""
    term = z3.If(condition.term, then.term, otherwise.term)
    if condition.known is None or then.known is None or otherwise.known is None:
        return Value(term)
    return Value(term, np.where(condition.known, then.known, otherwise.known))
