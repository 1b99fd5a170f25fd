"""The attention over all keys from that over each of several ranges of them (formula: reference/attention.py)."""

import tilelang.language as T

from .attention_config import BF16, F32, Config
from .build import aligned, build
from .online_softmax import LOG2E, LOWEST


def combine(cfg: Config) -> T.PrimFunc:
    """out [B,ranges,S,H,D] and lse [B,ranges,S,H] of the ranges -> those of all keys, with the sink."""
    B, S = T.dynamic("B"), T.dynamic("S")
    G, H, D = cfg.ranges, cfg.H, cfg.D

    @T.prim_func
    def combine(
        outs: T.Tensor((B, G, S, H, D), F32),
        lses: T.Tensor((B, G, S, H), F32),
        sink: T.Tensor((H,), F32),
        out: T.Tensor((B, S, H, D), BF16),
        lse: T.Tensor((B, S, H), F32),
    ):
        with T.Kernel(S, H, B, threads=D // 4) as (s, h, b):
            parts = T.alloc_fragment((G,), F32)
            top = T.alloc_fragment((1,), F32)
            total = T.alloc_fragment((1,), F32)
            acc = T.alloc_fragment((D,), F32)
            for g in T.Parallel(G):
                parts[g] = T.if_then_else(lses[b, g, s, h] < T.infinity(F32), lses[b, g, s, h], -T.infinity(F32))
            T.fill(top, LOWEST)
            T.reduce_max(parts, top, dim=0, clear=False)
            for g in T.Parallel(G):
                parts[g] = T.exp2((parts[g] - top[0]) * LOG2E)
            T.reduce_sum(parts, total, dim=0)
            T.fill(acc, 0)
            for g in T.unroll(G):
                for d in T.Parallel(D):
                    acc[d] += parts[g] * outs[b, g, s, h, d]
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
        build(factory, cfg)(*inputs, out.unsqueeze(1), lse.unsqueeze(1))
        return out, lse
    outs, lses = sink.new_empty((b, cfg.ranges, s, h, d)), sink.new_empty((b, cfg.ranges, s, h))
    build(factory, cfg)(*inputs, outs, lses)
    build(combine, Config(h, d, ranges=cfg.ranges))(outs, lses, inputs[3], out, lse)
    return out, lse
