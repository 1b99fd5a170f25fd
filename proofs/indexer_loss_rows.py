"""What is claimed of the kernels of each query's loss and of its scores' gradient (kernels/indexer_loss_rows.py).

A block of threads has a query s. Their inputs are the teacher's logarithms a_n of each block n of heads, and the scores I: real
numbers where listed(b, s, j) >= 0, for any integers ``listed``, and -inf elsewhere, in both alike. With j of tile w for the
slot 512 w + j, and [.] = 1 where that slot exists and is listed, else 0, the sums have before iteration t of the first loop

    sum_a = Σ_{w < t} Σ_j [.] Σ_n exp(a_n - high_a),    sum_i = Σ_{w < t} Σ_j [.] exp(I - high_i),

where the maxima may be any numbers: over the reals they cancel. With A = high_a + log sum_a after all tiles, 0 where that sum
is 0, and Z likewise, the loss has before iteration t of the second loop

    loss = Σ_{w < t} Σ_j [.] Σ_n exp(a_n - A) (log Σ_n exp(a_n) - A - (I - Z)).

That the arguments of its exponentials are at most 0 is not shown by the range layer: A is the logarithm of a sum that exp a is
part of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..kernels.indexer_loss_rows import ROW, Config
from ..reference import indexer_loss as reference
from ..reference.contract import Contract
from .attention import at_least
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.ranges import Waiver
from .engine.execution.symbolic import block, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.layers.comparison import symbolic_input
from .engine.reference.pull_array import deciding
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.verify import Compare, Compared
from .listed_rows import K

_PART = "the logarithm of a sum of exponentials is at least each of those that it is of"
LOSS_WAIVER = Waiver("T.exp(a[j]) *", "exp", _PART)
GRADIENT_WAIVER = Waiver("grad_scores[", "exp", _PART)


def listed(b: Form, s: Form, _: Form, slot: Form) -> Form:
    """Return whether a slot names an entry."""
    return nf.nonnegative(nf.read("listed", b, s, slot))


@dataclass(frozen=True)
class Query:
    """A block of threads, of one query.

    Attributes:
        blocks: how many blocks of heads the teacher's logarithms are of.
    """

    blocks: int

    def inside(self, w: Form, j: Form) -> Form:
        """Return whether slot j of tile w exists and is listed."""
        slot = ROW * w + j
        return at_least(K - 1, slot) * listed(block("y"), block(), ZERO, slot)

    def mass(self, w: Form, j: Form) -> Form:
        """Return Σ exp a_n of a slot."""
        a = (nf.read("log_mass", block("y"), block(), nf.form(n), ROW * w + j) for n in range(self.blocks))
        return sum(map(nf.exp, a), ZERO)

    def score(self, w: Form, j: Form) -> Form:
        """Return I of a slot."""
        return nf.read("scores", block("y"), block(), ZERO, ROW * w + j)

    def over(self, tiles: Form, summand: sums.Summand) -> Form:
        """Return the sum over the listed slots of so many tiles."""

        def of_tile(w: Form) -> Form:
            return nf.summation(ROW, lambda j: self.inside(w, j) * summand(w, j))

        return nf.summation(tiles, of_tile)

    def invariants(self) -> Mapping[str, Invariant]:
        """Return what holds in each iteration of the two loops."""

        def sum_a(s: State, _: Form) -> Form:
            return self.over(s.t, lambda w, j: self.mass(w, j) * nf.exp(-s["high_a"](0)))

        def sum_i(s: State, _: Form) -> Form:
            return self.over(s.t, lambda w, j: nf.exp(self.score(w, j) - s["high_i"](0)))

        def loss(s: State, _: Form) -> Form:
            a, z = _logarithm(s, "a"), _logarithm(s, "i")

            def of_slot(w: Form, j: Form) -> Form:
                mass = self.mass(w, j)
                return mass * nf.exp(-a) * (nf.log(mass) - a - (self.score(w, j) - z))

            return self.over(s.t, of_slot)

        both = {"sum_a": Determined(sum_a), "sum_i": Determined(sum_i)}
        first = Invariant(free=("high_a", "high_i"), determined=both)
        return {"t": first, "v": Invariant(determined={"loss": Determined(loss)})}


def _logarithm(s: State, of: str) -> Form:
    """Return the logarithm of a sum after the first loop, 0 where that sum is 0."""
    whole = s.at(sums.tiles(K, ROW), "t")
    high, total = whole[f"high_{of}"](0), whole[f"sum_{of}"](0)
    return (ONE - nf.indicator("ge", -total, integer=False)) * (high + nf.log(total))


def losses(log_mass: Any, scores: Any) -> Any:
    """Return the reference's loss."""
    return reference.divergence(*_normalised(log_mass, scores))


def gradients(grad_out: Any, log_mass: Any, scores: Any) -> Any:
    """Return the reference's gradient of the scores."""
    return reference.divergence_bwd(grad_out, *_normalised(log_mass, scores))


def _normalised(log_mass: Any, scores: Any) -> tuple[Any, Any]:
    """Return log P and log S."""
    return reference._log_normalised(log_mass.logsumexp(2)), reference._log_normalised(scores.squeeze(2))


def compare(cfg: Config, contract: Contract, wanted: Callable[..., Any]) -> Compare:
    """Return the comparison of a kernel with what is wanted in the reference."""

    def given(name: str, *dims: Form | int) -> SymbolicTensor:
        shape = [nf.variable("B"), nf.variable("S"), *dims]
        return symbolic_input(name, shape, finite=listed if dims else None)

    known = {"grad_out": (), "log_mass": (cfg.blocks, K), "scores": (1, K)}

    def compared(kernel: Any, facts: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.splitting(2))
            stack.enter_context(nf.tiled(K, ROW))
            loops = Query(cfg.blocks).invariants()
            loops = loops if contract.outputs[0].name == "out" else {**loops, "v": Invariant()}
            done = execute(kernel, invariants=loops, facts=facts, finite={"log_mass": listed, "scores": listed})
            with deciding(facts):
                result = tensor(wanted(*(given(spec.name, *known[spec.name]) for spec in contract.inputs)))
                equations = done.compare(contract.outputs[0].name, result.value)
            return done, [*done.equations, *equations]

    return compared
