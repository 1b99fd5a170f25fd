"""Compressed sparse attention (formula: reference/csa.py); the block of a query is that of kernels/online_softmax.py."""

import tilelang.language as T

from .online_softmax import BF16, EXP2, F32, I32, Config, attend, by_row, configure, in_ranges, launch


def csa_fwd(cfg: Config) -> T.PrimFunc:
    """q [B,S,H,D], window_kv [B,P+S,D], compressed_kv [B,T,D], indices [B,S,K] -> out and lse of each range of keys."""
    B, S, R, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T"), T.dynamic("K")
    N = cfg.tile

    @T.macro
    def fetch(indices, b, s, e, ahead):
        for j in T.Parallel(N):
            ahead[j] = T.if_then_else(e * N + j >= 0 and e * N + j < K, indices[b, s, e * N + j], -1)

    @T.macro
    def look_up(find, e, rows):
        indices, b, s, ahead = find
        for j in T.Parallel(N):
            rows[j] = T.if_then_else(ahead[j] < L, ahead[j], -1)
        fetch(indices, b, s, e + 1, ahead)  # a tile ahead of its use: the wait for it is hidden

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
        lse: T.Tensor((B, cfg.ranges, S, cfg.H), F32),
    ):
        with T.Kernel(S * cfg.parts, cfg.ranges, B, threads=cfg.threads, prelude=EXP2) as (x, y, b):
            s, h0 = x // cfg.parts, x % cfg.parts * cfg.heads
            n = cfg.window_tiles + T.ceildiv(K, N)
            first = n * y // cfg.ranges
            oldest = T.alloc_local((1,), I32)
            oldest[0] = T.max(S - R, -offset[b])  # token that has a row and a position
            ahead = T.alloc_fragment((N,), I32)
            T.annotate_layout({ahead: by_row(cfg)})
            fetch(indices, b, s, first - cfg.window_tiles, ahead)
            keys = window_kv, compressed_kv, b, s, S, oldest
            block(q, keys, (indices, b, s, ahead), sink, out, lse, h0, y, first, n * (y + 1) // cfg.ranges)

    return csa_fwd


def choose(S: int, H: int, D: int, K: int, window: int, scale: float) -> Config:
    """The config for a call of these sizes."""
    cfg = configure(H, D, window, scale, 1, 1)
    return in_ranges(cfg, S, cfg.window_tiles + -(-K // cfg.tile))


def csa(q, window_kv, compressed_kv, sink, indices, offset, window: int, scale: float):
    """Launch ``csa_fwd`` on CUDA tensors."""
    _, s, h, d = q.shape
    cfg = choose(s, h, d, indices.shape[2], window, scale)
    return launch(csa_fwd, cfg, q, window_kv, compressed_kv, sink, indices, offset)
