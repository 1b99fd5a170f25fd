"""The attention to all keys from the sums over several splits of them (kernels/sparse_attention.py).

With row_max = max_g row_max_g and w_g = exp(row_max_g - row_max):

    lse = row_max + log Σ w_g row_sum_g,    out = Σ w_g acc_g / (Σ w_g row_sum_g + exp(sink - row_max))
"""

from typing import NamedTuple

import tilelang.language as T
import torch

from .build import Launch, aligned, build
from .sparse_attention_config import BF16, F32, LOG2E, Config


def combine(cfg: Config) -> T.PrimFunc:
    """Combine ``accs`` of the splits, and ``stats``, their row_max and row_sum, to ``out`` and ``lse`` of all keys."""
    B, S = T.dynamic("B"), T.dynamic("S")
    G, H, D = cfg.splits, cfg.H, cfg.D

    @T.prim_func
    def combine(
        accs: T.Tensor((B, G, S, H, D), F32),
        stats: T.Tensor((B, G, 2, S, H), F32),
        sink: T.Tensor((H,), F32),
        out: T.Tensor((B, S, H, D), BF16),
        lse: T.Tensor((B, S, H), F32),
    ):
        with T.Kernel(S, H, B, threads=D // 4) as (s, h, b):
            T.pdl_sync()  # the launch may come early: what the splits write is complete from here on
            rescale = T.alloc_fragment((G,), F32)  # row_max_g, then w_g
            row_sums = T.alloc_fragment((G,), F32)
            row_max = T.alloc_fragment((1,), F32)
            row_sum = T.alloc_fragment((1,), F32)
            acc = T.alloc_fragment((D,), F32)
            for g in T.Parallel(G):
                rescale[g] = stats[b, g, 0, s, h]
            T.reduce_max(rescale, row_max, dim=0)
            for g in T.Parallel(G):
                rescale[g] = T.exp2((rescale[g] - row_max[0]) * LOG2E)
            for g in T.Parallel(G):
                row_sums[g] = rescale[g] * stats[b, g, 1, s, h]
            T.reduce_sum(row_sums, row_sum, dim=0)
            T.fill(acc, 0)
            for g in T.unroll(G):
                for d in T.Parallel(D):
                    acc[d] += rescale[g] * accs[b, g, s, h, d]
            for d in T.Parallel(D):
                mass = row_sum[0] + T.exp2((sink[h] - row_max[0]) * LOG2E)
                out[b, s, h, d] = T.if_then_else(row_sum[0] > 0, acc[d] / mass, 0)
            for i in T.Parallel(1):
                lse[b, s, h + i] = T.if_then_else(row_sum[0] > 0, row_max[0] + T.log(row_sum[0]), T.infinity(F32))

    return combine


class Plan(NamedTuple):
    """The kernels of a call, and how many splits of the keys and numbers of a row of them there are between the two."""

    attend: Launch
    combine: Launch | None
    splits: int
    stats: int


def plan(factory, cfg: Config) -> Plan:
    """Return the plan of an operator's kernel; one split is not combined."""
    combined = build(combine, Config(cfg.H, cfg.D, splits=cfg.splits)) if cfg.splits > 1 else None
    return Plan(build(factory, cfg), combined, cfg.splits, cfg.stats)


def launch(plan: Plan, inputs, sink):
    """Run an operator's kernel on its inputs, of which the first is q, and combine its splits; return ``out`` and ``lse``."""
    q, *_ = inputs = [aligned(x) for x in inputs]
    b, s, h, d = q.shape
    out, lse = torch.empty_like(q), sink.new_empty(b, s, h)
    if plan.combine is None:
        plan.attend(*inputs, out.unsqueeze(1), lse.view(b, 1, 1, s, h))
        return out, lse
    accs = sink.new_empty(b, plan.splits, s, h, d)
    stats = sink.new_empty(b, plan.splits, plan.stats, s, h)
    plan.attend(*inputs, accs, stats)
    plan.combine(accs, stats, aligned(sink), out, lse)
    return out, lse
