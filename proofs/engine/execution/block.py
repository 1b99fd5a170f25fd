"""A block of threads that exchange words: an algebra that keeps the data as symbols and the schedule exact.

Threads run in lock step, as ``semantics`` has it. A value is a bit-vector term in the index of the thread, the same term in
all of them, or a fold over threads (``folds``). Conditions and indices of shared memory that depend on the index of the
thread alone are computed for every thread. A condition that is the same in all threads, and that more than a choice between
two terms hangs on, is decided: the kernel is run once for either answer (``Fork``), and what was decided is a fact of that run.

What an atomic addition leaves behind is a count of keys (``counting``). What some thread stores, if a condition on data
holds in it, is a new constant: that of a thread in which it holds, if there is one; that there is at most one is an
obligation. Shared memory is checked to be free of races between barriers.

A ballot of a property of keys is a word of their bits (``counting``). A loop of an extent that is data each thread runs by
itself, without exchanges: what registers hold as an iteration begins are new functions of thread and iteration, known by their
first values and by what one iteration, run from any such state, makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import z3

from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..semantics.algebra import Binary, Dimension, Memory, Reduction, Unary
from . import folds, words
from .counting import INDEX, ITERATION, THREAD, uniform
from .folds import WARP, Fold, Value
from .meanings import Thing
from .run import Fork, Keys, Loop, Run, Write
from .shared import Shared
from .values import Values, merged

_WORDS = [z3.BitVecSort(32)] * 2


class Block(Values):
    """The algebra."""

    def __init__(self, run: Run, keys: Keys) -> None:
        self.site = None
        super().__init__(run.book)
        self.run, self.keys = run, keys
        self.shared = run.shared = Shared(self.threads, run.book, self.plain)
        self._decisions: dict[int, tuple[z3.BoolRef, bool | None]] = {c.get_id(): (c, b) for c, b in run.decisions}
        run.decided = [run.book.given(c if truth else z3.Not(c)) for c, truth in run.decisions]
        self._guards: list[Value] = []
        self._private: dict[tuple[Memory[Thing], int], Thing] = {}
        self._written: set[str] = set()  # global buffers
        self._cut = False
        self._alone: Value | None = None  # whether one more iteration is run, in a loop that each thread runs by itself

    # Values

    def unary(self, operator: Unary, a: Thing, dtype: str) -> Thing:
        """Apply a function to one value."""
        value = self.plain(a)
        if operator == "ballot":
            return self._ballot(value, dtype)
        known = np.logical_not(value.known) if operator == "not" and value.known is not None else None
        return Value(words.unary(operator, value.term), known)

    def binary(self, operator: Binary, a: Thing, b: Thing, dtype: str) -> Thing:
        """Apply an operation to two values."""
        if operator.startswith("shfl"):
            return self._exchange(operator, a, self.plain(b))
        if isinstance(a, Fold) or isinstance(b, Fold):
            return self.combine(operator, a, b, dtype)
        return self.computed(operator, a, b, dtype)

    # Exchanges

    def _whole_warps(self) -> None:
        for guard in self._guards:
            if guard.known is None:
                self._decide(guard, "an exchange where threads may diverge")
            elif guard.known.ndim and not (guard.known.reshape(-1, WARP) == guard.known.reshape(-1, WARP)[:, :1]).all():
                raise Unsupported(f"an exchange without all threads of a warp: {describe(self.site)}")

    def _exchange(self, operator: str, a: Thing, by: Value) -> Thing:
        self._whole_warps()
        if by.known is None:
            raise Unsupported(f"an exchange with a lane that is data: {describe(self.site)}")
        thread = np.arange(self.threads)
        lane, count = thread % WARP, np.broadcast_to(by.known, thread.shape) & (WARP - 1)
        other = {"shfl": count, "shfl_up": lane - count, "shfl_down": lane + count, "shfl_xor": lane ^ count}[operator]
        other = np.where((other < 0) | (other >= WARP), lane, other)
        if isinstance(a, Value) and uniform(a.term):
            return a
        fold = folds.single(a, self.threads) if isinstance(a, Value) else a
        return folds.moved(fold, thread - lane + other)

    def _ballot(self, a: Value, dtype: str) -> Value:
        """Return the word of a warp's keys, which stand in order if those of the block do."""
        self._whole_warps()
        general, offset = self.book.template(a.term)
        if offset % WARP:
            raise Unsupported(f"a ballot of keys that are not those of a word: {describe(self.site)}")
        word = self.book.ballot(general).word(z3.LShR(THREAD + offset, 5))
        return Value(words.cast(word, "uint32", dtype))

    # Control

    def launch(self, threads: tuple[int, int, int]) -> tuple[Thing, Thing, Thing]:
        """Return the three thread indices."""
        if threads != (self.threads, 1, 1) or self.threads % WARP:
            raise Unsupported(f"a block of {threads} threads")
        zero = Value(words.word(0), np.array(0))
        return Value(THREAD, np.arange(self.threads)), zero, zero

    def grid(self, dimension: Dimension, extent: Thing) -> Iterator[Thing]:
        """Yield any one block index."""
        index = z3.BitVec(f"blockIdx.{dimension}", 32)
        self.run.sizes.append(self.run.book.given(z3.And(index >= 0, index < self.plain(extent).term)))
        yield Value(index)

    @contextmanager
    def axis(self, name: str, lower: Thing, extent: Thing) -> Iterator[Thing]:
        """Refuse a parallel index."""
        raise Unsupported("tiles in a block of words")
        yield

    def reduce(self, kind: Reduction, extent: Thing, body: Callable[[Thing], Thing], dtype: str) -> Thing:
        """Refuse a reduction of a tile."""
        raise Unsupported("tiles in a block of words")

    def serial(self, loop: str, lower: Thing, extent: Thing, body: Callable[[Thing], None]) -> None:
        """Run the body for each value of a sequential index."""
        first, count = self.plain(lower), self.plain(extent)
        if first.known is None or first.known.ndim:
            raise Unsupported(f"loop {loop} from where threads differ")
        if count.known is None or count.known.ndim:
            if first.known != 0 or self._alone:
                raise Unsupported(f"loop {loop} of an extent that is data, within another one or not from 0 on")
            self._by_itself(z3.If(count.term > 0, count.term, words.word(0)), body)
            return
        for k in range(int(count.known)):
            body(self.literal(int(first.known) + k, "int32"))

    def _by_itself(self, count: z3.BitVecRef, body: Callable[[Thing], None]) -> None:
        """Run a loop that each thread runs by itself: registers that it changes are functions of thread and iteration."""
        entry, writes, inside = dict(self._private), len(self.run.writes), z3.ULT(THREAD, self.threads)
        self._alone = Value(z3.ULT(ITERATION, count))
        with self.guard(self._alone):
            body(Value(ITERATION))  # to see what it changes
            del self.run.writes[writes:]
            changed = [p for p, value in self._private.items() if value is not entry.get(p)]
            name = f"in loop {len(self.run.loops)}"
            held = {
                p: z3.Function(f"{n} of {p[0].name} {name}", *_WORDS, self.plain(self._private[p]).term.sort())
                for n, p in enumerate(changed)
            }
            head = entry | {p: Value(f(THREAD, ITERATION)) for p, f in held.items()}
            self._private = dict(head)
            body(Value(ITERATION))
        if any(value is not head.get(p) for p, value in self._private.items() if p not in held):
            raise Unsupported("a loop that changes more registers than at its entry")
        steps, entries = {}, {}
        for p, f in held.items():
            after, here = self.plain(self._private[p]).term, z3.And(inside, self._alone.term)
            steps[p[0].name, p[1]] = self.book.given(z3.Implies(here, f(THREAD, ITERATION + 1) == after))
            if p in entry:
                first = f(THREAD, words.word(0)) == self.plain(entry[p]).term
                entries[p[0].name, p[1]] = self.book.given(z3.Implies(inside, first))
            self._private[p] = Value(f(THREAD, count))
        self._alone = None
        self.run.loops.append(Loop(count, {(p[0].name, p[1]): f for p, f in held.items()}, entries, steps))

    def rounds(
        self, loop: str, span: tuple[Thing, Thing], changed: Sequence[Memory[Thing]], body: Callable[[Thing], None]
    ) -> None:
        """Refuse roles."""
        raise Unsupported("roles in a block of words")

    def turn(self) -> None:
        """Refuse roles."""
        raise Unsupported("roles in a block of words")

    def decided(self, condition: Thing) -> bool | None:
        """Return True or False if the condition is so wherever control is now, else None."""
        value = self.plain(condition)
        if value.known is not None:
            here = np.broadcast_to(value.known, (self.threads,))[self._mask()]
            return True if here.all() else None if here.any() else False
        return self._decision(value.term)

    def _decision(self, term: z3.BoolRef) -> bool | None:
        term = z3.simplify(term)
        if z3.is_true(term) or z3.is_false(term):
            return bool(z3.is_true(term))
        if z3.is_not(term):
            inner = self._decision(term.arg(0))
            return None if inner is None else not inner
        _, truth = self._decisions.get(term.get_id(), (term, None))
        return truth

    def _decide(self, guard: Value, what: str) -> None:
        """Ask for another run, in which a condition is decided that is the same in all threads."""
        term = z3.simplify(guard.term)
        term = term.arg(0) if z3.is_not(term) else term
        if not uniform(term):
            raise Unsupported(f"{what}: {describe(self.site)}")
        raise Fork(term)

    def uniform(self, condition: Thing) -> bool:
        """Return whether a condition is the same for all threads."""
        value = self.plain(condition)
        return value.known.ndim == 0 if value.known is not None else uniform(value.term)

    @contextmanager
    def guard(self, condition: Thing) -> Iterator[None]:
        """Let what happens inside happen only where the condition holds."""
        value = self.plain(condition)
        settled = self.decided(value) is True
        if not settled:
            self._guards.append(value)
        try:
            yield
        finally:
            if not settled:
                self._guards.pop()

    def independent(self, store: Sequence[Thing], access: Sequence[Thing]) -> bool:
        """Return False, since there are no parallel indices."""
        return False

    def _mask(self) -> np.ndarray:
        """Return the threads that are here, as far as that is a matter of their index."""
        mask = np.ones(self.threads, dtype=bool)
        for guard in self._guards:
            if guard.known is not None:
                mask &= guard.known.astype(bool)
        return mask

    def _conditions(self) -> list[Value]:
        """Return the conditions on data that hold here."""
        return [guard for guard in self._guards if guard.known is None]

    def barrier(self) -> None:
        """Let all threads wait for one another."""
        for guard in self._guards:
            self._decide(guard, "a barrier that some threads may not reach")
        self.shared.barrier()

    # Memory

    def allocate(self, memory: Memory[Thing]) -> None:
        """Make a fresh buffer."""
        if memory.scope == "shared":
            self.shared.allocate(memory, [self._number(n) for n in memory.shape])

    def _number(self, n: Thing) -> int:
        known = self.plain(n).known
        if known is None or known.ndim:
            raise Unsupported(f"a size or index that is data or differs between threads: {describe(self.site)}")
        return int(known)

    def _flat(self, memory: Memory[Thing], index: Sequence[Thing]) -> int:
        flat = 0
        for i, n in zip(index, memory.shape, strict=True):
            place, extent = self._number(i), self._number(n)
            if not 0 <= place < extent:
                raise Unsupported(f"an index out of bounds: {describe(self.site)}")
            flat = flat * extent + place
        return flat

    def load(self, memory: Memory[Thing], index: Sequence[Thing]) -> Thing:
        """Read elements."""
        match memory.scope:
            case "local":
                if memory.name == self.keys.buffer:
                    self._abstract(memory)
                place = memory, self._flat(memory, index)
                if place not in self._private:
                    raise Unsupported(f"read of uninitialised {memory.name}: {describe(self.site)}")
                return self._private[place]
            case "shared":
                self._no_data("a read of shared memory where threads may diverge")
                return self.shared.load(memory, [self.plain(i) for i in index], self._mask())
            case "global":
                terms = [self.plain(i).term for i in index]
                sorts = [t.sort() for t in terms]
                read = z3.Function(memory.name, *sorts, z3.BitVecSort(words.width(memory.dtype)))
                if memory.name in self._written:
                    raise Unsupported(f"a read of {memory.name} after it was written")
                return Value(read(*terms))
        raise Unsupported(f"memory of scope {memory.scope}")

    def _no_data(self, what: str) -> None:
        for guard in self._conditions():
            self._decide(guard, what)

    def _abstract(self, memory: Memory[Thing]) -> None:
        """Ask of each slot of the keys that it holds what it is meant to, and forget the rest."""
        if self._cut:
            return
        self._cut = True
        for i in range(self.keys.slots):
            if (memory, i) not in self._private:
                raise Unsupported(f"read of uninitialised {memory.name}")
            entry = THREAD + i * self.threads
            right = self.plain(self._private[memory, i]).term == self.keys.meant(entry)
            statement = f"slot {i} of {memory.name} is the key of its entry"
            self.run.obligations.append((statement, z3.Implies(z3.ULT(THREAD, self.threads), right)))
            self._private[memory, i] = Value(self.run.book.key(entry))
        inside = z3.ULT(INDEX, self.run.book.entries)
        self.run.meaning = self.run.book.given(z3.Implies(inside, self.run.book.key(INDEX) == self.keys.meant(INDEX)))

    def store(self, memory: Memory[Thing], index: Sequence[Thing], value: Thing) -> None:
        """Write elements."""
        match memory.scope:
            case "local":
                self._keep(memory, self._flat(memory, index), value)
            case "shared":
                self._share(memory, index, value)
            case "global":
                self._write(memory, index, value)
            case _:
                raise Unsupported(f"memory of scope {memory.scope}")

    def _write(self, memory: Memory[Thing], index: Sequence[Thing], value: Thing) -> None:
        self._written.add(memory.name)
        once = [] if self._alone else [ITERATION == 0]
        guard = z3.And(z3.ULT(THREAD, self.threads), *once, *(guard.term for guard in self._guards))
        places = tuple(self.plain(i).term for i in index)
        self.run.writes.append(Write(memory.name, places, self.plain(value).term, guard))

    def _keep(self, memory: Memory[Thing], place: int, value: Thing) -> None:
        if self._cut and memory.name == self.keys.buffer:
            raise Unsupported(f"a store to {memory.name} after it was read")
        old = self._private.get((memory, place))
        for guard in self._guards:
            if guard is self._alone:
                continue
            if old is None:
                width = words.width(memory.dtype)
                old = Value(z3.BitVec(f"uninitialised {memory.name}[{place}]", width))
            if isinstance(value, Value) and isinstance(old, Value):
                value = merged(guard, value, old)
            elif guard.known is None and uniform(guard.term):
                self._decide(guard, "a choice between folds")
            elif guard.known is None:
                value = merged(guard, self.plain(value), self.plain(old))
            else:
                value = self.chosen(guard.known, value, old)
        self._private[memory, place] = value

    def _share(self, memory: Memory[Thing], index: Sequence[Thing], value: Thing) -> None:
        data = self._conditions()
        if self._alone:
            raise Unsupported(f"a store to {memory.name} in a loop that threads run by themselves")
        for guard in data:
            if uniform(guard.term):
                self._decide(guard, "a store")
        places = [self.plain(i) for i in index]
        if not data:
            self.shared.store(memory, places, value, self._mask())
            return
        guards = [guard.term for guard in self._guards]
        self.shared.suspend(memory, places, self.plain(value).term, z3.And(*guards))

    def atomic_add(self, memory: Memory[Thing], index: Sequence[Thing], value: Thing) -> None:
        """Count additions of 1 to elements of shared memory."""
        data = self._conditions()
        for guard in data:
            if uniform(guard.term):
                self._decide(guard, "an addition")
        if memory.scope != "shared" or len(index) != 1 or len(data) != len(self._guards):
            raise Unsupported(f"an atomic addition: {describe(self.site)}")
        added = self.plain(value).term
        if not (z3.is_bv_value(added) and added.as_long() == 1):
            raise Unsupported(f"an atomic addition of more than 1: {describe(self.site)}")
        guards = [guard.term for guard in data]
        self.shared.add(memory, self.plain(index[0]).term, z3.And(*guards) if guards else z3.BoolVal(True))
