"""What is claimed of the kernels that sum for a backward of attention (kernels/gradient_sums.py).

A block adds to a row of the totals its parts x_0, x_1, ..., x_{m-1}, those that the reference adds to it, query by query.
Before iteration i its sum is that of the total and x_n for n < 16 i, where x_n = 0 for n >= m. This is shown twice: over the
reals, where the result is the reference's; and with an addition of which nothing is known but x + 0 = x, where it is

    ((total + x_0) + x_1) + ... + x_{m-1},

so that the floats are added one after the other in this order, each once, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..kernels import gradient_sums
from ..kernels.build import PASS_CONFIGS
from ..kernels.gradient_sums import AHEAD, Config
from ..kernels.sparse_attention_config import HEADS, PANEL, BackwardConfig
from ..reference import hca
from ..reference.attention import BF16, F32, I32, OFFSET, SIZES, STATICS, in_window_bwd
from ..reference.contract import Contract, Elements, Size, Static, TensorSpec
from ..reference.hca import HCA_SHARD_BWD
from ..reference.indexer import visible
from .attention import inputs, least
from .attention_backward import BLOCKS
from .engine.execution.in_order import InOrder, plus
from .engine.execution.invariants import Determined, Invariant
from .engine.execution.symbolic import block, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation, holds
from .engine.forms.extended import Value
from .engine.forms.normal_form import ZERO, Form
from .engine.forms.sums import Stretch
from .engine.layers.comparison import against, facts
from .engine.reference.pull_array import deciding
from .engine.reference.symbolic_torch import tensor
from .engine.verify import Compare, Compared
from .gradient_lemmas import ROUNDED
from .suite import Proof

LOOP, ACC = "i", "acc"  # in the kernels
_D = {"D": STATICS["D"]}


def _product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.float() * y.float()).sum(-1)


_TOTAL = (F32,)
_ROWS = Size(1, 2**29)
_QUERIES = Size(0, 2**29)  # of which twice as many parts, and a few, fit into an int32
_PLACES = Elements(0, 2**29 + 1)


def _adding(op: str, sizes: dict[str, Size], total: str, inputs: tuple[TensorSpec, ...], *probes: dict[str, int],
            **statics: Static) -> Contract:  # fmt: skip
    """Return the contract of a kernel that adds to a total."""
    spec = TensorSpec("total", total, _TOTAL)
    return Contract(op, sizes, _D | {"blocks": BLOCKS} | statics, (*inputs, spec), (spec,), probes)


_OF_ROWS = TensorSpec("x", "N 8 D", (BF16,)), TensorSpec("y", "N 8 D", (BF16,))
DELTA = Contract(
    "delta", {"N": _ROWS}, _D, _OF_ROWS, (TensorSpec("total", "N 8", _TOTAL),), ({"N": 1009}, {"N": 2**28})
)
WINDOW = _adding(
    "sum_window",
    {"B": SIZES["B"], "S": _QUERIES, "P": SIZES["P"]},
    "B P+S D",
    (TensorSpec("parts", "B S window blocks D", (BF16,)),),
    {"B": 3, "S": 37, "P": 127},
    {"B": 1, "S": 2**10, "P": 2**20},
    window=STATICS["window"],
)
LISTED = _adding(
    "sum_listed",
    {"N": _ROWS, "R": Size(1, 2**26)},
    "R D",
    (
        TensorSpec("parts", "N blocks D", (BF16,)),
        TensorSpec("order", "N", (I32,), Elements(0, "N")),
        TensorSpec("starts", "R", (I32,), _PLACES),
        TensorSpec("ends", "R", (I32,), _PLACES),
    ),
    {"N": 1009, "R": 37},
    {"N": 2**28, "R": 2**26},
)
VISIBLE = _adding(
    "sum_visible",
    {"B": SIZES["B"], "S": _QUERIES, "T": SIZES["T"]},
    "B T D",
    (TensorSpec("parts", "B S T blocks D", (BF16,)), OFFSET),
    {"B": 3, "S": 37, "T": 1009},
    {"B": 1, "S": 2**10, "T": 2**13},
    ratio=Static(int, 1, 65536),
)


def _by_panels(kernel: Any, known: Facts) -> Compared:
    """Compare ``delta`` with the product's sum, which it takes panel by panel."""
    with nf.tiled(Config().D, PANEL):
        return against(_product, DELTA)(kernel, known)


# Which parts a row has


@dataclass(frozen=True)
class Row:
    """A row of the totals, and its parts in order: for each query as many as its heads make blocks.

    Attributes:
        blocks: how many these are.
        index: of the row.
        first: the first query that has parts, or the first number of a list.
        end: one more than the last.
        part: from that, a block and a column to an element.
        over: how many slots, numbers or queries the reference looks at for the row.
        stretch: which of these are the row's.
    """

    blocks: int
    index: tuple[Form, ...]
    first: Form
    end: Form
    part: Callable[[Form, Form, Form], Form]
    over: Form
    stretch: Stretch

    def total(self, d: Form) -> Form:
        """Return what the row is at first."""
        return nf.read("total", *self.index, d)

    def _part(self, k: Form, block: Form, d: Form) -> Form:
        """Return a part of the k-th query, written as 0 times one of the last where there is none."""
        there = nf.nonnegative(self.end - self.first - 1 - k)
        return there * self.part(least(self.first + k, self.end - 1), block, d)

    def of(self, k: Form, d: Form) -> Form:
        """Return the parts of the k-th query together."""
        return nf.summation(self.blocks, lambda block: self._part(k, block, d))

    def x(self, n: Form, d: Form) -> Form:
        """Return x_n."""
        k = nf.floordiv(n, self.blocks)
        return self._part(k, n - self.blocks * k, d)

    def added(self, n: Form, d: Form) -> Form:
        """Return the total and the first n of x, added up in their order."""
        if n is ZERO:
            return self.total(d)
        if n.terms.get((), 0) < 1:
            return nf.apply("added", n, d)
        return plus(self.added(n - 1, d), self.x(n - 1, d))


def of_window(cfg: Config) -> Row:
    """Return the parts of a row of the window's keys: that of the query s is in its slot r - (P + s) + window - 1."""
    b, r, S = block("y"), block("x"), nf.variable("S")
    own = r - nf.variable("P")  # the query whose own token this is
    first, end = nf.maximum([own, ZERO]), least(own + cfg.window, S)
    last = own + cfg.window - 1

    def part(s: Form, heads: Form, d: Form) -> Form:
        return nf.read("parts", b, s, last - s, heads, d)

    return Row(cfg.blocks, (b, r), first, end, part, nf.form(cfg.window), Stretch(last - first, -1, end - first))


def of_list(cfg: Config) -> Row:
    """Return the parts that are listed for a row."""
    r, N = block("x"), nf.variable("N")
    first, end = nf.read("starts", r), least(nf.read("ends", r), N)

    def part(n: Form, heads: Form, d: Form) -> Form:
        return nf.read("parts", nf.read("order", n), heads, d)

    return Row(cfg.blocks, (r,), first, end, part, N, Stretch(first, 1, end - first))


def of_entry(cfg: Config) -> Row:
    """Return the parts of an entry: those of the queries that see it."""
    b, e, S = block("y"), block("x"), nf.variable("S")
    first = least(nf.maximum([cfg.ratio * (e + 1) - 1 - nf.read("offset", b), ZERO]), S)

    def part(s: Form, heads: Form, d: Form) -> Form:
        return nf.read("parts", b, s, e, heads, d)

    return Row(cfg.blocks, (b, e), first, S, part, S, Stretch(first, 1, S - first))


def _window(cfg: Config, parts: Any, total: Any) -> Any:
    """Return the totals and the parts that queries have of each row."""
    return total + in_window_bwd(parts.sum(3), total)


def _listed(cfg: Config, parts: Any, order: Any, starts: Any, ends: Any, total: Any) -> Any:
    """Return the totals and the parts that are listed for each row."""
    n = torch.arange(order.shape[0], device=order.device)
    listed = (n >= starts.unsqueeze(-1)) & (n < ends.unsqueeze(-1))
    return total + torch.where(listed[:, :, None, None], parts[order], 0.0).sum((1, 2))


def _visible(cfg: Config, parts: Any, offset: Any, total: Any) -> Any:
    """Return the totals and the parts that queries have of each entry which they see."""
    _, S, T, *_ = parts.shape
    seen = torch.arange(T, device=offset.device) < visible(offset, S, cfg.ratio).unsqueeze(-1)
    return total + torch.where(seen[:, :, :, None, None], parts, 0.0).sum((1, 3))


# The proofs


@dataclass(frozen=True)
class Claim:
    """What is claimed of a kernel that adds to totals.

    Args:
        contract: the kernel's.
        row: the parts of a block's row.
        reference: from the config and the inputs, the totals.
    """

    contract: Contract
    row: Callable[[Config], Row]
    reference: Callable[..., Any]


def compare(cfg: Config, claim: Claim) -> Compare:
    """Return the comparison of a kernel that adds to totals with a reference, and of its order with that of the parts."""
    contract = claim.contract

    def compared(kernel: Any, known: Facts) -> Compared:
        at, sizes = claim.row(cfg), {"R": nf.variable("P") + nf.variable("S")} if "P" in contract.sizes else {}

        def invariant(value: Callable[[Form, Form], Form]) -> Mapping[str, Invariant]:
            return {LOOP: Invariant(determined={ACC: Determined(lambda s, d: value(s.t, d))})}

        def summed(t: Form, d: Form) -> Form:
            return at.total(d) + nf.summation(AHEAD // cfg.blocks * t, lambda k: at.of(k, d))

        def added(t: Form, d: Form) -> Form:
            return at.added(AHEAD * t, d)

        done = execute(kernel, sizes=sizes, invariants=invariant(summed), facts=known)
        runs = done.inductions[LOOP].extent

        def wanted(*index: Form) -> Value:
            given = inputs(cfg, contract)
            rule = sums.along(at.over, at.stretch, (AHEAD // cfg.blocks * runs, lambda k: at.of(k, index[-1])), known)
            with nf.ruled(rule):
                return tensor(claim.reference(cfg, *given.values())).value(*index)

        equations = list(done.equations)
        with deciding(known):
            equations += done.compare("total", wanted)
        if all(equation.holds for equation in equations):
            ordered = execute(kernel, sizes=sizes, invariants=invariant(added), facts=known, reading=InOrder)
            in_order = ordered.compare("total", lambda *index: added(runs, index[-1]))
            equations += [replace(e, statement=f"in order: {e.statement}") for e in (*ordered.equations, *in_order)]
        return done, equations

    return compared


def _of_hca(cfg: Config) -> Iterator[Equation]:
    """Yield that the gradients of the keys in the reference of hca are the sums of its parts."""
    of = BackwardConfig(HEADS * cfg.blocks, cfg.D, cfg.window, ratio=cfg.ratio)
    known, statics, given = facts(HCA_SHARD_BWD), (of.ratio, of.window, of.scale), inputs(of, HCA_SHARD_BWD)
    whole: Callable[..., Any] = hca.hca_shard_bwd
    by_parts: Callable[..., Any] = hca.hca_parts
    by_blocks = nf.tiled(of.H, HEADS) if of.H > HEADS else nullcontext()
    with deciding(known), nf.splitting(2), by_blocks:
        gradients, parts = whole(*given.values(), *statics), by_parts(*given.values(), *statics, of.head_blocks)
        sums_of_parts = in_window_bwd(parts[1].sum(3), given["window_kv"]), parts[2].sum((1, 3))  # type: ignore[arg-type]
        index = nf.fresh("b"), nf.fresh("row"), nf.fresh("d")
        for name, whole, summed in zip(("window", "entries"), gradients[1:3], sums_of_parts, strict=True):
            a, b = tensor(whole).at(*index), tensor(summed).at(*index)
            yield Equation(f"the gradient of the {name} is the sum of the parts", holds(a, b, known), a, b)


def with_whole(cfg: Config, claim: Claim) -> Compare:
    """Return the same comparison, and that the sums of parts are the gradients of hca."""

    def compared(kernel: Any, known: Facts) -> Compared:
        done, equations = compare(cfg, claim)(kernel, known)
        return done, [*equations, *_of_hca(cfg)]

    return compared


def _proof(op: str, factory: Callable[[Config], Any], claimed: Contract, cfg: Config, compare: Compare, **more: Any
           ) -> Proof:  # fmt: skip
    given = {name: getattr(cfg, name) for name in claimed.statics}
    return Proof(op, factory(cfg), claimed, given, compare, PASS_CONFIGS, **more)


EQUIVALENTS = {
    "loop end @ for i in 0:(end + 15 - first) // 16 -> for i in 0:(end + 15 - first) // 16 + 1": "it adds zeros once more",
    "loop end @ for d in 0:512 -> for d in 0:513": "a loop over a fragment gets the fragment's own extent from the compiler",
}


def products(op: str, cfg: Config) -> Proof:
    """Return what is claimed of the kernel that multiplies and sums over columns."""
    return _proof(op, gradient_sums.delta, DELTA, cfg, _by_panels)


def listed(op: str, cfg: Config, **more: Any) -> Proof:
    """Return what is claimed of the sum of the parts of listed rows."""
    claim = compare(cfg, Claim(LISTED, of_list, _listed))
    return _proof(op, gradient_sums.sum_listed, LISTED, cfg, claim, **{"lemmas": (ROUNDED,), **more})


def summing(op: str, cfg: Config) -> Iterator[Proof]:
    """Yield what is claimed of the sums of parts in an operator's backward; that of swa has no entries."""
    rounded: dict[str, Any] = {"lemmas": (ROUNDED,)}
    tried = rounded | ({"mutate": True, "every": 4, "equivalents": EQUIVALENTS} if cfg.blocks == 1 else {})
    window = compare(cfg, Claim(WINDOW, of_window, _window))
    yield _proof(op, gradient_sums.sum_window, WINDOW, cfg, window, **(tried if op == "csa" else rounded))
    if op == "csa":
        yield listed(op, cfg, **tried)
    if op == "hca":
        seen = with_whole(cfg, Claim(VISIBLE, of_entry, _visible))
        yield _proof(op, gradient_sums.sum_visible, VISIBLE, cfg, seen, **tried)
