"""What the proofs of the backward of CSA and HCA share: the invariant of their loop over tiles, and their contract.

In the words of ``attention``, with w = σ(lse - sink), c = dlse - w Δ, p(u, j) = [row(u, j) >= 0] exp(z(u, j) - lse) and

    dz(u, j) = scale p(u, j) (w dout · k + c),    k = key(u, j)

consumer g has before the iteration for tile t, for all j of a tile and d of its half of C columns,

    acc_g[h, d] = Σ_{u < t} Σ_j dz(u, j) key(u, j, d + g C)

An iteration writes, for each slot j of tile t, Σ_h (dz q + w p dout), which is the query's part of the gradient of its key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.sparse_attention_backward import NAMES
from ..kernels.sparse_attention_config import PANEL, BackwardConfig
from ..reference.attention import BF16, F32, GRADIENTS_IN
from ..reference.contract import Contract, Static, TensorSpec
from . import attention
from .accepted import ASKED
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.ranges import Waiver
from .engine.execution.symbolic import Execution, block, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.constants import unify
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.reference.pull_array import deciding
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.verify import Compare, Compared
from .suite import Proof

EQUIVALENTS = {
    "dropped statement @ T.mbarrier_wait_parity(weights_ready[0], t % 2)": "the compiler puts a barrier of the role "
    "between what its threads write to the weights and the product that reads them",
    "dropped statement @ T.set_max_nreg(232, 1), occurrence 2": "it asks for registers, and says nothing of results",
    **{
        f'dropped statement @ T.warpgroup_fence_operand("float32", {sums}, 0, {registers})': ASKED
        for sums, registers in (("acc0", 128), ("p", 32))
    },
}

BLOCKS = Static(int, 1, 2)
WAIVERS = (
    Waiver("T.exp2(gap)", "exp", "a sink far above lse makes it inf, and only in a denominator: w is 0, its limit"),
    Waiver("exp2_ftz", "exp", "z <= lse, for lse is of all keys; one that is given as less may overflow"),
)


def contract(whole: Contract, slots: str, probes: tuple[Mapping[str, int], ...]) -> Contract:
    """Return the contract of an operator's backward kernel, whose entries have so many slots for each query."""
    stats = TensorSpec("lse", "B S H", (F32,)), TensorSpec("delta", "B S H", (F32,))
    outputs = (
        TensorSpec("grad_q", "B S H D", (BF16,)),
        TensorSpec("window_parts", "B S window blocks D", (BF16,)),
        TensorSpec("entry_parts", f"B S {slots} blocks D", (BF16,)),
    )
    inputs = (*GRADIENTS_IN, *whole.inputs, *stats)
    statics = {**whole.statics, "blocks": BLOCKS}
    return replace(whole, op=f"{whole.op}_bwd", statics=statics, inputs=inputs, outputs=outputs, probes=probes)


class Block(attention.Block):
    """A block of threads, in the backward."""

    @staticmethod
    def sequence() -> Form:
        """Return the sequence of a block."""
        return block("y")

    def of_head(self, name: str, head: Form) -> Form:
        """Return a number of the query's head."""
        return nf.read(name, self.b, self.s, head)

    def share(self, head: Form) -> Form:
        """Return w, the share of the keys in the mass of a head."""
        return ONE / (ONE + nf.exp(nf.read("sink", head) - self.of_head("lse", head)))

    def product(self, u: Form, j: Form, head: Form) -> Form:
        """Return dout · k."""
        return nf.summation(
            self.cfg.D, lambda d: nf.read("grad_out", self.b, self.s, head, d) * nf.apply("key", u, j, d)
        )

    def of_key(self, u: Form, j: Form, head: Form, column: Form) -> Form:
        """Return dz k: what a slot adds to an element of dq."""
        share = self.share(head)
        shift = self.of_head("grad_lse", head) - share * self.of_head("delta", head)
        p = nf.exp(-self.of_head("lse", head)) * self.weight(u, j, head)
        return unify(self.cfg.scale) * p * (share * self.product(u, j, head) + shift) * nf.apply("key", u, j, column)

    def acc(self, s: State, h: Form, column: Form) -> Form:
        """Return Σ dz k over the tiles done."""
        head = self.head(h)
        return nf.summation(s.t, lambda u: nf.summation(self.cfg.tile, lambda j: self.of_key(u, j, head, column)))

    def invariants(self, keys: bool) -> Mapping[str, Invariant]:
        """Return what holds before each iteration of each loop, where the query has keys, or none.

        Nothing is said of the loop over the tiles of entries that are not seen.
        """
        return {NAMES.tile: self._over_tiles(keys)} | ({NAMES.unseen: Invariant()} if self.about else {})

    def _over_tiles(self, keys: bool) -> Invariant:
        def acc(g: int) -> Determined:
            def value(s: State, h: Form, d: Form) -> Form:
                column = d + g * self.cfg.columns
                return self.present(column) * self.acc(s, h, column) if keys else ZERO

            return Determined(value)

        def key(s: State, half: Form, j: Form, d: Form) -> Form:
            column = half * self.cfg.columns + d
            return self.present(column) * nf.apply("key", s.t, j, column)

        return Invariant(
            determined={NAMES.acc[g]: acc(g) for g in (0, 1)},
            staged={
                NAMES.keys: Determined(key, parts={0: 1, 2: PANEL}),
                NAMES.rows: Determined(lambda s, j: nf.apply("row", s.t, j)),
            },
            definitions=self.definitions,
        )

    def summands(self, head: Form, d: Form | None) -> list[sums.Summand]:
        """Return what sums over all tiles have of a slot."""
        assert d is not None
        return [lambda u, j: sums.within(u) * self.of_key(u, j, head, d)]


Reference = Callable[[Mapping[str, SymbolicTensor]], tuple[Any, ...]]
"""From the inputs by name to the gradient of q and the parts, by slots of the window and of the entries."""


@dataclass(frozen=True)
class Claim:
    """What is claimed of a backward kernel.

    Args:
        cfg: the static parameters.
        contract: the kernel's.
        reference: what it computes.
        cases: about sizes, one of which holds: what the reference distinguishes.
    """

    cfg: BackwardConfig
    contract: Contract
    reference: Reference
    cases: Sequence[Form] = (ONE,)


def proof(factory: Callable[[BackwardConfig], Any], claim: Claim, compare: Compare, **more: Any) -> Proof:
    """Return what is claimed of an operator's backward kernel."""
    cfg, statics = claim.cfg, claim.contract.statics
    given = {name: getattr(cfg, name) for name in statics if name != "blocks"} | {"blocks": cfg.head_blocks}
    op = claim.contract.op.removesuffix("_bwd")
    return Proof(op, factory(cfg), claim.contract, given, compare, PASS_CONFIGS, waivers=WAIVERS, **more)


def compare(claim: Claim, here: Callable[[], Block]) -> Compare:
    """Return the comparison of a kernel with its reference; ``here`` makes the block."""
    cfg = claim.cfg

    def compared(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.splitting(2))
            if cfg.columns < cfg.D:
                stack.enter_context(nf.tiled(cfg.D, cfg.columns))
            at = here()
            extent = cfg.window_tiles + sums.tiles(at.listed, cfg.tile)
            sizes = {"R": nf.variable("P") + nf.variable("S")}
            at.forget(extent, known)
            done = execute(kernel, sizes=sizes, invariants=at.invariants(keys=True), facts=known)
            equations = list(done.equations)
            if all(equation.holds for equation in equations):
                equations += _outcome(claim, at, extent, done)
                without = execute(
                    kernel, sizes=sizes, invariants=at.invariants(keys=False), facts=known, infinite=("lse",)
                )
                equations += _without_keys(without)
            return done, equations

    return compared


def _without_keys(done: Execution) -> Iterator[Equation]:
    """Yield that the gradients of a query are 0 if its lse is +inf, which says that it has no key."""
    zeros = (done.compare(name, lambda *_: ZERO) for name in ("grad_q", "window_parts", "entry_parts"))
    for equation in (*done.equations, *(e for each in zeros for e in each)):
        yield replace(equation, statement=f"without a key: {equation.statement}")


def _outcome(claim: Claim, at: Block, extent: Form, done: Execution) -> Iterator[Equation]:
    """Yield that what the kernel leaves, after so many tiles, is the reference's."""
    cfg, known = claim.cfg, done.facts

    def grad_q(b: Form, s: Form, head: Form, d: Form) -> Value:
        of_q, *_ = claim.reference(attention.inputs(cfg, claim.contract))
        with nf.ruled(*at.rules(extent, known, head, d)):
            return tensor(of_q).value(b, s, head, d)

    def part(output: int) -> Callable[..., Value]:
        def element(*index: Form) -> Value:
            return tensor(claim.reference(attention.inputs(cfg, claim.contract))[output]).value(*index)

        return element

    written_out = [nf.replacing(name, definition) for name, definition in at.definitions.items()]
    for case in claim.cases:
        with known.assuming(case), deciding(known):
            entry_tiles = sums.tiles(at.entries, cfg.tile)
            spreading = sums.spread(extent, at.first, cfg.window_tiles, entry_tiles, known, at.no_entries(known))
            yield from done.compare("grad_q", grad_q, spreading)
            yield from done.compare("window_parts", part(1), *written_out)
            yield from done.compare("entry_parts", part(2), *written_out)
