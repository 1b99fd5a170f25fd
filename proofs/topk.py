"""What is claimed of the top-k kernels.

The selection kernel is not proved to select the right entries: it is proved to stay in bounds and to write only indices
that exist. A second kernel, ``topk_check``, looks at its result and says whether it is the answer. That one is proved:
its output is the criterion of reference/topk_check.py, for every bit pattern of the scores, and the theorems below say
that only one row of indices meets the criterion, the first k in the total order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..kernels.topk_check import Config
from ..reference import topk_check as criterion
from .engine import normal_form as nf
from .engine import symbolic
from .engine.entailment import Facts
from .engine.invariants import Determined, Invariant
from .engine.semantics import serial_loops
from .engine.symbolic_torch import SymbolicTensor, symbolic_input, tensor
from .engine.verify import Compare, Compared
from .suite import Proof  # noqa: F401

selection: Callable[..., Any] = criterion.selection  # of tensors that are not torch.Tensor
ahead_of: Callable[..., Any] = criterion.ahead
check: Callable[..., Any] = criterion.topk_check
ROWS, COLUMNS = nf.variable("R"), nf.variable("T")


def _inputs(k: int) -> tuple[SymbolicTensor, ...]:
    return (
        symbolic_input("scores", (ROWS, COLUMNS), raw=True),
        symbolic_input("lengths", (ROWS,), integer=True),
        symbolic_input("indices", (ROWS, k), integer=True),
    )


def _checker(cfg: Config) -> Compare:
    """Each thread counts the entries of its own columns: sum_{s<t} ahead[row, s threads + i] before iteration t."""

    def compare(kernel: Any, facts: Facts) -> Compared:
        scores, lengths, indices = _inputs(cfg.k)
        *_, last = selection(scores, lengths, indices)
        ahead = tensor(ahead_of(scores, lengths, last))

        def counted(s: Any, i: nf.Form) -> nf.Form:
            def one(tile: nf.Form) -> nf.Form:
                entry = tile * cfg.threads + i
                return ahead.at(symbolic.block(), entry) * nf.indicator("ge", COLUMNS - 1 - entry, integer=True)

            return nf.summation(s.t, one)

        (loop,) = serial_loops(kernel).values()
        invariant = Invariant(determined={"ahead": Determined(counted)})
        done = symbolic.execute(kernel, invariants={loop: invariant}, facts=facts, raw=("scores",))
        with nf.tiled(COLUMNS, cfg.threads, strided=True):
            out = tensor(check(scores, lengths, indices))
            return done, [*done.equations, *done.compare("out", out.at)]

    return compare
