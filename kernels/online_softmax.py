"""Attention of the heads of a query over keys that are their own values, in tiles (formula: reference/attention.py).

A block takes a query, up to 64 of its heads, and a range of the tiles of keys: first those of the window, then those of
the compressed entries. Its warps have three roles. The copier brings keys to shared memory (kernels/gather.py); those that
are not seen get the weight 0. Two multipliers g = 0, 1 compute the scores z = q kᵀ of half g of a tile, and the columns of half
g of acc = Σ exp2(c (z - top)) k for the keys of both halves: they hand one another their weights, and the maximum ``top``
of half 0 on to half 1 and back. So the tensor cores have the products of one while the other weighs.

A barrier is passed once in an iteration, so that its phase is that of the iteration's number.

What a block makes of its sums is in kernels/epilogue.py.
"""

from typing import Any, NamedTuple

import tilelang.language as T

from .attention_config import BF16, F32, HEADS, I32, KEYS, LOG2E, PANEL, Config
from .epilogue import finishing
from .gather import ASYNC, ROLE, copying

LOWEST = -(2.0**30)  # a running maximum starts here, finite: below every admissible q · k
THREADS = 3 * ROLE
REGISTERS = 216  # of a thread that multiplies

# 2^x by the instruction, without the steps that C adds for results below 2^-126, which become 0
EXP2 = """__device__ __forceinline__ float exp2_ftz(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;
}
"""


class Barriers(NamedTuple):
    """Of each buffer of keys that it is filled, and that it is free; of each half of a tile its list and its weights."""

    ready: Any
    free: Any
    listed: Any
    weighed: Any


def _exp2(x):
    return T.call_extern(F32, "exp2_ftz", x)


def attend(cfg: Config, look_up):
    """The block of a query.

    ``look_up`` is a macro for the copier (kernels/gather.py).
    """
    M, N, C, D, H = HEADS, KEYS, cfg.columns, cfg.D, cfg.H
    c = cfg.scale * LOG2E
    copier, finish = copying(cfg, look_up), finishing(cfg)

    @T.macro
    def begin(g, q, b, s, h0, qs, ready, acc, top, total):
        T.set_max_nreg(REGISTERS, 1)
        for p in T.unroll(C // PANEL):
            for h, d in T.Parallel(M, PANEL, annotations=ASYNC):
                qs[g, h, p * PANEL + d] = T.if_then_else(
                    h0 + h < H and g * C + p * PANEL + d < D, q[b, s, h0 + h, g * C + p * PANEL + d], 0
                )
        T.cp_async_barrier_noinc(ready)
        T.fill(acc, 0)
        T.fill(top, LOWEST)
        T.fill(total, 0)
        T.barrier_wait(ready, 0)
        T.fence_proxy_async()

    @T.macro
    def scores(g, parity, qs, ks, z, seen, barriers):
        T.barrier_wait(barriers.ready[3 * g], parity)
        T.fence_proxy_async()
        T.wgmma_gemm(qs[g, :, :], ks[3 * g, :, :], z, transpose_B=True, clear_accum=True)
        T.barrier_wait(barriers.ready[1 + g], parity)
        T.fence_proxy_async()
        T.wgmma_gemm(qs[1 - g, :, :], ks[1 + g, :, :], z, transpose_B=True)
        T.wait_wgmma(0)
        T.warpgroup_fence_operand(z, num_regs=M * N // ROLE)
        T.barrier_wait(barriers.listed[g], parity)
        for h, j in T.Parallel(M, N):
            z[h, j] = T.if_then_else(seen[g, j] >= 0, z[h, j], -T.infinity(F32))

    @T.macro
    def weigh(g, z, top, weights, ps, weighed):
        for h, j in T.Parallel(M, N):
            z[h, j] = _exp2(z[h, j] * c - top[h] * c)
        T.copy(z, weights)
        T.copy(weights, ps[g, :, :])
        T.fence_proxy_async()
        T.barrier_arrive(weighed[g])

    @T.macro
    def rescale(acc, total, fade):
        for h in T.Parallel(M):
            total[h] *= fade[h]
        for h, d in T.Parallel(M, C):
            acc[h, d] *= fade[h]

    @T.macro
    def await_product(acc, free, n):
        T.wait_wgmma(0)
        T.warpgroup_fence_operand(acc, num_regs=M * C // ROLE)
        T.barrier_arrive(free[n])

    @T.macro
    def multiplier0(first, end, qs, ks, ps, peaks, seen, acc, top, total, fade, barriers):
        """Of half 0 of a tile the weights; columns 0."""
        z = T.alloc_fragment((M, N), F32)
        weights = T.alloc_fragment((M, N), BF16)
        partial = T.alloc_fragment((M,), F32)
        for t in T.serial(first, end):
            scores(0, (t - first) % 2, qs, ks, z, seen, barriers)
            T.copy(top, fade)
            T.reduce_max(z, top, dim=1, clear=False)
            T.copy(top, peaks[0, :])
            weigh(0, z, top, weights, ps, barriers.weighed)
            for h in T.Parallel(M):
                fade[h] = _exp2(fade[h] * c - top[h] * c)
            rescale(acc, total, fade)
            T.wgmma_gemm(weights, ks[0, :, :], acc)
            T.reduce_sum(z, partial, dim=1)
            for h in T.Parallel(M):
                total[h] += partial[h]
            await_product(acc, barriers.free, 0)
            T.barrier_wait(barriers.weighed[1], (t - first) % 2)
            T.copy(top, fade)
            T.copy(peaks[1, :], top)
            for h in T.Parallel(M):
                fade[h] = _exp2(fade[h] * c - top[h] * c)
            rescale(acc, total, fade)
            T.wgmma_gemm(ps[1, :, :], ks[2, :, :], acc)
            await_product(acc, barriers.free, 2)

    @T.macro
    def multiplier1(first, end, qs, ks, ps, peaks, seen, acc, top, total, fade, barriers):
        """Of half 1 of a tile the weights; columns 1."""
        z = T.alloc_fragment((M, N), F32)
        weights = T.alloc_fragment((M, N), BF16)
        own = T.alloc_fragment((M,), F32)
        for t in T.serial(first, end):
            scores(1, (t - first) % 2, qs, ks, z, seen, barriers)
            T.reduce_max(z, own, dim=1)
            T.barrier_wait(barriers.weighed[0], (t - first) % 2)
            for h in T.Parallel(M):
                fade[h] = _exp2(top[h] * c - peaks[0, h] * c)
            rescale(acc, total, fade)
            T.wgmma_gemm(ps[0, :, :], ks[1, :, :], acc)
            for h in T.Parallel(M):
                top[h] = T.max(own[h], peaks[0, h])
            T.copy(top, peaks[1, :])
            for h in T.Parallel(M):
                fade[h] = _exp2(peaks[0, h] * c - top[h] * c)
            weigh(1, z, top, weights, ps, barriers.weighed)
            T.reduce_sum(z, own, dim=1)
            await_product(acc, barriers.free, 1)
            rescale(acc, total, fade)
            T.wgmma_gemm(weights, ks[3, :, :], acc)
            for h in T.Parallel(M):
                total[h] += own[h]
            await_product(acc, barriers.free, 3)

    @T.macro
    def block(q, keys, find, sink, out, stats, h0, part, first, end):
        b, s = keys[2:4]
        qs = T.alloc_shared((2, M, C), BF16)
        ks = T.alloc_shared((4, N, C), BF16)  # half g of a tile, columns h: 2 g + h
        ps = T.alloc_shared((2, M, N), BF16)
        peaks = T.alloc_shared((2, M), F32, scope="shared")
        sums = T.alloc_shared((2, M), F32, scope="shared")
        seen = T.alloc_shared((2, N), I32, scope="shared")
        fetched = T.alloc_barrier(2 * ROLE)
        ready = T.alloc_barrier([ROLE] * 4)
        free = T.alloc_barrier([ROLE] * 4)
        listed = T.alloc_barrier([ROLE] * 2)
        weighed = T.alloc_barrier([ROLE] * 2)
        ended = T.alloc_barrier(2 * ROLE)
        barriers = Barriers(ready, free, listed, weighed)
        acc0 = T.alloc_fragment((M, C), F32)
        top0 = T.alloc_fragment((M,), F32)
        total0 = T.alloc_fragment((M,), F32)
        fade0 = T.alloc_fragment((M,), F32)
        acc1 = T.alloc_fragment((M, C), F32)
        top1 = T.alloc_fragment((M,), F32)
        total1 = T.alloc_fragment((M,), F32)
        fade1 = T.alloc_fragment((M,), F32)
        if cfg.ranges > 1:
            T.pdl_trigger()  # combine may be launched, and waits
        thread = T.get_thread_binding()
        if thread < ROLE:
            copier(find, keys, first, end, ks, seen, barriers)
        elif thread < 2 * ROLE:
            begin(0, q, b, s, h0, qs, fetched, acc0, top0, total0)
            multiplier0(first, end, qs, ks, ps, peaks, seen, acc0, top0, total0, fade0, barriers)
            finish(0, acc0, top0, total0, fade0, sums, ended, sink, qs, out, stats, b, part, s, h0)
        else:
            begin(1, q, b, s, h0, qs, fetched, acc1, top1, total1)
            multiplier1(first, end, qs, ks, ps, peaks, seen, acc1, top1, total1, fade1, barriers)
            finish(1, acc1, top1, total1, fade1, sums, ended, sink, qs, out, stats, b, part, s, h0)

    return block
