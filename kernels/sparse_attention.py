"""Attention of the heads of a query over keys that are their own values (formula: reference/attention.py).

This is the schedule of both CSA and HCA. A block of threads takes a query, up to 64 of its heads, and one split of the
tiles of keys; if all keys are one split, it takes one query after another, in HCA where these see about as many entries.
Each of them has as many tiles. A tile has 128 slots for keys, of the window and then of the entries. The warps of a block
have three roles.

- The producer copies the query and its keys to shared memory. It fills a slot without a key with zeros and lists its row as
  -1, so that its weight is 0. It is as far ahead as there is room: the next query comes while the last tile is weighed.
- Consumer g, for g = 0 and 1, computes the scores q kᵀ of half g of a tile and their weights exp2(c (score - row_max)),
  with c = scale log2 e. It then adds weight times key, for all keys of the tile, to half g of the columns of acc.

A sum is right whatever row_max is, as long as no weight overflows. So row_max is the maximum up to GROWTH bits: it is raised
to the largest score where that exceeds it by more, and few tiles have sums multiplied by exp2(c (old row_max - new row_max)).

The consumers hand each other their weights and the running maximum through shared memory. So the tensor cores multiply
for one consumer while the other computes weights. A barrier is passed once in each iteration of the loop over tiles, so
that its phase is the parity of the tiles done; or once for each query, so that it is the parity of the queries done.

At the end row_sum = Σ exp2(c (score - row_max)) and acc = Σ exp2(c (score - row_max)) k. A block of the only split writes

    lse = scale row_max + log row_sum,    out = acc / (row_sum + exp(sink - scale row_max)).

A block of one of several splits writes scale row_max, row_sum and acc in fp32, which kernels/combine.py combines.
"""

from typing import Any, NamedTuple

import tilelang.language as T

from .sparse_attention_config import BF16, F32, HEADS, I32, KEYS, LOG2E, PANEL
from .sparse_attention_layouts import WARPGROUP, copy_layout, head_layout, row_by_row, row_layout

GROWTH = 8.0  # bits by which scores may exceed the running maximum before it is raised
LOWEST = -(2.0**30)  # a running maximum starts here: finite, and below every admissible q · k
THREADS = 3 * WARPGROUP  # of a block, one warpgroup for each role
BLOCKS = 132  # at most, of a split of a sequence: as many as a Hopper GPU has multiprocessors, of which each holds one
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 72, 216  # of a thread
# the kernel itself waits for its copies to shared memory
ASYNC = {"parallel_prefer_async": True, "parallel_async_without_async_commit_wait": True}

# 2^x in one instruction: CUDA C's exp2f adds steps for results below 2^-126, which become 0 here
EXP2 = """__device__ __forceinline__ float exp2_ftz(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;
}
"""


class Names(NamedTuple):
    """The names in the kernel that its proof binds: of loops and of buffers, a pair for two consumers."""

    round: str = "i"
    tile: str = "t"
    acc: tuple[str, str] = ("acc0", "acc1")
    row_max: tuple[str, str] = ("row_max0", "row_max1")
    row_sum: tuple[str, str] = ("row_sum0", "row_sum1")
    keys: str = "k_shared"
    rows: str = "rows_shared"


NAMES = Names()


class Block(NamedTuple):
    """A block of threads: what it takes first, by its number among the queries' blocks of heads."""

    number: Any
    split: Any
    b: Any  # sequence


class Place(NamedTuple):
    """Where a block works in a round: on which query, heads and tiles."""

    b: Any  # sequence
    s: Any  # query
    head: Any  # the first of its heads
    split: Any
    first: Any  # tile of the split
    end: Any  # one more than its last tile
    i: Any  # rounds done
    done: Any  # tiles done in them


class Rounds(NamedTuple):
    """The queries that a block takes, one in each round, and the tiles of each."""

    block: Block
    count: Any  # rounds
    tiles: Any  # of a query, in all splits


class Keys(NamedTuple):
    """The tensors that hold keys, and what tells which of their rows a query attends to."""

    window_kv: Any
    compressed_kv: Any
    base: Any  # slot i of the window of query s is row base + i + s of window_kv
    oldest: Any  # token that has a row and a position, counted from query 0
    entries: Any  # what the operator's macro list_entries reads


class Output(NamedTuple):
    """The tensors of the epilogue: the sink, which it reads, and the results."""

    sink: Any
    out: Any
    stats: Any


class Barriers(NamedTuple):
    """The barriers of a block, named after what they announce."""

    q_ready: Any  # q is filled
    q_free: Any  # q may be refilled
    keys_ready: Any  # [i]: buffer i of keys is filled
    keys_free: Any  # [i]: buffer i of keys may be refilled
    rows_ready: Any  # [g]: the rows of half g of a tile are listed
    weights_ready: Any  # [g]: the weights of half g of a tile are written
    sums_ready: Any  # both consumers have written their row_sum


class Shared(NamedTuple):
    """The shared memory of a block; index g is half g of a tile, or consumer g and its half of the columns."""

    q: Any  # [g]: half of the columns
    keys: Any  # [2 g + half]: half of the columns
    weights: Any  # [g], relative to row_max[g]
    row_max: Any  # [g]: the running maximum after half g
    row_sum: Any  # [g]: the final sum
    rows: Any  # [g]: of which row each key is, -1 where there is none
    barriers: Barriers


class Running(NamedTuple):
    """What a consumer carries from tile to tile; ``growth`` is c (new row_max - old row_max), ``rescale`` exp2(-growth)."""

    acc: Any
    row_max: Any
    row_sum: Any
    growth: Any
    rescale: Any


class HalfTile(NamedTuple):
    """Half g of tile t of the keys of a query."""

    at: Place
    t: Any
    g: int


def place(cfg, rounds, i) -> Place:
    """Return where a block works in round i."""
    number, split, b = rounds.block
    item = number + i * BLOCKS
    first, end = rounds.tiles * split // cfg.splits, rounds.tiles * (split + 1) // cfg.splits
    s, head = item // cfg.head_blocks, item % cfg.head_blocks * HEADS
    return Place(b, s, head, split, first, end, i, i * (end - first))


def exp2(x):
    """Return 2^x, 0 for results below 2^-126."""
    return T.call_extern(F32, "exp2_ftz", x)


@T.macro
def gather(cfg, tile, half, kv, rows, shared):
    """Copy half of the columns of the rows listed; a row that is not one of kv's becomes zeros."""
    first = half * cfg.columns
    for p in T.unroll(cfg.columns // PANEL):
        for j, d in T.Parallel(KEYS, PANEL, loop_layout=copy_layout(PANEL), annotations=ASYNC):
            shared.keys[2 * tile.g + half, j, p * PANEL + d] = T.if_then_else(
                first + p * PANEL + d < cfg.D and rows[j] >= 0 and rows[j] < kv.shape[1],
                kv[tile.at.b, rows[j], first + p * PANEL + d],
                0,
            )


@T.macro
def copy_columns(cfg, tile, half, keys, rows, shared):
    """Copy half of the columns of half a tile, and announce them when they have arrived."""
    if tile.t < cfg.window_tiles:
        gather(cfg, tile, half, keys.window_kv, rows, shared)
    else:
        gather(cfg, tile, half, keys.compressed_kv, rows, shared)
    T.cp_async_barrier_noinc(shared.barriers.keys_ready[2 * tile.g + half])


@T.macro
def copy_tile(cfg, tile, keys, rows, shared, list_entries):
    """List the rows of half a tile and copy them into buffers that are free; consumer g needs columns g first."""
    at, t, g = tile
    parity = (at.done + t - at.first) % 2
    list_entries(keys.entries, at, 2 * (t - cfg.window_tiles) + g, rows)
    if t < cfg.window_tiles:
        for j in T.Parallel(KEYS):
            slot = t * cfg.tile + g * KEYS + j
            token = at.s - cfg.window + 1 + slot
            rows[j] = T.if_then_else(token <= at.s and token >= keys.oldest[0], keys.base[0] + slot + at.s, -1)
    T.barrier_wait(shared.barriers.keys_free[3 * g], 1 - parity)
    copy_columns(cfg, tile, g, keys, rows, shared)
    for j in T.Parallel(KEYS, loop_layout=row_layout()):
        shared.rows[g, j] = rows[j]
    T.barrier_arrive(shared.barriers.rows_ready[g])
    T.barrier_wait(shared.barriers.keys_free[1 + g], 1 - parity)
    copy_columns(cfg, tile, 1 - g, keys, rows, shared)


@T.macro
def load_query(cfg, at, q, shared):
    """Copy q to shared memory, once the last scores of the query before are there."""
    T.barrier_wait(shared.barriers.q_free, 1 - at.done % 2)
    for g in T.unroll(2):
        for p in T.unroll(cfg.columns // PANEL):
            for h, d in T.Parallel(HEADS, PANEL, loop_layout=copy_layout(PANEL), annotations=ASYNC):
                column = g * cfg.columns + p * PANEL + d
                shared.q[g, h, p * PANEL + d] = T.if_then_else(
                    at.head + h < cfg.H and column < cfg.D, q[at.b, at.s, at.head + h, column], 0
                )
    T.cp_async_barrier_noinc(shared.barriers.q_ready)


@T.macro
def producer(cfg, at, q, keys, shared, list_entries):
    """Copy a query and the keys of its split, tile by tile."""
    rows = T.alloc_fragment((KEYS,), I32)
    T.annotate_layout({rows: row_layout()})
    load_query(cfg, at, q, shared)
    for t in T.serial(at.first, at.end):
        copy_tile(cfg, HalfTile(at, t, 0), keys, rows, shared, list_entries)
        copy_tile(cfg, HalfTile(at, t, 1), keys, rows, shared, list_entries)


@T.macro
def begin_query(at, shared, running):
    """Set the sums to 0, and wait for q."""
    T.fill(running.acc, 0)
    T.fill(running.row_max, LOWEST)
    T.fill(running.row_sum, 0)
    T.barrier_wait(shared.barriers.q_ready, at.i % 2)
    T.fence_proxy_async()


@T.macro
def compute_scores(g, parity, scores, shared):
    """Compute q kᵀ for half g of a tile, -inf where a slot has no key; buffers of keys are taken as they are filled."""
    T.barrier_wait(shared.barriers.keys_ready[3 * g], parity)
    T.fence_proxy_async()
    T.wgmma_gemm(shared.q[g, :, :], shared.keys[3 * g, :, :], scores, transpose_B=True, clear_accum=True)
    T.barrier_wait(shared.barriers.keys_ready[1 + g], parity)
    T.fence_proxy_async()
    T.wgmma_gemm(shared.q[1 - g, :, :], shared.keys[1 + g, :, :], scores, transpose_B=True)
    T.wait_wgmma(0)
    T.warpgroup_fence_operand(scores, num_regs=HEADS * KEYS // WARPGROUP)
    T.barrier_wait(shared.barriers.rows_ready[g], parity)
    for h, j in T.Parallel(HEADS, KEYS):
        scores[h, j] = T.if_then_else(shared.rows[g, j] >= 0, scores[h, j], -T.infinity(F32))
    T.barrier_arrive(shared.barriers.q_free)


@T.macro
def softmax_weights(cfg, g, scores, row_max, weights, shared):
    """Replace the scores of half g by their weights, and hand these to the other consumer in bf16."""
    for h, j in T.Parallel(HEADS, KEYS):
        scores[h, j] = exp2(scores[h, j] * cfg.log2_scale - row_max[h] * cfg.log2_scale)
    T.copy(scores, weights)
    T.copy(weights, shared.weights[g, :, :])
    T.fence_proxy_async()
    T.barrier_arrive(shared.barriers.weights_ready[g])


@T.macro
def choose_max(cfg, running, largest):
    """Replace the largest new scores by the maximum to go on with: the old one, unless they exceed it by more than GROWTH."""
    for h in T.Parallel(HEADS):
        growth = (largest[h] - running.row_max[h]) * cfg.log2_scale
        largest[h] = T.if_then_else(growth > GROWTH, largest[h], running.row_max[h])


@T.macro
def replace_max(cfg, running, row_max):
    """Go on with another maximum: the old one, or one larger by more than GROWTH."""
    for h in T.Parallel(HEADS):
        running.growth[h] = (row_max[h] - running.row_max[h]) * cfg.log2_scale
    for h in T.Parallel(HEADS):
        running.row_max[h] = row_max[h]
    for h in T.Parallel(HEADS):
        running.rescale[h] = exp2(-running.growth[h])


@T.macro
def apply_rescale(cfg, running):
    """Make the sums relative to the new maximum; acc only where it was raised, which few tiles do."""
    for h in T.Parallel(HEADS):
        running.row_sum[h] *= running.rescale[h]
    for h, d in T.Parallel(HEADS, cfg.columns, loop_layout=row_by_row(cfg.columns)):
        if running.growth[h] > GROWTH:
            running.acc[h, d] *= running.rescale[h]


@T.macro
def finish_product(cfg, acc, shared, buffer):
    """Wait for the products into acc, and free the buffer of keys that they read."""
    T.wait_wgmma(0)
    T.warpgroup_fence_operand(acc, num_regs=HEADS * cfg.columns // WARPGROUP)
    T.barrier_arrive(shared.barriers.keys_free[buffer])


@T.macro
def consumer0(cfg, at, shared, running):
    """Weigh half 0 of each tile, and add up half 0 of the columns over the keys of half 0, then of half 1."""
    scores, weights = T.alloc_fragment((HEADS, KEYS), F32), T.alloc_fragment((HEADS, KEYS), BF16)
    reduced = T.alloc_fragment((HEADS,), F32)
    for t in T.serial(at.first, at.end):
        compute_scores(0, (at.done + t - at.first) % 2, scores, shared)
        T.reduce_max(scores, reduced, dim=1)
        choose_max(cfg, running, reduced)
        replace_max(cfg, running, reduced)
        for h in T.Parallel(HEADS, loop_layout=head_layout()):
            shared.row_max[0, h] = running.row_max[h]
        softmax_weights(cfg, 0, scores, running.row_max, weights, shared)
        apply_rescale(cfg, running)
        T.wgmma_gemm(weights, shared.keys[0, :, :], running.acc)
        T.reduce_sum(scores, reduced, dim=1)
        for h in T.Parallel(HEADS):
            running.row_sum[h] += reduced[h]
        finish_product(cfg, running.acc, shared, 0)
        T.barrier_wait(shared.barriers.weights_ready[1], (at.done + t - at.first) % 2)
        T.copy(shared.row_max[1, :], running.rescale)
        replace_max(cfg, running, running.rescale)
        apply_rescale(cfg, running)
        T.wgmma_gemm(shared.weights[1, :, :], shared.keys[2, :, :], running.acc)
        finish_product(cfg, running.acc, shared, 2)


@T.macro
def consumer1(cfg, at, shared, running):
    """Weigh half 1 of each tile, and add up half 1 of the columns over the keys of half 0, then of half 1."""
    scores, weights = T.alloc_fragment((HEADS, KEYS), F32), T.alloc_fragment((HEADS, KEYS), BF16)
    reduced = T.alloc_fragment((HEADS,), F32)
    for t in T.serial(at.first, at.end):
        compute_scores(1, (at.done + t - at.first) % 2, scores, shared)
        T.reduce_max(scores, reduced, dim=1)
        T.barrier_wait(shared.barriers.weights_ready[0], (at.done + t - at.first) % 2)
        T.copy(shared.row_max[0, :], running.rescale)
        replace_max(cfg, running, running.rescale)
        apply_rescale(cfg, running)
        T.wgmma_gemm(shared.weights[0, :, :], shared.keys[1, :, :], running.acc)
        choose_max(cfg, running, reduced)
        replace_max(cfg, running, reduced)
        for h in T.Parallel(HEADS, loop_layout=head_layout()):
            shared.row_max[1, h] = running.row_max[h]
        softmax_weights(cfg, 1, scores, running.row_max, weights, shared)
        T.reduce_sum(scores, reduced, dim=1)
        finish_product(cfg, running.acc, shared, 1)
        apply_rescale(cfg, running)
        T.wgmma_gemm(weights, shared.keys[3, :, :], running.acc)
        for h in T.Parallel(HEADS):
            running.row_sum[h] += reduced[h]
        finish_product(cfg, running.acc, shared, 3)


@T.macro
def exchange_sums(g, at, running, shared):
    """Hand the sum of consumer g to the other one, and wait for the other's; then nobody reads the weights any more."""
    for h in T.Parallel(HEADS, loop_layout=head_layout()):
        shared.row_sum[g, h] = running.row_sum[h]
    T.barrier_arrive(shared.barriers.sums_ready)
    T.barrier_wait(shared.barriers.sums_ready, at.i % 2)


@T.macro
def write_output(cfg, g, at, running, shared, output):
    """Write half g of the columns of the result of all keys; consumer 0 writes the lse too."""
    exchange_sums(g, at, running, shared)
    for h in T.Parallel(HEADS):
        running.row_sum[h] = shared.row_sum[0, h] + shared.row_sum[1, h]
    if g == 0:
        for h in T.Parallel(HEADS, loop_layout=head_layout()):
            if at.head + h < cfg.H:
                output.stats[at.b, at.split, 0, at.s, at.head + h] = T.if_then_else(
                    running.row_sum[h] > 0, running.row_max[h] * cfg.scale + T.log(running.row_sum[h]), T.infinity(F32)
                )
    for h in T.Parallel(HEADS):  # a loop of its own: in one with the next it takes more registers than there are
        running.growth[h] = output.sink[T.min(at.head + h, cfg.H - 1)] * LOG2E - running.row_max[h] * cfg.log2_scale
    for h in T.Parallel(HEADS):
        exp_sink = T.exp2(running.growth[h])
        running.rescale[h] = T.if_then_else(running.row_sum[h] > 0, 1 / (running.row_sum[h] + exp_sink), 0)
    for h, d in T.Parallel(HEADS, cfg.columns):
        running.acc[h, d] *= running.rescale[h]
    for p in T.unroll(cfg.columns // PANEL):
        # in place of weights, so that whole rows are stored
        for h, d in T.Parallel(HEADS, PANEL):
            shared.weights[g, h, d] = running.acc[h, p * PANEL + d]
        for h, d in T.Parallel(HEADS, PANEL, loop_layout=copy_layout(PANEL)):
            column = g * cfg.columns + p * PANEL + d
            if at.head + h < cfg.H and column < cfg.D:
                output.out[at.b, at.split, at.s, at.head + h, column] = shared.weights[g, h, d]


@T.macro
def write_split(cfg, g, at, running, shared, output):
    """Write half g of the columns of acc; consumer 0 writes the split's maximum and sum too."""
    exchange_sums(g, at, running, shared)
    if g == 0:
        for h in T.Parallel(HEADS, loop_layout=head_layout()):
            if at.head + h < cfg.H:
                output.stats[at.b, at.split, 0, at.s, at.head + h] = running.row_max[h] * cfg.scale
                output.stats[at.b, at.split, 1, at.s, at.head + h] = shared.row_sum[0, h] + shared.row_sum[1, h]
    for h, d in T.Parallel(HEADS, cfg.columns):
        if at.head + h < cfg.H and g * cfg.columns + d < cfg.D:
            output.out[at.b, at.split, at.s, at.head + h, g * cfg.columns + d] = running.acc[h, d]


@T.macro
def attend(cfg, rounds, q, keys, output, list_entries):
    """Compute what a block writes: in each round the attention of some heads of a query over a split of its keys.

    ``list_entries(keys.entries, at, e, rows)`` is the operator's macro. It writes to ``rows`` which entry each slot from
    e KEYS to (e + 1) KEYS - 1 holds, -1 where there is none. It is called in the window's tiles too, with e < 0 and no effect.
    """
    q_shared = T.alloc_shared((2, HEADS, cfg.columns), BF16)
    k_shared = T.alloc_shared((4, KEYS, cfg.columns), BF16)
    weights_shared = T.alloc_shared((2, HEADS, KEYS), BF16)
    row_max_shared = T.alloc_shared((2, HEADS), F32, scope="shared")
    row_sum_shared = T.alloc_shared((2, HEADS), F32, scope="shared")
    rows_shared = T.alloc_shared((2, KEYS), I32, scope="shared")
    q_ready, q_free = T.alloc_barrier(WARPGROUP), T.alloc_barrier(2 * WARPGROUP)
    keys_ready, keys_free = T.alloc_barrier([WARPGROUP] * 4), T.alloc_barrier([WARPGROUP] * 4)
    rows_ready, weights_ready = T.alloc_barrier([WARPGROUP] * 2), T.alloc_barrier([WARPGROUP] * 2)
    sums_ready = T.alloc_barrier(2 * WARPGROUP)
    barriers = Barriers(q_ready, q_free, keys_ready, keys_free, rows_ready, weights_ready, sums_ready)
    shared = Shared(q_shared, k_shared, weights_shared, row_max_shared, row_sum_shared, rows_shared, barriers)
    acc0, row_max0 = T.alloc_fragment((HEADS, cfg.columns), F32), T.alloc_fragment((HEADS,), F32)
    row_sum0, rescale0 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    growth0, growth1 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    acc1, row_max1 = T.alloc_fragment((HEADS, cfg.columns), F32), T.alloc_fragment((HEADS,), F32)
    row_sum1, rescale1 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    running0 = Running(acc0, row_max0, row_sum0, growth0, rescale0)
    running1 = Running(acc1, row_max1, row_sum1, growth1, rescale1)
    write = write_output if cfg.splits == 1 else write_split
    if cfg.splits > 1:
        T.pdl_trigger()  # lets combine be launched early; it waits for this kernel's results
    thread = T.get_thread_binding()
    if thread < WARPGROUP:
        T.set_max_nreg(PRODUCER_REGISTERS, 0)
        for i in T.serial(rounds.count):
            producer(cfg, place(cfg, rounds, i), q, keys, shared, list_entries)
    elif thread < 2 * WARPGROUP:
        T.set_max_nreg(CONSUMER_REGISTERS, 1)
        for i in T.serial(rounds.count):
            begin_query(place(cfg, rounds, i), shared, running0)
            consumer0(cfg, place(cfg, rounds, i), shared, running0)
            write(cfg, 0, place(cfg, rounds, i), running0, shared, output)
    else:
        T.set_max_nreg(CONSUMER_REGISTERS, 1)
        for i in T.serial(rounds.count):
            begin_query(place(cfg, rounds, i), shared, running1)
            consumer1(cfg, place(cfg, rounds, i), shared, running1)
            write(cfg, 1, place(cfg, rounds, i), running1, shared, output)
