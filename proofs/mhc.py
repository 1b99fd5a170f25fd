"""What is claimed of the kernels of hyper-connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.mhc_post import Config, mhc_post_bwd, mhc_post_fwd
from ..reference import mhc as reference
from ..reference.contract import Contract
from .engine.base.report import LAYERS
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.layers.comparison import against
from .engine.verify import Compare, Compared
from .suite import Proof

Factory = Callable[[Config], Any]
_POST: tuple[tuple[Factory, Contract, Callable[..., Any]], ...] = (
    (mhc_post_fwd, reference.MHC_POST, reference.mhc_post),
    (mhc_post_bwd, reference.MHC_POST_BWD, reference.mhc_post_bwd),
)
SHIPPED = Config(), Config(hidden=7168)
OTHER_STREAMS = tuple(Config(hc) for hc in (2, 3, 8))
SAFE = *(Config(hc) for hc in (5, 6, 7)), Config(hidden=64), Config(hidden=1088), Config(8, 8192)
"""Further numbers of streams; the narrowest, a width that ends within a step, and the widest."""


def _by_threads(cfg: Config, of: Callable[..., Any], contract: Contract) -> Compare:
    """Return the comparison with a reference whose sums over columns are taken as the threads of a block take them.

    Column c belongs to thread ``c // width % threads``. The reference's sum over c is one over threads, of one over the
    steps, of one over the columns of a thread at a step.
    """

    def compare(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            stack.enter_context(nf.tiled(cfg.hidden, cfg.width))
            stack.enter_context(nf.tiled(cfg.hidden // cfg.width, cfg.threads, strided=True))
            return against(of, contract)(kernel, known)

    return compare


def _proofs(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield both kernels of the streams after a layer."""
    given = {"hc": cfg.hc, "hidden": cfg.hidden}
    for factory, contract, of in _POST:
        compare = _by_threads(cfg, of, contract) if "L2" in layers else None
        yield Proof("mhc", factory(cfg), contract, given, compare, PASS_CONFIGS, layers=layers, **more)


def proofs() -> Iterator[Proof]:
    """Yield the shipped widths and other numbers of streams in every layer; what else is admitted in bounds and coverage."""
    yield from _proofs(SHIPPED[0], mutate=True)
    yield from _proofs(SHIPPED[1])
    for cfg in OTHER_STREAMS:
        yield from _proofs(cfg)
    for cfg in SAFE:
        yield from _proofs(cfg, ("L0", "L1"))
