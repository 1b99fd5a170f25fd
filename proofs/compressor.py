"""What is claimed of the kernels of the KV compressor.

``compress_fwd`` is compared with the reference as it stands. The others are each compared with their part of it, and one
put after the other they are the reference: ``compress_pool`` and ``compress_norm`` of the forward; of the backward
``compress_norm_bwd`` and ``compress_pool_bwd``. ``compress_few_bwd`` is the whole backward, but that it adds up the gradients
of ape and of the norm's weight over chunks of 8 entries alone: before iteration e, of place r in the own block and channel c,

    own_sum[r, c] = Σ_{u < e} z̄(8 chunk + u, r, c),

where z̄(i, r, c) is the gradient of that logit of entry i, and likewise the two other sums. The sums over all chunks, or over
all entries, are torch's. Softmaxes are compared over the reals, where it does not matter what is subtracted from the
logits.

Of more than 16 candidates whose number 16 does not divide, or with overlap, and of 64 channels, bounds, coverage and races are
claimed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import z3

from ..kernels import compressor as kernels
from ..kernels import compressor_backward as backward
from ..kernels.build import PASS_CONFIGS
from ..kernels.compressor import Config
from ..kernels.compressor_backward import CHUNK
from ..reference import compressor as reference
from ..reference.compressor import BF16, F32, STATICS
from ..reference.contract import Contract, Size, Static, TensorSpec
from ..reference.indexer import OFFSETS
from . import compressor_step
from .engine.base.conditions import Condition
from .engine.base.errors import Unsupported
from .engine.base.report import LAYERS
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.outcome import Execution
from .engine.execution.symbolic import block, execute
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.layers.comparison import against, symbolic_inputs
from .engine.layers.lemmas import Theorem, lemma
from .engine.reference.pull_array import Extent, deciding
from .engine.verify import Compare, Compared
from .suite import Proof
from .written import is_written

Formula = Callable[..., Any]
SAFE = ("L0", "L1")
_STATICS = {name: STATICS[name] for name in ("ratio", "D", "pairs", "past")} | {"overlap": Static(int, 0, 1)}
SIZES = {
    "B": Size(1, 65535),
    "S": Size(1, 2**30 - 1),
    "T": Size(1, 2**30 - 1),
    "positions": Size(1, 2**24),
    "N": Size(1, 2**27),
}
"""What holds of a call that launches a kernel: there are entries, and a row of angles."""
PROBES = (
    {"B": 3, "S": 1009, "T": 3, "positions": 4099, "N": 1},
    {"B": 1, "S": 2**20, "T": 2**10, "positions": 2**20, "N": 2**7},
)
F32_ONLY = (F32,)
_POOLED, _OUT, _GRAD_OUT = (TensorSpec(name, "B T D", (BF16,)) for name in ("pooled", "out", "grad_out"))
_OF_POOLED, _OF_WEIGHT = (TensorSpec(name, "B T D", F32_ONLY) for name in ("of_pooled", "of_weight"))
_ROOM = ("T*ratio+past <= S",)  # all entries' blocks are there
_CHUNKED = (f"T <= {CHUNK}*N", f"{CHUNK}*N <= T+{CHUNK - 1}")  # so many chunks of entries

FLAGSHIPS = Config(), Config(128, overlap=False), Config(D=128)
"""Those of attention, and of the indexer."""
OTHERS = Config(past=4), Config(2, 128, pairs=4), Config(3, 256, False, 8)
"""With the block before; further numbers of tokens and channels, with overlap and without."""
SAFE_ALONE = Config(2, 64, pairs=4), Config(128, 64, past=128), Config(33, overlap=False)
ROUNDED = Config(simulate_fp8=True), Config(128, overlap=False, simulate_fp8=True)
"""Bounds, coverage and races again; over the reals, nothing is rounded."""


def _inputs(cfg: Config) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in (reference.OVERLAP if cfg.overlap else reference.COMPRESS).inputs}


def _contract(cfg: Config, name: str, inputs: tuple[TensorSpec, ...], *outputs: TensorSpec) -> Contract:
    """Return a kernel's contract, of the sizes that its tensors have, with no more entries than positions."""
    text = " ".join(spec.shape for spec in (*inputs, *outputs))
    names = [size for size in SIZES if size in text.split()]
    sizes = {size: SIZES[size] for size in names} | {"T": Size(1, OFFSETS // cfg.ratio)}
    probes = tuple({size: probe[size] for size in names} for probe in PROBES)
    updated = tuple(spec.name for spec in outputs if spec.name in ("grad_kv", "grad_gate"))
    statics = _STATICS | ({"simulate_fp8": Static(int, 1, 1)} if cfg.simulate_fp8 else {})
    return Contract(name, sizes, statics, inputs, outputs, probes, _ROOM if "S" in names else (), updated)


def _whole(cfg: Config) -> tuple[Contract, Formula]:
    def of(kv: Any, gate: Any, ape: Any, norm_weight: Any, rotation: Any, offset: Any) -> Any:
        given = reference.Given(kv, gate, ape, norm_weight, rotation, offset, cfg.past)
        pooled = reference.pool(given, _entries()).total
        return reference.entries(pooled, given, cfg.eps, BF16), pooled

    return _contract(cfg, "compress_fwd", tuple(_inputs(cfg).values()), _OUT, _POOLED), of


def _pool(cfg: Config) -> tuple[Contract, Formula]:
    x = _inputs(cfg)

    def of(kv: Any, gate: Any, ape: Any, offset: Any) -> Any:
        return reference.pool(_given_rows(cfg, kv, gate, ape, offset), _entries()).total

    return _contract(cfg, "compress_pool", (x["kv"], x["gate"], x["ape"], x["offset"]), _POOLED), of


def _norm(cfg: Config) -> tuple[Contract, Formula]:
    x = _inputs(cfg)

    def of(pooled: Any, norm_weight: Any, rotation: Any, offset: Any) -> Any:
        return reference.entries(pooled, _given_pooled(cfg, pooled, norm_weight, rotation, offset), cfg.eps, BF16)

    return _contract(cfg, "compress_norm", (_POOLED, x["norm_weight"], x["rotation"], x["offset"]), _OUT), of


def _norm_bwd(cfg: Config) -> tuple[Contract, Formula]:
    x = _inputs(cfg)

    def of(grad_out: Any, pooled: Any, norm_weight: Any, rotation: Any, offset: Any) -> Any:
        given = _given_pooled(cfg, pooled, norm_weight, rotation, offset)
        return reference.through_norm(grad_out, pooled, given, cfg.eps)

    inputs = _GRAD_OUT, _POOLED, x["norm_weight"], x["rotation"], x["offset"]
    return _contract(cfg, "compress_norm_bwd", inputs, _OF_POOLED, _OF_WEIGHT), of


def _pool_bwd(cfg: Config) -> tuple[Contract, Formula]:
    x = _inputs(cfg)

    def of(of_pooled: Any, kv: Any, gate: Any, ape: Any, offset: Any) -> Any:
        pooled = reference.pool(_given_rows(cfg, kv, gate, ape, offset), _entries())
        return reference.through_pool(of_pooled, pooled)

    inputs = _OF_POOLED, x["kv"], x["gate"], x["ape"], x["offset"]
    return _contract(cfg, "compress_pool_bwd", inputs, *_of_candidates(cfg)), of


def _few_bwd(cfg: Config) -> tuple[Contract, Formula]:
    """Return the contract, and the formula of what candidates give, and of what each entry adds to that of norm_weight."""

    def of(grad_out: Any, pooled: Any, *tensors: Any) -> Any:
        x = reference.Given._make((*tensors, cfg.past))
        of_pooled, of_weight = reference.through_norm(grad_out, pooled, x, cfg.eps)
        return *reference.through_pool(of_pooled, reference.pool(x, _entries())), of_weight

    parts = TensorSpec("parts", f"B N {cfg.candidates + 1} D", F32_ONLY)
    inputs = _GRAD_OUT, _POOLED, *_inputs(cfg).values()
    contract = _contract(cfg, "compress_few_bwd", inputs, *_of_candidates(cfg), parts)
    return replace(contract, relations=(*contract.relations, *_CHUNKED)), of


def _of_candidates(cfg: Config) -> tuple[TensorSpec, ...]:
    """Return the gradients of values and logits, which keep what they are where no candidate is."""
    return tuple(TensorSpec(f"grad_{name}", _inputs(cfg)[name].shape, F32_ONLY) for name in ("kv", "gate"))


def _given_rows(cfg: Config, kv: Any, gate: Any, ape: Any, offset: Any) -> reference.Given:
    """Return what pooling takes; of a norm's weight the width alone is asked."""
    return reference.Given(kv, gate, ape, kv[0, 0, : cfg.D], kv, offset, cfg.past)


def _given_pooled(cfg: Config, pooled: Any, norm_weight: Any, rotation: Any, offset: Any) -> reference.Given:
    """Return what norm and rotation take; of ape the length alone is asked."""
    ape = pooled.new_zeros(cfg.ratio, cfg.D)
    return reference.Given(pooled, pooled, ape, norm_weight, rotation, offset, cfg.past)


def _entries() -> Any:
    """Return the number of entries, which no input has for a dimension."""
    return Extent(nf.variable("T"))


def _tiled(of: Formula, contract: Contract, tilings: tuple[tuple[int, int], ...]) -> Compare:
    """Return the comparison with a reference whose sums are taken tile by tile: extent and tile."""

    def compare(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            for extent, tile in tilings:
                stack.enter_context(nf.tiled(extent, tile))
            return against(of, contract)(kernel, known)

    return compare


def _of_candidates_compared(cfg: Config, of: Formula, contract: Contract) -> Compare:
    """Return the comparison of a backward whose reference returns the gradients of candidates, [B, T, n, D].

    What is of entry i writes that of its candidate n into row past + i ratio - (candidates - ratio) + n, where the
    reference's ``scattered`` puts it: into the second half of the row if the candidate is of the entry's own block. Of each
    candidate that has a row all channels are written. Since other rows keep what they held, no other layer claims that.
    """

    def compare(kernel: Any, known: Facts) -> Compared:
        with deciding(known), nf.tiled(cfg.D, cfg.width):
            of_values, of_logits = of(*symbolic_inputs(kernel, contract).values())
            execution = execute(kernel, facts=known)
            at = Entries(cfg, block("x"))
            return execution, [*execution.equations, *_rows_compared(at, execution, of_values, of_logits)]

    return compare


class Entries(NamedTuple):
    """The entry that a block works on, or that it works on in an iteration."""

    cfg: Config
    i: Form

    @property
    def row(self) -> Form:
        """Return the first row of its own block."""
        return self.cfg.past + self.cfg.ratio * self.i

    @property
    def before(self) -> Form:
        """Return the condition that there are rows of the block before."""
        return nf.nonnegative(self.row - self.cfg.ratio)


def _rows_compared(at: Entries, execution: Execution, of_values: Any, of_logits: Any) -> Iterator[Equation]:
    """Yield that the gradients of rows are those of candidates, and that all are written."""
    for name, grad in (("grad_kv", of_values), ("grad_gate", of_logits)):
        yield from execution.compare(name, _in_rows(at, grad, execution.facts))
        yield from _all_written(at, name, execution)


def _chunks_compared(cfg: Config, of: Formula, contract: Contract) -> Compare:
    """Return the comparison of the backward of few candidates: of rows as above, and of the sums of each chunk."""

    def compare(kernel: Any, known: Facts) -> Compared:
        with deciding(known), nf.tiled(cfg.D, cfg.width):
            of_values, of_logits, of_weight = of(*symbolic_inputs(kernel, contract).values())
            sums = Sums(cfg, of_logits, of_weight)
            execution = execute(kernel, invariants={"e": sums.invariant()}, facts=known)
            at = Entries(cfg, CHUNK * block("x") + nf.variable("e.t"))
            equations = [*execution.equations, *_rows_compared(at, execution, of_values, of_logits)]
            extent = execution.inductions["e"].extent
            return execution, [*equations, *execution.compare("parts", sums.in_parts(extent))]

    return compare


_LOGIT, _WEIGHT = "of_logit", "of_weight"  # gradients of a logit, and what an entry adds to that of norm_weight


class Sums(NamedTuple):
    """The sums over the first entries of a chunk: of the gradients of logits, and of what is added to that of norm_weight."""

    cfg: Config
    of_logits: Any
    of_weight: Any

    def logit(self, extent: Form, n: Form, c: Form, *, own: bool) -> Form:
        """Return the sum of the gradients of the logits of candidate n, of the own block, or as far as it has a row."""
        return self._over(extent, lambda at: nf.apply(_LOGIT, at.i, n, c) * (ONE if own else at.before))

    def weight(self, extent: Form, c: Form) -> Form:
        """Return the sum for norm_weight."""
        return self._over(extent, lambda at: nf.apply(_WEIGHT, at.i, c))

    def _over(self, extent: Form, summand: Callable[[Entries], Form]) -> Form:
        return nf.summation(extent, lambda u: summand(Entries(self.cfg, CHUNK * block("x") + u)))

    def invariant(self) -> Invariant:
        """Return what the sums are before an iteration; the summands are abbreviated."""
        cfg = self.cfg

        def of_logits(s: State, r: Form, t: Form, j: Form, own: bool) -> Form:
            ahead = cfg.candidates - cfg.ratio if own else 0
            return self.logit(s.t, ahead + r, cfg.width * t + j, own=own)

        names = {"own_sum": True} | ({"before_sum": False} if cfg.overlap else {})
        determined = {name: Determined(partial(of_logits, own=own)) for name, own in names.items()}
        determined["weight_sum"] = Determined(lambda s, t, j: self.weight(s.t, cfg.width * t + j))
        definitions: dict[str, Callable[..., Form]] = {
            _LOGIT: lambda i, n, c: self.of_logits.at(block("y"), i, n, c),
            _WEIGHT: lambda i, c: self.of_weight.at(block("y"), i, c),
        }
        return Invariant(determined=determined, definitions=definitions)

    def in_parts(self, extent: Form) -> Callable[..., Form]:
        """Return, from an index of the parts, the sum over a chunk that stands there."""

        def wanted(_: Form, __: Form, row: Form, c: Form) -> Form:
            if (n := row.constant) is None:
                raise Unsupported(f"a write of sums of which the row is not known: {row}")
            if n == self.cfg.candidates:
                return self.weight(extent, c)
            return self.logit(extent, row, c, own=n >= self.cfg.candidates - self.cfg.ratio)

        return wanted


def _in_rows(at: Entries, grad: Any, known: Facts) -> Callable[..., Value]:
    """Return, from an index of rows that are written for an entry, the gradient of the candidate that it is."""
    cfg = at.cfg

    def wanted(b: Form, row: Form, c: Form) -> Value:
        ahead = cfg.candidates - cfg.ratio
        own = known.decide(nf.nonnegative(c - (cfg.wide - cfg.D)))
        if own is None:
            raise Unsupported(f"a write of which it is not known in which half of a row it is: {c}")
        value: Value = grad.value(b, at.i, row - (at.row - ahead), c - (cfg.wide - cfg.D if own else 0))
        return value

    return wanted


def _all_written(at: Entries, output: str, execution: Execution) -> Iterator[Equation]:
    """Yield that all channels of an entry's candidates are written, those of the block before if that has rows."""
    cfg = at.cfg
    many = not cfg.few  # a block has some of the channels, and a loop over candidates too
    threads, width = (kernels.LANES, kernels.WIDTH) if many else (cfg.threads, cfg.width)
    known, ahead, own = execution.facts, cfg.candidates - cfg.ratio, at.row
    first = block("z") * (threads * width) if many and threads * width < cfg.D else ZERO
    halves = [(ahead, own, cfg.wide - cfg.D), *([(0, own - cfg.ratio, 0)] if cfg.overlap else [])]
    t, j, r = nf.fresh("t"), nf.fresh("j"), nf.fresh("r")
    for variable, extent in ((t, threads), (j, width), (r, cfg.ratio)):
        known.bound(variable, nf.form(extent))
    for candidate, row, start in halves:
        for place in [r] if many else map(nf.form, range(cfg.ratio)):
            index = block("y"), row + place, first + start + t * width + j
            yield is_written(execution, output, index, (candidate + place, t, j), nf.nonnegative(row))


def _chunks() -> Sequence[Condition]:
    """Prove that entry i is the (i mod 8)-th of chunk i div 8, and of no other."""
    i, n, q, r, u, y, entries = z3.Ints("i n q r u y entries")
    chunked = entries <= CHUNK * n, CHUNK * n <= entries + CHUNK - 1
    divided = i == CHUNK * q + r, r >= 0, r < CHUNK
    return [
        lemma("entry i is in chunk i div 8, which there is", z3.And(q >= 0, q < n, r < entries - CHUNK * q),
              *chunked, *divided, i >= 0, i < entries),
        lemma("and in no other", z3.And(y == q, u == r), *divided, CHUNK * y + u == i, u >= 0, u < CHUNK),
        lemma("what is in a chunk is an entry", z3.And(i >= 0, i < entries),
              y >= 0, u >= 0, u < entries - CHUNK * y, i == CHUNK * y + u),
    ]  # fmt: skip


CHUNKS = Theorem(
    "chunks", f"Of T entries each is in exactly one of ⌈T/{CHUNK}⌉ chunks: entry {CHUNK} y + u is the u-th of chunk y, which "
    f"has min({CHUNK}, T - {CHUNK} y).", _chunks, "the number of an entry, divided by the length of a chunk"
)  # fmt: skip


def _kernels(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield the kernels that make entries, and those of the gradients."""
    of_norm = ((cfg.D, cfg.width),)
    claims: dict[Any, tuple[tuple[Contract, Formula], tuple[tuple[int, int], ...]]] = {
        kernels.compress_fwd: (_whole(cfg), of_norm),
        kernels.compress_pool: (_pool(cfg), ()),
        kernels.compress_norm: (_norm(cfg), of_norm),
        backward.compress_norm_bwd: (_norm_bwd(cfg), of_norm),
        backward.compress_few_bwd: (_few_bwd(cfg), ()),
        backward.compress_pool_bwd: (_pool_bwd(cfg), ()),
    }
    given = {"ratio": cfg.ratio, "D": cfg.D, "overlap": int(cfg.overlap), "pairs": cfg.pairs, "past": cfg.past}
    given |= {"simulate_fp8": 1} if cfg.simulate_fp8 else {}
    gradients = () if cfg.simulate_fp8 else backward.backward_kernels(cfg)  # which round nothing
    for factory in dict.fromkeys(f for f, _ in (*kernels.forward_kernels(cfg), *gradients)):
        (contract, of), tilings = claims[factory]
        made, lemmas = dict(backward.backward_kernels(cfg)).get(factory, cfg), dict[str, Any]()
        compare = _of_candidates_compared(made, of, contract) if contract.updated else _tiled(of, contract, tilings)
        if factory is backward.compress_few_bwd:
            compare = _chunks_compared(made, of, contract)
            lemmas = {"lemmas": (CHUNKS,)} if "L2" in layers else lemmas
        claimed = compare if "L2" in layers else None
        yield Proof(
            "compressor", factory(made), contract, given, claimed, PASS_CONFIGS, layers=layers, **lemmas, **more
        )


FRAGMENT = "a loop over a fragment gets the fragment's own extent from the compiler"
ANGLES = "a row of angles is read of a position below their number alone, and no position is below 0"
ABSENT = "a candidate that is not there has the weight 0, whatever finite value stands for it"
ALWAYS = "without overlap no candidate is before row 0 or in the block before, and none of the 128 is beyond the last"
_FIRST, _THERE, _ROW = "T.if_then_else(n < 0, 0, 0)", "n < 128 and (n >= 0 or bx >= 1)", "bx * 128 + n >= 0"
_ROW_OF_ANGLES = "T.max(T.min(position, positions - 1), 0)"
EQUIVALENTS = {
    **{f"loop end @ for {v} in 0:{n} -> for {v} in 0:{n + 1}": FRAGMENT for v, n in (("t", 16), ("t", 128), ("j", 4))},
    "constant @ positions - 1 -> T.Sub(positions, 0)": ANGLES,
    "dropped operand @ T.min(position, positions - 1) -> position": ANGLES,
    f"constant @ {_ROW_OF_ANGLES} -> {_ROW_OF_ANGLES.replace(', 0)', ', -1)')}": ANGLES,
}
OVERLAPPING = EQUIVALENTS | {
    "constant @ T.if_then_else(bx >= 1, kv[by, row, c], 0) -> T.if_then_else(bx >= 1, kv[by, row, c], 1)": ABSENT,
    "off by one @ bx >= 1 -> bx >= 0": ABSENT,
    "dropped operand @ chunk * 8 -> 8": ABSENT,
    "dropped operand @ T.max((chunk * 8 + e) * 4 - 4, 0) -> (chunk * 8 + e) * 4 - 4":
        "of an entry that has no block before it no row of that is read",
    "loop start @ for r in 0:4 -> for r in 1:4": "the top is the first candidate's logit already",
}  # fmt: skip
APART = EQUIVALENTS | {
    "off by one @ bx >= 1 -> bx >= 0": ALWAYS,
    "off by one @ n < 0 -> n <= 0": "without overlap a row has one half: it begins at channel 0 in either case",
    "dropped guard @ n >= 0 or bx >= 1 -> n >= 0": ALWAYS,
    f"other operator @ {_THERE} -> {_THERE.replace('and', 'or')}": ALWAYS,
    f"dropped operand @ first + {_FIRST} -> first": ALWAYS,
    f"dropped guard @ {_FIRST} -> 0": ALWAYS,
    f"constant @ {_FIRST} -> T.if_then_else(n < 0, -1, 0)": ALWAYS,
    f"dropped guard @ n < 128 and {_ROW} -> {_ROW}": ALWAYS,
    f"other operator @ n < 128 and {_ROW} -> n < 128 or {_ROW}": ALWAYS,
    "stride @ bx * 128 -> bx * 129": ALWAYS,
    'dropped operand @ T.infinity("float32") * -1 -> T.infinity("float32")': ALWAYS,
}


def proofs() -> Iterator[Proof]:
    """Yield the shipped kernels and other shapes."""
    tried: list[dict[str, Any]] = [{"mutate": True, "every": 8, "equivalents": why} for why in (OVERLAPPING, APART)]
    for cfg, more in zip(FLAGSHIPS, (*tried, {}), strict=True):
        yield from _kernels(cfg, **more)
    for cfg in OTHERS:
        yield from _kernels(cfg)
    for cfg in (*SAFE_ALONE, *ROUNDED):
        yield from _kernels(cfg, SAFE)
    yield from compressor_step.proofs()
