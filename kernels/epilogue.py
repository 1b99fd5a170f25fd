"""What a block of kernels/online_softmax.py makes of its sums: total of each multiplier, and acc.

Of all keys, with top the maximum and c = scale: lse = c top + log total, out = acc / (total + exp(sink - c top)).

Of a range of several, what kernels/combine.py needs: c top, total and acc, in fp32.
"""

import tilelang.language as T

from .attention_config import F32, HEADS, LOG2E, Config


def finishing(cfg: Config):
    """The macro of the end of multiplier g, which hands its total to the other one."""
    M, C, D, H = HEADS, cfg.columns, cfg.D, cfg.H
    c = cfg.scale

    @T.macro
    def finish_all(g, acc, top, total, fade, sums, ended, sink, qs, out, stats, b, part, s, h0):
        T.copy(total, sums[g, :])
        T.barrier_arrive(ended)
        T.barrier_wait(ended, 0)
        for h in T.Parallel(M):
            total[h] = sums[0, h] + sums[1, h]
        if g == 0:
            for h in T.Parallel(M):
                if h0 + h < H:
                    stats[b, part, 0, s, h0 + h] = T.if_then_else(
                        total[h] > 0, top[h] * c + T.log(total[h]), T.infinity(F32)
                    )
        for h in T.Parallel(M):
            sunk = T.exp2(sink[T.min(h0 + h, H - 1)] * LOG2E - top[h] * (c * LOG2E))
            fade[h] = T.if_then_else(total[h] > 0, 1 / (total[h] + sunk), 0)
        for h, d in T.Parallel(M, C):
            acc[h, d] *= fade[h]
        T.copy(acc, qs[g, :, :])
        for h, d in T.Parallel(M, C):
            if h0 + h < H and g * C + d < D:
                out[b, part, s, h0 + h, g * C + d] = qs[g, h, d]

    @T.macro
    def finish_range(g, acc, top, total, fade, sums, ended, sink, qs, out, stats, b, part, s, h0):
        T.copy(total, sums[g, :])
        T.barrier_arrive(ended)
        T.barrier_wait(ended, 0)
        if g == 0:
            for h in T.Parallel(M):
                if h0 + h < H:
                    stats[b, part, 0, s, h0 + h] = top[h] * c
                    stats[b, part, 1, s, h0 + h] = sums[0, h] + sums[1, h]
        for h, d in T.Parallel(M, C):
            if h0 + h < H and g * C + d < D:
                out[b, part, s, h0 + h, g * C + d] = acc[h, d]

    return finish_all if cfg.ranges == 1 else finish_range
