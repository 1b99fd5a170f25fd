"""What is claimed of the kernels of hyper-connections.

Those of the streams after a layer are compared here with the reference, forward and backward. Those that read the streams are
compared with steps of the formula: proofs/mhc_pre.py says which, proofs/mhc_backward.py for their backward, and
proofs/mhc_post_pre.py for those from one layer to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..kernels import mhc_project
from ..kernels.build import PASS_CONFIGS
from ..kernels.mhc_post import Config, mhc_post_bwd, mhc_post_fwd, of_backward
from ..reference import mhc as reference
from ..reference.contract import Contract
from .engine.base.report import LAYERS
from .mhc_backward import backward, chunked
from .mhc_post_pre import between
from .mhc_pre import SAFE, reading, tiled
from .sinkhorn import FIRST_STEP
from .suite import Proof

Factory = Callable[[Any], Any]
Formula = Callable[..., Any]
_POST: tuple[tuple[Factory, Contract, Formula], ...] = (
    (mhc_post_fwd, reference.MHC_POST, reference.mhc_post),
    (mhc_post_bwd, reference.MHC_POST_BWD, reference.mhc_post_bwd),
)
SHIPPED = Config(), Config(hidden=7168)
OTHER_STREAMS = tuple(Config(hc) for hc in (2, 3, 8))
OTHERS = *(Config(hc) for hc in (5, 6, 7)), Config(hidden=64), Config(3, 64)
"""Further numbers of streams; the narrowest, also of an odd number."""
AFTER = Config(hidden=1088), Config(8, 8192)
"""After a layer, also a width that ends within a step, and the widest."""


FRAGMENT = "a loop over a fragment gets the fragment's own extent from the compiler, in narrower accesses"
BEYOND = "its guards skip a block beyond the tokens"
NOTHING_OVER = "over the reals, in which L2 compares, rounding leaves nothing over: the claim does not reach it"
_LOOPS = (("i", 4), ("t", 128), ("j", 8))
MIXED = "of what is mixed beyond the last token nothing is written"
FILLED = "of 32 rows the last 8 fill up, and are not written"
_ROUNDED, _ROUNDED_REST = (f'T.Cast("float32", T.Cast("bfloat16", {name}))' for name in ("value", "rest"))
_PADDED = "T.if_then_else(m < 24, fn[m, first + i * 4096 + k], "
EQUIVALENTS = {
    **{
        f"grid @ for block in 0:{blocks} -> for block in 0:{blocks} + 1": BEYOND
        for blocks in ("(tokens + 63) // 64", "(tokens + 31) // 32")
    },
    "dropped guard @ if block * 64 + h * 32 < tokens -> always": MIXED,
    "off by one @ block * 64 + h * 32 < tokens -> block * 64 + h * 32 <= tokens": MIXED,
    "dropped operand @ block * 64 + h * 32 -> block * 64": MIXED,
    "dropped operand @ h * 32 -> h": MIXED,
    "dropped operand @ p[i, j] * r[i] -> p[i, j]": FIRST_STEP,
    "inverted guard @ if bx % 2 < 1 -> if not (bx % 2 < 1)": "the two blocks of a token exchange what they do",
    f"swapped operands @ value - {_ROUNDED} -> {_ROUNDED} - value": NOTHING_OVER,
    f"swapped operands @ rest - {_ROUNDED_REST} -> {_ROUNDED_REST} - rest": NOTHING_OVER,
    "loop start @ for smaller in 0:3 -> for smaller in 1:3": NOTHING_OVER,
    "loop end @ for m in 0:32 -> for m in 0:31": FILLED,
    f"constant @ {_PADDED}0) -> {_PADDED}1)": FILLED,
    **{
        f"loop end @ for {v} in 0:{n} -> for {v} in 0:{n + 1}": FRAGMENT
        for v, n in (*_LOOPS, ("s", 2), ("o", 4), ("t", 256), ("k", 64))
    },
    **{f"loop start @ for {v} in 0:{n} -> for {v} in -1:{n}": FRAGMENT for v, n in _LOOPS},
}


def _post(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield both kernels of the streams after a layer.

    Column c belongs to thread ``c // width % threads`` of a block, so that the reference's sum over c is one over threads,
    of one over the steps, of one over the columns of a thread at a step.
    """
    given = {"hc": cfg.hc, "hidden": cfg.hidden}
    for factory, contract, of in _POST:
        width = (of_backward(cfg) if factory is mhc_post_bwd else cfg).width
        by_threads = (cfg.hidden, width, False), (cfg.hidden // width, cfg.threads, True)
        compare = tiled(of, contract, *by_threads) if "L2" in layers else None
        yield Proof("mhc", factory(cfg), contract, given, compare, PASS_CONFIGS, layers=layers, **more)


def _every(
    cfg: Config, layers: tuple[str, ...] = LAYERS, *, chunks: tuple[int, ...] = (1,), **more: Any
) -> Iterator[Proof]:
    """Yield all kernels for a number of streams and a width, the backward's with these numbers of chunks."""
    yield from _post(cfg, layers, **more)
    before = mhc_project.Config(cfg.hc, cfg.hidden)
    yield from between(before, layers, **more)
    for head in (False, True):
        reads = replace(before, head=head)
        yield from reading(reads, layers, **more)
        yield from backward(reads, layers, **more)
        for count in chunks:
            mutated = more if count == chunks[len(chunks) // 2] else {}  # one number of chunks is enough for mutants
            yield from chunked(replace(reads, chunks=count), layers, **mutated)


def proofs() -> Iterator[Proof]:
    """Yield the shipped widths and other numbers of streams in every layer; what else is admitted in bounds and coverage."""
    mutants: dict[str, Any] = {"mutate": True, "every": 8, "equivalents": EQUIVALENTS}
    for cfg, more in zip(SHIPPED, (mutants, {}), strict=True):
        yield from _every(cfg, chunks=(1, 4, 16), **more)
    for cfg in OTHER_STREAMS:
        yield from _every(cfg)
    for cfg in OTHERS:
        yield from _every(cfg, SAFE)
    for cfg in AFTER:
        yield from _post(cfg, SAFE)
