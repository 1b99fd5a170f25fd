"""What one reading of a block of words is asked, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import z3

from .counting import Book, Fact
from .shared import Shared


class Ended(Exception):
    """Says that the reading ends: at the first ballot, of which nothing is known here."""


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
