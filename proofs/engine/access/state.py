"""Integers that a thread keeps in its own memory, followed through straight-line code and if statements."""

from __future__ import annotations

from collections.abc import Callable, Collection

import z3

Key = tuple[int, str]  # the identity of the data pointer, and the type it is read with
Place = tuple[int | str, ...]  # an index; what is no constant, by its text


class LocalState:
    """The known values of thread-private integers.

    A value is known from a write to the next write that may touch it: at another constant index it may not. Between two
    writes, two reads at the same index give the same value even where that value is not known. Of what a loop writes
    nothing is known at the start of its body; after it nothing is known but what was before and is not written in it.

    Args:
        unknown: makes a value of which only the buffer and the type are known.
    """

    def __init__(self, unknown: Callable[[Key], z3.ExprRef]) -> None:
        self._unknown = unknown
        self._known: dict[tuple[Key, Place], z3.ExprRef] = {}

    def read(self, key: Key, indices: tuple[z3.ArithRef, ...]) -> z3.ExprRef:
        """The value at an index."""
        place = _place(indices)
        if (key, place) not in self._known:
            self._known[key, place] = self._unknown(key)
        return self._known[key, place]

    def write(self, key: Key, indices: tuple[z3.ArithRef, ...], value: z3.ExprRef | None) -> None:
        """Remember a value, and forget what the write may have changed."""
        place = _place(indices)
        self._known = {
            (k, i): v for (k, i), v in self._known.items() if k[0] != key[0] or (k == key and _apart(i, place))
        }
        if value is not None:
            self._known[key, place] = value

    def forget(self, changed: Collection[int]) -> None:
        """Know nothing of the buffers with these data pointers."""
        self._known = {(k, i): v for (k, i), v in self._known.items() if k[0] not in changed}

    def loop(self, changed: Collection[int], body: Callable[[], None]) -> None:
        """Run the body of a loop that changes the buffers with these data pointers."""
        self.forget(changed)
        before = dict(self._known)
        body()
        self._known = before

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


def _place(indices: tuple[z3.ArithRef, ...]) -> Place:
    values = [z3.simplify(i) for i in indices]
    return tuple(v.as_long() if z3.is_int_value(v) else v.sexpr() for v in values)


def _apart(a: Place, b: Place) -> bool:
    """Whether two indices differ for certain."""
    return len(a) == len(b) and any(
        isinstance(i, int) and isinstance(j, int) and i != j for i, j in zip(a, b, strict=True)
    )
