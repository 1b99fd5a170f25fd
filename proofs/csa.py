"""What is claimed of the kernels of compressed sparse attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..kernels import gradient_sums
from ..kernels.csa import csa_bwd, csa_fwd
from ..kernels.sparse_attention_config import BackwardConfig, Config
from ..reference import csa as reference
from ..reference.attention import in_window
from ..reference.csa import CSA
from . import attention, attention_backward
from .attention import PRO, B, Block, at_least, index_or_none
from .attention_lemmas import SPLIT, WINDOW
from .attention_rounds import InRounds
from .attention_splits import sums_in_split
from .combine import combined
from .engine.forms import normal_form as nf
from .engine.forms.normal_form import Form
from .engine.reference.symbolic_torch import SymbolicTensor
from .engine.verify import Compare
from .gradient_sums import products, summing
from .suite import Proof

K, T = nf.variable("K"), nf.variable("T")
_PROBES = {"B": 3, "S": 37, "P": 127, "T": 1009, "K": 41}, {"B": 1, "S": 2**10, "P": 2**20, "T": 2**18, "K": 2048}
_CASES = at_least(T, 1), nf.indicator("eq", T, integer=True)


def _block(cfg: Config, kind: type[B]) -> B:
    def entry(e: Form, j: Form) -> Form:
        slot = e * cfg.tile + j
        listed = at_least(slot, 0) * at_least(K - 1, slot)
        index = index_or_none(listed, nf.read("indices", at.b, at.s, slot))
        return index_or_none(at_least(T - 1, index), index)

    at = kind(cfg, K, K, entry)
    return at


def compare(cfg: Config) -> Compare:
    """Return the comparison with the reference; with several splits, with the sums over each."""

    def wanted(x: Mapping[str, Any], y: SymbolicTensor) -> tuple[Any, Any]:
        if cfg.splits == 1:
            whole: Callable[..., tuple[Any, Any]] = reference.csa
            return whole(*(x[spec.name] for spec in CSA.inputs), cfg.window, cfg.scale)
        q, indices = x["q"], x["indices"]
        keys = (
            in_window(x["window_kv"], q.shape[1], x["offset"], cfg.window),
            reference._selected(x["compressed_kv"], indices),
        )
        return sums_in_split(q, keys, x["sink"], cfg, y, indices.shape[-1])

    kind = InRounds if cfg.splits == 1 else Block
    return attention.compare(attention.Claim(cfg, CSA, wanted, _CASES), lambda: _block(cfg, kind))


def _proof(cfg: Config, **more: Any) -> Proof:
    return attention.proof(csa_fwd, CSA, cfg, compare(cfg), **more)


def _backward(cfg: BackwardConfig, **more: Any) -> Proof:
    claimed = attention_backward.contract(CSA, "K", _PROBES)

    def wanted(x: Mapping[str, SymbolicTensor]) -> tuple[Any, ...]:
        parts: Callable[..., tuple[Any, ...]] = reference.csa_parts
        return parts(*(x[spec.name] for spec in claimed.inputs), cfg.window, cfg.scale, cfg.head_blocks)

    claim = attention_backward.Claim(cfg, claimed, wanted, _CASES)
    compare = attention_backward.compare(claim, lambda: _block(cfg, attention_backward.Block))
    return attention_backward.proof(csa_bwd, claim, compare, **more)


OF_COMBINE = {
    "dropped statement @ T.pdl_sync()": "launched like any other kernel, it begins when those before it have ended"
}


def proofs() -> Iterator[Proof]:
    """Yield all keys in one split, and in three or five that another kernel combines; then the backward."""
    yield _proof(Config(), lemmas=(WINDOW,), mutate=True, every=11, equivalents=attention.EQUIVALENTS)
    yield from (_proof(Config(splits=splits)) for splits in (3, 5))
    yield combined("csa", CSA, Config(splits=3), lemmas=SPLIT, mutate=True, equivalents=OF_COMBINE)
    yield _backward(BackwardConfig(), mutate=True, every=26, equivalents=attention_backward.EQUIVALENTS)
    for splits in (1, 5):  # of DeepSeek-V4-Pro's heads
        yield _proof(Config(PRO, splits=splits))
    yield combined("csa", CSA, Config(PRO, splits=5))
    yield _backward(BackwardConfig(PRO))
    yield products("csa", gradient_sums.Config())
    for blocks in (1, 2):  # of up to 64 heads
        yield from summing("csa", gradient_sums.Config(blocks=blocks))
