"""Attention of few queries whose keys are in a given number of splits, rather than in as many as ``choose`` makes them.

In one split a query has the bits that it has in prefill. The more splits, the sooner a single sequence is done, as more blocks
work on it; and the longer many sequences take, as the sums of every split are written and read again.
"""

from dataclasses import replace
from typing import Any

from . import csa as of_csa
from . import hca as of_hca
from .build import planned
from .combine import Plan, launch, plan
from .sparse_attention_config import FEW_BLOCKS, Config


def csa_config(splits: int | None, S: int, H: int, D: int, K: int, window: int, scale: float) -> Config:
    """Return the config for a call of ``csa`` of these sizes, with so many splits and no empty one, or as ``choose`` has it."""
    cfg = of_csa.choose(S, H, D, K, window, scale)
    tiles = cfg.window_tiles + -(-K // cfg.tile)
    return _given(cfg, S, splits and min(splits, tiles))


def hca_config(splits: int | None, S: int, H: int, D: int, ratio: int, window: int, scale: float) -> Config:
    """Return the config for a call of ``hca`` of these sizes, with so many splits, or as ``choose`` has it."""
    return _given(of_hca.choose(S, H, D, ratio, window, scale), S, splits)


def _given(cfg: Config, queries: int, splits: int | None) -> Config:
    return replace(cfg, splits=splits) if splits and queries * cfg.head_blocks <= FEW_BLOCKS else cfg


@planned
def _csa_plan(splits: int, *sizes: Any) -> Plan:
    return plan(of_csa.csa_fwd, csa_config(splits, *sizes))


@planned
def _hca_plan(splits: int, *sizes: Any) -> Plan:
    return plan(of_hca.hca_fwd, hca_config(splits, *sizes))


def csa(splits: int, q, window_kv, compressed_kv, indices, sink, offset, window: int, scale: float):
    """Launch ``csa_fwd`` on CUDA tensors with so many splits; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    kernels = _csa_plan(splits, s, h, d, indices.shape[2], window, scale)
    return launch(kernels, (q, window_kv, compressed_kv, indices, sink, offset), sink)


def hca(splits: int, q, window_kv, compressed_kv, sink, offset, ratio: int, window: int, scale: float):
    """Launch ``hca_fwd`` on CUDA tensors with so many splits; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    kernels = _hca_plan(splits, s, h, d, ratio, window, scale)
    return launch(kernels, (q, window_kv, compressed_kv, sink, offset), sink)
