"""Exact top-k of rows: the k first by (score descending, index ascending), listed by index (order: reference/topk.py).

A block holds a piece of a row in registers, as unsigned keys that sort as the scores do; no entry of key 0 is selected.
The search of radix.py ends with an edge: selected are the keys above it, and of those that equal it all, or the first by
index. Ballots write the selection as bits in the order of the indices, and a prefix sum gives each index its place.

A row longer than a block holds is cut into pieces, and the selections of the pieces are selected from again: they are listed
by index, so that ties still fall to the smaller one.
"""

from dataclasses import dataclass

import tilelang.language as T

from .build import aligned, build
from .radix import BINS, CUT, EDGE, I32, STATUS, U32, WANTED, WARP, bound, key_of, narrow, prefix_sum

F32 = "float32"
LEAST, GREATEST = (
    0x00800001,
    0xFF800000,
)  # keys of the least finite score and of +inf; those of -inf and NaN lie outside


@dataclass(frozen=True)
class Config:
    """Static parameters: k; threads of a block, of 32 keys each; whether rows of at most k entries are taken whole."""

    k: int = 512
    dtype: str = "float32"
    threads: int = 1024
    whole: bool = False

    @property
    def piece(self) -> int:
        """Entries of a row that a block holds."""
        return self.threads * WARP


def _load(cfg: Config, merge: bool):
    threads = cfg.threads

    @T.macro
    def load(scores, candidates, row, first, length, entries, L, keys, thread):
        """All loads are under way before the first is waited for; that of the row's length too."""
        values, places = T.alloc_local((WARP,), cfg.dtype), T.alloc_local((WARP,), I32)
        for i in T.unroll(WARP):
            places[i] = first + i * threads + thread
            if merge:
                places[i] = T.if_then_else(i * threads + thread < entries, candidates[row, places[i]], -1)
        if not merge and first + cfg.piece <= L:
            for i in T.unroll(WARP):
                values[i] = scores[row, first + i * threads + thread]
        else:
            for i in T.unroll(WARP):
                values[i] = T.if_then_else(
                    places[i] >= 0 and places[i] < L, scores[row, places[i]], -T.infinity(cfg.dtype)
                )
        for i in T.unroll(WARP):
            keys[i] = key_of(values[i])
        if merge or first + cfg.piece > length:
            for i in T.unroll(WARP):
                if places[i] >= length:
                    keys[i] = T.uint32(0)

    return load


def _list(cfg: Config, merge: bool):
    k, threads = cfg.k, cfg.threads
    in_warp, across_warps = prefix_sum(threads)

    @T.macro
    def write(candidates, out, row, piece, entries, keys, search, masks, totals, sums, thread):
        """The selected of the piece's entries by index, then -1."""
        edge, wanted, left, lowest = T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32)
        selected, equal = T.alloc_var(U32), T.alloc_var(U32)
        count, place, entry = T.alloc_var(I32), T.alloc_var(I32), T.alloc_var(I32)
        edge = search[EDGE]
        wanted = search[WANTED]
        masks[1, thread] = T.uint32(0)
        T.sync_threads()
        for i in T.unroll(WARP):
            selected = T.cast(T.ballot(keys[i] >= edge), U32)
            if thread % WARP == 0:
                masks[0, i * (threads // WARP) + thread // WARP] = selected
        if search[STATUS] == T.uint32(CUT):
            for i in T.unroll(WARP):
                equal = T.cast(T.ballot(keys[i] == edge), U32)
                if thread % WARP == 0:
                    masks[1, i * (threads // WARP) + thread // WARP] = equal
        T.sync_threads()
        selected = masks[0, thread]
        equal = masks[1, thread]
        in_warp(T.popcount(selected ^ equal) + (T.popcount(equal) << T.uint32(16)), totals, thread, sums)
        T.sync_threads()
        across_warps(totals, thread, sums)
        left = wanted - T.min(wanted, sums[0] >> T.uint32(16))
        place = T.cast((sums[0] & T.uint32(0xFFFF)) + T.min(wanted, sums[0] >> T.uint32(16)), I32)
        count = T.cast(T.popcount(selected), I32)
        for _ in T.serial(count):
            lowest = selected & (T.uint32(0) - selected)
            selected = selected ^ lowest
            if (equal & lowest) == T.uint32(0) or left > T.uint32(0):
                entry = thread * WARP + (WARP - 1) - T.min(T.clz(T.reinterpret(I32, lowest)), WARP - 1)
                if place < k and entry < entries:
                    out[row, piece, place] = (
                        candidates[row, piece * cfg.piece + entry] if merge else piece * cfg.piece + entry
                    )
                place += 1
            if (equal & lowest) != T.uint32(0) and left > T.uint32(0):
                left -= T.uint32(1)
        place = T.cast((sums[1] & T.uint32(0xFFFF)) + T.min(wanted, sums[1] >> T.uint32(16)), I32)
        for j in T.serial(T.ceildiv(k, threads)):
            if place <= j * threads + thread and j * threads + thread < k:
                out[row, piece, j * threads + thread] = -1

    return write


def _block(cfg: Config, merge: bool):
    threads = cfg.threads
    load = _load(cfg, merge)
    find_bound, find_edge, write = bound(cfg.k, threads), narrow(threads), _list(cfg, merge)

    @T.macro
    def block(scores, candidates, out, row, piece, length, entries, L):
        """``length``: the entries of the row; ``entries``: from this piece on."""
        keys, sums = T.alloc_local((WARP,), U32), T.alloc_local((2,), U32)
        histogram, search = T.alloc_shared((BINS,), I32), T.alloc_shared((4,), U32)
        totals, masks = T.alloc_shared((threads // WARP,), U32), T.alloc_shared((2, threads), U32)
        thread, at = T.get_thread_binding(), T.alloc_var(I32)
        if cfg.whole and length <= cfg.k:
            for j in T.serial(T.ceildiv(cfg.k, threads)):
                at = j * threads + thread
                if at < cfg.k:
                    out[row, piece, at] = T.if_then_else(piece == 0 and at < length, at, -1)
        else:
            load(scores, candidates, row, piece * cfg.piece, length, entries, L, keys, thread)
            find_bound(keys, search, masks, thread)
            find_edge(keys, search, histogram, totals, sums, thread)
            write(candidates, out, row, piece, entries, keys, search, masks, totals, sums, thread)

    return block


def topk(cfg: Config) -> T.PrimFunc:
    """scores [R,T], lengths [R] -> out [R,N,k]: of each row's N pieces the k first."""
    R, L, N = T.dynamic("R"), T.dynamic("T"), T.dynamic("N")
    block = _block(cfg, False)

    @T.prim_func
    def topk(scores: T.Tensor((R, L), cfg.dtype), lengths: T.Tensor((R,), I32), out: T.Tensor((R, N, cfg.k), I32)):
        with T.Kernel(R, N, threads=cfg.threads) as (row, piece):
            length = T.max(T.min(lengths[row], L), 0)
            block(scores, None, out, row, piece, length, length - piece * cfg.piece, L)

    return topk


def topk_merge(cfg: Config) -> T.PrimFunc:
    """scores [R,T], lengths [R], candidates [R,C], indices in order, then -1 -> out [R,N,k], as ``topk`` over these."""
    R, L, C, N = T.dynamic("R"), T.dynamic("T"), T.dynamic("C"), T.dynamic("N")
    block = _block(cfg, True)

    @T.prim_func
    def topk_merge(
        scores: T.Tensor((R, L), cfg.dtype),
        lengths: T.Tensor((R,), I32),
        candidates: T.Tensor((R, C), I32),
        out: T.Tensor((R, N, cfg.k), I32),
    ):
        with T.Kernel(R, N, threads=cfg.threads) as (row, piece):
            length = T.max(T.min(lengths[row], L), 0)
            block(scores, candidates, out, row, piece, length, C - piece * cfg.piece, L)

    return topk_merge


def _threads(entries: int, most: int) -> int:
    """The least power of two of threads that hold so many entries, within limits."""
    return min(most, max(128, 1 << (-(-entries // WARP) - 1).bit_length()))


def select(scores, lengths, k: int, whole: bool = False):
    """Launch ``topk`` on CUDA tensors scores [R,T] and lengths [R], and ``topk_merge`` while rows have several pieces."""
    rows, length = scores.shape
    scores, lengths, dtype = aligned(scores), aligned(lengths), str(scores.dtype).removeprefix("torch.")
    cfg = Config(k, dtype, _threads(length, 1024), whole)
    out = lengths.new_empty((rows, -(-length // cfg.piece), k))
    build(topk, cfg)(scores, lengths, out)
    while out.shape[1] > 1:
        candidates = out.view(rows, -1)
        cfg = Config(k, dtype, _threads(candidates.shape[1], 256), whole)
        out = lengths.new_empty((rows, -(-candidates.shape[1] // cfg.piece), k))
        build(topk_merge, cfg)(scores, lengths, candidates, out)
    return out.view(rows, k)
