"""The role that brings keys to shared memory (block: kernels/online_softmax.py)."""

import tilelang.language as T

from .attention_config import I32, KEYS, PANEL, Config

ROLE = 128  # threads of a role
REGISTERS = 72  # of a thread
# copies to shared memory that the kernel itself awaits
ASYNC = {"parallel_prefer_async": True, "parallel_async_without_async_commit_wait": True}


def by_row() -> T.Fragment:
    """Row j of half a tile belongs to the threads that copy it, 16 bytes each of a panel."""
    copiers = PANEL * 2 // 16
    at_once = ROLE // copiers
    return T.Fragment(
        (KEYS,),
        forward_thread_fn=lambda j, copier: j % at_once * copiers + copier,
        forward_index_fn=lambda j: j // at_once,
        replicate=copiers,
    )


def copying(cfg: Config, look_up):
    """The macro of the role. Rows that are not seen come as zeros.

    ``look_up`` is a macro: given ``find``, which is its own, it writes to ``rows`` which entries slots e KEYS to (e + 1) KEYS
    of the compressed entries hold, -1 where none is to be read. It is called for the window too, e < 0, with no effect.
    """
    N, C, D = KEYS, cfg.columns, cfg.D

    @T.macro
    def gather(kv, b, rows, ks, g, half):
        for p in T.unroll(C // PANEL):
            for j, d in T.Parallel(N, PANEL, annotations=ASYNC):
                ks[2 * g + half, j, p * PANEL + d] = T.if_then_else(
                    half * C + p * PANEL + d < D and rows[j] >= 0 and rows[j] < kv.shape[1],
                    kv[b, rows[j], half * C + p * PANEL + d],
                    0,
                )

    @T.macro
    def bring(t, g, half, parity, rows, keys, ks, barriers):
        window_kv, compressed_kv, b = keys[:3]
        T.barrier_wait(barriers.free[2 * g + half], 1 - parity)
        if t < cfg.window_tiles:
            gather(window_kv, b, rows, ks, g, half)
        else:
            gather(compressed_kv, b, rows, ks, g, half)
        T.cp_async_barrier_noinc(barriers.ready[2 * g + half])

    @T.macro
    def bring_half(t, g, parity, rows, find, keys, ks, seen, barriers):
        s, base, oldest = keys[3:]
        look_up(find, 2 * (t - cfg.window_tiles) + g, rows)
        if t < cfg.window_tiles:
            for j in T.Parallel(N):
                slot = t * cfg.tile + g * N + j
                token = s - cfg.window + 1 + slot
                rows[j] = T.if_then_else(token <= s and token >= oldest[0], base[0] + slot + s, -1)
        bring(t, g, g, parity, rows, keys, ks, barriers)
        for j in T.Parallel(N):
            seen[g, j] = rows[j]
        T.barrier_arrive(barriers.listed[g])
        bring(t, g, 1 - g, parity, rows, keys, ks, barriers)

    @T.macro
    def copier(find, keys, first, end, ks, seen, barriers):
        T.set_max_nreg(REGISTERS, 0)
        rows = T.alloc_fragment((N,), I32)
        T.annotate_layout({rows: by_row()})
        for t in T.serial(first, end):
            bring_half(t, 0, (t - first) % 2, rows, find, keys, ks, seen, barriers)
            bring_half(t, 1, (t - first) % 2, rows, find, keys, ks, seen, barriers)

    return copier
