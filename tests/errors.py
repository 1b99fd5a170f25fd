"""Errors of the kernels against fp64, beside those of plain torch: ``python tests/errors.py`` writes ``docs/errors.json``.

The launchers that ship run here, and the engine's interpreter in the place of the GPU: the kernels' own arithmetic, in their
own dtypes, on a CPU. The order in which a tensor core adds and the last bits of its exp2 are not in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inputs import make
from lemmata.kernels import combine, compressor, csa, hca, indexer, mhc_post, mhc_post_pre, mhc_pre, sinkhorn
from lemmata.kernels.build import build, forget
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs.engine.interpreter.interpret import interpret
from lemmata.record import kernel_digest
from opspec import OpSpec
from pages import ROOT
from specs_attention import join
from specs_compressor import OVERLAP, PLAIN
from specs_csa import CSA
from specs_hca import HCA
from specs_indexer import INDEXER_SCORES, INDEXER_SCORES_FP8
from specs_mhc import MHC_HEAD, MHC_POST, MHC_POST_PRE, MHC_PRE, in_a_row
from specs_mhc import join as join_pre
from specs_sinkhorn import SINKHORN
from specs_swa import SWA

ERRORS = ROOT / "docs" / "errors.json"
ATTENTION = {"H": 64, "D": 512, "window": 128, "scale": 512**-0.5}
QUERIES = {"B": 1, "S": 2, "P": 127, "T": 300}


@dataclass(frozen=True)
class Case:
    """A call as DeepSeek-V4 makes it, what launches its kernels, and what makes one tensor of several results."""

    spec: OpSpec
    launch: Callable[..., Tensor | tuple[Tensor, ...]]
    configuration: dict[str, float]
    sizes: dict[str, int]
    join: Callable[..., Tensor] = join

    @property
    def name(self) -> str:
        """The operator's public function, or the record's name, and the sizes."""
        fixed = {k: v for k, v in self.configuration.items() if k in ("n", "H", "D", "ratio", "hc", "hidden")}
        return f"{self.spec.name}, {' '.join(f'{k}={v}' for k, v in (fixed | self.sizes).items())}"


def _whole(factory: Callable[..., Any], ratio: int = 1) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the launch of an attention kernel that takes all keys in one split; without entries if none are given."""

    def launched(q: Tensor, *others: Tensor, window: int, scale: float, **_: float) -> tuple[Tensor, Tensor]:
        config = Config(q.shape[2], q.shape[3], window, scale, ratio)
        inputs = (q, *others) if len(others) > 3 else (q, others[0], others[0][:, :0], *others[1:])
        return combine.launch(combine.plan(factory, config), inputs, others[-2])  # type: ignore[no-any-return]

    return launched


def _entries(results: tuple[Tensor, Tensor]) -> Tensor:
    """The compressor's entries, without what they were pooled to."""
    return results[0]


def _streams(results: tuple[Tensor, ...]) -> Tensor:
    """All results of the way from a layer to the next in a row, without what the backward keeps."""
    return in_a_row(results[:4])


SCORES, FEW = {"H": 64, "D": 128, "ratio": 4}, {"B": 1, "S": 4, "T": 300}
NORMS = {"eps": 1e-6, "norm_eps": 1e-6}
STREAMS, TOKENS = {"hc": 4, "hidden": 4096}, {"tokens": 3}
ENTRIES = {"D": 512, "pairs": 32, "past": 0, "eps": 1e-6}
CASES = (
    Case(SINKHORN, sinkhorn.forward, {"n": 4, "iterations": 20, "eps": 1e-6}, {"count": 512}),
    Case(MHC_PRE, mhc_pre.forward, STREAMS | {"iterations": 20} | NORMS, TOKENS, join_pre),
    Case(MHC_POST, mhc_post.forward, STREAMS, TOKENS),
    Case(MHC_POST_PRE, mhc_post_pre.forward, STREAMS | {"iterations": 20} | NORMS, TOKENS, _streams),
    Case(MHC_HEAD, mhc_pre.head, STREAMS | NORMS, TOKENS),
    Case(INDEXER_SCORES, indexer.scores, SCORES, FEW),
    Case(INDEXER_SCORES_FP8, indexer.scores_fp8, SCORES, FEW),
    Case(OVERLAP, compressor.forward, {"ratio": 4} | ENTRIES, {"B": 1, "S": 16, "positions": 16}, _entries),
    Case(PLAIN, compressor.forward, {"ratio": 128} | ENTRIES, {"B": 1, "S": 256, "positions": 256}, _entries),
    Case(CSA, _whole(csa.csa_fwd), ATTENTION, QUERIES | {"K": 200}),
    Case(HCA, _whole(hca.hca_fwd, 4), ATTENTION | {"ratio": 4}, QUERIES),
    Case(SWA, _whole(hca.hca_fwd, hca.NO_ENTRIES), ATTENTION, {name: n for name, n in QUERIES.items() if name != "T"}),
)


@contextmanager
def interpreted() -> Iterator[None]:
    """Let every launcher run its kernels in the interpreter."""

    def run(factory: Callable[[Any], Any], config: Any) -> Callable[..., None]:
        return lambda *tensors: interpret(factory(config), *tensors)

    users = [
        m for name, m in sys.modules.items() if name.startswith("lemmata.kernels") and vars(m).get("build") is build
    ]
    forget()  # plans hold what was built
    for module in users:
        module.build = run  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.build = build  # type: ignore[attr-defined]
        forget()


def measured(case: Case) -> dict[str, Any]:
    """Return the largest errors of a kernel and of plain torch on the same inputs, as the tests measure them."""
    call = make(case.spec.contract, case.configuration, case.sizes, seed=7)
    with interpreted():
        out = case.launch(*call.tensors, **call.statics)
    plain = case.spec.reference(*call.tensors, **call.statics)
    joined = out if isinstance(out, Tensor) else case.join(out)
    return {
        "case": case.name,
        "op": case.spec.operator,
        "kernel": case.spec.error(call, joined),
        "torch": case.spec.error(call, plain),
        "digest": kernel_digest(case.spec.operator),
    }


if __name__ == "__main__":
    ERRORS.write_text(json.dumps([measured(case) for case in CASES], indent=1) + "\n")
