"""Heavily compressed attention (formula: reference/hca.py); the block of a query is that of kernels/online_softmax.py."""

import tilelang.language as T

from .attention_config import BF16, F32, HEADS, I32, KEYS, MOST_RANGES, Config, in_ranges
from .combine import launch
from .online_softmax import EXP2, THREADS, attend


def hca_fwd(cfg: Config) -> T.PrimFunc:
    """q [B,S,H,D], window_kv [B,P+S,D], compressed_kv [B,T,D] -> of each range of keys out and stats."""
    B, S, R, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T")

    @T.macro
    def look_up(visible, e, rows):
        for j in T.Parallel(KEYS):
            rows[j] = T.if_then_else(e * KEYS + j < visible[0], e * KEYS + j, -1)

    block = attend(cfg, look_up)

    @T.prim_func
    def hca_fwd(
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_kv: T.Tensor((B, R, cfg.D), BF16),
        compressed_kv: T.Tensor((B, L, cfg.D), BF16),
        sink: T.Tensor((cfg.H,), F32),
        offset: T.Tensor((B,), I32),
        out: T.Tensor((B, cfg.ranges, S, cfg.H, cfg.D), cfg.out_dtype),
        stats: T.Tensor((B, cfg.ranges, cfg.stats, S, cfg.H), F32),
    ):
        with T.Kernel(S * cfg.parts, cfg.ranges, B, threads=THREADS, prelude=EXP2) as (x, y, b):
            s, h0 = x // cfg.parts, x % cfg.parts * HEADS
            base = T.alloc_local((1,), I32)
            oldest = T.alloc_local((1,), I32)
            visible = T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1  # row of the oldest key in the window of query 0
            oldest[0] = T.max(S - R, -offset[b])  # token that has a row and a position
            visible[0] = T.max(T.min((offset[b] + s + 1) // cfg.ratio, L), 0)
            n = cfg.window_tiles + T.ceildiv(visible[0], cfg.tile)
            keys = window_kv, compressed_kv, b, s, base, oldest
            block(q, keys, visible, sink, out, stats, h0, y, n * y // cfg.ranges, n * (y + 1) // cfg.ranges)

    return hca_fwd


def choose(S: int, H: int, D: int, ratio: int, window: int, scale: float) -> Config:
    """The config for a call of these sizes: for any T, which may be that of another sequence of the batch."""
    return in_ranges(Config(H, D, window, scale, ratio), S, MOST_RANGES)


def hca(q, window_kv, compressed_kv, sink, offset, ratio: int, window: int, scale: float):
    """Launch ``hca_fwd`` on CUDA tensors."""
    _, s, h, d = q.shape
    cfg = choose(s, h, d, ratio, window, scale)
    return launch(hca_fwd, cfg, q, window_kv, compressed_kv, sink, offset)
