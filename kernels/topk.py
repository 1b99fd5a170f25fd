"""Exact top-k of rows: the k first by (score descending, index ascending), listed by index (order: reference/topk.py).

A block of threads holds a piece of a row in registers, as unsigned keys that sort as the scores do. An entry with key 0 is
never selected. The search of kernels/radix.py ends with an edge. The keys above it are selected, and those equal to it are
all selected or only the first by index. Ballots write the selection as bits in the order of the indices, and a prefix sum
gives each index its place.

How many entries a row has comes with it, or is all of them, or is told by the position of a query: the entries that it sees.

A row longer than a piece is cut into pieces, and the k first of all are selected from the selections of the pieces. These
are listed by index, so that ties still go to the smaller index.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T
import torch

from .build import Launch, aligned, build, planned
from .radix import (
    BINS,
    CUT,
    EDGE,
    I32,
    STATUS,
    U32,
    WANTED,
    WARP,
    Memory,
    bound_edge,
    key_of,
    raise_edge,
    sum_across_warps,
    sum_in_warp,
)


@dataclass(frozen=True)
class Config:
    """The operator's k and the dtype of the scores; the threads of a block; what the rows are.

    With a ratio other than 0 row r is that of the query at position ``lengths[r]``, which sees ``(lengths[r] + 1) // ratio``
    entries; a row of at most k of them is taken whole, with NaN and -inf.
    """

    k: int = 512
    dtype: str = "float32"
    threads: int = 1024  # each holds 32 keys
    ratio: int = 0

    @property
    def zeros(self) -> int:
        """Return how many low bits are 0 in every key."""
        return 16 if self.dtype == "bfloat16" else 0

    @property
    def piece(self) -> int:
        """Return how many entries of a row a block holds."""
        return self.threads * WARP

    @property
    def blocks(self) -> int:
        """Return how many blocks are to fit a multiprocessor: as many as have 64 registers a thread, if that spills none."""
        return 1024 // self.threads if self.threads > 128 else 1


class Tensors(NamedTuple):
    """The tensors of a call; ``candidates`` are the indices to select from, None for all."""

    scores: Any
    candidates: Any
    out: Any


class Piece(NamedTuple):
    """Where a block works: piece ``index`` of a row. ``entries`` counts the row's from this piece on; L is its width."""

    row: Any
    index: Any
    length: Any  # of the row
    entries: Any
    L: Any


@T.macro
def length_of(cfg, lengths, row, M, L):
    """Return how many entries a row has, from 0 to L; one that lengths do not reach has all."""
    return T.max(
        T.min(
            T.if_then_else(row < M, lengths[row] if cfg.ratio == 0 else (lengths[row] + 1) // cfg.ratio, L),
            L,
        ),
        0,
    )


@T.macro
def load(cfg, tensors, at, keys, thread):
    """Load a thread's keys; all loads are issued before the first is waited for, that of the row's length too."""
    row, length, entries, L = at.row, at.length, at.entries, at.L
    first = at.index * cfg.piece
    merge = tensors.candidates is not None
    values, places = T.alloc_local((WARP,), cfg.dtype), T.alloc_local((WARP,), I32)
    for i in T.unroll(WARP):
        places[i] = first + i * cfg.threads + thread
        if merge:
            places[i] = T.if_then_else(i * cfg.threads + thread < entries, tensors.candidates[row, places[i]], -1)
    if not merge and first + cfg.piece <= L:
        for i in T.unroll(WARP):
            values[i] = tensors.scores[row, first + i * cfg.threads + thread]
    else:
        for i in T.unroll(WARP):
            values[i] = T.if_then_else(
                places[i] >= 0 and places[i] < L, tensors.scores[row, places[i]], -T.infinity(cfg.dtype)
            )
    for i in T.unroll(WARP):
        keys[i] = key_of(values[i])
    if merge or first + cfg.piece > length:
        for i in T.unroll(WARP):
            if places[i] >= length:
                keys[i] = T.uint32(0)


@T.macro
def write_selection(cfg, tensors, at, memory, thread):
    """Write the selected entries of the piece by index, then -1."""
    row, piece, entries = at.row, at.index, at.entries
    search, masks, sums = memory.search, memory.masks, memory.sums
    warps = cfg.threads // WARP
    edge, wanted, left, lowest = T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32)
    selected, equal = T.alloc_var(U32), T.alloc_var(U32)
    count, place, entry = T.alloc_var(I32), T.alloc_var(I32), T.alloc_var(I32)
    edge = search[EDGE]
    if cfg.zeros:
        edge = (edge + T.uint32(2**cfg.zeros - 1)) & T.uint32(2**32 - 2**cfg.zeros)  # the first key from the edge on
    wanted = search[WANTED]
    masks[1, thread] = T.uint32(0)
    T.sync_threads()
    for i in T.unroll(WARP):
        selected = T.cast(T.ballot(memory.keys[i] >= edge), U32)
        if thread % WARP == 0:
            masks[0, i * warps + thread // WARP] = selected
    if search[STATUS] == T.uint32(CUT):
        for i in T.unroll(WARP):
            equal = T.cast(T.ballot(memory.keys[i] == edge), U32)
            if thread % WARP == 0:
                masks[1, i * warps + thread // WARP] = equal
    T.sync_threads()
    selected = masks[0, thread]  # a bit for each of 32 entries in a row
    equal = masks[1, thread]  # those that equal the edge, if not all such are wanted
    sum_in_warp(T.popcount(selected ^ equal) + (T.popcount(equal) << T.uint32(16)), memory.totals, thread, sums)
    T.sync_threads()
    sum_across_warps(cfg.threads, memory.totals, thread, sums)
    left = wanted - T.min(wanted, sums[0] >> T.uint32(16))
    place = T.cast((sums[0] & T.uint32(0xFFFF)) + T.min(wanted, sums[0] >> T.uint32(16)), I32)
    count = T.cast(T.popcount(selected), I32)
    for _ in T.serial(count):
        lowest = selected & (T.uint32(0) - selected)
        selected = selected ^ lowest
        if (equal & lowest) == T.uint32(0) or left > T.uint32(0):
            entry = thread * WARP + (WARP - 1) - T.min(T.clz(T.reinterpret(I32, lowest)), WARP - 1)
            if place < cfg.k and entry < entries:
                tensors.out[row, piece, place] = (
                    piece * cfg.piece + entry
                    if tensors.candidates is None
                    else tensors.candidates[row, piece * cfg.piece + entry]
                )
            place += 1
        if (equal & lowest) != T.uint32(0) and left > T.uint32(0):
            left -= T.uint32(1)
    place = T.cast((sums[1] & T.uint32(0xFFFF)) + T.min(wanted, sums[1] >> T.uint32(16)), I32)
    for j in T.serial(T.ceildiv(cfg.k, cfg.threads)):
        if place <= j * cfg.threads + thread and j * cfg.threads + thread < cfg.k:
            tensors.out[row, piece, j * cfg.threads + thread] = -1


@T.macro
def select_piece(cfg, tensors, at):
    """Write the k first of a piece, or the whole row if it is a query's and has at most k entries."""
    keys, sums = T.alloc_local((WARP,), U32), T.alloc_local((2,), U32)
    histogram, search = T.alloc_shared((BINS,), I32), T.alloc_shared((4,), U32)
    totals, masks = T.alloc_shared((cfg.threads // WARP,), U32), T.alloc_shared((2, cfg.threads), U32)
    memory = Memory(keys, sums, histogram, search, totals, masks)
    thread, slot = T.get_thread_binding(), T.alloc_var(I32)
    if cfg.ratio != 0 and at.length <= cfg.k:
        for j in T.serial(T.ceildiv(cfg.k, cfg.threads)):
            slot = j * cfg.threads + thread
            if slot < cfg.k:
                tensors.out[at.row, at.index, slot] = T.if_then_else(at.index == 0 and slot < at.length, slot, -1)
    else:
        load(cfg, tensors, at, keys, thread)
        bound_edge(cfg.k, cfg.threads, memory, thread)
        raise_edge(cfg.zeros, cfg.threads, memory, thread)
        write_selection(cfg, tensors, at, memory, thread)


def topk(cfg: Config) -> T.PrimFunc:
    """Select the k first of each of the N pieces of a row."""
    R, L, M, N = T.dynamic("R"), T.dynamic("T"), T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def topk(scores: T.Tensor((R, L), cfg.dtype), lengths: T.Tensor((M,), I32), out: T.Tensor((R, N, cfg.k), I32)):
        with T.Kernel(R, N, threads=cfg.threads) as (row, piece):
            T.annotate_min_blocks_per_sm(cfg.blocks)
            length = length_of(cfg, lengths, row, M, L)
            entries = length - piece * cfg.piece
            select_piece(cfg, Tensors(scores, None, out), Piece(row, piece, length, entries, L))

    return topk


def topk_merge(cfg: Config) -> T.PrimFunc:
    """Select the k first of each of the N pieces of the candidates, which are indices in order, then -1."""
    R, L, M, C, N = T.dynamic("R"), T.dynamic("T"), T.dynamic("M"), T.dynamic("C"), T.dynamic("N")

    @T.prim_func
    def topk_merge(
        scores: T.Tensor((R, L), cfg.dtype),
        lengths: T.Tensor((M,), I32),
        candidates: T.Tensor((R, C), I32),
        out: T.Tensor((R, N, cfg.k), I32),
    ):
        with T.Kernel(R, N, threads=cfg.threads) as (row, piece):
            length = length_of(cfg, lengths, row, M, L)
            entries = C - piece * cfg.piece
            select_piece(cfg, Tensors(scores, candidates, out), Piece(row, piece, length, entries, L))

    return topk_merge


def _threads(entries: int, most: int) -> int:
    """Return the least power of two of threads that hold so many entries, from 128 to ``most``."""
    return min(most, max(128, 1 << (-(-entries // WARP) - 1).bit_length()))


class Step(NamedTuple):
    """A kernel of a call and the pieces of a row that it leaves."""

    kernel: Launch
    pieces: int


@planned
def _plan(columns: int, dtype: torch.dtype, k: int, ratio: int) -> list[Step]:
    """Return the kernels that rows of so many columns take, until one piece is left of each."""
    name = str(dtype).removeprefix("torch.")
    cfg = Config(k, name, _threads(columns, 1024), ratio)
    steps = [Step(build(topk, cfg), -(-columns // cfg.piece))]
    while (pieces := steps[-1].pieces) > 1:
        cfg = Config(k, name, _threads(pieces * k, 256), ratio)
        steps.append(Step(build(topk_merge, cfg), -(-pieces * k // cfg.piece)))
    return steps


@functools.cache
def _no_lengths(device: torch.device) -> torch.Tensor:
    """Return a tensor of no elements, which is never read nor written, so that any call may have it."""
    return torch.empty(0, dtype=torch.int32, device=device)


def select(scores, lengths, k: int):
    """Launch the kernels on CUDA tensors; return the indices, [R, k]. Without lengths, None, every row has all entries."""
    return select_pieces(scores, lengths, k, 0).view(-1, k)


def select_pieces(scores, lengths, k: int, ratio: int):
    """Launch ``topk``, then ``topk_merge`` until a row has one piece; return the indices, [R, 1, k]."""
    rows, columns = scores.shape
    scores = aligned(scores)
    lengths = _no_lengths(scores.device) if lengths is None else aligned(lengths)
    first, *merges = _plan(columns, scores.dtype, k, ratio)
    out = lengths.new_empty(rows, first.pieces, k)
    first.kernel(scores, lengths, out)
    for kernel, pieces in merges:
        candidates = out.view(rows, -1)
        out = lengths.new_empty(rows, pieces, k)
        kernel(scores, lengths, candidates, out)
    return out
