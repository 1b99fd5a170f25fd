"""Integers that a thread keeps in its own memory, followed through straight-line code and if statements."""

from __future__ import annotations

from collections.abc import Callable

import z3

Key = tuple[int, str]  # the identity of the data pointer, and the type it is read with


class LocalState:
    """The known values of thread-private integers.

    A value is known from a write at a constant index to the next write that may touch it. Between two writes, two reads
    give the same value even where that value is not known. A loop body starts, and the code after a loop, from nothing.

    Args:
        unknown: makes a value of which only the buffer and the type are known.
    """

    def __init__(self, unknown: Callable[[Key], z3.ExprRef]) -> None:
        self._unknown = unknown
        self._known: dict[tuple[Key, tuple[int, ...]], z3.ExprRef] = {}

    def read(self, key: Key, indices: tuple[z3.ArithRef, ...]) -> z3.ExprRef:
        """The value at an index."""
        constant = _constants(indices)
        if constant is None:
            return self._unknown(key)
        if (key, constant) not in self._known:
            self._known[key, constant] = self._unknown(key)
        return self._known[key, constant]

    def write(self, key: Key, indices: tuple[z3.ArithRef, ...], value: z3.ExprRef | None) -> None:
        """Remember a value, and forget what the write may have changed."""
        constant = _constants(indices)
        self._known = {
            (k, i): v
            for (k, i), v in self._known.items()
            if k[0] != key[0] or (k == key and constant is not None and i != constant)
        }
        if constant is not None and value is not None:
            self._known[key, constant] = value

    def forget(self) -> None:
        """Know nothing."""
        self._known = {}

    def branch(self, condition: z3.BoolRef, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Run two alternatives from the same state; afterwards each value is that of the alternative taken."""
        before = dict(self._known)
        then()
        taken, self._known = self._known, before
        otherwise()
        merged = {}
        for at in dict.fromkeys([*taken, *self._known]):
            a, b = (arm[at] if at in arm else self._unknown(at[0]) for arm in (taken, self._known))
            merged[at] = a if a.eq(b) else z3.If(condition, a, b)
        self._known = merged


def _constants(indices: tuple[z3.ArithRef, ...]) -> tuple[int, ...] | None:
    values = [z3.simplify(i) for i in indices]
    return tuple(v.as_long() for v in values) if all(z3.is_int_value(v) for v in values) else None
