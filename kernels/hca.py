"""Heavily compressed attention (formula: reference/hca.py, schedule: kernels/sparse_attention.py)."""

import tilelang.language as T

from .combine import launch
from .sparse_attention import EXP2, THREADS, Block, Keys, Output, attend
from .sparse_attention_config import BF16, F32, HEADS, I32, KEYS, MAX_SPLITS, Config, with_splits


def hca_fwd(cfg: Config) -> T.PrimFunc:
    """Attend to the window and to all entries of the past; each split writes its ``out`` and ``stats``."""
    B, S, R, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T")

    @T.macro
    def list_entries(visible, e, rows):
        for j in T.Parallel(KEYS):
            rows[j] = T.if_then_else(e * KEYS + j < visible[0], e * KEYS + j, -1)

    @T.prim_func
    def hca_fwd(
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_kv: T.Tensor((B, R, cfg.D), BF16),
        compressed_kv: T.Tensor((B, L, cfg.D), BF16),
        sink: T.Tensor((cfg.H,), F32),
        offset: T.Tensor((B,), I32),
        out: T.Tensor((B, cfg.splits, S, cfg.H, cfg.D), cfg.out_dtype),
        stats: T.Tensor((B, cfg.splits, cfg.stats, S, cfg.H), F32),
    ):
        with T.Kernel(S * cfg.head_blocks, cfg.splits, B, threads=THREADS, prelude=EXP2) as (x, split, b):
            s, head = x // cfg.head_blocks, x % cfg.head_blocks * HEADS
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            visible = T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            oldest[0] = T.max(S - R, -offset[b])
            visible[0] = T.max(T.min((offset[b] + s + 1) // cfg.ratio, L), 0)
            tiles = cfg.window_tiles + T.ceildiv(visible[0], cfg.tile)
            first, end = tiles * split // cfg.splits, tiles * (split + 1) // cfg.splits
            keys = Keys(window_kv, compressed_kv, base, oldest, visible)
            attend(cfg, Block(b, s, head, split, first, end), q, keys, Output(sink, out, stats), list_entries)

    return hca_fwd


def choose(S: int, H: int, D: int, ratio: int, window: int, scale: float) -> Config:
    """Return the config for a call of these sizes; T has no say, since a sequence may see fewer entries than that."""
    return with_splits(Config(H, D, window, scale, ratio), S, MAX_SPLITS)


def hca(q, window_kv, compressed_kv, sink, offset, ratio: int, window: int, scale: float):
    """Launch ``hca_fwd`` on CUDA tensors; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    cfg = choose(s, h, d, ratio, window, scale)
    return launch(hca_fwd, cfg, (q, window_kv, compressed_kv, sink, offset), sink)
