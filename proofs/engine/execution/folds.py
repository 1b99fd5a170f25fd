"""What the threads of a block tell one another: sums, maxima and minima over threads.

Thread t of a block holds a fold

    op_u  f(u)   over the threads u of row t, each as often as the row says,

where f is one term in the index of a thread. Exchanges between lanes move rows; additions add them, modulo 2^32; of maxima
and minima only which threads take part matters. So the schedule of exchanges is computed exactly, for every thread of the
block, while f stays a symbol.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import z3

from ..base.errors import Unsupported

WARP = 32
COUNT = np.uint32  # how often a thread is in a row


@dataclass(frozen=True)
class Value:
    """A term in the index of the thread. ``known`` are its values in all threads, if nothing else is in it."""

    term: z3.ExprRef
    known: np.ndarray | None = None


@dataclass(frozen=True)
class Fold:
    """A fold of f = ``term``. Without an ``op`` each row has one thread, once."""

    op: str | None
    term: z3.ExprRef
    rows: np.ndarray  # [threads, threads], modulo 2^32


def single(value: Value, threads: int) -> Fold:
    """Return a value as the fold of each thread over itself alone."""
    return Fold(None, value.term, np.eye(threads, dtype=COUNT))


def is_zero(value: Value | Fold) -> bool:
    """Return whether a value is the constant 0."""
    return isinstance(value, Value) and z3.is_bv_value(value.term) and value.term.as_long() == 0


def combine(operator: str, a: Fold, b: Fold) -> Fold | None:
    """Return a op b, or None if it is no fold of the same term."""
    op = "add" if operator == "sub" else operator
    if not a.term.eq(b.term) or any(x.op not in (None, op) for x in (a, b)):
        return None
    match operator:
        case "add":
            return Fold(op, a.term, a.rows + b.rows)
        case "sub":
            return Fold(op, a.term, a.rows - b.rows)
        case "min" | "max":
            return Fold(op, a.term, a.rows | b.rows)
    return None


def moved(a: Fold, source: np.ndarray) -> Fold:
    """Return what each thread holds that takes the value of another one."""
    return Fold(a.op, a.term, a.rows[source])


def chosen(which: np.ndarray, a: Fold, b: Fold) -> Fold:
    """Return what holds a where ``which`` is true, else b."""
    ops = {x.op for x in (a, b)} - {None}
    if not a.term.eq(b.term) or len(ops) > 1:
        raise Unsupported("a choice between folds of different terms")
    return Fold(next(iter(ops), None), a.term, np.where(which[:, None], a.rows, b.rows))


def grouped(a: Fold, alike: int) -> tuple[int, np.ndarray]:
    """Return j and a thread of each row, where each row is an aligned group of 2^j threads; else Unsupported.

    Threads of an aligned group of 2^alike hold the same, so that one of them is as good as all.
    """
    threads = len(a.rows)
    rows = a.rows > 0
    if alike:
        rows = np.repeat(rows.reshape(threads, -1, 2**alike).any(2), 2**alike, axis=1)
    sizes = {int(n) for n in rows.sum(1)}
    first = rows.argmax(1)
    size = sizes.pop()
    if sizes or not size or size & (size - 1):
        raise Unsupported("a maximum or minimum over threads that are no aligned group")
    j = size.bit_length() - 1
    if not np.array_equal(rows, (np.arange(threads)[None] >> j) == (first[:, None] >> j)):
        raise Unsupported("a maximum or minimum over threads that are no aligned group")
    return j, first


def prefixes(a: Fold) -> np.ndarray:
    """Return how many threads each row sums over, which must be the first so many, each once; else Unsupported."""
    count: np.ndarray = a.rows.sum(1).astype(np.int64)
    if not np.array_equal(a.rows, (np.arange(len(a.rows))[None] < count[:, None]).astype(COUNT)):
        raise Unsupported("a sum over threads that are not the first ones, each once")
    return count
