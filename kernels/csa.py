"""Compressed sparse attention (formula: reference/csa.py, schedule: kernels/sparse_attention.py)."""

import tilelang.language as T

from .combine import launch
from .sparse_attention import EXP2, THREADS, Block, Keys, Output, attend
from .sparse_attention_config import BF16, F32, HEADS, I32, KEYS, Config, with_splits


def csa_fwd(cfg: Config) -> T.PrimFunc:
    """Attend to the window and to the entries that the indices name; each split writes its ``out`` and ``stats``."""
    B, S, R, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T"), T.dynamic("K")

    @T.macro
    def list_entries(source, e, rows):
        indices, b, s = source
        for j in T.Parallel(KEYS):
            slot = e * KEYS + j
            rows[j] = T.if_then_else(slot >= 0 and slot < K, indices[b, s, slot], -1)
        for j in T.Parallel(KEYS):
            rows[j] = T.if_then_else(rows[j] < L, rows[j], -1)

    @T.prim_func
    def csa_fwd(
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_kv: T.Tensor((B, R, cfg.D), BF16),
        compressed_kv: T.Tensor((B, L, cfg.D), BF16),
        indices: T.Tensor((B, S, K), I32),
        sink: T.Tensor((cfg.H,), F32),
        offset: T.Tensor((B,), I32),
        out: T.Tensor((B, cfg.splits, S, cfg.H, cfg.D), cfg.out_dtype),
        stats: T.Tensor((B, cfg.splits, cfg.stats, S, cfg.H), F32),
    ):
        with T.Kernel(S * cfg.head_blocks, cfg.splits, B, threads=THREADS, prelude=EXP2) as (x, split, b):
            s, head = x // cfg.head_blocks, x % cfg.head_blocks * HEADS
            tiles = cfg.window_tiles + T.ceildiv(K, cfg.tile)
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            oldest[0] = T.max(S - R, -offset[b])
            first, end = tiles * split // cfg.splits, tiles * (split + 1) // cfg.splits
            keys = Keys(window_kv, compressed_kv, base, oldest, (indices, b, s))
            attend(cfg, Block(b, s, head, split, first, end), q, keys, Output(sink, out, stats), list_entries)

    return csa_fwd


def choose(S: int, H: int, D: int, K: int, window: int, scale: float) -> Config:
    """Return the config for a call of these sizes."""
    cfg = Config(H, D, window, scale, 1)
    tiles = cfg.window_tiles + -(-K // cfg.tile)
    return with_splits(cfg, S, -(-tiles // 2))


def csa(q, window_kv, compressed_kv, indices, sink, offset, window: int, scale: float):
    """Launch ``csa_fwd`` on CUDA tensors; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    cfg = choose(s, h, d, indices.shape[2], window, scale)
    return launch(csa_fwd, cfg, (q, window_kv, compressed_kv, indices, sink, offset), sink)
