"""What is claimed of the kernels of heavily compressed attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..kernels import gradient_sums
from ..kernels.hca import ROUNDS, hca_bwd, hca_fwd, in_rounds
from ..kernels.sparse_attention import BLOCKS, NAMES
from ..kernels.sparse_attention_config import BackwardConfig, Config
from ..reference import hca as reference
from ..reference.attention import in_window
from ..reference.hca import HCA
from ..reference.indexer import visible
from . import attention, attention_backward
from .attention import PRO, B, Block, at_least, either, index_or_none, least
from .attention_lemmas import ENTRIES, WINDOW
from .attention_rounds import InRounds
from .attention_splits import sums_in_split
from .combine import combined
from .engine.execution.symbolic import block, round_of
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.forms.normal_form import ZERO, Form
from .engine.reference.symbolic_torch import SymbolicTensor
from .engine.verify import Compare
from .gradient_sums import products, summing
from .suite import Proof

T = nf.variable("T")
_EQUIVALENTS = attention.EQUIVALENTS | {
    "grid @ for bx in 0:(S + 4223) // 4224 -> for bx in 0:(S + 4223) // 4224 + 1": "a group beyond the queries has no round",
    **{f"other operator @ i * tiles + t -> i * tiles - t{which}": attention.PARITY for which in ("", ", occurrence 2")},
}
_PROBES = {"B": 3, "S": 37, "P": 127, "T": 1009}, {"B": 1, "S": 2**10, "P": 2**20, "T": 2**13}


class _InGroups(InRounds):
    """A block whose rounds end with a group of queries, each with as many tiles as the last one needs."""

    @staticmethod
    def begin() -> Form:
        """Return the number of the block's first query and of its block of heads, among those of the sequence."""
        return ROUNDS * BLOCKS * block() + block("y")

    @classmethod
    def rounds(cls, cfg: Config) -> Form:
        """Return how many rounds there are."""
        left = nf.variable("S") * cfg.head_blocks - cls.begin()
        return least(nf.floordiv(left + BLOCKS - 1, BLOCKS), nf.form(ROUNDS))

    @classmethod
    def last(cls, cfg: Config) -> Form:
        """Return the query of the last round."""
        return nf.floordiv(cls.begin() + (cls.rounds(cfg) - 1) * BLOCKS, cfg.head_blocks)

    def forget(self, extent: Form, facts: Facts) -> None:
        """Forget all of the numbers of entries but that no query sees more than the last one."""
        facts.bound(round_of(NAMES.round), self.rounds(self.cfg))
        super().forget(extent, facts)


def _block(cfg: Config, kind: type[B]) -> B:
    def entry(e: Form, j: Form) -> Form:
        slot = e * cfg.tile + j
        return index_or_none(at_least(seen - 1, slot), slot)

    def visible(whole: Form) -> Form:
        return nf.maximum([least(whole, T), ZERO])

    def entries(query: Form) -> Form:
        return nf.floordiv(nf.read("offset", kind.sequence()) + query + 1, cfg.ratio)

    whole = entries(kind.query(cfg))
    seen = visible(whole)
    listed = visible(entries(kind.last(cfg))) if issubclass(kind, _InGroups) else seen
    about = (
        at_least(seen, 0),
        at_least(listed, seen),
        at_least(T, listed),
        either(at_least(whole, seen), at_least(0, seen)),
        either(at_least(seen, whole), at_least(seen, T)),
    )
    return kind(cfg, T, listed, entry, (seen, listed), about)


def compare(cfg: Config) -> Compare:
    """Return the comparison with the reference; with several splits, with the sums over each."""

    def wanted(x: Mapping[str, Any], y: SymbolicTensor) -> tuple[Any, Any]:
        if cfg.splits == 1:
            whole: Callable[..., tuple[Any, Any]] = reference.hca
            return whole(*(x[spec.name] for spec in HCA.inputs), cfg.ratio, cfg.window, cfg.scale)
        q, kv, offset = x["q"], x["compressed_kv"], x["offset"]
        S = q.shape[1]
        keys = in_window(x["window_kv"], S, offset, cfg.window), reference._entries(kv, S, offset, cfg.ratio)
        seen = visible(offset, S, cfg.ratio).clamp(max=kv.shape[1]).clamp(min=0)
        return sums_in_split(q, keys, x["sink"], cfg, y, seen.unsqueeze(-1))

    kind = _InGroups if in_rounds(cfg) else Block
    return attention.compare(attention.Claim(cfg, HCA, wanted), lambda: _block(cfg, kind))


def _proof(cfg: Config, **more: Any) -> Proof:
    return attention.proof(hca_fwd, HCA, cfg, compare(cfg), **more)


def _backward(cfg: BackwardConfig, **more: Any) -> Proof:
    claimed = attention_backward.contract(HCA, "T", _PROBES)

    def wanted(x: Mapping[str, SymbolicTensor]) -> tuple[Any, ...]:
        parts: Callable[..., tuple[Any, ...]] = reference.hca_parts
        return parts(*(x[spec.name] for spec in claimed.inputs), cfg.ratio, cfg.window, cfg.scale, cfg.head_blocks)

    claim = attention_backward.Claim(cfg, claimed, wanted)
    compare = attention_backward.compare(claim, lambda: _block(cfg, attention_backward.Block))
    return attention_backward.proof(hca_bwd, claim, compare, **more)


def proofs() -> Iterator[Proof]:
    """Yield all keys in one split, in five that another kernel combines, and with few tokens in an entry; then the backward."""
    yield _proof(Config(), lemmas=(WINDOW, ENTRIES), mutate=True, every=11, equivalents=_EQUIVALENTS)
    yield _proof(Config(splits=5))
    yield _proof(Config(ratio=4))  # one query a block
    yield combined("hca", HCA, Config(splits=5))
    yield _backward(BackwardConfig(), mutate=True, every=26, equivalents=attention_backward.EQUIVALENTS)
    for splits in (1, 5):  # of DeepSeek-V4-Pro's heads
        yield _proof(Config(PRO, splits=splits))
    yield combined("hca", HCA, Config(PRO, splits=5))
    yield _backward(BackwardConfig(PRO))
    yield products("hca", gradient_sums.Config())
    for blocks in (1, 2):  # of up to 64 heads
        yield from summing("hca", gradient_sums.Config(blocks=blocks))
