"""Attention of few queries whose keys are in one split, as those of many queries always are.

A query then has the bits that it has in prefill. A single sequence takes longer, as fewer blocks work on it; many sequences
take less time, as no sums of splits are written and read again.
"""

from dataclasses import replace

from . import csa as of_csa
from . import hca as of_hca
from .build import planned
from .combine import Plan, launch, plan


@planned
def _csa_plan(*sizes) -> Plan:
    return plan(of_csa.csa_fwd, replace(of_csa.choose(*sizes), splits=1))


@planned
def _hca_plan(*sizes) -> Plan:
    return plan(of_hca.hca_fwd, replace(of_hca.choose(*sizes), splits=1))


def csa(q, window_kv, compressed_kv, indices, sink, offset, window: int, scale: float):
    """Launch ``csa_fwd`` on CUDA tensors, with the keys in one split; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    kernels = _csa_plan(s, h, d, indices.shape[2], window, scale)
    return launch(kernels, (q, window_kv, compressed_kv, indices, sink, offset), sink)


def hca(q, window_kv, compressed_kv, sink, offset, ratio: int, window: int, scale: float):
    """Launch ``hca_fwd`` on CUDA tensors, with the keys in one split; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    return launch(_hca_plan(s, h, d, ratio, window, scale), (q, window_kv, compressed_kv, sink, offset), sink)
