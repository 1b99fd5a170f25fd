"""Integers that a thread keeps in its own memory, followed through straight-line code and if statements."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import z3

from .trace import Variable

Key = tuple[int, str]  # the identity of the data pointer, and the type it is read with
Place = tuple[int | str, ...]  # an index; what is no constant, by its text
Indices = tuple[z3.ArithRef, ...]

_MOST = 1024  # elements that a loop is followed over


class LocalState:
    """The known values of thread-private integers, and the elements that have been set on every path.

    A value is known from a write to the next write that may touch it: at another constant index it may not. Between two
    writes, two reads at the same index give the same value even where that value is not known. Of what a loop writes
    nothing is known at the start of its body; after it nothing is known but what was before and is not written in it.

    Args:
        unknown: makes a value of which only the buffer and the type are known, and whether it has been set.
        followed: the number of elements of a buffer; None of those whose elements set are not asked for.
    """

    def __init__(self, unknown: Callable[[Key, bool], z3.ExprRef], followed: Callable[[int], int | None]) -> None:
        self._unknown, self._followed = unknown, followed
        self._known: dict[tuple[Key, Place], z3.ExprRef] = {}
        self._set: dict[tuple[int, Place], Indices] = {}

    def read(self, key: Key, indices: Indices) -> z3.ExprRef:
        """Return the value at an index."""
        at = key, place(indices)
        if at not in self._known:
            self._known[at] = self._unknown(key, self._is_set(self._set, key[0], at[1]))
        return self._known[at]

    def write(
        self, key: Key, indices: Indices, value: z3.ExprRef | None, lanes: Collection[Variable] = (), anew: bool = True
    ) -> None:
        """Remember a value, which each lane stores at its own index, and forget what the write may have changed.

        What is not made ``anew``, but of what the buffer held, is set only if that was.
        """
        at = place(indices)
        self._known = {(k, i): v for (k, i), v in self._known.items() if k[0] != key[0] or (k == key and _apart(i, at))}
        if value is not None:
            self._known[key, at] = value
        if anew and self._followed(key[0]) is not None:
            written = {(key[0], at): indices}
            for lane in lanes:
                written = _over(lane, written)
            self._set |= written

    def forget(self, changed: Collection[int]) -> None:
        """Know nothing of the buffers with these data pointers."""
        self._known = {(k, i): v for (k, i), v in self._known.items() if k[0] not in changed}

    def begin(self, data: int) -> None:
        """Know nothing of a buffer that is made, of which no element has been set."""
        self.forget({data})
        self._set = {(d, i): v for (d, i), v in self._set.items() if d != data}

    @contextmanager
    def loop(self, variable: Variable, changed: Collection[int]) -> Iterator[None]:
        """Let what is inside be the body of a loop that changes the buffers with these data pointers."""
        self.forget(changed)
        known, before = dict(self._known), dict(self._set)
        yield
        self._known = known
        self._set = before | _over(variable, {at: i for at, i in self._set.items() if at not in before})

    def branch(self, condition: z3.BoolRef, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Run two alternatives from the same state; afterwards each value is that of the alternative taken."""
        known, before = dict(self._known), dict(self._set)
        then()
        first, self._known = self._known, known
        set_first, self._set = self._set, before
        otherwise()
        arms = (first, set_first), (self._known, self._set)
        merged = {}
        for at in dict.fromkeys([*first, *self._known]):
            a, b = (v[at] if at in v else self._unknown(at[0], self._is_set(s, at[0][0], at[1])) for v, s in arms)
            merged[at] = a if a.eq(b) else z3.If(condition, a, b)
        self._known = merged
        self._set = {at: i for at, i in self._set.items() if at in set_first}

    def _is_set(self, done: Collection[tuple[int, Place]], data: int, element: Place) -> bool:
        """Return whether an element has been set, or all elements of its buffer."""
        if (data, element) in done:
            return True
        constant = sum(d == data and all(isinstance(i, int) for i in at) for d, at in done)
        return constant == self._followed(data)


def _over(variable: Variable, written: dict[tuple[int, Place], Indices]) -> dict[tuple[int, Place], Indices]:
    """Return the elements that are set once a variable has taken all its values; none if it may take none."""
    count, low = (None if t is None else z3.simplify(t) for t in (variable.extent, variable.low))
    if count is None or not z3.is_int_value(count) or not 0 < count.as_long() <= _MOST:
        return {}
    elements = ((data, each) for (data, _), i in written.items() for each in _values(variable, low, count.as_long(), i))
    return {(data, place(each)): each for data, each in elements}


def _values(variable: Variable, low: z3.ArithRef, count: int, indices: Indices) -> Iterator[Indices]:
    """Yield the indices at each value of a variable, once if it does not occur."""
    for number in range(count):
        here = tuple(z3.substitute(i, (variable.term, z3.simplify(low + number))) for i in indices)
        yield here
        if all(a.eq(b) for a, b in zip(here, indices, strict=True)):
            return


def place(indices: Indices) -> Place:
    """Return an index as a key."""
    values = [z3.simplify(i) for i in indices]
    return tuple(v.as_long() if z3.is_int_value(v) else v.sexpr() for v in values)


def _apart(a: Place, b: Place) -> bool:
    """Return whether two indices differ for certain."""
    pairs = zip(a, b, strict=True) if len(a) == len(b) else ()
    return any(isinstance(i, int) and isinstance(j, int) and i != j for i, j in pairs)
