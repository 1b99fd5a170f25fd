"""What the proofs of CSA and HCA share: the invariant of their loop over tiles, and splits of the keys.

Tile u holds the keys of rows ``row(u, j)``, j < N, of the window or of the entries; -1 stands for none. With
k = ``key(u, j)``, 0 where there is none, and z(u, j) = scale q · k, before the iteration for tile t the two consumers g
have, for any finite ``row_max`` common to both,

    row_sum_g[h] = Σ_u Σ_j [row(u, j) >= 0] exp(z(u, j) - scale row_max),    j in half g of a tile
    acc_g[h, d] = Σ_u Σ_j [row(u, j) >= 0] exp(z(u, j) - scale row_max) k[d + g C],    all j

with sums over the tiles u < t of the block's split. ``row`` and ``key`` stay opaque but where a tile is loaded, and where
the reference's sums over keys are identified with sums over tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from ..kernels.build import PASS_CONFIGS
from ..kernels.sparse_attention import GROWTH, NAMES
from ..kernels.sparse_attention_config import HEADS, KEYS, PANEL, Config
from ..reference.contract import Contract, Static, TensorSpec
from .attention_splits import meanings
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.ranges import Waiver
from .engine.execution.symbolic import Execution, block, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.constants import unify
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation, holds
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.forms.ring import Rewriting
from .engine.layers.comparison import integers, symbolic_input
from .engine.reference.pull_array import Integers, deciding
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.verify import Compare, Compared
from .suite import Proof

PRO = 128  # heads of DeepSeek-V4-Pro
PARITY = "both have the same remainder by 2, and nothing else is asked of them"
_TILES_DONE = "i * (tiles * (by + 1) - tiles * by)"
EQUIVALENTS = {
    "dropped statement @ T.fence_proxy_async()": "another stands behind the next wait, before the first product",
    "loop end @ for h in 0:64 -> for h in 0:65": "a guard skips row 64",
    f"swapped operands @ {_TILES_DONE} + t - tiles * by -> tiles * by - ({_TILES_DONE} + t)": PARITY,
    'other operator @ T.infinity("float32") * -1 -> T.infinity("float32") / -1, occurrence 2': "the same infinity",
    **{
        f"dropped guard @ if growth{g}[h] > 8 -> always{which}": "where the maximum stays, the factor is 1"
        for g in (0, 1)
        for which in ("", ", occurrence 2")
    },
}

SPLITS = Static(int, 1, 64)
MOST = math.ceil(1000 * GROWTH * math.log(2)) / 1000  # ln 2^GROWTH: what a weight's exponent is at most


def sink_alone(text: str) -> Waiver:
    """Return the waiver of the exponential of a sink, at a statement with this text."""
    why = "a sink far above every score makes it inf, and only in a denominator: the result is 0, its limit"
    return Waiver(text, "exp", why)


def contract(whole: Contract, cfg: Config) -> Contract:
    """Return the contract of an operator's kernel: results of all keys, or sums over each split of them."""
    dtype = torch.bfloat16 if cfg.splits == 1 else torch.float32
    stats = TensorSpec("stats", f"B splits {cfg.stats} S H", (torch.float32,))
    outputs = TensorSpec("out", "B splits S H D", (dtype,)), stats
    return replace(whole, op=f"{whole.op}_fwd", statics={**whole.statics, "splits": SPLITS}, outputs=outputs)


def statics(cfg: Config, *names: str) -> Mapping[str, float]:
    """Return the static parameters of a kernel, by name."""
    return {name: getattr(cfg, name) for name in (*names, "splits")}


def proof(factory: Callable[[Config], Any], whole: Contract, cfg: Config, compare: Compare, **more: Any) -> Proof:
    """Return what is claimed of an operator's kernel."""
    given = statics(cfg, *whole.statics)
    waivers = (sink_alone("exp_sink = "),) if cfg.splits == 1 else ()  # of several splits none has the sink
    return Proof(whole.op, factory(cfg), contract(whole, cfg), given, compare, PASS_CONFIGS, waivers=waivers, **more)


# The loop over tiles


def at_least(a: Form | int, b: Form | int) -> Form:
    """Return [a >= b] of integers."""
    return nf.indicator("ge", nf.form(a) - b, integer=True)


def least(*forms: Form) -> Form:
    """Return the smallest of several numbers."""
    return -nf.maximum([-form for form in forms])


def either(a: Form, b: Form) -> Form:
    """Return whether one of two conditions holds."""
    return ONE - (ONE - a) * (ONE - b)


def index_or_none(condition: Form, index: Form) -> Form:
    """Return the index where the condition holds, else -1."""
    return condition * (index + 1) - 1


def choose(condition: Form, then: Form, otherwise: Form) -> Form:
    """Return one of two."""
    return condition * then + (ONE - condition) * otherwise


@dataclass(frozen=True)
class Block:
    """A block of threads: its query, its heads, its tiles.

    Attributes:
        cfg: the static parameters.
        entries: how many entries tiles may hold, for all queries.
        listed: for how many there are tiles, of this query: at least as many as it has.
        entry: of tile e of the entries the row in slot j, or -1.
        maxima: numbers of entries that are maxima.
        about: conditions that say of these all that matters.
    """

    cfg: Config
    entries: Form
    listed: Form
    entry: Callable[[Form, Form], Form]
    maxima: Sequence[Form] = ()
    about: Sequence[Form] = ()

    @staticmethod
    def sequence() -> Form:
        """Return the sequence of a block."""
        return block("z")

    @staticmethod
    def item() -> Form:
        """Return the number of the query and of its block of heads, among those of the sequence."""
        return block()

    @classmethod
    def query(cls, cfg: Config) -> Form:
        """Return the query of a block."""
        return nf.floordiv(cls.item(), cfg.head_blocks)

    @cached_property
    def b(self) -> Form:
        """The sequence."""
        return self.sequence()

    @cached_property
    def s(self) -> Form:
        """The query."""
        return self.query(self.cfg)

    @cached_property
    def first(self) -> Form:
        """The split's first tile."""
        count = self.cfg.window_tiles + sums.tiles(self.listed, self.cfg.tile)
        return nf.floordiv(count * self.split, self.cfg.splits)

    @cached_property
    def split(self) -> Form:
        """Which split of the tiles."""
        return block("y") if self.cfg.splits > 1 else ZERO

    def head(self, h: Form) -> Form:
        """Return the head of a row of the products."""
        return (self.item() - self.cfg.head_blocks * self.s) * HEADS + h

    def forget(self, extent: Form, facts: Facts) -> None:
        """Forget of maxima what does not matter, and of the split's ends all but that they lie within the tiles."""
        terms, known = list(self.maxima), list(self.about)
        if self.cfg.splits > 1:
            facts.bound(self.split, nf.form(self.cfg.splits))
            end, count = self.first + extent, self.cfg.window_tiles + sums.tiles(self.listed, self.cfg.tile)
            terms += [self.first, end]
            known += [at_least(self.first, 0), at_least(end, self.first), at_least(count, end)]
        facts.forget(terms, known)

    def row(self, u: Form, j: Form) -> Form:
        """Return what ``row`` stands for."""
        cfg = self.cfg
        window = at_least(nf.form(cfg.window_tiles - 1), u)
        token = self.s - cfg.window + 1 + u * cfg.tile + j
        here = nf.variable("P") + token
        seen = at_least(self.s, token) * at_least(here, 0) * at_least(nf.read("offset", self.b) + token, 0)
        return choose(window, index_or_none(seen, here), self.entry(u - cfg.window_tiles, j))

    def key(self, u: Form, j: Form, d: Form) -> Form:
        """Return what ``key`` stands for."""
        row = self.row(u, j)
        window = at_least(nf.form(self.cfg.window_tiles - 1), u)
        kv = [nf.read(name, self.b, row, d) for name in ("window_kv", "compressed_kv")]
        return at_least(row, 0) * choose(window, *kv)

    @property
    def definitions(self) -> Mapping[str, Callable[..., Form]]:
        """What ``row`` and ``key`` stand for."""
        return {"row": self.row, "key": self.key}

    def written_out(self, p: Form, extent: Form) -> Form:
        """Return the form with abbreviations replaced by what they stand for, in a split of ``extent`` tiles."""
        for name, definition in self.definitions.items():
            p = nf.replacing(name, definition)(p)
        return sums.written_out(p, self.first, extent)

    def no_entries(self, facts: Facts) -> Rewriting:
        """Return the rewriting that empties the slots of all tiles of entries, where they are known to be empty."""
        before = self.cfg.window_tiles
        e, j = nf.fresh("e"), nf.fresh("j")
        facts.bound(j, nf.form(self.cfg.tile))
        never = holds(at_least(self.row(before + e, j), 0), ZERO, facts)

        def empty(numbers: frozenset[int]) -> set[int]:
            """Return those that are [row(u, j) >= 0] of such a tile."""
            rows = [a for a in map(nf.atom_of, numbers) if isinstance(a, nf.Apply) and a.function == "row"]
            slots = [a.arguments for a in rows if never and facts.holds(at_least(a.arguments[0], before))]
            return {number for u, j in slots for ((number, _),) in self.seen(u, j).terms}

        return Rewriting(lambda _: ZERO, empty)

    # The sums

    def seen(self, u: Form, j: Form) -> Form:
        """Return whether slot j of tile u holds a key."""
        return at_least(nf.apply("row", u, j), 0)

    def score(self, u: Form, j: Form, head: Form) -> Form:
        """Return q · k, 0 for a head that there is not."""
        q = at_least(nf.form(self.cfg.H - 1), head)
        return nf.summation(self.cfg.D, lambda d: q * nf.read("q", self.b, self.s, head, d) * nf.apply("key", u, j, d))

    def weight(self, u: Form, j: Form, head: Form) -> Form:
        """Return exp(z) of a key, 0 where there is none."""
        scale = unify(self.cfg.scale)
        return self.seen(u, j) * nf.exp(scale * self.score(u, j, head))

    def weights(self, s: State, h: Form, columns: tuple[Form | int, int], d: Form | None = None) -> Form:
        """Return Σ exp(z - scale row_max) over the tiles done and some columns; or of that times element d of the keys."""
        first, count = columns

        def summand(u: Form, j: Form) -> Form:
            weight = self.weight(self.first + u, first + j, self.head(h))
            return weight if d is None else weight * nf.apply("key", self.first + u, first + j, d)

        total = nf.summation(s.t, lambda u: nf.summation(count, lambda j: summand(u, j)))
        return nf.exp(-unify(self.cfg.scale) * s[NAMES.row_max[0]](h)) * total

    def present(self, column: Form) -> Form:
        """Return whether there is a column, of those of both consumers."""
        return ONE if 2 * self.cfg.columns == self.cfg.D else at_least(nf.form(self.cfg.D - 1), column)

    def invariant(self) -> Invariant:
        """Return what holds before each iteration of the loop over tiles."""

        def row_sum(g: int) -> Determined:
            return Determined(lambda s, h: self.weights(s, h, (g * KEYS, KEYS)))

        def acc(g: int) -> Determined:
            def value(s: State, h: Form, d: Form) -> Form:
                column = d + g * self.cfg.columns
                return self.present(column) * self.weights(s, h, (0, self.cfg.tile), column)

            return Determined(value)

        def key(s: State, part: Form, j: Form, d: Form) -> Form:
            g = nf.floordiv(part, 2)
            column = (part - 2 * g) * self.cfg.columns + d
            return self.present(column) * nf.apply("key", self.first + s.t, g * KEYS + j, column)

        return Invariant(
            free=NAMES.row_max[:1],
            determined={
                NAMES.row_max[1]: Determined(lambda s, h: s[NAMES.row_max[0]](h)),
                **{NAMES.row_sum[g]: row_sum(g) for g in (0, 1)},
                **{NAMES.acc[g]: acc(g) for g in (0, 1)},
            },
            staged={
                NAMES.keys: Determined(key, parts={0: 1, 2: PANEL}),
                NAMES.rows: Determined(lambda s, g, j: nf.apply("row", self.first + s.t, g * KEYS + j), parts={0: 1}),
            },
            definitions=self.definitions,
        )

    # Against the reference

    def summands(self, head: Form, d: Form | None) -> list[sums.Summand]:
        """Return what sums over all tiles have of a slot: whether it holds a key, its weight, and that times its element d."""
        result: list[sums.Summand] = [
            lambda u, j: sums.within(u) * self.seen(u, j),
            lambda u, j: sums.within(u) * self.weight(u, j, head),
        ]
        if d is not None:
            result.append(lambda u, j: sums.within(u) * self.weight(u, j, head) * nf.apply("key", u, j, d))
        return result

    def rules(self, extent: Form, facts: Facts, head: Form, d: Form | None) -> tuple[nf.Rule, nf.Rule]:
        """Return the reference's sums over the window and over the entries as sums over tiles."""

        def rule(count: Form, before: int) -> nf.Rule:
            def entering(f: sums.Summand) -> tuple[sums.Summand, sums.Summand]:
                return lambda t, j: f(before + t, j), lambda t, j: self.written_out(f(before + t, j), extent)

            return sums.by_tiles(count, self.cfg.tile, facts, [entering(f) for f in self.summands(head, d)])

        window = nf.form(self.cfg.window)
        return rule(window, 0), rule(self.entries, self.cfg.window_tiles)


B = TypeVar("B", bound=Block)

Reference = Callable[[Mapping[str, SymbolicTensor], SymbolicTensor], tuple[Any, Any]]
"""From the inputs by name and the number of the split: out and lse; of several splits Σ exp(z) k and Σ exp(z)."""


@dataclass(frozen=True)
class Claim:
    """What is claimed of a kernel of the loop over tiles.

    Args:
        cfg: the static parameters.
        whole: the operator's contract.
        reference: what it computes.
        cases: about sizes, one of which holds: what the reference distinguishes.
    """

    cfg: Config
    whole: Contract
    reference: Reference
    cases: Sequence[Form] = (ONE,)


def compare(claim: Claim, here: Callable[[], Block]) -> Compare:
    """Return the comparison of a kernel with its reference; ``here`` makes the block."""
    cfg = claim.cfg

    def compared(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.splitting(2))
            stack.enter_context(nf.tiled(cfg.tile, KEYS))
            if cfg.columns < cfg.D:
                stack.enter_context(nf.tiled(cfg.D, cfg.columns))
            at = here()
            count = cfg.window_tiles + sums.tiles(at.listed, cfg.tile)
            extent = nf.floordiv(count * (at.split + 1), cfg.splits) - at.first
            sizes = {"R": nf.variable("P") + nf.variable("S")}
            at.forget(extent, known)
            invariants = {NAMES.tile: at.invariant()}
            done = execute(kernel, sizes=sizes, invariants=invariants, facts=known, most=MOST)
            equations = list(done.equations)
            if all(equation.holds for equation in equations):
                equations += _outcome(claim, at, extent, done)
            return done, equations

    return compared


def _outcome(claim: Claim, at: Block, extent: Form, done: Execution) -> Iterator[Equation]:
    """Yield that what the kernel leaves, after so many tiles, is the reference's."""
    cfg, known = claim.cfg, done.facts
    entry_tiles = sums.tiles(at.entries, cfg.tile)
    counted = sums.counted()

    def wanted(output: int) -> Callable[..., Value]:
        def element(b: Form, y: Form, *row: Form) -> Value:
            s, head, *rest = row[output:]  # an lse, or a mass, has a number before these
            number = SymbolicTensor((), lambda: Value(y), integer=Integers())
            out = tensor(claim.reference(inputs(cfg, claim.whole), number)[output])
            with nf.ruled(*at.rules(extent, known, head, rest[0] if rest else None)):
                return out.value(b, s, head, *rest)

        return element

    for case in claim.cases:
        with known.assuming(case), deciding(known):
            spreading = sums.spread(extent, at.first, cfg.window_tiles, entry_tiles, known, at.no_entries(known))
            for number, (name, meaning) in enumerate(meanings(cfg, done, known).items()):
                yield from done.compare(name, wanted(number), spreading, counted, meaning=meaning)


def inputs(cfg: Any, whole: Contract) -> Mapping[str, SymbolicTensor]:
    """Return the inputs of a contract by name, symbolic; a config has the static parameters."""

    def size(n: int | str) -> Form:
        if isinstance(n, str):
            return nf.form(getattr(cfg, n)) if n in whole.statics else nf.variable(n)
        return nf.form(n)

    return {
        spec.name: symbolic_input(
            spec.name,
            [sum(map(size, dim), ZERO) for dim in spec.dims],
            integers(whole, spec, spec.dtypes[0]),
        )
        for spec in whole.inputs
    }
