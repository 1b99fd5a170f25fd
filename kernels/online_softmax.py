"""Attention of all heads of a query over keys that are their own values, in tiles (formula: reference/attention.py).

A block takes a query, up to 64 of its heads, and a range of the tiles of keys: first those of the window, then those of
the compressed entries. Keys stream through two stages of shared memory; rows that are not seen come as zeros and get the
weight 0. A tensor core's rows are heads: z = q kᵀ and acc = Σ exp2(c (z - top)) k split their columns over the groups of
warps, whose maxima and sums meet in shared memory.

With one range the result is that of the operator. With several, each is the attention over its range, in fp32 and without
the sink, and ``combine`` weighs them.
"""

import math
from dataclasses import dataclass, replace

import tilelang.language as T

from .build import aligned, build

BF16, F32, I32 = "bfloat16", "float32", "int32"
LOWEST = -(2.0**30)  # a running maximum starts here, finite: below every admissible q · k
LOG2E = math.log2(math.e)
FEW, MOST_RANGES = 8, 8  # blocks of a sequence that are too few; ranges of its keys
PANEL = 64  # columns of a swizzled row of shared memory
# copies to shared memory that the kernel itself commits and awaits
ASYNC = {"parallel_prefer_async": True, "parallel_async_without_async_commit_wait": True}


# 2^x by the instruction, without the steps that C adds for results below 2^-126, which become 0
EXP2 = """__device__ __forceinline__ float exp2_ftz(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;
}
"""


@dataclass(frozen=True)
class Config:
    """Static parameters: the operator's; the ranges of keys; keys in a tile, threads."""

    H: int = 64
    D: int = 512
    window: int = 128
    scale: float = 512**-0.5
    ratio: int = 128
    ranges: int = 1
    tile: int = 64
    threads: int = 256

    @property
    def heads(self) -> int:
        """Heads of a block: rows of a product."""
        return min(max(self.H, 16), 64)

    @property
    def out_dtype(self) -> str:
        """Of one range the result, of several what is still to be combined."""
        return BF16 if self.ranges == 1 else F32

    @property
    def parts(self) -> int:
        """Blocks of a query in a range."""
        return max(self.H // self.heads, 1)

    @property
    def groups(self) -> int:
        """Groups of warps that share the columns of a product."""
        return self.threads // (128 if self.heads == 64 else 32)

    @property
    def window_tiles(self) -> int:
        """Tiles that hold the window."""
        return -(-self.window // self.tile)


def configure(H: int, D: int, window: int, scale: float, ratio: int, ranges: int) -> Config:
    """The choices made for sm_90."""
    wide = H >= 64
    return Config(H, D, window, scale, ratio, ranges, 64 if wide else 32, 256 if wide else 128)


def in_ranges(cfg: Config, queries: int, tiles: int) -> Config:
    """Few queries of a sequence leave most of a GPU idle: their tiles are shared out, at least two to a range.

    The batch has no say, so that no result depends on it.
    """
    few = queries * cfg.parts <= FEW
    return replace(cfg, ranges=min(max(tiles // 2, 1), MOST_RANGES) if few else 1)


def _exp2(x):
    return T.call_extern(F32, "exp2_ftz", x)


def by_row(cfg: Config) -> T.Fragment:
    """Row j of a tile belongs to the threads that copy it, 16 bytes each of a panel."""
    copiers = PANEL * 2 // 16
    at_once = cfg.threads // copiers
    return T.Fragment(
        (cfg.tile,),
        forward_thread_fn=lambda j, copier: j % at_once * copiers + copier,
        forward_index_fn=lambda j: j // at_once,
        replicate=copiers,
    )


def attend(cfg: Config, look_up):
    """The block of a query.

    ``look_up`` is a macro: given ``find``, which is its own, it writes to ``rows`` which entries tile e of the compressed
    entries holds, -1 where none is to be read. It is called for the window's tiles too, e < 0, with no effect.
    """
    M, N, D, H, G = cfg.heads, cfg.tile, cfg.D, cfg.H, cfg.groups
    c = cfg.scale * LOG2E
    multiply = T.wgmma_gemm if M == 64 else T.gemm

    @T.macro
    def scores(qs, ks, z, stage):
        multiply(qs, ks[stage, :, :], z, transpose_B=True, clear_accum=True, policy=T.GemmWarpPolicy.FullCol)

    @T.macro
    def wait(under_way, z, acc):
        if M == 64:
            T.wait_wgmma(under_way)
            if under_way == 0:
                T.warpgroup_fence_operand(z, num_regs=M * N // cfg.threads)
                T.warpgroup_fence_operand(acc, num_regs=M * D // cfg.threads)

    @T.macro
    def gather(kv, b, rows, ks, stage):
        for p in T.unroll(D // PANEL, unroll_factor=2):
            for j, d in T.Parallel(N, PANEL, annotations=ASYNC):
                ks[stage, j, p * PANEL + d] = T.if_then_else(
                    rows[j] >= 0 and rows[j] < kv.shape[1], kv[b, rows[j], p * PANEL + d], 0
                )

    @T.macro
    def load(keys, find, u, stage, tiles):
        window_kv, compressed_kv, b, s, S, oldest = keys
        ks, rows, seen = tiles
        look_up(find, u - cfg.window_tiles, rows)
        if u < cfg.window_tiles:
            for j in T.Parallel(N):
                token = s - cfg.window + 1 + u * N + j
                row = window_kv.shape[1] - S + token
                rows[j] = T.if_then_else(token <= s and token >= oldest[0], row, -1)
            gather(window_kv, b, rows, ks, stage)
        else:
            gather(compressed_kv, b, rows, ks, stage)
        for j in T.Parallel(N):
            seen[stage, j] = rows[j]

    @T.macro
    def block(q, keys, find, sink, out, lse, h0, part, first, end):
        b, s = keys[2], keys[3]
        qs = T.alloc_shared((M, D), BF16)
        ks = T.alloc_shared((2, N, D), BF16)
        ps = T.alloc_shared((M, N), BF16)
        meet = T.alloc_shared((M, G), F32)
        seen = T.alloc_shared((2, N), I32)
        rows = T.alloc_fragment((N,), I32)
        T.annotate_layout({rows: by_row(cfg)})
        z = T.alloc_fragment((M, N), F32)
        of_group = T.reshape(z, (M, G, N // G))
        acc = T.alloc_fragment((M, D), F32)
        top = T.alloc_fragment((M,), F32)
        fade = T.alloc_fragment((M,), F32)
        total = T.alloc_fragment((M, G), F32)
        partial = T.alloc_fragment((M, G), F32)
        tiles = ks, rows, seen
        for h, d in T.Parallel(M, D, annotations=ASYNC):
            qs[h, d] = T.if_then_else(h0 + h < H, q[b, s, h0 + h, d], 0)
        load(keys, find, first, first % 2, tiles)
        T.ptx_commit_group()
        T.ptx_wait_group(0)
        T.fence_proxy_async()
        T.sync_threads()
        scores(qs, ks, z, first % 2)
        if first + 1 < end:
            load(keys, find, first + 1, (first + 1) % 2, tiles)
        T.ptx_commit_group()
        T.fill(acc, 0)
        T.fill(top, LOWEST)
        T.fill(total, 0)
        wait(0, z, acc)
        for t in T.serial(first, end):
            for h, j in T.Parallel(M, N):
                z[h, j] = T.if_then_else(seen[t % 2, j] >= 0, z[h, j], -T.infinity(F32))
            T.reduce_max(of_group, partial, dim=2)
            T.copy(partial, meet)
            T.copy(top, fade)
            for g in T.unroll(G):
                for h in T.Parallel(M):
                    top[h] = T.max(top[h], meet[h, g])
            for h, j in T.Parallel(M, N):
                z[h, j] = _exp2(z[h, j] * c - top[h] * c)
            T.copy(z, ps)
            T.reduce_sum(of_group, partial, dim=2)
            for h in T.Parallel(M):
                fade[h] = _exp2(fade[h] * c - top[h] * c)
            for h, g in T.Parallel(M, G):
                total[h, g] = total[h, g] * fade[h] + partial[h, g]
            for h, d in T.Parallel(M, D):
                acc[h, d] *= fade[h]
            T.ptx_wait_group(0)
            T.fence_proxy_async()
            T.sync_threads()
            multiply(ps, ks[t % 2, :, :], acc, policy=T.GemmWarpPolicy.FullCol)
            if t + 1 < end:
                scores(qs, ks, z, (t + 1) % 2)
            wait(1, z, acc)
            T.sync_threads()
            if t + 2 < end:
                load(keys, find, t + 2, t % 2, tiles)
            T.ptx_commit_group()
            wait(0, z, acc)
        T.copy(total, meet)
        T.fill(fade, 0)
        for g in T.unroll(G):
            for h in T.Parallel(M):
                fade[h] += meet[h, g]
        for h in T.Parallel(M):
            if h0 + h < H:
                lse[b, part, s, h0 + h] = T.if_then_else(
                    fade[h] > 0, top[h] * cfg.scale + T.log(fade[h]), T.infinity(F32)
                )
        for h in T.Parallel(M):
            sunk = T.exp2(sink[T.min(h0 + h, H - 1)] * LOG2E - top[h] * c) if cfg.ranges == 1 else T.float32(0)
            fade[h] = T.if_then_else(fade[h] > 0, 1 / (fade[h] + sunk), 0)
        for h, d in T.Parallel(M, D):
            acc[h, d] *= fade[h]
        if cfg.ranges == 1:
            T.copy(acc, qs)
            for h, d in T.Parallel(M, D):
                if h0 + h < H:
                    out[b, part, s, h0 + h, d] = qs[h, d]
        else:
            for h, d in T.Parallel(M, D):
                if h0 + h < H:
                    out[b, part, s, h0 + h, d] = acc[h, d]

    return block


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
            lse[b, s, h] = T.if_then_else(total[0] > 0, top[0] + T.log(total[0]), T.infinity(F32))

    return combine
