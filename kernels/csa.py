"""Compressed sparse attention (formula: reference/csa.py); the block of a query is that of kernels/online_softmax.py."""

import tilelang.language as T

from .attention_config import BF16, F32, HEADS, I32, KEYS, Config, in_ranges
from .combine import launch
from .online_softmax import EXP2, THREADS, attend


def csa_fwd(cfg: Config) -> T.PrimFunc:
    """q [B,S,H,D], window_kv [B,P+S,D], compressed_kv [B,T,D], indices [B,S,K] -> of each range of keys out and stats."""
    B, S, R, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T"), T.dynamic("K")

    @T.macro
    def look_up(find, e, rows):
        indices, b, s = find
        for j in T.Parallel(KEYS):
            slot = e * KEYS + j
            rows[j] = T.if_then_else(slot >= 0 and slot < K, indices[b, s, slot], -1)
        for j in T.Parallel(KEYS):
            rows[j] = T.if_then_else(rows[j] < L, rows[j], -1)

    block = attend(cfg, look_up)

    @T.prim_func
    def csa_fwd(
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_kv: T.Tensor((B, R, cfg.D), BF16),
        compressed_kv: T.Tensor((B, L, cfg.D), BF16),
        sink: T.Tensor((cfg.H,), F32),
        indices: T.Tensor((B, S, K), I32),
        offset: T.Tensor((B,), I32),
        out: T.Tensor((B, cfg.ranges, S, cfg.H, cfg.D), cfg.out_dtype),
        stats: T.Tensor((B, cfg.ranges, cfg.stats, S, cfg.H), F32),
    ):
        with T.Kernel(S * cfg.parts, cfg.ranges, B, threads=THREADS, prelude=EXP2) as (x, y, b):
            s, h0 = x // cfg.parts, x % cfg.parts * HEADS
            n = cfg.window_tiles + T.ceildiv(K, cfg.tile)
            base = T.alloc_local((1,), I32)
            oldest = T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1  # row of the oldest key in the window of query 0
            oldest[0] = T.max(S - R, -offset[b])  # token that has a row and a position
            keys = window_kv, compressed_kv, b, s, base, oldest
            block(q, keys, (indices, b, s), sink, out, stats, h0, y, n * y // cfg.ranges, n * (y + 1) // cfg.ranges)

    return csa_fwd


def choose(S: int, H: int, D: int, K: int, window: int, scale: float) -> Config:
    """The config for a call of these sizes."""
    cfg = Config(H, D, window, scale, 1)
    tiles = cfg.window_tiles + -(-K // cfg.tile)
    return in_ranges(cfg, S, -(-tiles // 2))


def csa(q, window_kv, compressed_kv, sink, indices, offset, window: int, scale: float):
    """Launch ``csa_fwd`` on CUDA tensors."""
    _, s, h, d = q.shape
    cfg = choose(s, h, d, indices.shape[2], window, scale)
    return launch(csa_fwd, cfg, q, window_kv, compressed_kv, sink, indices, offset)
