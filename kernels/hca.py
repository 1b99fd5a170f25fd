"""Heavily compressed attention (formula: reference/hca.py, schedule: kernels/sparse_attention.py)."""

import tilelang.language as T

from . import sparse_attention_backward as backward
from .build import aligned, build, planned
from .combine import Plan, launch, plan
from .sparse_attention import BLOCKS, EXP2, THREADS, Block, Keys, Output, Rounds, attend
from .sparse_attention_config import BF16, F32, I32, KEYS, MAX_SPLITS, BackwardConfig, Config, with_splits

ROUNDS = 32  # queries that a block takes, at most
LONG = 64  # tokens in an entry, at least, where a block takes several queries
NO_ENTRIES = 128  # the ratio where there are no entries: any will do, and with this one a block takes several queries


def in_rounds(cfg: Config) -> bool:
    """Return whether a block takes one query after another, each with as many tiles as the last one needs.

    They lie less than ROUNDS BLOCKS tokens apart, which must be few entries.
    """
    return cfg.splits == 1 and cfg.ratio >= LONG


def _visible(cfg, offset, L):
    """Return the function that says how many entries a query sees."""
    return lambda s: T.max(T.min((offset + s + 1) // cfg.ratio, L), 0)


@T.macro
def _list_entries(visible, at, e, rows):
    for j in T.Parallel(KEYS):
        rows[j] = T.if_then_else(e * KEYS + j < visible(at.s), e * KEYS + j, -1)


def hca_fwd(cfg: Config) -> T.PrimFunc:
    """Attend to the window and to all entries of the past; each split writes its ``out`` and ``stats``."""
    B, S, R, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T")
    items, group = S * cfg.head_blocks, ROUNDS * BLOCKS  # BLOCKS blocks take a group of items in rounds
    grid = (T.ceildiv(items, group), T.min(items, BLOCKS)) if in_rounds(cfg) else (items, cfg.splits)

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
        with T.Kernel(*grid, B, threads=THREADS, prelude=EXP2) as (x, y, b):
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            start, seen = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            start[0] = offset[b]
            oldest[0] = T.max(S - R, -start[0])
            first, split = (x * group + y, 0) if in_rounds(cfg) else (x, y)
            count = T.min(T.ceildiv(items - first, BLOCKS), ROUNDS) if in_rounds(cfg) else 1
            visible = _visible(cfg, start[0], L)
            # by the last query, and so the most; in a buffer, or TileLang does not lower windows of 64 tokens or fewer
            seen[0] = visible((first + (count - 1) * BLOCKS) // cfg.head_blocks)
            keys = Keys(window_kv, compressed_kv, base, oldest, visible)
            tiles = cfg.window_tiles + T.ceildiv(seen[0], cfg.tile)
            attend(cfg, Rounds(Block(first, split, b), count, tiles), q, keys, Output(sink, out, stats), _list_entries)

    return hca_fwd


def hca_bwd(cfg: BackwardConfig) -> T.PrimFunc:
    """Write the gradient of q, and the parts that each query has of the gradients of its keys: by slots, and by entries."""
    B, S, R, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T")

    @T.prim_func
    def hca_bwd(
        grad_out: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        grad_lse: T.Tensor((B, S, cfg.H), F32),
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_kv: T.Tensor((B, R, cfg.D), BF16),
        compressed_kv: T.Tensor((B, L, cfg.D), BF16),
        sink: T.Tensor((cfg.H,), F32),
        offset: T.Tensor((B,), I32),
        lse: T.Tensor((B, S, cfg.H), F32),
        delta: T.Tensor((B, S, cfg.H), F32),
        grad_q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        window_parts: T.Tensor((B, S, cfg.window, cfg.head_blocks, cfg.D), BF16),
        entry_parts: T.Tensor((B, S, L, cfg.head_blocks, cfg.D), BF16),
    ):
        with T.Kernel(S * cfg.head_blocks, B, threads=THREADS, prelude=EXP2) as (x, b):
            s, heads = x // cfg.head_blocks, x % cfg.head_blocks
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            visible = T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            oldest[0] = T.max(S - R, -offset[b])
            visible[0] = _visible(cfg, offset[b], L)(s)
            seen = T.ceildiv(visible[0], cfg.tile)
            for e in T.serial(seen, T.ceildiv(L, cfg.tile)):
                for j, d in T.Parallel(cfg.tile, cfg.D):
                    if e * cfg.tile + j < L:
                        entry_parts[b, s, e * cfg.tile + j, heads, d] = 0
            at = backward.Block(b, s, heads, cfg.window_tiles + seen)
            of_heads = backward.Heads(q, grad_out, grad_lse, lse, delta, sink)
            keys = Keys(window_kv, compressed_kv, base, oldest, lambda _: visible[0])
            gradients = backward.Gradients(grad_q, window_parts, entry_parts)
            backward.differentiate(cfg, at, of_heads, keys, gradients, _list_entries)

    return hca_bwd


def choose(S: int, H: int, D: int, ratio: int, window: int, scale: float) -> Config:
    """Return the config for a call of these sizes; T has no say, since a sequence may see fewer entries than that."""
    return with_splits(Config(H, D, window, scale, ratio), S, MAX_SPLITS)


def choose_swa(H: int, D: int, window: int, scale: float) -> Config:
    """Return the config for a call without entries.

    The few tiles of a window are one split, also where few queries leave most of a GPU idle: then decode has the bits of
    prefill.
    """
    return Config(H, D, window, scale, NO_ENTRIES)


@planned
def _plan(S: int, H: int, D: int, ratio: int, window: int, scale: float) -> Plan:
    return plan(hca_fwd, choose(S, H, D, ratio, window, scale))


@planned
def _plan_swa(H: int, D: int, window: int, scale: float) -> Plan:
    return plan(hca_fwd, choose_swa(H, D, window, scale))


def hca(q, window_kv, compressed_kv, sink, offset, ratio: int, window: int, scale: float):
    """Launch ``hca_fwd`` on CUDA tensors; return ``out`` and ``lse``."""
    _, s, h, d = q.shape
    return launch(_plan(s, h, d, ratio, window, scale), (q, window_kv, compressed_kv, sink, offset), sink)


def swa(q, window_kv, no_entries, sink, offset, window: int, scale: float):
    """Launch ``hca_fwd`` on CUDA tensors, ``no_entries`` of shape [B, 0, D] among them; return ``out`` and ``lse``."""
    h, d = q.shape[2:]
    return launch(_plan_swa(h, d, window, scale), (q, window_kv, no_entries, sink, offset), sink)


def hca_parts(grads, q, keys, sink, offset, stats, grad_q, *, ratio: int, window: int, scale: float):
    """Launch ``hca_bwd`` on CUDA tensors; fill ``grad_q``, and return the parts of both keys' gradients.

    ``grads`` are those of out and lse, ``keys`` window_kv and compressed_kv, and ``stats`` the lse and Σ out grad_out.
    """
    b, s, h, d = q.shape
    cfg = BackwardConfig(h, d, window, scale, ratio)
    parts = [q.new_empty((b, s, slots, cfg.head_blocks, d)) for slots in (window, keys[1].shape[1])]
    build(hca_bwd, cfg)(*map(aligned, (*grads, q, *keys, sink, offset, *stats)), grad_q, *parts)
    return parts
