"""What is claimed of the kernels of the backward of the Lightning Indexer's scores (kernels/indexer_backward.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..kernels.build import PASS_CONFIGS
from ..kernels.indexer_backward import Config, indexer_scores_bwd_k, indexer_scores_bwd_q
from ..reference import indexer as reference
from ..reference.contract import Contract, Static, TensorSpec
from .suite import Proof

_OF_Q, _OF_K, _OF_WEIGHTS = reference.SCORES_BWD.outputs
OF_QUERIES = replace(reference.SCORES_BWD, op="indexer_scores_bwd_q", outputs=(_OF_Q, _OF_WEIGHTS))
OF_KEYS = replace(
    reference.SCORES_BWD,
    op="indexer_scores_bwd_k",
    statics={**reference.SCORES_BWD.statics, "splits": Static(int, 1, 8)},
    outputs=(TensorSpec("sums", "B splits T D", (reference.F32,)),),
)


def _proof(factory: Any, contract: Contract, cfg: Config, **more: Any) -> Proof:
    given = {name: getattr(cfg, name) for name in contract.statics}
    return Proof("indexer", factory(cfg), contract, given, None, PASS_CONFIGS, layers=("L0", "L1", "range"), **more)


def proofs() -> Iterator[Proof]:
    """Yield the kernels of DeepSeek-V4's sizes, with one split of the queries and with several."""
    yield _proof(indexer_scores_bwd_q, OF_QUERIES, Config())
    yield _proof(indexer_scores_bwd_k, OF_KEYS, Config())
    yield _proof(indexer_scores_bwd_k, OF_KEYS, Config(splits=8))
