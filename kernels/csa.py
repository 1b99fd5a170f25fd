"""Compressed sparse attention (formula: reference/csa.py, schedule: kernels/sparse_attention.py)."""

import tilelang.language as T

from . import sparse_attention_backward as backward
from .build import aligned, build, planned
from .combine import Plan, launch, plan
from .sparse_attention import BLOCKS, EXP2, THREADS, Block, Keys, Output, Rounds, attend
from .sparse_attention_config import BF16, F32, I32, KEYS, BackwardConfig, Config, with_splits


def _entry_lister(L, K):
    """Return the macro that lists the entries named by slots of a query's indices."""

    @T.macro
    def list_entries(indices, at, e, rows):
        for j in T.Parallel(KEYS):
            slot = e * KEYS + j
            rows[j] = T.if_then_else(slot >= 0 and slot < K, indices[at.b, at.s, slot], -1)
        for j in T.Parallel(KEYS):
            rows[j] = T.if_then_else(rows[j] < L, rows[j], -1)

    return list_entries


def csa_fwd(cfg: Config) -> T.PrimFunc:
    """Attend to the window and to the entries that the indices name; each split writes its ``out`` and ``stats``."""
    B, S, R, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T"), T.dynamic("K")
    items = S * cfg.head_blocks
    # a split may be without tiles; in a round without any, no barrier would keep a block's roles together
    blocks = T.min(items, BLOCKS) if cfg.splits == 1 else items
    list_entries = _entry_lister(L, K)

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
        with T.Kernel(blocks, cfg.splits, B, threads=THREADS, prelude=EXP2) as (x, split, b):
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            oldest[0] = T.max(S - R, -offset[b])
            keys = Keys(window_kv, compressed_kv, base, oldest, indices)
            count = T.ceildiv(items - x, BLOCKS) if cfg.splits == 1 else 1
            tiles = cfg.window_tiles + T.ceildiv(K, cfg.tile)
            attend(cfg, Rounds(Block(x, split, b), count, tiles), q, keys, Output(sink, out, stats), list_entries)

    return csa_fwd


def csa_bwd(cfg: BackwardConfig) -> T.PrimFunc:
    """Write the gradient of q, and the parts that each query has of the gradients of its keys, by their slots."""
    B, S, R, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T"), T.dynamic("K")
    list_entries = _entry_lister(L, K)

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
            s, heads = x // cfg.head_blocks, x % cfg.head_blocks
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            oldest[0] = T.max(S - R, -offset[b])
            at = backward.Block(b, s, heads, cfg.window_tiles + T.ceildiv(K, cfg.tile))
            of_heads = backward.Heads(q, grad_out, grad_lse, lse, delta, sink)
            keys = Keys(window_kv, compressed_kv, base, oldest, indices)
            gradients = backward.Gradients(grad_q, window_parts, entry_parts)
            backward.differentiate(cfg, at, of_heads, keys, gradients, list_entries)

    return csa_bwd


def choose(S: int, H: int, D: int, K: int, window: int, scale: float) -> Config:
    """Return the config for a call of these sizes."""
    cfg = Config(H, D, window, scale, 1)
    tiles = cfg.window_tiles + -(-K // cfg.tile)
    return with_splits(cfg, S, -(-tiles // 2))


@planned
def _plan(S: int, H: int, D: int, K: int, window: int, scale: float) -> Plan:
    return plan(csa_fwd, choose(S, H, D, K, window, scale))


def csa(q, window_kv, compressed_kv, indices, sink, offset, window: int, scale: float):
    """Launch ``csa_fwd`` on CUDA tensors; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    kernels = _plan(s, h, d, indices.shape[2], window, scale)
    return launch(kernels, (q, window_kv, compressed_kv, indices, sink, offset), sink)


def csa_parts(grads, q, keys, indices, sink, offset, stats, grad_q, *, window: int, scale: float):
    """Launch ``csa_bwd`` on CUDA tensors; fill ``grad_q``, and return the parts of both keys' gradients.

    ``grads`` are those of out and lse, ``keys`` window_kv and compressed_kv, and ``stats`` the lse and Σ out grad_out.
    """
    b, s, h, d = q.shape
    cfg = BackwardConfig(h, d, window, scale)
    parts = [q.new_empty((b, s, slots, cfg.head_blocks, d)) for slots in (window, indices.shape[2])]
    tensors = (*grads, q, *keys, indices, sink, offset, *stats)
    build(csa_bwd, cfg)(*map(aligned, tensors), grad_q, *parts)
    return parts
