"""A kernel whose blocks exchange words, read once for each way in which the conditions are decided that matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import z3

from ..semantics.algebra import Memory
from ..semantics.exchanges import ExchangeMachine
from .block import Block
from .counting import Book
from .folds import Value
from .meanings import Thing
from .run import Fork, Keys, Run


class _Machine(ExchangeMachine[Thing]):
    def __init__(self, block: Block, prim_func: Any, sizes: dict[str, Thing]) -> None:
        super().__init__(block, prim_func, sizes)
        self._block_of_words = block

    def atomic_add(self, memory: Memory[Thing], index: Sequence[Thing], value: Thing) -> None:
        self._block_of_words.atomic_add(memory, index, value)


def runs(prim_func: Any, threads: int, keys: Keys, sizes: Mapping[str, tuple[int, int]]) -> Iterator[Run]:
    """Yield the runs of a block of a kernel.

    ``sizes`` are the least and the greatest value of each symbolic dimension.
    """
    names = {d.name for b in prim_func.buffer_map.values() for d in b.shape if hasattr(d, "name")}
    open_: list[tuple[tuple[z3.BoolRef, bool], ...]] = [()]
    while open_:
        decisions = open_.pop()
        run = Run(Book(threads, keys.slots), decisions)
        for name, (low, high) in sizes.items():
            size = z3.BitVec(name, 32)
            run.sizes.append(run.book.given(z3.And(size >= low, size <= high)))
        machine = _Machine(Block(run, keys), prim_func, {n: Value(z3.BitVec(n, 32)) for n in names})
        machine.parameters()
        try:
            machine.run()
            run.shared.barrier()
        except Fork as fork:
            open_ += [(*decisions, (fork.condition, truth)) for truth in (False, True)]
            continue
        yield run
