"""Gradients of the KV compressor (formula: reference/compressor.py).

Each element of values and logits is a candidate of one entry, so that its gradient has one term. The gradients of ape and of
norm_weight are sums over all entries.

Of few candidates, a block of threads of ``compress_few_bwd`` goes through 8 entries, one after the other. It goes back through
rotation and norm, from what the forward has pooled, takes the softmax again, and writes the gradients of the candidates. Those
of ape and norm_weight it adds up in registers and writes once; torch adds up what all blocks have written.

Of more candidates, ``compress_norm_bwd`` goes back through rotation and norm, and ``compress_pool_bwd`` through the softmax, 64
channels at a time. Torch adds up what they have written.

No float atomics: the order of every sum depends on the shapes alone.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import tilelang.language as T
import torch

from .build import Launch, aligned, build, planned
from .compressor import (
    BF16,
    F32,
    GROUPS,
    I32,
    LANES,
    WIDTH,
    Candidates,
    Config,
    config,
    entry,
    load_before,
    load_own,
    load_slice,
    mean_square,
    pool,
    table,
)

CHUNK = 8  # entries that a block of compress_few_bwd goes through
FOUR = 8  # candidates of which a thread of it holds up to 4 channels, with their sums; of more it holds 2
BLOCKS = 3  # of it that a multiprocessor has at least, so that others load while one waits


@dataclass(frozen=True)
class Narrow(Config):
    """Static parameters of a kernel whose threads have fewer channels, so that registers hold sums too."""

    @property
    def width(self) -> int:
        """Return how many channels a thread has."""
        return 2


@T.macro
def turn_back(at, grad_out, rotation, offset, g):
    """Set g to the gradient of an entry before it rotated."""
    cfg, start = at.cfg, at.cfg.D - 2 * at.cfg.pairs
    for t, j in T.Parallel(cfg.threads, cfg.width):
        c = t * cfg.width + j
        position, pair = offset[at.b] + at.i * cfg.ratio, T.max(c // 2 - start // 2, 0)
        row = T.max(T.min(position, rotation.shape[0] - 1), 0)
        turned = c >= start and position < rotation.shape[0]
        cos = T.if_then_else(turned, rotation[row, pair, 0], 1)
        sin = T.if_then_else(turned, rotation[row, pair, 1], 0)
        own, other = grad_out[at.b, at.i, c], grad_out[at.b, at.i, 4 * (c // 2) + 1 - c]
        g[t, j] = own * cos + T.if_then_else(c - 2 * (c // 2) > 0, -(other * sin), other * sin)


class Norm(NamedTuple):
    """What goes through the norm: its input, rounded, the gradient of its result, and those of its input and of its weight."""

    x: Any
    g: Any
    of_x: Any
    of_weight: Any


@T.macro
def through_norm(cfg, norm_weight, of):
    """Set the gradients of the norm's input and, of this entry, of its weight."""
    mean, dots, dot = T.alloc_fragment((1,), F32), T.alloc_fragment((cfg.threads,), F32), T.alloc_fragment((1,), F32)
    mean_square(cfg, of.x, mean)
    T.clear(dots)
    for t in T.Parallel(cfg.threads):
        for j in T.unroll(cfg.width):
            dots[t] += of.x[t, j] * (norm_weight[t * cfg.width + j] * of.g[t, j])
    T.reduce_sum(dots, dot, dim=0)
    for t, j in T.Parallel(cfg.threads, cfg.width):
        r = T.rsqrt(mean[0] + cfg.eps)
        scaled = norm_weight[t * cfg.width + j] * of.g[t, j]
        of.of_x[t, j] = r * scaled - of.x[t, j] * (r * r * r) * (dot[0] / cfg.D)
    for t, j in T.Parallel(cfg.threads, cfg.width):
        of.of_weight[t, j] = of.g[t, j] * of.x[t, j] * T.rsqrt(mean[0] + cfg.eps)


def compress_norm_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradients of what was pooled, and what each entry adds to that of the norm's weight."""
    B, L, positions = T.dynamic("B"), T.dynamic("T"), T.dynamic("positions")
    shape, width = (cfg.threads, cfg.width), cfg.width

    @T.prim_func
    def compress_norm_bwd(
        grad_out: T.Tensor((B, L, cfg.D), BF16),
        pooled: T.Tensor((B, L, cfg.D), BF16),
        norm_weight: T.Tensor((cfg.D,), F32),
        rotation: T.Tensor((positions, cfg.pairs, 2), F32),
        offset: T.Tensor((B,), I32),
        of_pooled: T.Tensor((B, L, cfg.D), F32),
        of_weight: T.Tensor((B, L, cfg.D), F32),
    ):
        with T.Kernel(L, B, threads=cfg.threads) as (i, b):
            at, norm = entry(cfg, i, b, offset), Norm(*(T.alloc_fragment(shape, F32) for _ in range(4)))
            for t, j in T.Parallel(*shape):
                norm.x[t, j] = pooled[b, i, t * width + j]
            turn_back(at, grad_out, rotation, offset, norm.g)
            through_norm(cfg, norm_weight, norm)
            for t, j in T.Parallel(*shape):
                of_weight[b, i, t * width + j] = norm.of_weight[t, j]
            for t, j in T.Parallel(*shape):
                of_pooled[b, i, t * width + j] = norm.of_x[t, j]

    return compress_norm_bwd


@T.macro
def through_weights(cfg, of, pooled, grad):
    """Put the gradients of logits in the place of the values, and those of values in that of the weights, without their sum.

    ``grad`` is the gradient of what was pooled over the sum of the weights.
    """
    for r in T.unroll(cfg.ratio):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            of.logits[r, t, j] *= grad[t, j]
        for t, j in T.Parallel(cfg.threads, cfg.width):
            of.values[r, t, j] = of.logits[r, t, j] * (of.values[r, t, j] - pooled[t, j])


@T.macro
def store_rows(at, first, start, of, grad_kv, grad_gate):
    """Write the gradients of candidates into a block's rows from ``first`` on, and channels from ``start`` on."""
    cfg = at.cfg
    for r in T.unroll(cfg.ratio):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            grad_kv[at.b, first + r, start + t * cfg.width + j] = of.logits[r, t, j]
        for t, j in T.Parallel(cfg.threads, cfg.width):
            grad_gate[at.b, first + r, start + t * cfg.width + j] = of.values[r, t, j]


class Sums(NamedTuple):
    """Sums over the entries of a chunk: of gradients of logits in own blocks and in those before, and for norm_weight."""

    own: Any
    before: Any
    weight: Any


@T.macro
def add_logits(cfg, of, total):
    """Add the gradients of an entry's logits, which stand in the place of the values, to their sums."""
    for r in T.unroll(cfg.ratio):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            total[r, t, j] += of.values[r, t, j]


@T.macro
def store_sums(cfg, chunk, b, sums, parts):
    """Write a chunk's sums: a row for each candidate, those of the block before first, and one for norm_weight."""
    for r in T.unroll(cfg.ratio):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            parts[b, chunk, cfg.candidates - cfg.ratio + r, t * cfg.width + j] = sums.own[r, t, j]
    if cfg.overlap:
        for r in T.unroll(cfg.ratio):
            for t, j in T.Parallel(cfg.threads, cfg.width):
                parts[b, chunk, r, t * cfg.width + j] = sums.before[r, t, j]
    for t, j in T.Parallel(cfg.threads, cfg.width):
        parts[b, chunk, cfg.candidates, t * cfg.width + j] = sums.weight[t, j]


def compress_few_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradients of values and logits, and of each chunk of entries what it adds to those of ape and norm_weight."""
    B, S, L, N, positions = (T.dynamic(name) for name in ("B", "S", "T", "N", "positions"))
    shape, ratio = (cfg.threads, cfg.width), cfg.ratio

    @T.prim_func
    def compress_few_bwd(
        grad_out: T.Tensor((B, L, cfg.D), BF16),
        pooled: T.Tensor((B, L, cfg.D), BF16),
        kv: T.Tensor((B, S, cfg.wide), F32),
        gate: T.Tensor((B, S, cfg.wide), F32),
        ape: T.Tensor((ratio, cfg.wide), F32),
        norm_weight: T.Tensor((cfg.D,), F32),
        rotation: T.Tensor((positions, cfg.pairs, 2), F32),
        offset: T.Tensor((B,), I32),
        grad_kv: T.Tensor((B, S, cfg.wide), F32),
        grad_gate: T.Tensor((B, S, cfg.wide), F32),
        parts: T.Tensor((B, N, cfg.candidates + 1, cfg.D), F32),
    ):
        with T.Kernel(N, B, threads=cfg.threads) as (chunk, b):
            T.annotate_min_blocks_per_sm(BLOCKS if cfg.candidates <= FOUR else 1)
            own = Candidates(*(T.alloc_fragment((ratio, *shape), F32) for _ in range(2)))
            before = Candidates(*(T.alloc_fragment((ratio, *shape), F32) for _ in range(2)))
            norm = Norm(*(T.alloc_fragment(shape, F32) for _ in range(4)))
            total, acc = (T.alloc_fragment(shape, F32) for _ in range(2))
            own_sum, before_sum = T.alloc_fragment((ratio, *shape), F32), T.alloc_fragment((ratio, *shape), F32)
            weight_sum = T.alloc_fragment(shape, F32)
            T.clear(own_sum)
            T.clear(weight_sum)
            if cfg.overlap:
                T.clear(before_sum)
            for e in T.serial(T.min(CHUNK, L - chunk * CHUNK)):
                at = entry(cfg, chunk * CHUNK + e, b, offset)
                load_own(at, kv, gate, ape, own)
                if cfg.overlap:
                    load_before(at, kv, gate, ape, before)
                for t, j in T.Parallel(*shape):
                    norm.x[t, j] = pooled[b, at.i, t * cfg.width + j]
                turn_back(at, grad_out, rotation, offset, norm.g)
                through_norm(cfg, norm_weight, norm)
                for t, j in T.Parallel(*shape):
                    weight_sum[t, j] += norm.of_weight[t, j]
                pool(cfg, own, before, total, acc)
                for t, j in T.Parallel(*shape):
                    acc[t, j] = acc[t, j] / total[t, j]
                for t, j in T.Parallel(*shape):
                    norm.of_x[t, j] = norm.of_x[t, j] / total[t, j]
                through_weights(cfg, own, acc, norm.of_x)
                store_rows(at, at.row, cfg.wide - cfg.D, own, grad_kv, grad_gate)
                add_logits(cfg, own, own_sum)
                if cfg.overlap:
                    through_weights(cfg, before, acc, norm.of_x)
                    if at.row >= ratio:
                        store_rows(at, at.row - ratio, 0, before, grad_kv, grad_gate)
                        add_logits(cfg, before, before_sum)
            store_sums(cfg, chunk, b, Sums(own_sum, before_sum, weight_sum), parts)

    return compress_few_bwd


def compress_pool_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradients of values and logits from those of what they pool to, 64 channels at a time."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")
    shape, every = (LANES, WIDTH), (cfg.padded, LANES, WIDTH)
    ahead = cfg.candidates - cfg.ratio

    @T.prim_func
    def compress_pool_bwd(
        of_pooled: T.Tensor((B, L, cfg.D), F32),
        kv: T.Tensor((B, S, cfg.wide), F32),
        gate: T.Tensor((B, S, cfg.wide), F32),
        ape: T.Tensor((cfg.ratio, cfg.wide), F32),
        offset: T.Tensor((B,), I32),
        grad_kv: T.Tensor((B, S, cfg.wide), F32),
        grad_gate: T.Tensor((B, S, cfg.wide), F32),
    ):
        with T.Kernel(L, B, cfg.D // (LANES * WIDTH), threads=GROUPS * LANES) as (i, b, part):
            at, first = entry(cfg, i, b, offset), part * LANES * WIDTH
            of = Candidates(*(T.alloc_fragment(every, F32) for _ in range(2)))
            products, kept = T.alloc_fragment(every, F32), T.alloc_fragment(every, F32)
            top, total, acc, grad = (T.alloc_fragment(shape, F32) for _ in range(4))
            load_slice(at, first, kv, gate, ape, of)
            T.reduce_max(of.logits, top, dim=0)
            for n, t, j in T.Parallel(*every):
                kept[n, t, j] = T.exp(of.logits[n, t, j] - top[t, j])
            for n, t, j in T.Parallel(*every):
                products[n, t, j] = kept[n, t, j] * of.values[n, t, j]
            T.reduce_sum(kept, total, dim=0)
            T.reduce_sum(products, acc, dim=0)
            for t, j in T.Parallel(*shape):
                grad[t, j] = of_pooled[b, i, first + t * WIDTH + j]
            for n, t, j in T.Parallel(*every):
                kept[n, t, j] = kept[n, t, j] / total[t, j] * grad[t, j]
            for n, t, j in T.Parallel(*every):
                c = first + T.if_then_else(n < ahead, 0, cfg.wide - cfg.D) + t * WIDTH + j
                if n < cfg.candidates and at.row - ahead + n >= 0:
                    grad_kv[b, at.row - ahead + n, c] = kept[n, t, j]
            for n, t, j in T.Parallel(*every):
                c = first + T.if_then_else(n < ahead, 0, cfg.wide - cfg.D) + t * WIDTH + j
                if n < cfg.candidates and at.row - ahead + n >= 0:
                    grad_gate[b, at.row - ahead + n, c] = kept[n, t, j] * (of.values[n, t, j] - acc[t, j] / total[t, j])

    return compress_pool_bwd


def backward_kernels(cfg: Config) -> Iterator[tuple[Any, Config]]:
    """Yield the kernels that compute gradients, each with its config."""
    if cfg.few:
        yield compress_few_bwd, cfg if cfg.candidates <= FOUR else Narrow(*astuple(cfg))
        return
    for factory in (compress_norm_bwd, compress_pool_bwd):
        yield factory, cfg


@planned
def _plan(cfg: Config) -> list[Launch]:
    """Return the kernels of a call, in their order."""
    return [build(factory, each) for factory, each in backward_kernels(cfg)]


class Call(NamedTuple):
    """What the kernels of a backward read."""

    grad_out: Any
    pooled: Any
    kv: Any
    gate: Any
    ape: Any
    norm_weight: Any
    rotation: Any
    offset: Any


def _of_few(cfg, x, grads):
    """Fill the gradients of kv and gate; return those of ape and norm_weight."""
    B, entries, D = x.grad_out.shape
    parts = x.kv.new_empty(B, -(-entries // CHUNK), cfg.candidates + 1, D)
    if parts.numel():
        _plan(cfg)[0](*x, *grads, parts)
    total = parts.sum((0, 1))
    return torch.cat(total[:-1].split(cfg.ratio), 1), total[-1]


def _of_many(cfg, x, grads):
    """Fill the gradients of kv and gate; return those of ape and norm_weight."""
    of_pooled, of_weight = (x.kv.new_empty(x.grad_out.shape) for _ in range(2))
    if of_pooled.numel():
        back_norm, back_pool = _plan(cfg)
        back_norm(x.grad_out, x.pooled, x.norm_weight, x.rotation, x.offset, of_pooled, of_weight)
        back_pool(of_pooled, x.kv, x.gate, x.ape, x.offset, *grads)
    blocks = grads[1][:, : cfg.past + x.grad_out.shape[1] * cfg.ratio].unflatten(1, (-1, cfg.ratio))
    return blocks.sum((0, 1)), of_weight.sum((0, 1))


def backward(grad_out, kv, gate, ape, norm_weight, rotation, offset, pooled, past: int, eps: float):
    """Launch the kernels on CUDA tensors; return the gradients of kv, gate, ape and norm_weight."""
    cfg = config(kv, ape, norm_weight, rotation, past, eps)
    grads = tuple(kv.new_empty(kv.shape) for _ in range(2))
    blocks = past + grad_out.shape[1] * cfg.ratio
    for grad in grads:  # no candidates: tokens after the last block, and halves of the first and of the last one
        grad[:, :past].zero_()
        grad[:, max(blocks - cfg.ratio, 0) :].zero_()
    given = *map(aligned, (grad_out, pooled, kv, gate, ape, norm_weight)), table(rotation), aligned(offset)
    return *grads, *(_of_few if cfg.few else _of_many)(cfg, Call(*given), grads)
