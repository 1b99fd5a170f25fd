"""What one reading of a block of words is asked, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import z3

from .counting import Book, Fact
from .shared import Shared


class Fork(Exception):
    """Says that a condition, the same in all threads, must be decided first."""

    def __init__(self, condition: z3.BoolRef) -> None:
        super().__init__(str(condition))
        self.condition = condition


@dataclass(frozen=True)
class Keys:
    """What a private buffer holds: slot i of thread t is ``key(i threads + t)``.

    ``meant`` is what that must be, which is asked of each slot.
    """

    buffer: str
    slots: int
    meant: Callable[[z3.BitVecRef], z3.BitVecRef]  # of an entry


class Write(NamedTuple):
    """Stores to a global buffer: that of each thread in each of its iterations, 0 outside loops, in which a guard holds."""

    buffer: str
    place: tuple[z3.ExprRef, ...]
    value: z3.ExprRef
    guard: z3.BoolRef


class Loop(NamedTuple):
    """A loop that each thread runs by itself: what its registers hold as an iteration begins, as functions of both.

    ``entry`` and ``step`` are, by the register, what it holds at first, and how one iteration changes it.
    """

    count: z3.BitVecRef  # of iterations
    held: dict[tuple[str, int], z3.FuncDeclRef]
    entry: dict[tuple[str, int], Fact]
    step: dict[tuple[str, int], Fact]


@dataclass
class Run:
    """What a run leaves: the book of its facts, shared memory with what was exchanged in order, stores to global buffers.

    ``obligations`` must be shown for the facts to hold, those of shared memory too.
    """

    book: Book
    decisions: Sequence[tuple[z3.BoolRef, bool]]
    shared: Shared = field(init=False)
    obligations: list[tuple[str, z3.BoolRef]] = field(default_factory=list)
    sizes: list[Fact] = field(default_factory=list)  # and of the block's indices
    decided: list[Fact] = field(default_factory=list)
    meaning: Fact = field(init=False)  # of the keys
    loops: list[Loop] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
