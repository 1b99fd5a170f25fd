"""Gradients of compressed sparse attention (formula: reference/csa.py, schedule: kernels/sparse_attention_backward.py)."""

from dataclasses import dataclass

import tilelang.language as T

from .sparse_attention import EXP2, THREADS, Block, Keys
from .sparse_attention_backward import Gradients, Heads, differentiate
from .sparse_attention_config import BF16, F32, HEADS, I32, KEYS, Config


@dataclass(frozen=True)
class BackwardConfig(Config):
    @property
    def window_tiles(self) -> int:
        return -(-self.window // KEYS)

    @property
    def piece(self) -> int:
        return 128 if self.columns % 128 == 0 else 64

    def columns_of(self, i: int) -> slice:
        return slice(i * self.piece, (i + 1) * self.piece)


def csa_bwd(cfg: BackwardConfig) -> T.PrimFunc:
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
    def csa_bwd(
        grad_out: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        grad_lse: T.Tensor((B, S, cfg.H), F32),
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_kv: T.Tensor((B, R, cfg.D), BF16),
        compressed_kv: T.Tensor((B, L, cfg.D), BF16),
        indices: T.Tensor((B, S, K), I32),
        sink: T.Tensor((cfg.H,), F32),
        offset: T.Tensor((B,), I32),
        lse: T.Tensor((B, S, cfg.H), F32),
        delta: T.Tensor((B, S, cfg.H), F32),
        grad_q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_parts: T.Tensor((B, S, cfg.window, cfg.head_blocks, cfg.D), BF16),
        entry_parts: T.Tensor((B, S, K, cfg.head_blocks, cfg.D), BF16),
    ):
        with T.Kernel(S * cfg.head_blocks, B, threads=THREADS, prelude=EXP2) as (x, b):
            s, block = x // cfg.head_blocks, x % cfg.head_blocks
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            oldest[0] = T.max(S - R, -offset[b])
            tiles = cfg.window_tiles + T.ceildiv(K, KEYS)
            keys = Keys(window_kv, compressed_kv, base, oldest, (indices, b, s))
            heads = Heads(q, grad_out, grad_lse, lse, delta, sink)
            gradients = Gradients(grad_q, window_parts, entry_parts)
            differentiate(cfg, Block(b, s, block * HEADS, block, 0, tiles), heads, keys, gradients, list_entries)

    return csa_bwd
