"""What is claimed of the kernel of the gradients of the indexer's keys (kernels/indexer_backward.py).

For 64 heads a tile of pairs is a query, and an iteration takes two. Row r of block n of the rows is entry
e = 256 x + 64 n + r of block x. With

    query(u, i, h) = q of query s = 2 u + i and head h, 0 if there is none; weight(u, i, h) its weight,
    grad(u, i, j) = dI of that query and entry 256 x + j, 0 if the query does not see it, or is none,
    active(u, i, h, e) = [query(u, i, h) · k(e) > 0] grad(u, i, e - 256 x) weight(u, i, h),

where k(e) is 0 if no query sees it, the sums have before iteration t of the loop over tiles, the first of which is ``begin``,

    acc_n[r, d] = Σ_{u < t} Σ_{i < 2} Σ_h active(begin + u, i, h, e) query(begin + u, i, h, d).

A split of the queries has the reference's gradient of the keys for dI that is 0 but for the split's queries. That gradient is
linear in dI, and each query is in one split, so that those of all splits add up to the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..kernels.indexer_backward import ALL_ROWS, ROWS, TILE, Config
from ..reference import indexer as reference
from ..reference.contract import Static, TensorSpec
from .attention import at_least, inputs, least
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.symbolic import Execution, block, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation, holds
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.forms.sums import Stretch
from .engine.layers.comparison import symbolic_input
from .engine.reference.pull_array import Integers, deciding
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.verify import Compare, Compared

ACC, TILES = ("acc0", "acc1", "acc2", "acc3"), "t"  # in the kernel
QUERIES, GRADS, WEIGHTS = "tile_shared", "grad_shared", "weights_shared"
PAIR = 2  # queries of an iteration

OF_KEYS = replace(
    reference.SCORES_BWD,
    op="indexer_scores_bwd_k",
    statics={**reference.SCORES_BWD.statics, "splits": Static(int, 1, 8)},
    outputs=(TensorSpec("sums", "B splits T D", (reference.F32,)),),
)
S, T = nf.variable("S"), nf.variable("T")
PAIRS = sums.tiles(S, PAIR)

Reference = Callable[..., Any]
"""From the inputs and the ratio, the gradients of q, k and the weights."""


@dataclass(frozen=True)
class Block:
    """A block of threads of the kernel of the keys."""

    cfg: Config

    @cached_property
    def b(self) -> Form:
        """The sequence."""
        return block("z")

    @cached_property
    def split(self) -> Form:
        """Which split of the queries."""
        return block("y") if self.cfg.splits > 1 else ZERO

    @cached_property
    def first(self) -> Form:
        """The first entry."""
        return ALL_ROWS * block("x")

    def ends(self, split: Form) -> tuple[Form, Form]:
        """Return the first pair of queries of a split, and one more than the last."""
        first, end = (nf.floordiv(PAIRS * y, self.cfg.splits) for y in (split, split + 1))
        return first, end

    @cached_property
    def begin(self) -> Form:
        """The first pair of queries of which one may see one of the entries."""
        oldest = nf.maximum([self.cfg.ratio * (self.first + 1) - 1 - self.offset, ZERO])
        return nf.maximum([self.ends(self.split)[0], nf.floordiv(oldest, PAIR)])

    @property
    def extent(self) -> Form:
        """How many pairs of queries there are."""
        return nf.maximum([self.ends(self.split)[1], self.begin]) - self.begin

    @cached_property
    def offset(self) -> Form:
        """The position of the first query."""
        return nf.read("offset", self.b)

    def visible(self, queries: Form) -> Form:
        """Return how many entries end before that many queries do."""
        return nf.floordiv(self.offset + queries, self.cfg.ratio)

    @cached_property
    def seen(self) -> Form:
        """How many entries the last query sees."""
        return least(self.visible(S), T)

    def forget(self, facts: Facts) -> None:
        """Forget of the split's ends all but that they lie within the pairs, for nothing else matters."""
        if self.cfg.splits > 1:
            facts.bound(self.split, nf.form(self.cfg.splits))
            first, end = self.ends(self.split)
            facts.forget((first, end), (at_least(first, 0), at_least(end, first), at_least(PAIRS, end)))

    def query(self, u: Form, i: Form, h: Form, d: Form) -> Form:
        """Return what ``query`` stands for."""
        s = PAIR * u + i
        return at_least(S - 1, s) * nf.read("q", self.b, s, h, d)

    def weight(self, u: Form, i: Form, h: Form) -> Form:
        """Return what ``weight`` stands for."""
        s = PAIR * u + i
        return at_least(S - 1, s) * nf.read("weights", self.b, s, h)

    def grad(self, u: Form, i: Form, j: Form) -> Form:
        """Return what ``grad`` stands for."""
        s, entry = PAIR * u + i, self.first + j
        sees = at_least(least(self.visible(s + 1), self.seen) - 1, entry)
        return at_least(S - 1, s) * sees * nf.read("grad_out", self.b, s, entry)

    @property
    def definitions(self) -> Mapping[str, Callable[..., Form]]:
        """What ``query``, ``weight`` and ``grad`` stand for."""
        return {"query": self.query, "weight": self.weight, "grad": self.grad}

    def summand(self, u: Form, j: Form, d: Form) -> Form:
        """Return what a pair of queries adds to an element of the sums, in row j of the block."""
        entry = self.first + j

        def of_head(i: Form, h: Form) -> Form:
            there = at_least(self.seen - 1, entry)
            dot = nf.summation(
                self.cfg.D, lambda c: there * nf.read("k", self.b, entry, c) * nf.apply("query", u, i, h, c)
            )
            active = (ONE - nf.indicator("ge", -dot, integer=False)) * nf.apply("grad", u, i, j)
            return active * nf.apply("weight", u, i, h) * nf.apply("query", u, i, h, d)

        return nf.summation(PAIR, lambda i: nf.summation(self.cfg.H, lambda h: of_head(i, h)))

    def invariant(self) -> Invariant:
        """Return what holds before each iteration of the loop over tiles."""

        def acc(n: int) -> Determined:
            def value(s: State, r: Form, d: Form) -> Form:
                return nf.summation(s.t, lambda u: self.summand(self.begin + u, ROWS * n + r, d))

            return Determined(value)

        staged: Mapping[str, Callable[..., Form]] = {
            QUERIES: lambda s, i, h, d: nf.apply("query", self.begin + s.t, i, h, d),
            WEIGHTS: lambda s, i, h: nf.apply("weight", self.begin + s.t, i, h),
            GRADS: lambda s, i, _, j: nf.apply("grad", self.begin + s.t, i, j),
        }
        return Invariant(
            determined={name: acc(n) for n, name in enumerate(ACC)},
            staged={name: Determined(value, parts={0: 1}) for name, value in staged.items()},
            definitions=self.definitions,
        )

    def written_out(self, p: Form) -> Form:
        """Return the form with abbreviations replaced by what they stand for."""
        for name, definition in self.definitions.items():
            p = nf.replacing(name, definition)(p)
        return p


def compare(cfg: Config, of: Reference = reference.indexer_scores_bwd) -> Compare:
    """Return the comparison of the kernel's sums over a split of the queries with the reference's gradient for it.

    Raises:
        ValueError: a tile holds more than one query.
    """
    if cfg.H != TILE:
        raise ValueError(f"cfg: expected {TILE} heads, got {cfg.H}")

    def compared(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.splitting(PAIR))
            at = Block(cfg)
            at.forget(known)
            done = execute(kernel, invariants={TILES: at.invariant()}, facts=known)
            equations = list(done.equations)
            if all(equation.holds for equation in equations):
                stack.enter_context(nf.tiled(S, PAIR))
                equations += _outcome(at, of, done)
            return done, equations

    return compared


def of_split(ends: tuple[Form, Form], grad_out: Any) -> Any:
    """Return the gradient of the scores, 0 but for the queries of a split."""
    first, end = (SymbolicTensor((), lambda f=f: Value(f), integer=Integers()) for f in ends)
    pair: Any = torch.arange(grad_out.shape[1], device=grad_out.device) // PAIR
    inside = (pair >= first) & (pair < end)
    return torch.where(inside.unsqueeze(-1), grad_out, 0.0)


def _linear(cfg: Config, of: Reference) -> Equation:
    """Return that the reference's gradient of the keys is linear in dI."""
    given = inputs(cfg, OF_KEYS)
    x, y = (symbolic_input(name, (nf.variable("B"), S, T)) for name in ("x", "y"))
    b, entry, d = map(nf.fresh, "bed")

    def element(grad_out: SymbolicTensor) -> Form:
        results: Any = of(*{**given, "grad_out": grad_out}.values(), ratio=cfg.ratio)
        return tensor(results[1]).at(b, entry, d)

    whole, parts = element(x + y), element(x) + element(y)
    return Equation("the gradient of the keys is linear in dI", holds(whole, parts, Facts()), whole, parts)


def _outcome(at: Block, of: Reference, done: Execution) -> Iterator[Equation]:
    """Yield that what the kernel leaves is the reference's."""
    x = inputs(at.cfg, OF_KEYS)

    def wanted(b: Form, split: Form, entry: Form, d: Form) -> Value:
        given = {**x, "grad_out": of_split(at.ends(split), x["grad_out"])}

        def summand(u: Form) -> Form:
            return at.written_out(at.summand(at.begin + u, entry - at.first, d))

        rule = sums.along(PAIRS, Stretch(at.begin, 1, at.extent), (at.extent, summand), done.facts)
        with nf.ruled(rule):
            results: Any = of(*given.values(), ratio=at.cfg.ratio)
            return tensor(results[1]).value(b, entry, d)

    with deciding(done.facts):
        yield _linear(at.cfg, of)
        definitions = [nf.replacing(name, definition) for name, definition in at.definitions.items()]
        yield from done.compare("sums", wanted, *definitions)
