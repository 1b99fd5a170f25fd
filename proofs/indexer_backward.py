"""What is claimed of the kernels of the backward of the Lightning Indexer's scores (kernels/indexer_backward.py).

What is claimed of the one of the keys stands in a file of its own. In the one of q and the weights, for 64 heads, block n of
the rows is query 4 x + n of block x. With

    key(u, j) = k of entry e = 128 u + j, 0 if the last of the block's queries does not see it,
    grad(u, j, n) = dI of query n and entry e, 0 if the query does not see it, or is none,
    active(u, j, n, h) = [q(n, h) · key(u, j) > 0] grad(u, j, n),

the sums have before iteration t of the loop over tiles, for row h of block n and column d,

    acc_n[h, d] = Σ_{u < t} Σ_{j < 128} active(u, j, n, h) key(u, j, d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.indexer_backward import ROWS, TILE, Config, indexer_scores_bwd_k, indexer_scores_bwd_q
from ..reference import indexer as reference
from ..reference.contract import Contract
from . import indexer_backward_keys as keys
from .attention import at_least, inputs, least
from .attention_lemmas import PARTITION
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.symbolic import Execution, block, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.forms.ring import Rewriting
from .engine.reference.pull_array import deciding
from .engine.reference.symbolic_torch import tensor
from .engine.verify import Compare, Compared
from .suite import Proof

ACC, TILES, KEYS, GRADS = ("acc0", "acc1", "acc2", "acc3"), "t", "tile_shared", "grad_shared"  # in the kernel
PAIR = 2 * TILE  # entries of an iteration

_OF_Q, _, _OF_WEIGHTS = reference.SCORES_BWD.outputs
OF_QUERIES = replace(reference.SCORES_BWD, op="indexer_scores_bwd_q", outputs=(_OF_Q, _OF_WEIGHTS))
S, T = nf.variable("S"), nf.variable("T")

Reference = Callable[..., Any]
"""From the inputs and the ratio, the gradients of q, k and the weights."""


@dataclass(frozen=True)
class Block:
    """A block of threads of the kernel of q and the weights; a block of its rows is one query."""

    cfg: Config

    @cached_property
    def b(self) -> Form:
        """The sequence."""
        return block("y")

    @cached_property
    def first(self) -> Form:
        """The first query."""
        return self.cfg.queries * block("x")

    def visible(self, position: Form) -> Form:
        """Return how many entries end before a position, counted from the first query."""
        return nf.floordiv(nf.read("offset", self.b) + position, self.cfg.ratio)

    @cached_property
    def seen(self) -> Form:
        """How many entries the last query sees."""
        return least(self.visible(least(self.first + self.cfg.queries, S)), T)

    @property
    def extent(self) -> Form:
        """How many pairs of tiles there are."""
        return sums.tiles(self.seen, PAIR)

    def key(self, u: Form, j: Form, d: Form) -> Form:
        """Return what ``key`` stands for."""
        entry = PAIR * u + j
        return at_least(self.seen - 1, entry) * nf.read("k", self.b, entry, d)

    def grad(self, u: Form, j: Form, n: Form) -> Form:
        """Return what ``grad`` stands for."""
        query, entry = self.first + n, PAIR * u + j
        sees = at_least(least(self.visible(query + 1), self.seen) - 1, entry)
        return at_least(S - 1, query) * sees * nf.read("grad_out", self.b, query, entry)

    @property
    def definitions(self) -> Mapping[str, Callable[..., Form]]:
        """What ``key`` and ``grad`` stand for."""
        return {"key": self.key, "grad": self.grad}

    def summand(self, n: Form, h: Form, d: Form) -> sums.Summand:
        """Return, of an entry, what it adds to an element of the sums."""

        def of(u: Form, j: Form) -> Form:
            query = self.first + n
            here = at_least(S - 1, query)
            dot = nf.summation(
                self.cfg.D, lambda c: here * nf.read("q", self.b, query, h, c) * nf.apply("key", u, j, c)
            )
            active = (ONE - nf.indicator("ge", -dot, integer=False)) * nf.apply("grad", u, j, n)
            return active * nf.apply("key", u, j, d)

        return of

    def invariant(self) -> Invariant:
        """Return what holds before each iteration of the loop over tiles."""

        def acc(n: int) -> Determined:
            def value(s: State, h: Form, d: Form) -> Form:
                of = self.summand(nf.form(n), h, d)
                return nf.summation(s.t, lambda u: nf.summation(PAIR, lambda j: of(u, j)))

            return Determined(value)

        return Invariant(
            determined={name: acc(n) for n, name in enumerate(ACC)},
            staged={
                KEYS: Determined(lambda s, half, j, d: nf.apply("key", s.t, TILE * half + j, d), parts={0: 1}),
                GRADS: Determined(lambda s, half, n, j: nf.apply("grad", s.t, TILE * half + j, n), parts={0: 1}),
            },
            definitions=self.definitions,
        )

    def by_tiles(self, facts: Facts, n: Form, h: Form) -> nf.Rule:
        """Return the rule that the reference's sum over all entries, for a query and a head, is one over tiles."""

        def rule(over: Form, body: Callable[[Form], Form]) -> Form | None:
            if over is not T:
                return None
            atoms = (nf.atom_of(number) for product in body(nf.fresh("entry")).terms for number, _ in product)
            columns = {atom.index[-1] for atom in atoms if isinstance(atom, nf.Read) and atom.buffer == "k"}
            of = [self.summand(n, h, d) for d in columns]
            known = [(self._within(f), lambda u, j, f=f: self._written_out(self._within(f)(u, j))) for f in of]
            return sums.by_tiles(T, PAIR, facts, known)(over, body)

        return rule

    @staticmethod
    def _within(f: sums.Summand) -> sums.Summand:
        return lambda u, j: sums.within(u) * f(u, j)

    def _written_out(self, p: Form) -> Form:
        for name, definition in self.definitions.items():
            p = nf.replacing(name, definition)(p)
        return sums.written_out(p, ZERO, self.extent)


def compare(cfg: Config, of: Reference = reference.indexer_scores_bwd) -> Compare:
    """Return the comparison of the kernel of q and the weights with their gradients in the reference.

    Raises:
        ValueError: a block of rows holds more than one query.
    """
    if cfg.H != ROWS:
        raise ValueError(f"cfg: expected {ROWS} heads, got {cfg.H}")

    def compared(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.splitting(2))
            stack.enter_context(nf.tiled(PAIR, TILE))
            at = Block(cfg)
            done = execute(kernel, invariants={TILES: at.invariant()}, facts=known)
            equations = list(done.equations)
            if all(equation.holds for equation in equations):
                equations += _outcome(at, of, done)
            return done, equations

    return compared


def _outcome(at: Block, of: Reference, done: Execution) -> Iterator[Equation]:
    """Yield that what the kernel leaves is the reference's."""
    given = inputs(at.cfg, OF_QUERIES)

    def wanted(output: int) -> Callable[..., Value]:
        def element(b: Form, s: Form, h: Form, *column: Form) -> Value:
            with nf.ruled(at.by_tiles(done.facts, s - at.first, h)):
                results: Any = of(*given.values(), ratio=at.cfg.ratio)
                return tensor(results[output]).value(b, s, h, *column)

        return element

    with deciding(done.facts):
        unchanged = Rewriting(lambda _: ZERO, lambda _: set())  # no atom is replaced
        spreading = sums.spread(at.extent, ZERO, 0, sums.tiles(T, PAIR), done.facts, unchanged)
        yield from done.compare("grad_q", wanted(0), spreading)
        yield from done.compare("grad_weights", wanted(2), spreading)


def _proof(factory: Any, contract: Contract, cfg: Config, compare: Compare, **more: Any) -> Proof:
    given = {name: getattr(cfg, name) for name in contract.statics}
    return Proof("indexer", factory(cfg), contract, given, compare, PASS_CONFIGS, **more)


EQUIVALENTS = {
    "grid @ for bx in 0:(T_1 + 255) // 256 -> for bx in 0:(T_1 + 255) // 256 + 1": "its guards skip a block beyond the entries",
}


def proofs() -> Iterator[Proof]:
    """Yield the kernels of DeepSeek-V4's sizes, that of the keys with one split of the queries and with several."""
    yield _proof(indexer_scores_bwd_q, OF_QUERIES, Config(), compare(Config()), mutate=True, every=177)
    yield _proof(indexer_scores_bwd_k, keys.OF_KEYS, Config(), keys.compare(Config()))
    several = Config(splits=8)
    more: dict[str, Any] = {"lemmas": (PARTITION,), "mutate": True, "every": 61, "equivalents": EQUIVALENTS}
    yield _proof(indexer_scores_bwd_k, keys.OF_KEYS, several, keys.compare(several), **more)
