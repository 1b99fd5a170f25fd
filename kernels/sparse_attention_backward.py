"""Gradients of attention whose keys are their own values (formula: ``attend_bwd`` in reference/attention.py).

This is the schedule of the backward of CSA, HCA and SWA. A block of threads takes one query and up to 64 of its heads. It goes
through all keys of the query in tiles of 64 slots; the tiles of the window come first, then those of the compressed entries.
With z = scale q k, w = σ(lse - sink), p = exp(z - lse), P = w p, and for each head c = dlse - w Δ, where Δ = out · dout:

    dz = p (w dout · k + c),    dq = scale Σ dz k,    part of a key = scale Σ_h dz q + Σ_h P dout

A key's gradient is the sum of its parts over the queries. The parts are written out, each by one block, and added up in the
order of the queries (kernels/gradient_sums.py); so no sum depends on the order in which blocks run.

The warps of a block have three roles.

- The producer copies keys to shared memory. It fills a slot without a key with zeros and lists its row as -1.
- Consumer 0 computes z and hands over p and then P, in bf16. Consumer 1 computes dout · k, and hands over dz.
- Then each consumer g adds dz k to its half of the columns of dq, and computes its half of the columns of the parts.

A barrier is passed once in each iteration of the loop over tiles, so that its phase is the parity of the iteration.
"""

from typing import Any, NamedTuple

import tilelang.language as T
from tilelang.layout import make_swizzled_layout

from .sparse_attention import ASYNC, HalfTile, exp2, gather
from .sparse_attention_config import BF16, F32, HEADS, I32, KEYS, LOG2E, PANEL
from .sparse_attention_layouts import WARPGROUP, copy_layout, row_layout

PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232  # of a thread


class Names(NamedTuple):
    """The names in the kernel that its proof binds: of the loop over tiles and of buffers, a pair for two consumers."""

    tile: str = "t"
    unseen: str = "e"  # the loop over tiles of entries that a query does not see
    acc: tuple[str, str] = ("acc0", "acc1")
    keys: str = "k_shared"
    rows: str = "rows_shared"


NAMES = Names()


class Block(NamedTuple):
    """Where a block works."""

    b: Any  # sequence
    s: Any  # query
    heads: Any  # which block of heads of the query
    tiles: Any  # how many tiles of keys the query has


class Heads(NamedTuple):
    """The tensors that the forward and the caller give for each query and head."""

    q: Any
    grad_out: Any
    grad_lse: Any
    lse: Any
    delta: Any  # out · grad_out
    sink: Any


class Gradients(NamedTuple):
    """The tensors that a block writes."""

    q: Any
    window: Any  # [b, s, slot, block of heads]: the part of the key in this slot of the query's window
    entries: Any  # [b, s, slot, block of heads]: the part of the entry in this slot


class Registers(NamedTuple):
    """The registers of a consumer."""

    acc: Any  # its half of the columns of dq
    part: Any  # a piece of its half of the columns of the parts of a tile
    product: Any  # of the heads with the keys of a tile
    lse: Any  # of each head, times log2 e
    weight: Any  # w of each head


class Barriers(NamedTuple):
    """The barriers of a block, named after what they announce."""

    heads_ready: Any  # q and grad_out are filled
    keys_ready: Any  # [half]: half of the columns of the keys is filled
    keys_free: Any  # the keys may be refilled
    rows_ready: Any  # the rows of a tile are listed
    p_ready: Any  # p is written
    weights_ready: Any  # P is written
    dz_ready: Any  # dz is written, in place of p
    weights_free: Any  # consumer 1 has done with P and dz


class Shared(NamedTuple):
    """The shared memory of a block; index g is half g of the columns."""

    q: Any  # [g]
    grad_out: Any  # [g]
    keys: Any  # [g]
    weights: Any  # P
    dz: Any  # p, then dz
    stage: Any  # [g]: a panel of the parts on its way out
    rows: Any  # of which row each key is, -1 where there is none
    barriers: Barriers


class Consumer(NamedTuple):
    """A consumer: which half of the columns is its own, and what it works with."""

    g: int
    at: Block
    registers: Registers
    shared: Shared
    gradients: Gradients


@T.macro
def copy_keys(cfg, tile, half, keys, rows, shared):
    """Copy half of the columns of a tile, and announce them when they have arrived."""
    if tile.t < cfg.window_tiles:
        gather(cfg, tile, half, keys.window_kv, rows, shared)
    else:
        gather(cfg, tile, half, keys.compressed_kv, rows, shared)
    T.cp_async_barrier_noinc(shared.barriers.keys_ready[half])


@T.macro
def producer(cfg, at, keys, shared, list_entries):
    """Copy the keys of the query, tile by tile."""
    T.set_max_nreg(PRODUCER_REGISTERS, 0)
    rows = T.alloc_fragment((KEYS,), I32)
    T.annotate_layout({rows: row_layout()})
    for t in T.serial(at.tiles):
        list_entries(keys.entries, at, t - cfg.window_tiles, rows)
        if t < cfg.window_tiles:
            for j in T.Parallel(KEYS):
                slot = t * KEYS + j
                token = at.s - cfg.window + 1 + slot
                rows[j] = T.if_then_else(token <= at.s and token >= keys.oldest[0], keys.base[0] + slot + at.s, -1)
        T.barrier_wait(shared.barriers.keys_free[0], 1 - t % 2)
        copy_keys(cfg, HalfTile(at, t, 0), 0, keys, rows, shared)
        copy_keys(cfg, HalfTile(at, t, 0), 1, keys, rows, shared)
        for j in T.Parallel(KEYS, loop_layout=row_layout()):
            shared.rows[j] = rows[j]
        T.barrier_arrive(shared.barriers.rows_ready[0])


@T.macro
def load_columns(cfg, g, at, x, x_shared):
    """Copy half g of the columns of a query's heads to shared memory, zeros for heads and columns that are none."""
    first, head = g * cfg.columns, at.heads * HEADS
    for p in T.unroll(cfg.columns // PANEL):
        for h, d in T.Parallel(HEADS, PANEL, loop_layout=copy_layout(PANEL), annotations=ASYNC):
            x_shared[g, h, p * PANEL + d] = T.if_then_else(
                head + h < cfg.H and first + p * PANEL + d < cfg.D,
                x[at.b, at.s, head + h, first + p * PANEL + d],
                0,
            )


@T.macro
def load_heads(cfg, g, at, heads, shared):
    """Copy half g of the columns of q and of grad_out to shared memory, and wait for the other half too."""
    T.set_max_nreg(CONSUMER_REGISTERS, 1)
    load_columns(cfg, g, at, heads.q, shared.q)
    load_columns(cfg, g, at, heads.grad_out, shared.grad_out)
    T.cp_async_barrier_noinc(shared.barriers.heads_ready[0])
    T.barrier_wait(shared.barriers.heads_ready[0], 0)
    T.fence_proxy_async()


@T.macro
def load_weight(cfg, at, heads, lse, weight):
    """Compute lse log2 e and w of each head; a head that is none, or has no key, has lse +inf, so that p = 0."""
    for h in T.Parallel(HEADS):
        head = T.min(at.heads * HEADS + h, cfg.H - 1)
        lse[h] = T.if_then_else(at.heads * HEADS + h < cfg.H, heads.lse[at.b, at.s, head], T.infinity(F32))
        gap = (heads.sink[head] - lse[h]) * LOG2E
        weight[h] = T.if_then_else(lse[h] < T.infinity(F32), 1 / (1 + T.exp2(gap)), 0)
    for h in T.Parallel(HEADS):
        lse[h] *= LOG2E


@T.macro
def multiply_keys(t, x, shared, product):
    """Compute x kᵀ for a tile over all columns, of which each half is taken as it is filled; x is q or grad_out."""
    T.barrier_wait(shared.barriers.keys_ready[0], t % 2)
    T.fence_proxy_async()
    T.wgmma_gemm(x[0, :, :], shared.keys[0, :, :], product, transpose_B=True, clear_accum=True)
    T.barrier_wait(shared.barriers.keys_ready[1], t % 2)
    T.fence_proxy_async()
    T.wgmma_gemm(x[1, :, :], shared.keys[1, :, :], product, transpose_B=True)
    T.wait_wgmma(0)
    T.warpgroup_fence_operand(product, num_regs=HEADS * KEYS // WARPGROUP)


@T.macro
def begin_piece(cfg, me, i):
    """Issue the first product of piece i of the parts: Pᵀ grad_out over the heads."""
    T.wgmma_gemm(
        me.shared.weights,
        me.shared.grad_out[me.g, :, cfg.piece_columns(i)],
        me.registers.part,
        transpose_A=True,
        clear_accum=True,
    )


@T.macro
def end_piece(cfg, me, i):
    """Issue the second product of piece i of the parts: add dzᵀ q over the heads."""
    T.wgmma_gemm(me.shared.dz, me.shared.q[me.g, :, cfg.piece_columns(i)], me.registers.part, transpose_A=True)


@T.macro
def write_panel(cfg, me, t, i, p):
    """Write panel p of piece i of the parts of a tile, so that whole rows are stored."""
    at, first = me.at, me.g * cfg.columns + i * cfg.piece + p * PANEL
    for j, d in T.Parallel(KEYS, PANEL):
        me.shared.stage[me.g, j, d] = me.registers.part[j, p * PANEL + d]
    if t < cfg.window_tiles:
        for j, d in T.Parallel(KEYS, PANEL, loop_layout=copy_layout(PANEL)):
            if t * KEYS + j < cfg.window and first + d < cfg.D:
                me.gradients.window[at.b, at.s, t * KEYS + j, at.heads, first + d] = me.shared.stage[me.g, j, d]
    else:
        for j, d in T.Parallel(KEYS, PANEL, loop_layout=copy_layout(PANEL)):
            slot = (t - cfg.window_tiles) * KEYS + j
            if slot < me.gradients.entries.shape[2] and first + d < cfg.D:
                me.gradients.entries[at.b, at.s, slot, at.heads, first + d] = me.shared.stage[me.g, j, d]


@T.macro
def finish_piece(cfg, me, t, i):
    """Wait for the products of piece i of the parts of a tile, and write it."""
    T.wait_wgmma(0)
    T.warpgroup_fence_operand(me.registers.part, num_regs=KEYS * cfg.piece // WARPGROUP)
    for p in T.unroll(cfg.piece // PANEL):
        write_panel(cfg, me, t, i, p)


@T.macro
def write_pieces(cfg, me, t, i):
    """Compute and write the pieces of the parts of a tile from i on."""
    if i < cfg.columns // cfg.piece:
        begin_piece(cfg, me, i)
        end_piece(cfg, me, i)
        finish_piece(cfg, me, t, i)
        write_pieces(cfg, me, t, i + 1)


@T.macro
def add_products(cfg, me, t):
    """Add dz k to half g of the columns of acc, and write half g of the columns of the parts of a tile.

    The first product of piece 0 is under way.
    """
    T.barrier_wait(me.shared.barriers.dz_ready[0], t % 2)
    T.wgmma_gemm(me.shared.dz, me.shared.keys[me.g, :, :], me.registers.acc)
    end_piece(cfg, me, 0)
    T.wait_wgmma(1)
    T.warpgroup_fence_operand(me.registers.acc, num_regs=HEADS * cfg.columns // WARPGROUP)
    T.barrier_arrive(me.shared.barriers.keys_free[0])
    finish_piece(cfg, me, t, 0)
    write_pieces(cfg, me, t, 1)


@T.macro
def write_query(cfg, me):
    """Write half g of the columns of dq."""
    at = me.at
    T.copy(me.registers.acc, me.shared.q[me.g, :, :])  # in place of the query, so that whole rows are stored
    for h, d in T.Parallel(HEADS, cfg.columns, loop_layout=copy_layout(cfg.columns)):
        if at.heads * HEADS + h < cfg.H and me.g * cfg.columns + d < cfg.D:
            me.gradients.q[at.b, at.s, at.heads * HEADS + h, me.g * cfg.columns + d] = me.shared.q[me.g, h, d]


@T.macro
def consumer0(cfg, me, heads):
    """Compute p and P of each tile; then half 0 of the columns of everything."""
    at, shared, registers = me.at, me.shared, me.registers
    weights = T.alloc_fragment((HEADS, KEYS), BF16)
    load_heads(cfg, 0, at, heads, shared)
    load_weight(cfg, at, heads, registers.lse, registers.weight)
    T.fill(registers.acc, 0)
    for t in T.serial(at.tiles):
        multiply_keys(t, shared.q, shared, registers.product)
        T.barrier_wait(shared.barriers.rows_ready[0], t % 2)
        for h, j in T.Parallel(HEADS, KEYS):
            registers.product[h, j] = T.if_then_else(
                shared.rows[j] >= 0, exp2(registers.product[h, j] * cfg.log2_scale - registers.lse[h]), 0
            )
        T.barrier_wait(shared.barriers.weights_free[0], 1 - t % 2)
        T.copy(registers.product, weights)
        for h, j in T.Parallel(HEADS, KEYS):
            shared.dz[h, j] = weights[h, j]
        T.barrier_arrive(shared.barriers.p_ready[0])
        for h, j in T.Parallel(HEADS, KEYS):
            registers.product[h, j] *= registers.weight[h]
        T.copy(registers.product, weights)
        T.copy(weights, shared.weights)
        T.fence_proxy_async()
        T.barrier_arrive(shared.barriers.weights_ready[0])
        T.barrier_wait(shared.barriers.weights_ready[0], t % 2)
        begin_piece(cfg, me, 0)
        add_products(cfg, me, t)
    write_query(cfg, me)


@T.macro
def consumer1(cfg, me, heads):
    """Compute scale dz of each tile; then half 1 of the columns of everything."""
    at, shared, registers = me.at, me.shared, me.registers
    shift = T.alloc_fragment((HEADS,), F32)  # c
    load_heads(cfg, 1, at, heads, shared)
    load_weight(cfg, at, heads, registers.lse, registers.weight)
    for h in T.Parallel(HEADS):
        head = T.min(at.heads * HEADS + h, cfg.H - 1)
        shift[h] = heads.grad_lse[at.b, at.s, head] - registers.weight[h] * heads.delta[at.b, at.s, head]
    T.fill(registers.acc, 0)
    for t in T.serial(at.tiles):
        multiply_keys(t, shared.grad_out, shared, registers.product)
        T.barrier_wait(shared.barriers.p_ready[0], t % 2)
        for h, j in T.Parallel(HEADS, KEYS):
            registers.product[h, j] = (
                cfg.scale * shared.dz[h, j] * (registers.weight[h] * registers.product[h, j] + shift[h])
            )
        for h, j in T.Parallel(HEADS, KEYS):
            shared.dz[h, j] = registers.product[h, j]
        T.fence_proxy_async()
        T.barrier_arrive(shared.barriers.dz_ready[0])
        T.barrier_wait(shared.barriers.weights_ready[0], t % 2)
        begin_piece(cfg, me, 0)
        add_products(cfg, me, t)
        T.barrier_arrive(shared.barriers.weights_free[0])
    write_query(cfg, me)


@T.macro
def differentiate(cfg, at, heads, keys, gradients, list_entries):
    """Compute what a block writes: the gradients of some heads of a query, and their parts of those of its keys.

    ``list_entries(keys.entries, at, e, rows)`` is the operator's macro. It writes to ``rows`` which entry each slot from e KEYS
    to (e + 1) KEYS - 1 holds, -1 where there is none. It is called in the window's tiles too, with e < 0 and no effect.
    """
    q_shared = T.alloc_shared((2, HEADS, cfg.columns), BF16)
    grad_out_shared = T.alloc_shared((2, HEADS, cfg.columns), BF16)
    k_shared = T.alloc_shared((2, KEYS, cfg.columns), BF16)
    weights_shared, dz_shared = T.alloc_shared((HEADS, KEYS), BF16), T.alloc_shared((HEADS, KEYS), BF16)
    stage_shared = T.alloc_shared((2, KEYS, PANEL), BF16)
    T.annotate_layout({stage_shared: make_swizzled_layout(stage_shared)})
    rows_shared = T.alloc_shared((KEYS,), I32, scope="shared")
    heads_ready, keys_ready = T.alloc_barrier([2 * WARPGROUP]), T.alloc_barrier([WARPGROUP] * 2)
    keys_free, rows_ready = T.alloc_barrier([2 * WARPGROUP]), T.alloc_barrier([WARPGROUP])
    p_ready, weights_ready = T.alloc_barrier([WARPGROUP]), T.alloc_barrier([WARPGROUP])
    dz_ready, weights_free = T.alloc_barrier([WARPGROUP]), T.alloc_barrier([WARPGROUP])
    barriers = Barriers(heads_ready, keys_ready, keys_free, rows_ready, p_ready, weights_ready, dz_ready, weights_free)
    shared = Shared(q_shared, grad_out_shared, k_shared, weights_shared, dz_shared, stage_shared, rows_shared, barriers)
    acc0, acc1 = T.alloc_fragment((HEADS, cfg.columns), F32), T.alloc_fragment((HEADS, cfg.columns), F32)
    part0, part1 = T.alloc_fragment((KEYS, cfg.piece), F32), T.alloc_fragment((KEYS, cfg.piece), F32)
    p, dz = T.alloc_fragment((HEADS, KEYS), F32), T.alloc_fragment((HEADS, KEYS), F32)
    lse0, weight0 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    lse1, weight1 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    thread = T.get_thread_binding()
    if thread < WARPGROUP:
        producer(cfg, at, keys, shared, list_entries)
    elif thread < 2 * WARPGROUP:
        registers = Registers(acc0, part0, p, lse0, weight0)
        consumer0(cfg, Consumer(0, at, registers, shared, gradients), heads)
    else:
        registers = Registers(acc1, part1, dz, lse1, weight1)
        consumer1(cfg, Consumer(1, at, registers, shared, gradients), heads)
