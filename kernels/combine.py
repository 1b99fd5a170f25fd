"""The attention over all keys from the sums over each of several ranges of them (kernels/epilogue.py).

With top = max_g top_g and w_g = exp(top_g - top): lse = top + log Σ w_g total_g and

    out = Σ w_g acc_g / (Σ w_g total_g + exp(sink - top))
"""

import tilelang.language as T

from .attention_config import BF16, F32, LOG2E, Config
from .build import aligned, build


def combine(cfg: Config) -> T.PrimFunc:
    """acc [B,ranges,S,H,D], and top and total [B,ranges,2,S,H] of the ranges -> out and lse of all keys."""
    B, S = T.dynamic("B"), T.dynamic("S")
    G, H, D = cfg.ranges, cfg.H, cfg.D

    @T.prim_func
    def combine(
        accs: T.Tensor((B, G, S, H, D), F32),
        stats: T.Tensor((B, G, 2, S, H), F32),
        sink: T.Tensor((H,), F32),
        out: T.Tensor((B, S, H, D), BF16),
        lse: T.Tensor((B, S, H), F32),
    ):
        with T.Kernel(S, H, B, threads=D // 4) as (s, h, b):
            T.pdl_sync()  # it may be launched early; from here on the ranges are complete
            tops = T.alloc_fragment((G,), F32)
            masses = T.alloc_fragment((G,), F32)
            top = T.alloc_fragment((1,), F32)
            total = T.alloc_fragment((1,), F32)
            acc = T.alloc_fragment((D,), F32)
            for g in T.Parallel(G):
                tops[g] = stats[b, g, 0, s, h]
            T.reduce_max(tops, top, dim=0)
            for g in T.Parallel(G):
                tops[g] = T.exp2((tops[g] - top[0]) * LOG2E)
            for g in T.Parallel(G):
                masses[g] = tops[g] * stats[b, g, 1, s, h]
            T.reduce_sum(masses, total, dim=0)
            T.fill(acc, 0)
            for g in T.unroll(G):
                for d in T.Parallel(D):
                    acc[d] += tops[g] * accs[b, g, s, h, d]
            for d in T.Parallel(D):
                weight = total[0] + T.exp2((sink[h] - top[0]) * LOG2E)
                out[b, s, h, d] = T.if_then_else(total[0] > 0, acc[d] / weight, 0)
            for i in T.Parallel(1):
                lse[b, s, h + i] = T.if_then_else(total[0] > 0, top[0] + T.log(total[0]), T.infinity(F32))

    return combine


def launch(factory, cfg: Config, q, window_kv, compressed_kv, sink, *others):
    """Run an operator's kernel; combine its ranges."""
    b, s, h, d = q.shape
    out, lse = q.new_empty(q.shape), sink.new_empty((b, s, h))
    inputs = [aligned(x) for x in (q, window_kv, compressed_kv, sink, *others)]
    if cfg.ranges == 1:
        build(factory, cfg)(*inputs, out.unsqueeze(1), lse.view(b, 1, 1, s, h))
        return out, lse
    accs = sink.new_empty((b, cfg.ranges, s, h, d))
    stats = sink.new_empty((b, cfg.ranges, cfg.stats, s, h))
    build(factory, cfg)(*inputs, accs, stats)
    build(combine, Config(h, d, ranges=cfg.ranges))(accs, stats, inputs[3], out, lse)
    return out, lse
