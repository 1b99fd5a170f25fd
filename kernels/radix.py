"""Sortable keys of scores, the k-th largest of those that a block holds, 32 in each thread, and prefix sums over threads."""

import tilelang.language as T

I32, U32 = "int32", "uint32"
WARP = 32
DIGIT, BINS, PASSES = 11, 2048, 3  # three digits cover a key
OPEN, ALL, CUT = 0, 1, 2  # the search goes on, or ends with all keys from the edge on, or with some that equal it
NARROWER = 3  # it goes on, within a bin: modulo 3 it is OPEN
EDGE, TOP, WANTED, STATUS = 0, 1, 2, 3  # what is kept of the search

LEAST, GREATEST = (
    0x00800001,
    0xFF800000,
)  # keys of the least finite score and of +inf; those of -inf and NaN lie outside


@T.macro
def key_of(score):
    """2^31 plus the number whose sign and magnitude the score's bits are; 0 for -inf and NaN."""
    bits = T.reinterpret(U32, T.cast(score, "float32"))
    key = T.if_then_else(bits < T.uint32(1 << 31), bits + T.uint32(1 << 31), T.uint32(0) - bits)
    return T.if_then_else(T.uint32(LEAST) <= key and key <= T.uint32(GREATEST), key, T.uint32(0))


@T.macro
def _inclusive(value, thread):
    """The sum of this lane's value and of those of earlier lanes."""
    running, up = T.alloc_var(U32), T.alloc_var(U32)
    running = value
    for s in T.unroll(5):
        up = T.shfl_up(running, 1 << s)
        if thread % WARP >= 1 << s:
            running += up
    return running


def prefix_sum(threads: int):
    """Two macros, with a barrier to stand between them: sums[0] over the values of earlier threads, sums[1] over all."""
    warps = threads // WARP

    @T.macro
    def in_warp(value, totals, thread, sums):
        sums[1] = _inclusive(value, thread)
        sums[0] = sums[1] - value
        if thread % WARP == WARP - 1:
            totals[thread // WARP] = sums[1]

    @T.macro
    def across_warps(totals, thread, sums):
        lane, warp = thread % WARP, thread // WARP
        running = T.alloc_var(U32)
        running = T.if_then_else(lane < warps, totals[T.min(lane, warps - 1)], T.uint32(0))
        running = _inclusive(running, thread)
        sums[0] += T.if_then_else(warp > 0, T.shfl_sync(running, T.max(warp - 1, 0)), T.uint32(0))
        sums[1] = T.shfl_sync(running, warps - 1)

    return in_warp, across_warps


def bound(k: int, threads: int):
    """A macro: search[EDGE] is a key that at least k keys reach, or 1; search[TOP] the largest key, or 1.

    The keys form groups, at least k of them if there are as many keys: parts of a thread's, or those of several lanes. The
    least of the groups' maxima is such a key.
    """
    groups, warps = min(WARP, 1 << (-(-k // threads) - 1).bit_length()), threads // WARP
    joined = min(5, max(0, (threads // k).bit_length() - 1))  # of the lanes that share a group, the binary logarithm

    @T.macro
    def bound(keys, search, extremes, thread):
        least, most, most_of_group = T.alloc_var(U32), T.alloc_var(U32), T.alloc_var(U32)
        least = T.uint32(2**32 - 1)
        most = T.uint32(1)
        for g in T.unroll(groups):
            most_of_group = T.uint32(1)
            for i in T.unroll(WARP // groups):
                most_of_group = T.max(most_of_group, keys[g * (WARP // groups) + i])
            least = T.min(least, most_of_group)
            most = T.max(most, most_of_group)
        for s in T.unroll(joined):
            least = T.max(least, T.shfl_xor(least, 1 << s))
        for s in T.unroll(joined, 5):
            least = T.min(least, T.shfl_xor(least, 1 << s))
        for s in T.unroll(5):
            most = T.max(most, T.shfl_xor(most, 1 << s))
        if thread % WARP == 0:
            extremes[0, thread // WARP] = least
            extremes[1, thread // WARP] = most
        T.sync_threads()
        least = extremes[0, thread % warps]
        most = extremes[1, thread % warps]
        for s in T.unroll(5):
            least = T.min(least, T.shfl_xor(least, 1 << s))
            most = T.max(most, T.shfl_xor(most, 1 << s))
        if thread == 0:
            search[EDGE] = least
            search[TOP] = most
            search[WANTED] = T.uint32(k)
            search[STATUS] = T.uint32(OPEN)

    return bound


def narrow(threads: int):
    """A macro: from such a bound on, the edge is raised until the keys wanted are all from it on, or some that equal it.

    A histogram of the keys from edge to top tells the bin of the last key wanted. The search ends if all of that bin are
    wanted, or the bin is a single key; else it goes on within the bin.
    """
    bins = BINS // threads
    in_warp, across_warps = prefix_sum(threads)

    @T.macro
    def narrow(keys, search, histogram, totals, sums, thread):
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
                in_warp(before, totals, thread, sums)
            T.sync_threads()
            if status == T.uint32(OPEN):
                across_warps(totals, thread, sums)
                if thread == 0 and sums[1] < wanted:
                    status = T.uint32(ALL)
                before = sums[0]
                for q in T.unroll(bins):
                    if before < wanted and wanted <= before + counts[q]:
                        edge += T.cast(BINS - 1 - (thread * bins + q), U32) << shift
                        status = T.if_then_else(
                            wanted == before + counts[q],
                            T.uint32(ALL),
                            T.if_then_else(shift == T.uint32(0), T.uint32(CUT), T.uint32(NARROWER)),
                        )
                        wanted -= before
                    before += counts[q]
                if status != T.uint32(OPEN):
                    search[EDGE] = edge
                    search[TOP] = edge + ((T.uint32(1) << shift) - T.uint32(1))
                    search[WANTED] = wanted
                    search[STATUS] = status % T.uint32(3)
        T.sync_threads()

    return narrow
