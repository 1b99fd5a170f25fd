"""What a buffer holds in the symbolic reading: a stack of writes, the latest first.

A write covers many elements at once: its index and value mention parallel variables, each of which ranges over an
interval. Reading at an index solves for those variables. Where a write may or may not cover the element, the value is
an if-then-else between it and what lies below. Here is also which threads use which part of a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, NamedTuple

from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.extended import Value
from ..forms.normal_form import Form
from ..semantics.algebra import Memory

if TYPE_CHECKING:
    from .outcome import Execution


class Uninitialised(Unsupported):
    """Raised at a read of an element that may never have been written."""

    kind = "uninitialised"


class Axis(NamedTuple):
    """A parallel variable: every integer from ``lower``, ``extent`` of them."""

    variable: Form
    lower: Form
    extent: Form


@dataclass(frozen=True)
class Write:
    """A store: where, under which conditions, and what, as functions of the axes; and the statement."""

    index: tuple[Form, ...]
    axes: tuple[Axis, ...]
    path: tuple[Form, ...]
    value: Value
    site: str = ""

    @cached_property
    def solved(self) -> dict[int, tuple[int, Form]]:
        """For each axis, by the number of its variable, the dimension in which it is alone, and the offset there."""
        solved, variables = {}, {nf.number(axis.variable): axis.variable for axis in self.axes}
        for number, variable in variables.items():
            own = [(d, i - variable) for d, i in enumerate(self.index) if number in nf.support(i)]
            if len(own) != 1 or not variables.keys().isdisjoint(nf.support(own[0][1])):
                place = ", ".join(map(str, self.index))
                raise Unsupported(f"iterations may write one element: {variable} is not alone in one of [{place}]")
            solved[number] = own[0]
        return solved

    def at(self, index: tuple[Form, ...]) -> tuple[Value, list[Form]]:
        """Return the value at an index, and the conditions under which the write covers that index."""
        values = {number: index[dim] - offset for number, (dim, offset) in self.solved.items()}
        conditions = [nf.zero(i - nf.substitute(j, values)) for i, j in zip(index, self.index, strict=True)]
        for axis in self.axes:
            place = values[nf.number(axis.variable)] - axis.lower
            conditions += [nf.nonnegative(place), nf.nonnegative(axis.extent - 1 - place)]
        conditions += [nf.substitute(c, values) for c in self.path]
        value = self.value
        form, finite = nf.substitute(value.form, values), nf.substitute(value.finite, values)
        return Value(form, finite, value.sign, value.computed), conditions


class _Unknown(NamedTuple):
    """A layer that says that what lies below is unknown where the path holds."""

    path: tuple[Form, ...]


class Contents:
    """The content of one buffer, as layers of which the last is on top."""

    def __init__(self, name: str, layers: Sequence[Write | _Unknown] = ()) -> None:
        self.name = name
        self.layers = list(layers)
        self._memo: dict[tuple[tuple[Form, ...], tuple[Form, ...]], Value] = {}

    def copy(self) -> Contents:
        """Return the same content, to be changed independently."""
        return Contents(self.name, self.layers)

    def forget(self, path: tuple[Form, ...]) -> None:
        """Make every element uninitialised where the path holds."""
        self._memo.clear()
        if not path:
            self.layers.clear()
        self.layers.append(_Unknown(path))

    def write(self, write: Write) -> None:
        """Put a write on top; an older one of the same element under the same conditions no longer counts."""
        self._memo.clear()
        if not write.solved:
            place = write.index, write.path
            self.layers = [w for w in self.layers if not isinstance(w, Write) or (w.index, w.path) != place]
        self.layers.append(write)

    def read(self, index: tuple[Form, ...], facts: Facts) -> Value:
        """Return the value at an index; it must be known that the element has been written."""
        key = index, facts.path
        if key not in self._memo:
            self._memo[key] = self._read(index, facts, len(self.layers))
        return self._memo[key]

    def _read(self, index: tuple[Form, ...], facts: Facts, height: int) -> Value:
        """Return the value at an index of the lowest layers, as many as ``height``."""
        for level in range(height - 1, -1, -1):
            layer = self.layers[level]
            value, conditions = (None, list(layer.path)) if isinstance(layer, _Unknown) else layer.at(index)
            known = {c: facts.decide(c) for c in conditions}
            if False in known.values():
                continue
            if value is None:
                break
            undecided = [c for c in conditions if known[c] is None]
            if not undecided:
                return value
            condition = reduce(Form.__mul__, undecided)
            with facts.assuming(nf.ONE - condition):
                return extended.select(condition, value, self._read(index, facts, level))
        raise Uninitialised(f"{self.name}[{', '.join(map(str, index))}] may be read before it is written")


class Buffers:
    """Loads and stores, where control is now. What is written to outputs goes to the execution."""

    site: object

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.facts = execution.facts
        self.contents: dict[Memory[Value], Contents] = {}
        self.site = None
        self._axes: list[Axis] = []
        self._threads = frozenset[int]()  # thread variables of more than one thread
        self._lanes: dict[Memory[Value], dict[int, Form]] = {}
        self._written: set[str] = set()  # in global memory, also by an iteration of a loop that was only tried
        self._read: list[tuple[object, str, tuple[Form, ...]]] = []  # there, with the statement

    def allocate(self, memory: Memory[Value]) -> None:
        """Make a buffer without content."""
        self.contents[memory] = Contents(memory.name)

    def load(self, memory: Memory[Value], index: Sequence[Value]) -> Value:
        """Return an element of an input as an atom, or what has been written."""
        place = self._place(memory, index)
        if memory.scope == "global":
            if memory.name in self._written:
                raise Unsupported(f"{memory.name} in global memory is read after it is written: {describe(self.site)}")
            self._read.append((self.site, memory.name, place))
            if memory.name in self.execution.infinite:
                return extended.INFINITY
            element = nf.read(memory.name, *place)
            if some := self.execution.finite.get(memory.name):
                return Value(some(*place) * element, some(*place))
            return extended.Raw(element) if memory.name in self.execution.raw else Value(element)
        self._check_lane(memory, place, None)
        return self.contents[memory].read(place, self.facts)

    def _place(self, memory: Memory[Value], index: Sequence[Value]) -> tuple[Form, ...]:
        """Return the index as forms. TileLang reads an index that it knows to be negative as one from the end."""
        place = tuple(i.form for i in index)
        if any(self.facts.decide(nf.nonnegative(i)) is False for i in place):
            raise Unsupported(f"{memory.name} at a negative index [{', '.join(map(str, place))}]")
        return place

    def store(self, memory: Memory[Value], index: Sequence[Value], value: Value) -> None:
        """Put a new layer on the content, or record a write to an output."""
        place = self._place(memory, index)
        axes = tuple(self._axes)
        ranges = {nf.nonnegative(a.variable - a.lower) for a in axes}
        path = tuple(c for c in self.facts.path if c not in ranges)
        if memory.scope == "global":
            write = Write(place, axes, path, value, describe(self.site))
            self.execution.writes.setdefault(memory.name, []).append(write)
            self._written.add(memory.name)
            if any(name == memory.name and site is self.site and i != place for site, name, i in self._read):
                raise Unsupported(f"a statement moves elements of {memory.name} in place: {describe(self.site)}")
            return
        self._check_lane(memory, place, frozenset().union(*map(nf.support, (value.form, value.finite, *path))))
        self.contents[memory].write(Write(place, axes, path, value))

    def lane(self, memory: Memory[Value]) -> dict[int, Form]:
        """Return the dimensions of a buffer along which each explicit thread keeps to its own index."""
        return self._lanes.get(memory, {})

    def _check_lane(self, memory: Memory[Value], place: tuple[Form, ...], stored: frozenset[int] | None) -> None:
        """Check that threads use a buffer that they share in their own lane only; a store depends on atoms ``stored``."""
        if memory.scope == "local":
            if stored is not None and self._axes:
                raise Unsupported(f"a parallel loop writes {memory.name}, of which each thread has its own")
            return
        inside = {d: i for d, i in enumerate(place) if not self._threads.isdisjoint(nf.support(i))}
        lane = {d: i for d, i in inside.items() if i in {nf.of_atom(nf.atom_of(t)) for t in self._threads}}
        own = {t for i in lane.values() for t in nf.support(i)}
        known = self._lanes.setdefault(memory, lane)
        foreign = (stored or frozenset()) & self._threads - own
        if lane != inside or known != lane or foreign or (lane and self._axes):
            raise Unsupported(f"threads share {memory.name} otherwise than each in its own lane: {describe(self.site)}")
