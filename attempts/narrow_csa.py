"""Keys times heads: a block has one query, all of its few heads are the columns of every product with 64 keys."""
import tilelang.language as T

from .build import aligned, build
from .csa import _entry_lister
from .placed_schedule import place
from .sparse_attention import EXP2, exp2, row_layout
from .sparse_attention_config import BF16, F32, I32, KEYS, LOG2E, PANEL, BackwardConfig

WARPGROUP = 128
PIECE = 128
FETCH = {"parallel_prefer_async": True, "parallel_async_without_async_commit_wait": True}


def csa_bwd(cfg: BackwardConfig) -> T.PrimFunc:
    B, S, R, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("R"), T.dynamic("T"), T.dynamic("K")
    list_entries = _entry_lister(L, K)
    H, D = cfg.H, cfg.D

    @T.macro
    def gather(kv, b, rows, keys):
        for p in T.unroll(D // PANEL):
            for j, d in T.Parallel(KEYS, PANEL, annotations=FETCH):
                keys[j, p * PANEL + d] = T.if_then_else(
                    rows[j] >= 0 and rows[j] < kv.shape[1], kv[b, rows[j], p * PANEL + d], 0
                )

    @T.macro
    def write(t, b, s, i, part, window_parts, entry_parts):
        out = T.alloc_fragment((KEYS, PIECE), BF16)
        for j, d in T.Parallel(KEYS, PIECE):
            out[j, place(d)] = part[j, d]
        if t < cfg.window_tiles:
            for j, d in T.Parallel(KEYS, PIECE):
                if t * KEYS + j < cfg.window:
                    window_parts[b, s, t * KEYS + j, 0, i * PIECE + d] = out[j, d]
        else:
            for j, d in T.Parallel(KEYS, PIECE):
                slot = (t - cfg.window_tiles) * KEYS + j
                if slot < K:
                    entry_parts[b, s, slot, 0, i * PIECE + d] = out[j, d]

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
        window_parts: T.Tensor((B, S, cfg.window, 1, cfg.D), BF16),
        entry_parts: T.Tensor((B, S, K, 1, cfg.D), BF16),
    ):
        with T.Kernel(S, B, threads=WARPGROUP, prelude=EXP2) as (s, b):
            heads_shared = T.alloc_shared((2 * H, D), BF16)
            k_shared = T.alloc_shared((KEYS, D), BF16)
            w_shared = T.alloc_shared((2 * H, KEYS), BF16)
            rows_shared = T.alloc_shared((KEYS,), I32, scope="shared")
            lse_shared = T.alloc_shared((H,), F32, scope="shared")
            weight_shared = T.alloc_shared((H,), F32, scope="shared")
            shift_shared = T.alloc_shared((H,), F32, scope="shared")
            rows = T.alloc_fragment((KEYS,), I32)
            T.annotate_layout({rows: row_layout()})
            acc = T.alloc_fragment((D, H), F32)
            part = T.alloc_fragment((KEYS, PIECE), F32)
            p, dz = T.alloc_fragment((KEYS, H), F32), T.alloc_fragment((KEYS, H), F32)
            p16 = T.alloc_fragment((KEYS, H), BF16)
            base, oldest = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            base[0] = R - S - cfg.window + 1
            oldest[0] = T.max(S - R, -offset[b])
            for h, d in T.Parallel(H, D):
                heads_shared[h, d] = grad_out[b, s, h, d]
            for h, d in T.Parallel(H, D):
                heads_shared[H + h, d] = q[b, s, h, d]
            for h in T.Parallel(H):
                lse_shared[h] = lse[b, s, h] * LOG2E
                weight_shared[h] = T.if_then_else(
                    lse[b, s, h] < T.infinity(F32), 1 / (1 + T.exp2((sink[h] - lse[b, s, h]) * LOG2E)), 0
                )
                shift_shared[h] = grad_lse[b, s, h] - weight_shared[h] * delta[b, s, h]
            T.fill(acc, 0)
            for t in T.serial(cfg.window_tiles + T.ceildiv(K, cfg.tile)):
                list_entries((indices, b, s), t - cfg.window_tiles, rows)
                if t < cfg.window_tiles:
                    for j in T.Parallel(KEYS):
                        slot = t * KEYS + j
                        token = s - cfg.window + 1 + slot
                        rows[j] = T.if_then_else(token <= s and token >= oldest[0], base[0] + slot + s, -1)
                T.sync_threads()
                if t < cfg.window_tiles:
                    gather(window_kv, b, rows, k_shared)
                else:
                    gather(compressed_kv, b, rows, k_shared)
                for j in T.Parallel(KEYS):
                    rows_shared[j] = rows[j]
                T.ptx_commit_group()
                T.ptx_wait_group(0)
                T.fence_proxy_async()
                T.sync_threads()
                T.wgmma_gemm(k_shared, heads_shared[H : 2 * H, :], p, transpose_B=True, clear_accum=True)
                T.wgmma_gemm(k_shared, heads_shared[0:H, :], dz, transpose_B=True, clear_accum=True)
                T.wait_wgmma(0)
                T.warpgroup_fence_operand(p, num_regs=KEYS * H // WARPGROUP)
                T.warpgroup_fence_operand(dz, num_regs=KEYS * H // WARPGROUP)
                for j, h in T.Parallel(KEYS, H):
                    p[j, h] = T.if_then_else(rows_shared[j] >= 0, exp2(p[j, h] * cfg.log2_scale - lse_shared[h]), 0)
                T.copy(p, p16)
                for j, h in T.Parallel(KEYS, H):
                    dz[j, h] = cfg.scale * p16[j, h] * (weight_shared[h] * dz[j, h] + shift_shared[h])
                for j, h in T.Parallel(KEYS, H):
                    w_shared[h, j] = p[j, h] * weight_shared[h]
                for j, h in T.Parallel(KEYS, H):
                    w_shared[H + h, j] = dz[j, h]
                T.fence_proxy_async()
                T.sync_threads()
                T.wgmma_gemm(k_shared, w_shared[H : 2 * H, :], acc, transpose_A=True, transpose_B=True)
                T.wgmma_gemm(w_shared, heads_shared[:, 0:PIECE], part, transpose_A=True, clear_accum=True)
                T.wait_wgmma(0)
                T.warpgroup_fence_operand(acc, num_regs=D * H // WARPGROUP)
                T.warpgroup_fence_operand(part, num_regs=KEYS * PIECE // WARPGROUP)
                write(t, b, s, 0, part, window_parts, entry_parts)
                for i in T.unroll(D // PIECE - 1):
                    T.wgmma_gemm(
                        w_shared, heads_shared[:, (i + 1) * PIECE : (i + 2) * PIECE], part, transpose_A=True, clear_accum=True
                    )
                    T.wait_wgmma(0)
                    T.warpgroup_fence_operand(part, num_regs=KEYS * PIECE // WARPGROUP)
                    write(t, b, s, i + 1, part, window_parts, entry_parts)
            T.sync_threads()
            for d, h in T.Parallel(D, H):
                k_shared[h, d] = acc[d, h]
            T.sync_threads()
            for h, d in T.Parallel(H, D):
                grad_q[b, s, h, d] = k_shared[h, d]

    return csa_bwd


def csa_parts(grads, q, keys, indices, sink, offset, stats, grad_q, *, window: int, scale: float):
    b, s, h, d = q.shape
    cfg = BackwardConfig(h, d, window, scale)
    parts = [q.new_empty((b, s, slots, 1, d)) for slots in (window, indices.shape[2])]
    tensors = (*grads, q, *keys, indices, sink, offset, *stats)
    build(csa_bwd, cfg)(*map(aligned, tensors), grad_q, *parts)
    return parts
