"""The rows that a query's list names, as the kernels of the indexer's loss gather them, tile by tile.

The producer of a block fills a tile with two halves of 64 slots, one for each consumer. A slot that names no row has zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..kernels.sparse_attention_config import KEYS as HALF
from ..kernels.sparse_attention_config import PANEL
from .attention import at_least, index_or_none
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.symbolic import block
from .engine.forms import normal_form as nf
from .engine.forms.normal_form import Form

K, T = nf.variable("K"), nf.variable("T")
CASES = at_least(T, 1), nf.indicator("eq", T, integer=True)  # what the reference distinguishes
KEYS, LOOP = "k_shared", "t"  # in the kernels
TILE = 2 * HALF  # slots of an iteration


@dataclass(frozen=True)
class Block:
    """A block of threads, of one query and up to 64 of its heads.

    Attributes:
        rows: the tensor whose rows are listed.
        heads: how many blocks share the heads of a query.
    """

    rows: str
    heads: int = 1

    @cached_property
    def b(self) -> Form:
        """The sequence."""
        return block("y")

    @cached_property
    def s(self) -> Form:
        """The query."""
        return nf.floordiv(block(), self.heads)

    def row(self, slot: Form) -> Form:
        """Return the row that a slot names, or -1."""
        index = index_or_none(at_least(K - 1, slot), nf.read("indices", self.b, self.s, slot))
        return index_or_none(at_least(T - 1, index), index)

    def key(self, u: Form, j: Form, d: Form) -> Form:
        """Return what ``key`` stands for: element d of the row in slot j of tile u, 0 where there is none."""
        row = self.row(TILE * u + j)
        return at_least(row, 0) * nf.read(self.rows, self.b, row, d)

    def invariant(self) -> Invariant:
        """Return what holds in each iteration: the producer has filled the tile."""

        def key(s: State, half: Form, j: Form, d: Form) -> Form:
            return nf.apply("key", s.t, HALF * half + j, d)

        return Invariant(staged={KEYS: Determined(key, parts={0: 1, 2: PANEL})}, definitions={"key": self.key})
