"""What is claimed of the gradients of the indexer's scores over listed entries (kernels/indexer_loss_backward.py).

A block of threads has a query s. With row(u, j) for the row that slot 128 u + j of its list names, or -1,

    key(u, j) = that row of k, 0 where there is none,
    grad(u, j) = dI of the slot, 0 beyond the last,
    active(u, j, h) = [q(h) · key(u, j) > 0] grad(u, j),

the sums of consumer g have before iteration t of the loop over tiles, for head h and column d,

    acc_g[h, d] = Σ_{u < t} Σ_{j < 64} active(u, 64 g + j, h) key(u, 64 g + j, d),
    sums_g[h]   = Σ_{u < t} Σ_{j < 64} active(u, 64 g + j, h) (q(h) · key(u, 64 g + j)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..kernels.indexer_loss import Config
from ..kernels.sparse_attention_config import KEYS as HALF
from ..reference import csa
from ..reference import indexer_loss as reference
from ..reference.contract import Contract
from .attention import at_least, inputs
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.symbolic import Execution, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation, holds
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.reference.pull_array import deciding
from .engine.reference.symbolic_torch import tensor
from .engine.verify import Compare, Compared
from .listed_rows import CASES, LOOP, TILE, Block, K

_SPLITS = 12

Reference = Callable[..., Any]
"""From the inputs, the gradients of q and the weights, and the parts of that of the keys."""


@dataclass(frozen=True)
class Gradients(Block):
    """A block of threads of the kernel of the gradients.

    Attributes:
        D: columns of a row.
    """

    D: int = 128

    def grad(self, u: Form, j: Form) -> Form:
        """Return what ``grad`` stands for."""
        slot = TILE * u + j
        return at_least(K - 1, slot) * nf.read("grad_scores", self.b, self.s, slot)

    def dot(self, u: Form, j: Form, h: Form) -> Form:
        """Return q(h) · key(u, j)."""
        return nf.summation(self.D, lambda c: nf.read("q", self.b, self.s, h, c) * nf.apply("key", u, j, c))

    def active(self, u: Form, j: Form, h: Form) -> Form:
        """Return what ``active`` stands for."""
        return (ONE - nf.indicator("ge", -self.dot(u, j, h), integer=False)) * self.grad(u, j)

    def summand(self, h: Form, *column: Form) -> sums.Summand:
        """Return, of a slot, what it adds to an element of acc, or without a column to one of the sums for the weights."""

        def of(u: Form, j: Form) -> Form:
            times = nf.apply("key", u, j, *column) if column else self.dot(u, j, h)
            return self.active(u, j, h) * times

        return of

    def invariant(self) -> Invariant:
        """Return what holds in each iteration, of the producer and of both consumers."""

        def of_half(g: int) -> Determined:
            def value(s: State, *index: Form) -> Form:
                of = self.summand(*index)
                return nf.summation(s.t, lambda u: nf.summation(HALF, lambda j: of(u, HALF * g + j)))

            return Determined(value)

        both = {f"{name}{g}": of_half(g) for name in ("acc", "sums") for g in range(2)}
        return replace(super().invariant(), determined=both)

    def by_tiles(self, facts: Facts, *index: Form) -> nf.Rule:
        """Return the rule that the reference's sum over all slots, for an element of a gradient, is one over tiles."""
        of, written_out = self.summand(*index), nf.replacing("key", self.key)
        return sums.by_tiles(K, TILE, facts, [(of, lambda u, j: written_out(of(u, j)))])


def _gradients(grad_scores: Any, q: Any, k: Any, weights: Any, indices: Any) -> tuple[Any, Any, Any]:
    grad_q, of_rows, grad_weights = reference.scores_bwd(grad_scores, q, weights, csa._selected(k, indices))
    return grad_q, grad_weights, of_rows.unsqueeze(3)


def compare(cfg: Config, contract: Contract, of: Reference = _gradients) -> Compare:
    """Return the comparison of the kernel with the gradients in the reference."""

    def compared(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.splitting(2))
            stack.enter_context(nf.tiled(TILE, HALF))
            at = Gradients("k", D=cfg.D)
            done = execute(kernel, invariants={LOOP: at.invariant()}, facts=known)
            equations = list(done.equations)
            if all(equation.holds for equation in equations):
                given = inputs(cfg, contract)
                for case in CASES:
                    with known.assuming(case), deciding(known):
                        equations += _outcome(at, lambda: of(*given.values()), done)
            return done, equations

    return compared


def _outcome(at: Gradients, results: Callable[[], tuple[Any, Any, Any]], done: Execution) -> Iterator[Equation]:
    """Yield that what the kernel leaves is the reference's."""
    u, j, d = map(nf.fresh, ("u", "j", "d"))
    nothing = holds(at.key(u, j, d), ZERO, done.facts, _SPLITS)  # as there are no rows
    keys = [nf.replacing("key", lambda *_: ZERO)] if nothing else []

    def wanted(output: int) -> Callable[..., Value]:
        def element(b: Form, s: Form, h: Form, *column: Form) -> Value:
            with nf.ruled(at.by_tiles(done.facts, h, *column)):
                return tensor(results()[output]).value(b, s, h, *column)

        return element

    yield from done.compare("grad_q", wanted(0), *keys)
    yield from done.compare("grad_weights", wanted(1), *keys)
    yield from done.compare("parts", tensor(results()[2]).value, nf.replacing("key", at.key))
