"""Sortable keys of scores, a search for the k-th largest key, and prefix sums over threads.

A block holds the keys, 32 in each thread. The search keeps four numbers in shared memory: an edge, which is at most the
k-th largest key, a top, which is at least that, how many keys are wanted from edge to top, and a status. First groups of
keys give an edge (``bound_edge``), then histograms raise it (``raise_edge``) until the keys wanted are all of those from it
on, or all above it and some that equal it.
"""

from typing import Any, NamedTuple

import tilelang.language as T

I32, U32 = "int32", "uint32"
WARP = 32
DIGIT, BINS, PASSES = 11, 2048, 3  # three digits cover a key
EDGE, TOP, WANTED, STATUS = 0, 1, 2, 3  # where the search keeps its numbers
OPEN = 0  # the search goes on
ALL = 1  # it ends: all keys from the edge on are wanted
CUT = 2  # it ends: all keys above the first from the edge on are wanted, and some that equal that one
NARROWER = 3  # it goes on within a bin; it is OPEN modulo 3
LEAST, GREATEST = 0x00800001, 0xFF800000  # keys of the least finite score and of +inf; -inf and NaN would lie outside


class Memory(NamedTuple):
    """The registers of a thread, and the shared memory of a block."""

    keys: Any  # of the thread
    sums: Any  # two prefix sums over threads
    histogram: Any
    search: Any  # the four numbers
    totals: Any  # a sum for each warp
    masks: Any  # two words for each thread: the extremes of warps, later bits of entries


@T.macro
def key_of(score):
    """Return 2^31 plus the number whose sign and magnitude the score's bits are; 0 for -inf and NaN."""
    bits = T.reinterpret(U32, T.cast(score, "float32"))
    key = T.if_then_else(bits < T.uint32(1 << 31), bits + T.uint32(1 << 31), T.uint32(0) - bits)
    return T.if_then_else(T.uint32(LEAST) <= key and key <= T.uint32(GREATEST), key, T.uint32(0))


@T.macro
def _inclusive(value, thread):
    """Return the sum of this lane's value and of those of earlier lanes."""
    running, up = T.alloc_var(U32), T.alloc_var(U32)
    running = value
    for s in T.unroll(5):
        up = T.shfl_up(running, 1 << s)
        if thread % WARP >= 1 << s:
            running += up
    return running


@T.macro
def sum_in_warp(value, totals, thread, sums):
    """Begin a prefix sum over threads: sums[0] over earlier lanes, sums[1] with this one, ``totals`` over each warp.

    A barrier must stand between this and ``sum_across_warps``.
    """
    sums[1] = _inclusive(value, thread)
    sums[0] = sums[1] - value
    if thread % WARP == WARP - 1:
        totals[thread // WARP] = sums[1]


@T.macro
def sum_across_warps(threads, totals, thread, sums):
    """End the prefix sum: sums[0] is over all earlier threads, sums[1] over all threads."""
    warps = threads // WARP
    lane, warp = thread % WARP, thread // WARP
    running = T.alloc_var(U32)
    running = T.if_then_else(lane < warps, totals[T.min(lane, warps - 1)], T.uint32(0))
    running = _inclusive(running, thread)
    sums[0] += T.if_then_else(warp > 0, T.shfl_sync(running, T.max(warp - 1, 0)), T.uint32(0))
    sums[1] = T.shfl_sync(running, warps - 1)


@T.macro
def bound_edge(k, threads, memory, thread):
    """Begin the search: the edge is a key that at least k keys reach, or 1; the top is the largest key, or 1.

    The edge is the least of the maxima of groups of keys, at least k groups if there are so many keys. A group is a part of
    a thread's keys, or the keys of several lanes.
    """
    groups, warps = min(WARP, 1 << (-(-k // threads) - 1).bit_length()), threads // WARP
    joined = min(5, max(0, (threads // k).bit_length() - 1))  # 2^joined lanes share a group
    least, most, most_of_group = T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32)
    least = T.uint32(2**32 - 1)
    most = T.uint32(1)
    for g in T.unroll(groups):
        most_of_group = T.uint32(1)
        for i in T.unroll(WARP // groups):
            most_of_group = T.max(most_of_group, memory.keys[g * (WARP // groups) + i])
        least = T.min(least, most_of_group)
        most = T.max(most, most_of_group)
    for s in T.unroll(joined):
        least = T.max(least, T.shfl_xor(least, 1 << s))
    for s in T.unroll(joined, 5):
        least = T.min(least, T.shfl_xor(least, 1 << s))
    for s in T.unroll(5):
        most = T.max(most, T.shfl_xor(most, 1 << s))
    if thread % WARP == 0:
        memory.masks[0, thread // WARP] = least
        memory.masks[1, thread // WARP] = most
    T.sync_threads()
    least = memory.masks[0, thread % warps]
    most = memory.masks[1, thread % warps]
    for s in T.unroll(5):
        least = T.min(least, T.shfl_xor(least, 1 << s))
        most = T.max(most, T.shfl_xor(most, 1 << s))
    if thread == 0:
        memory.search[EDGE] = least
        memory.search[TOP] = most
        memory.search[WANTED] = T.uint32(k)
        memory.search[STATUS] = T.uint32(OPEN)


@T.macro
def raise_edge(zeros, threads, memory, thread):
    """Raise the edge until the search ends.

    A histogram of the keys from edge to top tells the bin of the last key wanted. The search ends if all keys of that bin
    are wanted, or if the bin has room for one key alone, all keys being multiples of 2^zeros. Else it goes on within the
    bin.
    """
    keys, sums, search, histogram, totals = memory.keys, memory.sums, memory.search, memory.histogram, memory.totals
    bins = BINS // threads
    edge, span, wanted, status = T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32)
    shift, before = T.alloc_var(U32), T.alloc_var(U32)
    counts = T.alloc_local((bins,), U32)
    for q in T.unroll(bins):
        histogram[BINS - 1 - (thread * bins + q)] = 0
    for _ in T.serial(PASSES):
        T.sync_threads()
        edge = search[EDGE]
        span = search[TOP] - edge
        wanted = search[WANTED]
        status = search[STATUS]
        shift = T.cast(T.max(WARP - DIGIT - T.clz(T.reinterpret(I32, span)), 0), U32)
        if status == T.uint32(OPEN):
            for i in T.unroll(WARP):
                if keys[i] - edge <= span:
                    T.atomic_add(histogram[T.cast(((keys[i] - edge) >> shift) & T.uint32(BINS - 1), I32)], 1)
        T.sync_threads()
        if status == T.uint32(OPEN):
            before = T.uint32(0)
            for q in T.unroll(bins):
                counts[q] = T.cast(histogram[BINS - 1 - (thread * bins + q)], U32)
                histogram[BINS - 1 - (thread * bins + q)] = 0
                before += counts[q]
            sum_in_warp(before, totals, thread, sums)
        T.sync_threads()
        if status == T.uint32(OPEN):
            sum_across_warps(threads, totals, thread, sums)
            if thread == 0 and sums[1] < wanted:
                status = T.uint32(ALL)
            before = sums[0]
            for q in T.unroll(bins):
                if before < wanted and wanted <= before + counts[q]:
                    edge += T.cast(BINS - 1 - (thread * bins + q), U32) << shift
                    status = T.if_then_else(
                        wanted == before + counts[q],
                        T.uint32(ALL),
                        T.if_then_else(shift <= T.uint32(zeros), T.uint32(CUT), T.uint32(NARROWER)),
                    )
                    wanted -= before
                before += counts[q]
            if status != T.uint32(OPEN):
                search[EDGE] = edge
                search[TOP] = edge + ((T.uint32(1) << shift) - T.uint32(1))
                search[WANTED] = wanted
                search[STATUS] = status % T.uint32(3)
    T.sync_threads()
