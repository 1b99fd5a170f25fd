"""Steps of the KV compressor: entries of further tokens, and the rows that states keep (formula: reference/compressor_step.py).

An entry's candidates are rows of the call, or of a state where they are of tokens before it; the arithmetic is that of
compressor.py beside this, in the same order. Few candidates are pooled, normalised and rotated by one block of threads,
``compress_step``. More are pooled by ``compress_step_pool``, 64 channels at a time, and ``compress_step_norm`` does the rest. A
block whose entry the call does not finish, or that has no place in the cache, makes none.

The first of these kernels keeps the rows too. No row that is read of a state may be written in the same launch: the tokens
read are from ``candidates - 1`` before the call's first one on, and those kept up to its last one, so that they lie in
different places if a state has room for all of them. Of a longer call ``compress_keep`` keeps the rows, in a launch of its own.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import tilelang.language as T
import torch

from . import compressor
from .build import Launch, aligned, build, planned
from .compressor import (
    BF16,
    F32,
    GROUPS,
    I32,
    LANES,
    WIDTH,
    Candidates,
    Entry,
    alloc_last,
    finish,
    load_last,
    pool,
    pool_slice,
)
from .compressor import table as angles

ROOM = 8  # tokens of a state besides the candidates of an entry


@dataclass(frozen=True)
class Config(compressor.Config):
    """Those of ``compress``, with no row of the past; the rows of a state; whether the first kernel keeps the call's rows."""

    capacity: int = 16
    keeps: bool = True

    @property
    def halves(self) -> int:
        """Return how many times as wide as an entry a row is."""
        return 1 + self.overlap

    @property
    def most(self) -> int:
        """Return how many tokens a call may have whose rows are kept by the launch that reads others."""
        return self.capacity - self.candidates + 1


class Given(NamedTuple):
    """The tensors of a call that say where rows and entries are, or have them."""

    kv: Any
    gate: Any
    state: Any
    cache: Any
    table: Any
    slots: Any
    offset: Any


class Place(NamedTuple):
    """What each thread knows of its block: slot, first token, number of the entry, its column of the table, and its page."""

    slot: Any
    start: Any
    number: Any
    column: Any
    page: Any


@T.macro
def locate(cfg, i, b, x, to):
    """Look up slot and first token of sequence b, and the number of the entry i after the first that it may finish."""
    to.slot[0], to.start[0] = x.slots[b], x.offset[b]
    to.number[0] = to.start[0] // cfg.ratio + i
    to.column[0] = to.number[0] // x.cache.shape[1]


def active(x: Given, to: Place) -> Any:
    """Return whether the sequence has a state and a position."""
    return T.And(T.And(to.slot[0] >= 0, to.slot[0] < x.state.shape[0]), to.start[0] >= 0)


def finished(cfg: Config, x: Given, to: Place) -> Any:
    """Return whether the call has the last token of the entry, and the table a column for it."""
    whole = (to.number[0] + 1) * cfg.ratio <= to.start[0] + x.kv.shape[1]
    return T.And(whole, to.column[0] < x.table.shape[1])


def placed(x: Given, to: Place) -> Any:
    """Return whether the page is one of the cache."""
    return T.And(to.page[0] >= 0, to.page[0] < x.cache.shape[0])


def own_block(cfg: Config, b: Any, to: Place) -> Entry:
    """Return where an entry's own block is: its first row is of the call, or before it."""
    number, position = to.number[0], to.number[0] * cfg.ratio
    return Entry(cfg, number, b, position - to.start[0], number >= 1, position)


def in_cache(at: Entry, x: Given, to: Place) -> Entry:
    """Return where an entry goes: its page, and its row there."""
    return at._replace(b=to.page[0], i=at.i - to.column[0] * x.cache.shape[1])


@T.macro
def load_block(at, x, slot, ape, before, of):
    """Read the candidates of the entry's own block, or of the block before: values 0 and logits -inf where there is none."""
    cfg, back = at.cfg, at.cfg.ratio * before
    side = (cfg.wide - cfg.D) * (1 - before)
    for r, t, j in T.Parallel(cfg.ratio, cfg.threads, cfg.width):
        row, place, c = at.row - back + r, (at.position - back + r) % cfg.capacity, side + t * cfg.width + j
        of.values[r, t, j] = T.if_then_else(
            row >= 0,
            x.kv[at.b, row, c],
            T.if_then_else(at.before or before == 0, x.state[slot[0], place, 0, c], 0),
        )
    for r, t, j in T.Parallel(cfg.ratio, cfg.threads, cfg.width):
        row, place, c = at.row - back + r, (at.position - back + r) % cfg.capacity, side + t * cfg.width + j
        of.logits[r, t, j] = T.if_then_else(
            row >= 0,
            x.gate[at.b, row, c] + ape[r, c],
            T.if_then_else(at.before or before == 0, x.state[slot[0], place, 1, c] + ape[r, c], -T.infinity(F32)),
        )


@T.macro
def keep_row(cfg, b, q, place, x, slot):
    """Keep the row of token q of the call in a place of the state; each thread has a few channels."""
    for h in T.unroll(cfg.halves):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            c = h * cfg.D + t * cfg.width + j
            x.state[slot[0], place, 0, c] = x.kv[b, q, c]
        for t, j in T.Parallel(cfg.threads, cfg.width):
            c = h * cfg.D + t * cfg.width + j
            x.state[slot[0], place, 1, c] = x.gate[b, q, c]


def compress_step(cfg: Config) -> T.PrimFunc:
    """Make each entry of few candidates that a call finishes, write it into the cache, and keep the rows."""
    B, S, positions, states = T.dynamic("B"), T.dynamic("S"), T.dynamic("positions"), T.dynamic("states")
    pages, page, columns = T.dynamic("pages"), T.dynamic("page"), T.dynamic("columns")
    shape = (cfg.threads, cfg.width)

    @T.prim_func
    def compress_step(
        kv: T.Tensor((B, S, cfg.wide), F32),
        gate: T.Tensor((B, S, cfg.wide), F32),
        ape: T.Tensor((cfg.ratio, cfg.wide), F32),
        norm_weight: T.Tensor((cfg.D,), F32),
        rotation: T.Tensor((positions, cfg.pairs, 2), F32),
        state: T.Tensor((states, cfg.capacity, 2, cfg.wide), F32),
        cache: T.Tensor((pages, page, cfg.D), BF16),
        table: T.Tensor((B, columns), I32),
        slots: T.Tensor((B,), I32),
        offset: T.Tensor((B,), I32),
    ):
        with T.Kernel(T.ceildiv(S, cfg.ratio), B, threads=cfg.threads) as (i, b):
            x = Given(kv, gate, state, cache, table, slots, offset)
            to = Place(*(T.alloc_local((1,), I32) for _ in range(5)))
            locate(cfg, i, b, x, to)
            if active(x, to):
                if finished(cfg, x, to):
                    to.page[0] = table[b, to.column[0]]
                    # All that an entry needs is on its way before any of it is waited for, the page too.
                    at, last = own_block(cfg, b, to), alloc_last(cfg)
                    own = Candidates(*(T.alloc_fragment((cfg.ratio, *shape), F32) for _ in range(2)))
                    before = Candidates(*(T.alloc_fragment((cfg.ratio, *shape), F32) for _ in range(2)))
                    load_block(at, x, to.slot, ape, 0, own)
                    if cfg.overlap:
                        load_block(at, x, to.slot, ape, 1, before)
                    load_last(at, norm_weight, rotation, last)
                    total, acc, mean = (T.alloc_fragment(shape, F32) for _ in range(3))
                    rounded = T.alloc_fragment(shape, BF16)
                    pool(cfg, own, before, total, acc)
                    for t, j in T.Parallel(*shape):
                        rounded[t, j] = acc[t, j] / total[t, j]
                    T.copy(rounded, mean)
                    if placed(x, to):
                        finish(in_cache(at, x, to), mean, last, cache)
                if cfg.keeps:
                    for r in T.unroll(cfg.ratio):
                        if i * cfg.ratio + r < S:
                            q = i * cfg.ratio + r
                            keep_row(cfg, b, q, (to.start[0] + q) % cfg.capacity, x, to.slot)

    return compress_step


@T.macro
def load_slice(at, first, x, to, ape, of):
    """Read some channels of all candidates: values 0 and logits -inf where there is none, or no entry to be made."""
    cfg = at.cfg
    ahead = cfg.candidates - cfg.ratio  # candidates of the block before
    for n, t, j in T.Parallel(cfg.padded, LANES, WIDTH):
        row, place = at.row - ahead + n, (at.position - ahead + n) % cfg.capacity
        c = first + T.if_then_else(n < ahead, 0, cfg.wide - cfg.D) + t * WIDTH + j
        there = T.And(placed(x, to), T.And(n < cfg.candidates, T.Or(n >= ahead, at.before)))
        of.values[n, t, j] = T.if_then_else(
            there, T.if_then_else(row >= 0, x.kv[at.b, row, c], x.state[to.slot[0], place, 0, c]), 0
        )
    for n, t, j in T.Parallel(cfg.padded, LANES, WIDTH):
        row, place = at.row - ahead + n, (at.position - ahead + n) % cfg.capacity
        c = first + T.if_then_else(n < ahead, 0, cfg.wide - cfg.D) + t * WIDTH + j
        there = T.And(placed(x, to), T.And(n < cfg.candidates, T.Or(n >= ahead, at.before)))
        bias = ape[n % cfg.ratio, c]
        of.logits[n, t, j] = T.if_then_else(
            there,
            T.if_then_else(row >= 0, x.gate[at.b, row, c], x.state[to.slot[0], place, 1, c]) + bias,
            -T.infinity(F32),
        )


@T.macro
def keep_slices(cfg, i, b, first, x, to):
    """Keep some channels of the rows of the i-th block of tokens of the call, some tokens at a time."""
    for n in T.unroll(T.ceildiv(cfg.ratio, GROUPS)):
        for h in T.unroll(cfg.halves):
            for r, t, j in T.Parallel(GROUPS, LANES, WIDTH):
                q, c = i * cfg.ratio + n * GROUPS + r, h * cfg.D + first + t * WIDTH + j
                if n * GROUPS + r < cfg.ratio and q < x.kv.shape[1]:
                    x.state[to.slot[0], (to.start[0] + q) % cfg.capacity, 0, c] = x.kv[b, q, c]
            for r, t, j in T.Parallel(GROUPS, LANES, WIDTH):
                q, c = i * cfg.ratio + n * GROUPS + r, h * cfg.D + first + t * WIDTH + j
                if n * GROUPS + r < cfg.ratio and q < x.kv.shape[1]:
                    x.state[to.slot[0], (to.start[0] + q) % cfg.capacity, 1, c] = x.gate[b, q, c]


def compress_step_pool(cfg: Config) -> T.PrimFunc:
    """Pool the candidates of each entry that a call finishes, 64 channels at a time, and keep the rows."""
    B, S, L, states = T.dynamic("B"), T.dynamic("S"), T.dynamic("T"), T.dynamic("states")
    pages, page, columns = T.dynamic("pages"), T.dynamic("page"), T.dynamic("columns")
    shape = (LANES, WIDTH)

    @T.prim_func
    def compress_step_pool(
        kv: T.Tensor((B, S, cfg.wide), F32),
        gate: T.Tensor((B, S, cfg.wide), F32),
        ape: T.Tensor((cfg.ratio, cfg.wide), F32),
        state: T.Tensor((states, cfg.capacity, 2, cfg.wide), F32),
        cache: T.Tensor((pages, page, cfg.D), BF16),
        table: T.Tensor((B, columns), I32),
        slots: T.Tensor((B,), I32),
        offset: T.Tensor((B,), I32),
        pooled: T.Tensor((B, L, cfg.D), BF16),
    ):
        with T.Kernel(L, B, cfg.D // (LANES * WIDTH), threads=GROUPS * LANES) as (i, b, part):
            x = Given(kv, gate, state, cache, table, slots, offset)
            to = Place(*(T.alloc_local((1,), I32) for _ in range(5)))
            locate(cfg, i, b, x, to)
            to.page[0] = -1
            if T.And(active(x, to), finished(cfg, x, to)):
                to.page[0] = table[b, to.column[0]]
            # Whether there is an entry or not, it is pooled: under a condition, the compiler would round products that it adds.
            of = Candidates(*(T.alloc_fragment((cfg.padded, *shape), F32) for _ in range(2)))
            total, acc = (T.alloc_fragment(shape, F32) for _ in range(2))
            load_slice(own_block(cfg, b, to), part * LANES * WIDTH, x, to, ape, of)
            pool_slice(cfg, of, total, acc)
            if placed(x, to):
                for t, j in T.Parallel(*shape):
                    pooled[b, i, part * LANES * WIDTH + t * WIDTH + j] = acc[t, j] / total[t, j]
            if cfg.keeps and active(x, to):
                keep_slices(cfg, i, b, part * LANES * WIDTH, x, to)

    return compress_step_pool


def compress_step_norm(cfg: Config) -> T.PrimFunc:
    """Normalise and rotate what has been pooled, and write it into the cache. Of kv and state the sizes alone are asked."""
    B, S, L, states = T.dynamic("B"), T.dynamic("S"), T.dynamic("T"), T.dynamic("states")
    positions, pages, page, columns = (
        T.dynamic("positions"),
        T.dynamic("pages"),
        T.dynamic("page"),
        T.dynamic("columns"),
    )

    @T.prim_func
    def compress_step_norm(
        kv: T.Tensor((B, S, cfg.wide), F32),
        pooled: T.Tensor((B, L, cfg.D), BF16),
        norm_weight: T.Tensor((cfg.D,), F32),
        rotation: T.Tensor((positions, cfg.pairs, 2), F32),
        state: T.Tensor((states, cfg.capacity, 2, cfg.wide), F32),
        cache: T.Tensor((pages, page, cfg.D), BF16),
        table: T.Tensor((B, columns), I32),
        slots: T.Tensor((B,), I32),
        offset: T.Tensor((B,), I32),
    ):
        with T.Kernel(L, B, threads=cfg.threads) as (i, b):
            x = Given(kv, kv, state, cache, table, slots, offset)
            to = Place(*(T.alloc_local((1,), I32) for _ in range(5)))
            locate(cfg, i, b, x, to)
            if T.And(active(x, to), finished(cfg, x, to)):
                to.page[0] = table[b, to.column[0]]
                if placed(x, to):
                    at, last = own_block(cfg, b, to), alloc_last(cfg)
                    mean = T.alloc_fragment((cfg.threads, cfg.width), F32)
                    load_last(at, norm_weight, rotation, last)
                    for t, j in T.Parallel(cfg.threads, cfg.width):
                        mean[t, j] = pooled[b, i, t * cfg.width + j]
                    finish(in_cache(at, x, to), mean, last, cache)

    return compress_step_norm


def compress_keep(cfg: Config) -> T.PrimFunc:
    """Keep the last rows of a call, as many as a state has room for."""
    B, S, states = T.dynamic("B"), T.dynamic("S"), T.dynamic("states")

    @T.prim_func
    def compress_keep(
        kv: T.Tensor((B, S, cfg.wide), F32),
        gate: T.Tensor((B, S, cfg.wide), F32),
        state: T.Tensor((states, cfg.capacity, 2, cfg.wide), F32),
        slots: T.Tensor((B,), I32),
        offset: T.Tensor((B,), I32),
    ):
        with T.Kernel(T.min(S, cfg.capacity), B, threads=cfg.threads) as (i, b):
            x = Given(kv, gate, state, None, None, slots, offset)
            slot, place = T.alloc_local((1,), I32), T.alloc_local((1,), I32)
            slot[0] = slots[b]
            place[0] = (offset[b] + S) % cfg.capacity - 1 - i  # of the i-th from the last
            if slot[0] >= 0 and slot[0] < states and offset[b] >= 0:
                keep_row(cfg, b, S - 1 - i, T.if_then_else(place[0] < 0, place[0] + cfg.capacity, place[0]), x, slot)

    return compress_keep


def step_kernels(cfg: Config) -> Iterator[tuple[Any, Config]]:
    """Yield the kernels of a call with these parameters, in their order."""
    if cfg.few:
        yield compress_step, cfg
    else:
        yield compress_step_pool, cfg
        yield compress_step_norm, replace(cfg, keeps=True)
    if not cfg.keeps:
        yield compress_keep, cfg


def shipped_steps(cfg: compressor.Config) -> Iterator[tuple[Any, Config]]:
    """Yield the kernels of steps with the parameters of entries, short and long, for states with room for some tokens more."""
    given = cfg.ratio, cfg.D, cfg.overlap, cfg.pairs
    for keeps in (True, False):
        yield from step_kernels(Config(*given, eps=cfg.eps, capacity=cfg.candidates + ROOM, keeps=keeps))


@planned
def _plan(cfg: Config) -> list[Launch]:
    """Return the kernels of a call, in their order."""
    return [build(factory, each) for factory, each in step_kernels(cfg)]


@planned
def _plan_keep(cfg: Config) -> Launch:
    """Return the kernel that keeps rows."""
    return build(compress_keep, replace(cfg, keeps=False))


def config(kv, ape, norm_weight, rotation, state, eps: float, simulate_fp8: bool = False) -> Config:
    """Return the static parameters of a call."""
    of_entries = compressor.config(kv, ape, norm_weight, rotation, 0, eps, simulate_fp8)
    cfg = Config(**asdict(of_entries), capacity=state.shape[1])
    return cfg if kv.shape[1] <= cfg.most else replace(cfg, keeps=False)


def step(
    kv, gate, ape, norm_weight, rotation, state, cache, table, slots, offset, eps: float, simulate_fp8: bool = False
) -> None:
    """Launch the kernels on CUDA tensors."""
    if not (kv.numel() and state.shape[0]):
        return
    cfg = config(kv, ape, norm_weight, rotation, state, eps, simulate_fp8)
    for name, tensor in (("state", state), ("cache", cache)):
        if tensor.data_ptr() % 16:
            at = f"one at {tensor.data_ptr()}"
            raise ValueError(f"compress_step: {name}: expected memory that begins at a multiple of 16 bytes, got {at}")
    kv, gate, ape, norm_weight, table, slots, offset = map(aligned, (kv, gate, ape, norm_weight, table, slots, offset))
    if not (cache.numel() and table.numel()):
        _plan_keep(cfg)(kv, gate, state, slots, offset)
        return
    where = state, cache, table, slots, offset
    first, *others = _plan(cfg)
    if cfg.few:
        first(kv, gate, ape, norm_weight, angles(rotation), *where)
    else:
        pooled = kv.new_empty((kv.shape[0], -(-kv.shape[1] // cfg.ratio), cfg.D), dtype=torch.bfloat16)
        first(kv, gate, ape, *where, pooled)
        others.pop(0)(kv, pooled, norm_weight, angles(rotation), *where)
    for last in others:
        last(kv, gate, state, slots, offset)
