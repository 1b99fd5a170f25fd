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

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial

from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.equations import Equation, elements, holds
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from ..forms.ring import Rewriting, rewritten
from ..semantics.algebra import Memory
from .changes import changed_by
from .contents import Axis, Buffers, Uninitialised, Write
from .invariants import Determined, Formula, Ghost, Invariant, State
from .obligations import Obligation

_SPLITS = 16  # undecided conditions that an equation may be split by where abbreviations are written out


class Induction:
    """One loop under its invariant. Afterwards it knows what each iteration did."""

    def __init__(self, algebra: Buffers, loop: str, invariant: Invariant, extent: Form) -> None:
        self.algebra, self.loop, self.invariant, self.extent = algebra, loop, invariant, extent
        self.facts = algebra.facts
        self.path = algebra.facts.path
        self.memories: dict[str, Memory[Value]] = {}
        for name in (*invariant.free, *invariant.determined, *invariant.staged):
            found = [m for m in algebra.contents if m.name == name]
            if len(found) != 1:
                raise ValueError(f"{len(found)} buffers are named {name!r}")
            self.memories[name] = found[0]
        if not self.facts.holds(nf.nonnegative(extent)):
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
        t, auxiliary, ghosts = self.t, self.invariant.auxiliary, self.invariant.ghosts
        iteration = partial(body, lower + t)
        self.facts.bound(t, self.extent)
        contents, execution, kept = self.algebra.contents, self.algebra.execution, self.memories.values()
        found = changed_by(self.algebra, lambda m: self._layer(m, partial(nf.apply, f"{m.name}@?"), None), iteration)
        self.algebra.contents, self.algebra.execution = contents, execution
        self.changed |= {m.name for m in found if m in kept}
        self.lost = [m for m in contents if m in found and m not in kept]
        entry = self._entry = self._frozen(ZERO, lambda name, index: auxiliary[name].initial(self._entry, *index))
        for recurrence in (ghost.recurrence for ghost in ghosts):
            steps = f"loop {self.loop!r} runs as often as {recurrence.name} steps"
            self._record(self.extent, nf.form(recurrence.count), steps)
        self._establish(entry, f"at the entry of loop {self.loop!r}", [g.recurrence.initial for g in ghosts])
        before = self._stage = self.havoc(t)
        known = {*self.changed, *self.invariant.staged}
        layers = {m: tuple(c.layers) for m, c in contents.items() if m.name not in known and m not in self.lost}
        iteration()
        if written := sorted(m.name for m in layers if tuple(contents[m].layers) != layers[m]):
            raise Unsupported(f"loop {self.loop!r} writes {', '.join(written)}, which was not found to be written")
        after = self._after = self._frozen(t + 1, lambda name, index: auxiliary[name].step(before, *index))
        when = f"after an iteration of loop {self.loop!r}"
        self._establish(after, when, [self._step(ghost, before) for ghost in ghosts], before)
        self.havoc(self.extent)
        self.algebra.execution.ghosts |= {ghost.recurrence.name: self.family(ghost) for ghost in ghosts}

    def _establish(self, state: State, when: str, wanted: Iterable[Formula], before: State | None = None) -> None:
        """Check all that the invariant says of a state, where the states of the references are ``wanted``."""
        self._check(state, when, self.invariant.determined)
        self._require_positive(state, when)
        for ghost, formula in zip(self.invariant.ghosts, wanted, strict=True):
            self._check_ghost(ghost, state, formula, when, before)

    def turn(self) -> None:
        """Take note that the turn of a role ends: after an iteration's first, check what is staged and make it opaque."""
        head, self._stage = self._stage, None
        if head is not None and self.invariant.staged:
            now = self._frozen(head.t, head.read)
            self._check(now, f"in an iteration of loop {self.loop!r}", self.invariant.staged)
            self._describe(self.invariant.staged, head)

    def family(self, ghost: Ghost) -> Formula:
        """Return the function from the number of a ghost's state and an index to an element."""

        def value(number: Form, *index: Form) -> Form:
            within = nf.nonnegative(self.extent - number)
            if not self.facts.holds(within * nf.nonnegative(number)):
                raise Unsupported(f"state {number} of {ghost.recurrence.name} may not exist")
            return self._reader(ghost, self.symbolic(number))(*index)

        return value

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
        """Return an element of a free buffer at the head of iteration t: any number, or a constant that it is at first."""
        if name not in self.invariant.free and name not in self.invariant.auxiliary:
            raise Unsupported(f"the invariant of loop {self.loop!r} says nothing of {name}")
        if name not in self.changed:
            return nf.apply(f"{name}@{self.loop}", *index)
        if t is ZERO and self._entry and (initial := self._entry.read(name, index)).constant is not None:
            return initial
        return nf.apply(f"{name}@{self.loop}", t, *index)

    def unfolded(self, p: Form, s: Form) -> Form:
        """Return the form with the free buffers at the head of iteration s, at least 1, over those of s - 1."""
        after = self._after
        if after is None or not self.facts.holds(nf.nonnegative(s - 1)):
            raise Unsupported(f"iteration {s} of loop {self.loop!r} has no predecessor")
        if s not in self._unfoldings:
            names = sorted(self.changed & {*self.invariant.free, *self.invariant.auxiliary})

            def value(name: str, t: Form, *index: Form) -> Form:
                if t is not s:
                    return nf.apply(f"{name}@{self.loop}", t, *index)
                return nf.substitute(after.read(name, index), {nf.number(self.t): s - 1})

            each = [nf.replacing(f"{name}@{self.loop}", cache(partial(value, name))) for name in names]
            self._unfoldings[s] = each
        return rewritten(p, self._unfoldings[s])

    def havoc(self, t: Form) -> State:
        """Replace the contents by what the invariant says of iteration t."""
        state = self.symbolic(t)
        for memory in (*self.lost, *(self.memories[name] for name in self.invariant.staged)):
            self.algebra.contents[memory].forget(self.path)
        free = {name: Determined(lambda s, *i, n=name: s.read(n, i)) for name in self.invariant.free}
        self._describe({**free, **self.invariant.determined}, state)
        return state

    def _describe(self, what: Mapping[str, Determined], state: State) -> None:
        """Let buffers hold their formulas, and nothing else."""
        for name, determined in what.items():
            contents, where = self.algebra.contents[self.memories[name]], determined.where
            contents.forget(self.path)
            condition = partial(where, state) if where else None
            contents.write(self._layer(self.memories[name], partial(determined.value, state), condition))

    def _layer(self, memory: Memory[Value], value: Formula, condition: Formula | None) -> Write:
        """Return a write of a formula to all elements of a buffer for which a condition holds."""
        index = [ZERO if dim.form is ONE else nf.fresh("i") for dim in memory.shape]
        axes = [Axis(i, ZERO, dim.form) for i, dim in zip(index, memory.shape, strict=True) if i is not ZERO]
        for axis in axes:
            self.facts.bound(axis.variable, axis.extent)
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
                statement = f"{name}[{', '.join(map(str, index))}] is what the invariant says {when}"
                with self.facts.assuming(condition):
                    wanted = determined.value(state, *index)
                    try:
                        self._record(state.read(name, index), wanted, statement)
                    except Uninitialised as error:
                        self.algebra.execution.equations.append(Equation(f"{statement}: {error}", False, ZERO, wanted))

    def _require_positive(self, state: State, when: str) -> None:
        """Leave to the range layer that the positive buffers are positive, and let it use that."""
        execution = self.algebra.execution
        for name in self.invariant.positive:
            auxiliary = self.invariant.auxiliary.get(name)
            like = auxiliary.like if auxiliary else name
            shape = next(m for m in self.algebra.contents if m.name == like).shape
            for index in elements([dim.form for dim in shape], self.facts):
                site, value = f"{name}[{', '.join(map(str, index))}] {when}", Value(state.read(name, index))
                execution.obligations.append(Obligation("positive", value, self.facts.path, site))
            execution.positive |= {f"{name}@{self.loop}"}

    def _reader(self, ghost: Ghost, state: State) -> Formula:
        """Return the reference's state as a function of its full index."""

        def value(*index: Form) -> Form:
            for i, j in zip(index, ghost.at, strict=False):
                if not self.facts.same(i, j):
                    raise Unsupported(f"the reference uses its state at {i}, the kernel holds it at {j}")
            return ghost.value(state, *index[len(ghost.at) :])

        return value

    def _step(self, ghost: Ghost, before: State) -> Formula:
        """Return the reference's next state as a function of its index, from the kernel's state before the iteration."""
        rewriting = nf.replacing(ghost.recurrence.name, self._reader(ghost, before))
        return lambda *index: rewriting(ghost.recurrence.step(before.t, *index))

    def _check_ghost(self, ghost: Ghost, state: State, wanted: Formula, when: str, before: State | None) -> None:
        """Check that the formula for the reference's state gives what is wanted."""
        recurrence, ghosts = ghost.recurrence, self.algebra.execution.ghosts
        others = [nf.replacing(other.name, ghosts[other.name]) for other in recurrence.others]
        for place in elements(recurrence.shape[len(ghost.at) :], self.facts):
            reference = rewritten(wanted(*ghost.at, *place), others)
            which = f"{recurrence.name}[{', '.join(map(str, place))}]"
            statement = f"{which} of the reference is what the kernel's state gives {when}"
            self._record(ghost.value(state, *place), reference, statement, before)

    def _record(self, kernel: Form, reference: Form, statement: str, before: State | None = None) -> None:
        """File an equation, and whether it holds, if need be with loops unfolded and abbreviations written out."""
        if self.invariant.unfold and before:
            loop, iteration = self.invariant.unfold
            unfold = partial(self.algebra.execution.inductions[loop].unfolded, s=iteration(before))
            kernel, reference = unfold(kernel), unfold(reference)
        shown = holds(kernel, reference, self.facts)
        if not shown and self.invariant.definitions:
            definitions = [nf.replacing(name, value) for name, value in self.invariant.definitions.items()]
            difference = rewritten(kernel - reference, definitions)  # what both sides have need not be written out
            shown = holds(difference, ZERO, self.facts, _SPLITS)
        self.algebra.execution.equations.append(Equation(statement, shown, kernel, reference))
