"""Shared memory of a block whose threads exchange words: what each element holds, and that no threads race.

An element holds a term that is the same for all readers, a fold that some thread had, a count of additions, or nothing yet.
A word of ballots is known by its number.
Between two barriers no element is written by one thread and touched by another one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import z3

from ..base.errors import Unsupported
from ..semantics.algebra import Memory
from .counting import BIN, OTHER, THREAD, Book, Predicate, replaced, uniform
from .folds import COUNT, Fold, Value

Thing = Value | Fold
Element = Value | tuple[str | None, z3.ExprRef, np.ndarray] | Predicate | None


def _same(a: z3.ExprRef, b: z3.ExprRef) -> bool:
    """Return whether two terms are one. Mostly they are one object, for which Z3 is not asked."""
    return a is b or bool(a.eq(b))


@dataclass(frozen=True)
class Store:
    """What the thread, if any, stores in which a condition on data holds.

    ``values`` has for each element, by buffer and index, the term that is stored, and what is read before and after.
    """

    guard: z3.BoolRef
    values: dict[tuple[str, int], tuple[z3.ExprRef, z3.ExprRef, z3.ExprRef]]
    written: z3.BoolRef
    witness: z3.BitVecRef
    effect: Any  # the Fact of what is read afterwards
    absent: Any  # the Fact that the condition holds in no thread if nothing is written


@dataclass
class Shared:
    """The shared memory of a block of so many threads."""

    threads: int
    book: Book
    plain: Callable[[Thing], Value]
    stores: list[Store] = field(default_factory=list)
    histograms: list[Predicate] = field(default_factory=list)
    obligations: list[tuple[str, z3.BoolRef]] = field(default_factory=list)
    _held: dict[Memory[Thing], list[Element]] = field(default_factory=dict)
    _shapes: dict[Memory[Thing], list[int]] = field(default_factory=dict)
    _touched: dict[Memory[Thing], list[tuple[bool, np.ndarray, np.ndarray]]] = field(default_factory=dict)
    _added: dict[Memory[Thing], list[tuple[z3.BitVecRef, z3.BoolRef]]] = field(default_factory=dict)
    _pending: list[tuple[Memory[Thing], int, z3.ExprRef, z3.BoolRef]] = field(default_factory=list)

    def allocate(self, memory: Memory[Thing], shape: list[int]) -> None:
        """Make a buffer that holds nothing."""
        self._shapes[memory] = shape
        self._held[memory] = [None] * int(np.prod(shape))

    def _places(self, memory: Memory[Thing], index: Sequence[Value], mask: np.ndarray) -> np.ndarray:
        """Return the flat index in each thread. Threads that are not here have that of one that is."""
        flat = np.zeros(self.threads, dtype=np.int64)
        for i, extent in zip(index, self._shapes[memory], strict=True):
            if i.known is None:
                raise Unsupported(f"an index of {memory.name} that is data")
            flat = flat * extent + np.broadcast_to(i.known, flat.shape)
            if not ((i.known >= 0) & (i.known < extent) | ~mask).all():
                raise Unsupported(f"an index of {memory.name} out of bounds")
        flat = np.where(mask, flat, flat[mask.argmax()])
        return flat

    def _touch(self, memory: Memory[Thing], writes: bool, flat: np.ndarray, mask: np.ndarray) -> None:
        self._touched.setdefault(memory, []).append((writes, flat[mask], np.arange(self.threads)[mask]))

    def load(self, memory: Memory[Thing], index: Sequence[Value], mask: np.ndarray) -> Thing:
        """Return what the threads that are here read."""
        flat = self._places(memory, index, mask)
        self._touch(memory, False, flat, mask)
        held = [self._held[memory][place] for place in flat]
        first = held[0]
        if isinstance(first, Value) and all(isinstance(e, Value) and _same(e.term, first.term) for e in held):
            return first
        if isinstance(first, Predicate) and all(e is first for e in held):
            if len(index) != 1:
                raise Unsupported(f"counts in {memory.name} of several dimensions")
            return Value(first.count(self.book.entries, index[0].term))
        if isinstance(first, tuple) and first[0] and all(e is first for e in held):
            return Value(self._same_for_all(first))
        rows = [e for e in held if isinstance(e, tuple)]
        if len(rows) == len(held) and all(op == rows[0][0] and _same(f, rows[0][1]) for op, f, _ in rows):
            return Fold(rows[0][0], rows[0][1], np.stack([row for _, _, row in rows]))
        if all(isinstance(e, Value) and self._number_of(e.term) is not None for e in held):
            return self._in_order(memory, [e.term for e in held if isinstance(e, Value)])
        raise Unsupported(f"a read of {memory.name}, whose elements hold different things, or nothing yet")

    def _number_of(self, term: z3.ExprRef) -> int | None:
        """Return the number of a word of ballots, None of any other term."""
        if not any(term.decl().eq(b.word) for b in self.book.ballots) or not z3.is_bv_value(term.arg(0)):
            return None
        return int(term.arg(0).as_long())

    def _in_order(self, memory: Memory[Thing], words: list[z3.ExprRef]) -> Value:
        """Return the word of ballots that each thread reads, which must be by as much further as the thread is."""
        first = words[0]
        if not all(w.eq(first.decl()(first.arg(0).as_long() + t)) for t, w in enumerate(words)):
            raise Unsupported(f"a read of {memory.name}, whose words are not in the order of the threads")
        return Value(first.decl()(z3.simplify(THREAD + first.arg(0))))

    def store(self, memory: Memory[Thing], index: Sequence[Value], value: Thing, mask: np.ndarray) -> None:
        """Write in the threads that are here."""
        flat = self._places(memory, index, mask)
        self._touch(memory, True, flat, mask)
        alike = value if isinstance(value, Value) and uniform(value.term) else None
        for thread in np.flatnonzero(mask):
            self._held[memory][flat[thread]] = alike or self._element(value, int(thread))

    def _element(self, value: Thing, thread: int) -> Element:
        if isinstance(value, Fold):
            return value.op, value.term, value.rows[thread]
        if any(value.term.decl().eq(b.word) for b in self.book.ballots):
            return Value(z3.simplify(replaced(value.term, THREAD, thread)))
        row = np.zeros(self.threads, dtype=COUNT)
        row[thread] = 1
        return None, value.term, row

    def add(self, memory: Memory[Thing], index: z3.BitVecRef, guard: z3.BoolRef) -> None:
        """Add 1 to an element in each thread in which a condition holds."""
        self._added.setdefault(memory, []).append((index, guard))

    def suspend(self, memory: Memory[Thing], index: Sequence[Value], value: z3.ExprRef, guard: z3.BoolRef) -> None:
        """Store in the thread in which a condition on data holds, to take effect at the next barrier."""
        flat = self._places(memory, index, np.ones(self.threads, dtype=bool))
        if (flat != flat[0]).any():
            raise Unsupported(f"a store to {memory.name} at an index that differs, on a condition that is data")
        self._pending.append((memory, int(flat[0]), value, guard))

    def barrier(self) -> None:
        """Let what was stored and added take effect, and check that no threads raced since the last barrier."""
        for memory, touched in self._touched.items():
            self._race(memory, touched)
        for memory, added in self._added.items():
            if memory in self._touched:
                raise Unsupported(f"{memory.name} is added to and used between two barriers")
            self._count(memory, added)
        self._settle()
        self._touched, self._added, self._pending = {}, {}, []

    def _race(self, memory: Memory[Thing], touched: list[tuple[bool, np.ndarray, np.ndarray]]) -> None:
        writer = np.full(len(self._held[memory]), -1)
        for writes, flat, thread in touched:
            if writes:
                if len(set(flat.tolist())) < len(flat) or ((writer[flat] >= 0) & (writer[flat] != thread)).any():
                    raise Unsupported(f"two threads write one element of {memory.name}")
                writer[flat] = thread
        if any(((writer[flat] >= 0) & (writer[flat] != thread)).any() for _, flat, thread in touched):
            raise Unsupported(f"one thread writes and another one reads an element of {memory.name}")
        pending = [place for other, place, *_ in self._pending if other is memory]
        if any(np.isin(flat, pending).any() for _, flat, _ in touched):
            raise Unsupported(f"an element of {memory.name} is used before a barrier")

    def _count(self, memory: Memory[Thing], added: list[tuple[z3.BitVecRef, z3.BoolRef]]) -> None:
        """Let elements hold how many keys were added to them: each key of the block must be looked at once, alike."""
        if not all(
            isinstance(e, Value) and z3.is_bv_value(e.term) and not e.term.as_long() for e in self._held[memory]
        ):
            raise Unsupported(f"additions to {memory.name}, which is not 0")
        templates = [self.book.template(z3.And(guard, index == BIN)) for index, guard in added]
        if sorted(offset for _, offset in templates) != [i * self.threads for i in range(self.book.slots)]:
            raise Unsupported(f"additions to {memory.name} that are not one for each key")
        if not all(general.eq(templates[0][0]) for general, _ in templates):
            raise Unsupported(f"additions to {memory.name} that differ between keys")
        predicate = self.book.predicate(templates[0][0], BIN)
        self.histograms.append(predicate)
        self._held[memory] = [predicate] * len(self._held[memory])

    def _settle(self) -> None:
        """Let pending stores take effect, all on one condition."""
        if not self._pending:
            return
        guard, number = self._pending[0][3], len(self.stores)
        if not all(g.eq(guard) for *_, g in self._pending):
            raise Unsupported("stores on different conditions between two barriers")
        two = z3.And(z3.ULT(THREAD, self.threads), z3.ULT(OTHER, self.threads), guard, replaced(guard, THREAD, OTHER))
        self.obligations.append(("one thread stores at most", z3.Implies(two, THREAD == OTHER)))
        written, witness = z3.Bool(f"written#{number}"), z3.BitVec(f"witness#{number}", 32)
        values, new, old = {}, [z3.ULT(witness, self.threads), replaced(guard, THREAD, witness)], []
        for memory, place, value, _ in self._pending:
            after = z3.BitVec(f"{memory.name}[{place}]#{number}", value.size())
            before = self._held[memory][place]
            if not isinstance(before, Value | tuple):
                raise Unsupported(f"{memory.name}[{place}] may hold nothing")
            if (memory.name, place) in values:
                raise Unsupported(f"{memory.name}[{place}] is stored twice between two barriers")
            values[memory.name, place] = value, self._same_for_all(before), after
            new.append(after == replaced(value, THREAD, witness))
            old.append(after == values[memory.name, place][1])
            self._held[memory][place] = Value(after)
        effect = self.book.given(z3.If(written, z3.And(*new), z3.And(*old)))
        here = z3.And(z3.Not(written), z3.ULT(THREAD, self.threads))
        absent = self.book.given(z3.Implies(here, z3.Not(guard)))
        self.stores.append(Store(guard, values, written, witness, effect, absent))

    def _same_for_all(self, element: Any) -> z3.ExprRef:
        if isinstance(element, Value):
            return element.term
        op, term, row = element
        value = self.plain(Fold(op, term, np.tile(row, (self.threads, 1))))
        if not uniform(value.term):
            raise Unsupported("what differs between threads, read by all")
        return value.term
