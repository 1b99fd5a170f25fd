"""Loops cut by an invariant: induction over the iterations.

At the head of iteration t the buffers that an invariant calls *free* hold any numbers at all, written ``u@loop(t, i)``;
those that it *determines* hold a formula of the free ones and of t. Shown: the formulas hold at the entry, and one run
of the body from any such state leads to another one. A reference that runs in lock step is a *ghost*: a sequence of
states x_0, x_1, ..., each a function of its predecessor, and a formula that gives x_t from the kernel's state. Shown: the
formula gives x_0 at the entry; if it gives x_t then after the body it gives x_{t+1}; and the loop runs as often as the
reference steps. An *auxiliary* is a free buffer that the kernel does not have, with a rule that changes it.

A buffer written in the loop that the invariant does not mention counts as uninitialised at the head and after the loop. A
loop with an invariant must run once, and not inside another one. After the loop the buffers are what the invariant says of
iteration ``extent``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.equations import Equation, elements, holds
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from ..forms.ring import Rewriting
from ..semantics.algebra import Memory
from .contents import Axis, Contents, Uninitialised, Write
from .invariants import Determined, Formula, Ghost, Invariant
from .state import State
from .symbols import Symbols

_SPLITS = 16
"""How many undecided conditions an equation may be split by where abbreviations are written out."""


def induct(
    algebra: Symbols, loop: str, invariant: Invariant, lower: Form, extent: Form, body: Callable[[Form], None]
) -> None:
    """Check the invariant of a loop, and leave the algebra in the state after the loop."""
    induction = Induction(algebra, loop, invariant, extent)
    algebra.execution.inductions[loop] = induction
    algebra.inducing = induction
    induction.run(lower, body)
    algebra.inducing = None


class Induction:
    """One loop under its invariant. Afterwards it knows what each iteration did."""

    def __init__(self, algebra: Symbols, loop: str, invariant: Invariant, extent: Form) -> None:
        self.algebra, self.loop, self.invariant, self.extent = algebra, loop, invariant, extent
        self.facts = algebra.facts
        self.path = algebra.facts.path
        self.memories: dict[str, Memory[Value]] = {}
        for name in (*invariant.free, *invariant.determined, *invariant.staged):
            found = [m for m in algebra.contents if m.name == name]
            if len(found) != 1:
                raise ValueError(f"{len(found)} buffers are named {name!r}")
            self.memories[name] = found[0]
        if not self.facts.holds(nf.indicator("ge", extent, integer=True)):
            raise Unsupported(f"loop {loop!r} of extent {extent}, which may be negative")
        self.t = nf.variable(f"{loop}.t")
        self.changed: set[str] = set(invariant.auxiliary)  # what iterations change, by name
        self.lost: list[Memory[Value]] = []  # changed buffers that the invariant does not mention
        self._entry: State | None = None
        self._after: State | None = None
        self._unfoldings: dict[Form, list[Rewriting]] = {}
        self._stage: State | None = None  # the head of the iteration, until the turn of its first role ends

    def run(self, lower: Form, body: Callable[[Form], None]) -> None:
        """Check the entry and one iteration, and leave the state at the exit."""
        t, ghosts = self.t, self.invariant.ghosts
        self.facts.bound(t, self.extent)
        self._find_changed(lambda: body(lower + t))
        self._entry = self._frozen(
            nf.ZERO, lambda name, index: self.invariant.auxiliary[name].initial(self._entry, *index)
        )
        when = f"at the entry of loop {self.loop!r}"
        self._check(self._entry, when, self.invariant.determined)
        self._require_positive(self._entry, when)
        for ghost in ghosts:
            count = nf.form(ghost.recurrence.count)
            self._record(self.extent, count, f"loop {self.loop!r} runs as often as {ghost.recurrence.name} steps", [])
            self._check_ghost(ghost, self._entry, ghost.recurrence.initial, when, [])
        before = self._stage = self.havoc(t)
        body(lower + t)
        self._after = self._frozen(t + 1, lambda name, index: self.invariant.auxiliary[name].step(before, *index))
        when = f"after an iteration of loop {self.loop!r}"
        self._check(self._after, when, self.invariant.determined)
        self._require_positive(self._after, when)
        for ghost in ghosts:
            self._check_ghost(ghost, self._after, self._step(ghost, before), when, [before])
        self.havoc(self.extent)
        for ghost in ghosts:
            self.algebra.execution.ghosts[ghost.recurrence.name] = self.family(ghost)

    def turn(self) -> None:
        """Take note that the turn of a role ends.

        After the first turn in an iteration, check what is staged, and make it opaque.
        """
        head, self._stage = self._stage, None
        if head is None or not self.invariant.staged:
            return
        now = self._frozen(head.t, lambda name, index: head[name](*index))
        self._check(now, f"in an iteration of loop {self.loop!r}", self.invariant.staged)
        for name, determined in self.invariant.staged.items():
            memory = self.memories[name]
            self.algebra.contents[memory] = self.algebra.contents[memory].copy()
            self.algebra.contents[memory].forget(self.path)
            self._write(name, self._described(memory, determined, head))

    def family(self, ghost: Ghost) -> Callable[..., Form]:
        """Return the function from the number of a ghost's state and an index to an element."""

        def value(number: Form, *index: Form) -> Form:
            within = nf.indicator("ge", self.extent - number, integer=True)
            if not self.facts.holds(within * nf.indicator("ge", number, integer=True)):
                raise Unsupported(f"state {number} of {ghost.recurrence.name} may not exist")
            return self._reader(ghost, self.symbolic(number))(*index)

        return value

    def _find_changed(self, body: Callable[[], None]) -> None:
        """Find which buffers the body writes, by running it from a state in which all of them are opaque."""
        algebra = self.algebra
        saved, mark = dict(algebra.contents), algebra.execution.mark()
        opaque = {m: self._layer(m, lambda *i, n=m.name: nf.apply(f"{n}@?", *i), None) for m in saved}
        algebra.contents = {memory: Contents(memory.name, [layer]) for memory, layer in opaque.items()}
        body()
        changed = [memory for memory, layer in opaque.items() if algebra.contents[memory].latest is not layer]
        self.changed |= {m.name for m in changed if m in self.memories.values()}
        self.lost = [m for m in changed if m not in self.memories.values()]
        algebra.contents = saved
        algebra.execution.rewind(mark)

    def written_out(self, p: Form) -> Form:
        """Return the form with the abbreviations of the invariant replaced by what they stand for."""
        for name, definition in self.invariant.definitions.items():
            p = nf.replace(p, name, definition)
        return p

    def _frozen(self, t: Form, auxiliary: Callable[[str, tuple[Form, ...]], Form]) -> State:
        """Return what the buffers hold now, and go on to hold in this state when the kernel changes them."""
        saved = {name: self.algebra.contents[memory].copy() for name, memory in self.memories.items()}

        def read(name: str, index: tuple[Form, ...]) -> Form:
            if name in self.invariant.auxiliary:
                return auxiliary(name, index)
            return saved[name].read(index, self.facts).real

        return State(t, read, self._at)

    def symbolic(self, t: Form) -> State:
        """Return the state at the head of iteration t as the invariant describes it."""

        def read(name: str, index: tuple[Form, ...]) -> Form:
            determined = self.invariant.determined.get(name)
            if determined and not determined.where:
                return determined.value(state, *index)
            return self._symbol(name, t, index)

        state = State(t, read, self._at)
        return state

    def _at(self, t: Form | int, loop: str | None = None) -> State:
        return self.algebra.execution.inductions[loop or self.loop].symbolic(nf.form(t))

    def _symbol(self, name: str, t: Form, index: tuple[Form, ...]) -> Form:
        if name not in self.invariant.free and name not in self.invariant.auxiliary:
            raise Unsupported(f"the invariant of loop {self.loop!r} says nothing of {name}")
        if name not in self.changed:
            return nf.apply(f"{name}@{self.loop}", *index)
        if t is ZERO and self._entry is not None:
            initial = self._entry[name](*index)
            if initial.constant is not None:
                return initial
        return nf.apply(f"{name}@{self.loop}", t, *index)

    def unfolded(self, p: Form, s: Form) -> Form:
        """Return the form with the free buffers at the head of iteration s, at least 1, over those of s - 1."""
        after = self._after
        if after is None or not self.facts.holds(nf.indicator("ge", s - 1, integer=True)):
            raise Unsupported(f"iteration {s} of loop {self.loop!r} has no predecessor")
        if s not in self._unfoldings:
            names = sorted(self.changed & {*self.invariant.free, *self.invariant.auxiliary})
            self._unfoldings[s] = [self._unfolding(name, after, s) for name in names]
        for rewriting in self._unfoldings[s]:
            p = rewriting(p)
        return p

    def _unfolding(self, name: str, after: State, s: Form) -> Rewriting:
        (((number, _),),) = self.t.terms
        symbol = f"{name}@{self.loop}"

        def value(t: Form, *index: Form) -> Form:
            return nf.substitute(after[name](*index), {number: s - 1}) if t is s else nf.apply(symbol, t, *index)

        return nf.replacing(symbol, cache(value))

    def havoc(self, t: Form) -> State:
        """Replace the contents by what the invariant says of iteration t."""
        state = self.symbolic(t)
        for memory in (*self.lost, *self.memories.values()):
            self.algebra.contents[memory] = self.algebra.contents[memory].copy()
            self.algebra.contents[memory].forget(self.path)
        for name in self.invariant.free:
            value = partial(self._symbol, name, t)
            self._write(name, self._layer(self.memories[name], lambda *index, value=value: value(index), None))
        for name, determined in self.invariant.determined.items():
            self._write(name, self._described(self.memories[name], determined, state))
        return state

    def _write(self, name: str, write: Write) -> None:
        self.algebra.contents[self.memories[name]].write(write)

    def _described(self, memory: Memory[Value], determined: Determined, state: State) -> Write:
        where = determined.where
        condition = (lambda *i: where(state, *i)) if where else None
        return self._layer(memory, lambda *i: determined.value(state, *i), condition)

    def _layer(self, memory: Memory[Value], value: Formula, condition: Formula | None) -> Write:
        axes = []
        index: list[Form] = []
        for dim in memory.shape:
            if dim.form is ONE:
                index.append(ZERO)
                continue
            variable = nf.fresh("i")
            self.facts.bound(variable, dim.form)
            axes.append(Axis(variable, ZERO, dim.form))
            index.append(variable)
        path = (*self.path, condition(*index)) if condition else self.path
        return Write(tuple(index), tuple(axes), path, Value(value(*index)))

    def _check(self, state: State, when: str, what: Mapping[str, Determined]) -> None:
        """Check that buffers hold their formulas."""
        for name, determined in what.items():
            memory = self.memories[name]
            lane = self.algebra.lane(memory)
            shape = [ONE if d in lane else dim.form for d, dim in enumerate(memory.shape)]
            for place in elements(shape, self.facts, parts=determined.parts):
                index = tuple(lane.get(d, i) for d, i in enumerate(place))
                condition = determined.where(state, *index) if determined.where else ONE
                if self.facts.decide(condition) is False:
                    continue
                with self.facts.assuming(condition):
                    self._check_element(state, name, determined, index, when)

    def _require_positive(self, state: State, when: str) -> None:
        """Leave to the range layer that the positive buffers are positive, and let it use that."""
        execution = self.algebra.execution
        for name in self.invariant.positive:
            auxiliary = self.invariant.auxiliary.get(name)
            like = auxiliary.like if auxiliary else name
            shape = next(m for m in self.algebra.contents if m.name == like).shape
            for index in elements([dim.form for dim in shape], self.facts):
                site = f"{name}[{', '.join(map(str, index))}] {when}"
                execution.require("positive", Value(state[name](*index)), self.facts.path, site)
            execution.positive |= {f"{name}@{self.loop}"}

    def _check_element(
        self, state: State, name: str, determined: Determined, index: tuple[Form, ...], when: str
    ) -> None:
        wanted = determined.value(state, *index)
        statement = f"{name}[{', '.join(map(str, index))}] is what the invariant says {when}"
        try:
            self._record(state[name](*index), wanted, statement, [])
        except Uninitialised as error:
            self.algebra.execution.equations.append(Equation(f"{statement}: {error}", False, ZERO, wanted))

    def _reader(self, ghost: Ghost, state: State) -> Callable[..., Form]:
        """Return the reference's state as a function of its full index."""

        def value(*index: Form) -> Form:
            leading, rest = index[: len(ghost.at)], index[len(ghost.at) :]
            for i, j in zip(leading, ghost.at, strict=True):
                if not self.facts.same(i, j):
                    raise Unsupported(f"the reference uses its state at {i}, the kernel holds it at {j}")
            return ghost.value(state, *rest)

        return value

    def _step(self, ghost: Ghost, before: State) -> Callable[..., Form]:
        """Return the reference's next state as a function of its index, from the kernel's state before the iteration."""
        rewriting = nf.replacing(ghost.recurrence.name, self._reader(ghost, before))
        return lambda *index: rewriting(ghost.recurrence.step(before.t, *index))

    def _check_ghost(
        self, ghost: Ghost, state: State, wanted: Callable[..., Form], when: str, before: list[State]
    ) -> None:
        recurrence = ghost.recurrence
        ghosts = self.algebra.execution.ghosts
        others = [nf.replacing(other.name, ghosts[other.name]) for other in recurrence.others]
        for place in elements(recurrence.shape[len(ghost.at) :], self.facts):
            index = ", ".join(map(str, place))
            reference = wanted(*ghost.at, *place)
            for rewriting in others:
                reference = rewriting(reference)
            statement = f"{recurrence.name}[{index}] of the reference is what the kernel's state gives {when}"
            self._record(ghost.value(state, *place), reference, statement, before)

    def _record(self, kernel: Form, reference: Form, statement: str, before: list[State]) -> None:
        if self.invariant.unfold:
            loop, iteration = self.invariant.unfold
            induction = self.algebra.execution.inductions[loop]
            for state in before:
                kernel = induction.unfolded(kernel, iteration(state))
                reference = induction.unfolded(reference, iteration(state))
        shown = holds(kernel, reference, self.facts)
        if not shown and self.invariant.definitions:
            kernel, reference = (self.written_out(p) for p in (kernel, reference))
            shown = holds(kernel, reference, self.facts, _SPLITS)
        self.algebra.execution.equations.append(Equation(statement, shown, kernel, reference))
