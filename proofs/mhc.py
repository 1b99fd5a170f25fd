"""What is claimed of the kernels of hyper-connections.

The kernels that read the streams are each compared with their own step of the formula, in torch:

    mhc_project     the products of each split of the columns, and the sums of squares
    mhc_gates       the sums over splits and parts, times 1 / sqrt(mean + norm_eps), through scale, base and sigmoids
    mhc_weigh       the sum of the streams with their weights

Put one after the other, with Sinkhorn as proved of its own kernel, these steps are the reference's formula. That the parts of
fn which ``mhc_split`` writes add up to it is a claim about rounding, and tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from ..kernels import mhc_pre
from ..kernels.build import PASS_CONFIGS
from ..kernels.mhc_post import Config, mhc_post_bwd, mhc_post_fwd
from ..reference import mhc as reference
from ..reference.contract import Contract, Elements, Size, TensorSpec
from .engine.base.report import LAYERS
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.interpreter.interpret import interpret
from .engine.layers.comparison import against
from .engine.layers.lemmas import Lemma, Tested
from .engine.verify import Compare, Compared
from .suite import Proof

Factory = Callable[[Any], Any]
Formula = Callable[..., Any]
F32, BF16 = (torch.float32,), (torch.bfloat16,)
SAFE = ("L0", "L1")
_POST: tuple[tuple[Factory, Contract, Formula], ...] = (
    (mhc_post_fwd, reference.MHC_POST, reference.mhc_post),
    (mhc_post_bwd, reference.MHC_POST_BWD, reference.mhc_post_bwd),
)
SHIPPED = Config(), Config(hidden=7168)
OTHER_STREAMS = tuple(Config(hc) for hc in (2, 3, 8))
OTHERS = *(Config(hc) for hc in (5, 6, 7)), Config(hidden=64), Config(hidden=1088), Config(8, 8192)
"""Further numbers of streams; the narrowest, a width that ends within a step, and the widest."""


FRAGMENT = "a loop over a fragment gets the fragment's own extent from the compiler, in narrower accesses"
_LOOPS = (("i", 4), ("t", 128), ("j", 8))
EQUIVALENTS = {
    **{f"loop end @ for {v} in 0:{n} -> for {v} in 0:{n + 1}": FRAGMENT for v, n in _LOOPS},
    **{f"loop start @ for {v} in 0:{n} -> for {v} in -1:{n}": FRAGMENT for v, n in _LOOPS},
    "grid @ for block in 0:(tokens + 15) // 16 -> for block in 0:(tokens + 15) // 16 + 1": "the guards skip that block",
    "dropped operand @ T.min(m, 3) -> m": "coefficients that fill up are read from rows that fill up, and not used",
}


def _tiled(of: Formula, contract: Contract, *tilings: tuple[int, int, bool]) -> Compare:
    """Return the comparison with a reference whose sums are taken tile by tile: extent, tile, and whether exchanged."""

    def compare(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            for extent, tile, strided in tilings:
                stack.enter_context(nf.tiled(extent, tile, strided=strided))
            return against(of, contract)(kernel, known)

    return compare


def _post(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield both kernels of the streams after a layer.

    Column c belongs to thread ``c // width % threads`` of a block, so that the reference's sum over c is one over threads,
    of one over the steps, of one over the columns of a thread at a step.
    """
    given = {"hc": cfg.hc, "hidden": cfg.hidden}
    by_threads = (cfg.hidden, cfg.width, False), (cfg.hidden // cfg.width, cfg.threads, True)
    for factory, contract, of in _POST:
        compare = _tiled(of, contract, *by_threads) if "L2" in layers else None
        yield Proof("mhc", factory(cfg), contract, given, compare, PASS_CONFIGS, layers=layers, **more)


_TOKENS = {"tokens": Size(1, reference.SIZES["tokens"].high)}
_PRE = TensorSpec("pre", "tokens hc", F32)


def _split(cfg: mhc_pre.Config) -> Contract:
    fn, parts = (
        TensorSpec("fn", f"{cfg.rows} {cfg.columns}", F32),
        TensorSpec("parts", f"{cfg.wide} {cfg.columns}", BF16),
    )
    return Contract("mhc_split", {}, reference.STATICS, (fn,), (parts,), ({}, {}))


def _exact() -> tuple[bool, str]:
    """Test that the parts add up to fn, bit for bit."""
    cfg = mhc_pre.Config(hc=2, hidden=64)
    generator, wrong, count = torch.Generator().manual_seed(0), 0, 0
    for magnitude in (1e-30, 1e-6, 1.0, 1e30):
        fn = torch.randn(cfg.rows, cfg.columns, generator=generator) * magnitude
        parts = torch.empty(cfg.wide, cfg.columns, dtype=torch.bfloat16)
        interpret(mhc_pre.mhc_split(cfg), fn, parts)
        added = parts.double()[: mhc_pre.PARTS * cfg.rows].view(mhc_pre.PARTS, *fn.shape).sum(0)
        wrong += int((added != fn.double()).sum()) + int(parts[mhc_pre.PARTS * cfg.rows :].count_nonzero())
        count += fn.numel()
    return wrong == 0, f"{wrong} of {count} elements differ"


EXACT: tuple[Lemma, ...] = (
    Tested("parts", "The three parts of bf16 that mhc_split writes of an fp32 add up to it, for 4096 random numbers of "
           "magnitudes from 1e-30 to 1e30; what fills up the rows is 0.", _exact),
)  # fmt: skip


def _sums(cfg: mhc_pre.Config, elements: Elements) -> tuple[TensorSpec, TensorSpec]:
    """Return what ``mhc_project`` writes and the gates read, where the squares are known not to be negative."""
    sums = TensorSpec("sums", f"tokens {cfg.splits} {cfg.wide}", F32)
    return sums, TensorSpec("squares", f"tokens {cfg.splits}", F32, elements)


def _project(cfg: mhc_pre.Config) -> tuple[Contract, Formula]:
    def of(x: torch.Tensor, fn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, fn = (t.float().view(t.shape[0], cfg.splits, cfg.columns // cfg.splits) for t in (x, fn))
        return torch.einsum("nsk,msk->nsm", x, fn), torch.einsum("nsk,nsk->ns", x, x)

    inputs = TensorSpec("x", f"tokens {cfg.columns}", BF16), TensorSpec("fn", f"{cfg.wide} {cfg.columns}", BF16)
    return Contract("mhc_project", _TOKENS, reference.STATICS, inputs, _sums(cfg, Elements()), reference.PROBES), of


def _gates(cfg: mhc_pre.Config) -> tuple[Contract, Formula]:
    hc, rows = cfg.hc, cfg.rows

    def of(sums: torch.Tensor, squares: torch.Tensor, scale: torch.Tensor, base: torch.Tensor) -> Any:
        total = sums.sum(1)
        u = total[:, :rows] + total[:, rows : 2 * rows] + total[:, 2 * rows : 3 * rows]
        mu = u / (squares.sum(1) / cfg.columns + cfg.norm_eps).sqrt().unsqueeze(-1)
        pre = (mu[:, :hc] * scale[0] + base[:hc]).sigmoid() + cfg.eps
        if cfg.head:
            return pre
        post = 2 * (mu[:, hc : 2 * hc] * scale[1] + base[hc : 2 * hc]).sigmoid()
        logits = mu[:, 2 * hc :] * scale[2] + base[2 * hc :]
        return pre, post, logits.unflatten(-1, (hc, hc))  # type: ignore[no-untyped-call]

    inputs = (
        *_sums(cfg, Elements(low=0)),
        TensorSpec("scale", "1" if cfg.head else "3", F32),
        TensorSpec("base", str(rows), F32),
    )
    results = (
        (_PRE,) if cfg.head else (_PRE, TensorSpec("post", "tokens hc", F32), TensorSpec("logits", "tokens hc hc", F32))
    )
    op = "mhc_head_gates" if cfg.head else "mhc_gates"
    return Contract(op, _TOKENS, reference.STATICS, inputs, results, reference.PROBES), of


_WEIGH = Contract("mhc_weigh", _TOKENS, reference.STATICS, (reference.X, _PRE), (reference.Y,), reference.PROBES)


def _weighted(x: torch.Tensor, pre: torch.Tensor) -> torch.Tensor:
    return (pre.unsqueeze(-1) * x.type_as(pre)).sum(-2).type_as(x)


def _reading(cfg: mhc_pre.Config, layers: tuple[str, ...] = LAYERS, **of_gates: Any) -> Iterator[Proof]:
    """Yield the kernels that project the streams and make coefficients of that."""
    gates = mhc_pre.mhc_head_gates if cfg.head else mhc_pre.mhc_gates
    given = {"hc": cfg.hc, "hidden": cfg.hidden} | ({"head": 1} if cfg.head else {})
    in_products = (cfg.columns // cfg.splits, mhc_pre.COLUMNS, False), (mhc_pre.COLUMNS, mhc_pre.WIDTH, False)
    lemmas = EXACT if "L2" in layers else ()
    safe = (*SAFE, "lemmas")
    yield Proof("mhc", mhc_pre.mhc_split(cfg), _split(cfg), given, None, PASS_CONFIGS, layers=safe, lemmas=lemmas)
    for factory, (contract, of), tilings, more in (
        (mhc_pre.mhc_project, _project(cfg), in_products, {}),
        (gates, _gates(cfg), (), of_gates),
    ):
        compare = _tiled(of, contract, *tilings) if "L2" in layers else None
        yield Proof("mhc", factory(cfg), contract, given, compare, PASS_CONFIGS, layers=layers, **more)


def _weighing(cfg: Config, **more: Any) -> Proof:
    """Return the kernel that sums the streams with their weights."""
    given = {"hc": cfg.hc, "hidden": cfg.hidden}
    return Proof("mhc", mhc_pre.mhc_weigh(cfg), _WEIGH, given, _tiled(_weighted, _WEIGH), PASS_CONFIGS, **more)


def proofs() -> Iterator[Proof]:
    """Yield the shipped widths and other numbers of streams in every layer; what else is admitted in bounds and coverage."""
    mutants: dict[str, Any] = {"mutate": True, "every": 8, "equivalents": EQUIVALENTS}
    for cfg, more in zip(SHIPPED, (mutants, {}), strict=True):
        yield from _post(cfg, **more)
        for head in (False, True):
            yield from _reading(mhc_pre.Config(cfg.hc, cfg.hidden, head=head), **more)
        yield _weighing(cfg, **more)
    for cfg in OTHER_STREAMS:
        yield from _post(cfg)
        yield from _reading(mhc_pre.Config(cfg.hc))
        yield _weighing(cfg)
    for cfg in OTHERS:
        yield from _post(cfg, SAFE)
        yield from _reading(mhc_pre.Config(cfg.hc, cfg.hidden), SAFE)
