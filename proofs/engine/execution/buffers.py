"""The buffers of a kernel in the symbolic reading: what each holds now, and which threads use which part of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.extended import Value
from ..forms.normal_form import Form
from ..semantics.algebra import Memory
from .contents import Axis, Contents, Write
from .outcome import Execution


class Buffers:
    """Loads and stores, where control is now.

    Args:
        execution: what is written to outputs goes there.
    """

    site: object

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.facts = execution.facts
        self.contents: dict[Memory[Value], Contents] = {}
        self.site = None
        self._axes: list[Axis] = []
        self._threads = frozenset[int]()  # thread variables of more than one thread
        self._lanes: dict[Memory[Value], dict[int, Form]] = {}
        self._read: set[str] = set()

    def allocate(self, memory: Memory[Value]) -> None:
        """Make a buffer without content."""
        self.contents[memory] = Contents(memory.name)

    def load(self, memory: Memory[Value], index: Sequence[Value]) -> Value:
        """Return an element of an input as an atom, or what has been written."""
        place = self._place(memory, index)
        if memory.scope == "global":
            self._read.add(memory.name)
            self._check_in_place(memory)
            element = nf.read(memory.name, *place)
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
            self._check_in_place(memory)
            return
        self._check_lane(memory, place, frozenset().union(*map(nf.support, (value.form, value.finite, *path))))
        self.contents[memory].write(Write(place, axes, path, value))

    def lane(self, memory: Memory[Value]) -> dict[int, Form]:
        """Return the dimensions of a buffer along which each explicit thread keeps to its own index."""
        return self._lanes.get(memory, {})

    def _check_in_place(self, memory: Memory[Value]) -> None:
        if memory.name in self._read and memory.name in self.execution.writes:
            raise Unsupported(f"{memory.name} in global memory is both read and written")

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
