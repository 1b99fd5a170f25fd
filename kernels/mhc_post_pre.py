"""From the result of a layer to the normalised input of the next one, in two launches (formula: reference/mhc.py).

1. ``mhc_mix``: the streams after the layer, and their projections while they are in shared memory, as ``mhc_project`` takes
   them. A block has 64 tokens and the same columns of all streams, the coefficients of its tokens in shared memory, and half
   as much of fn there at once as ``mhc_project``, so that three blocks fit where two did. It mixes half of its tokens at a
   time; of a half beyond the last token it has zeros.
2. ``mhc_weigh_norm``: two blocks for each token, so that neither waits for what the other does. One reads the streams and sums
   them with their weights; the sum is rounded, normalised, times a weight, as the next layer's own norm does it. The other
   makes the coefficients that are left, and runs Sinkhorn.

What is rounded, and in which order sums are taken, is as in ``mhc_post`` and ``mhc_pre`` one after the other.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import tilelang.language as T

from .build import Launch, aligned, build, planned
from .mhc_post import Config as Streams
from .mhc_pre import Coefficients, normalise, normalise_comb, others_of, weights_of
from .mhc_project import (
    BF16,
    COLUMNS,
    F32,
    PARTS,
    PARTS_BYTES,
    THREADS,
    TOKENS,
    WIDTH,
    Config,
    Products,
    add_products,
    store_products,
)

TAKEN = 32  # tokens whose streams a block mixes at once: registers do not hold more
IN_REGISTERS = 224  # numbers of bf16 of all streams that a thread has at most


class Layer(NamedTuple):
    """What the streams after a layer are made of."""

    x: Any
    y: Any
    post: Any  # of a block's tokens, in shared memory
    comb: Any  # the same


@T.macro
def share(block, post, comb, of):
    """Copy the coefficients of a block's tokens to shared memory, where those of the last one are repeated."""
    hc, last = post.shape[1], post.shape[0] - 1
    for r, o in T.Parallel(TOKENS, hc):
        of.post[r, o] = post[T.min(block * TOKENS + r, last), o]
    for r, i, o in T.Parallel(TOKENS, hc, hc):
        of.comb[r, i, o] = comb[T.min(block * TOKENS + r, last), i, o]


@T.macro
def mix(cfg, of, token, first, out, mixed):
    """Write columns of some tokens of all streams after the layer; to shared memory too, where the last one is repeated."""
    shape = (TAKEN, COLUMNS)
    streams, row = T.alloc_fragment((cfg.hc, *shape), BF16), T.alloc_fragment(shape, BF16)
    acc, rounded = T.alloc_fragment(shape, F32), T.alloc_fragment(shape, BF16)
    last = out.shape[0] - 1
    for i, r, k in T.Parallel(cfg.hc, *shape):
        streams[i, r, k] = of.x[T.min(token + r, last), i, first + k]
    for r, k in T.Parallel(*shape):
        row[r, k] = of.y[T.min(token + r, last), first + k]
    for o in T.unroll(cfg.hc):
        for r, k in T.Parallel(*shape):
            acc[r, k] = of.post[token % TOKENS + r, o] * row[r, k]
        for i in T.unroll(cfg.hc):
            for r, k in T.Parallel(*shape):
                acc[r, k] += of.comb[token % TOKENS + r, i, o] * streams[i, r, k]
        T.copy(acc, rounded)
        for r, k in T.Parallel(*shape):
            mixed[o, token % TOKENS + r, k] = rounded[r, k]
        for r, k in T.Parallel(*shape):
            if token + r < out.shape[0]:
                out[token + r, o, first + k] = rounded[r, k]


def mhc_mix(cfg: Config) -> T.PrimFunc:
    """Mix the streams and add the result of the layer; project what they become."""
    cfg = replace(cfg, parts_bytes=PARTS_BYTES // 2)
    hc, hidden, rows, splits = cfg.hc, cfg.hidden, cfg.rows, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_mix(
        x: T.Tensor((tokens, hc, hidden), BF16),
        y: T.Tensor((tokens, hidden), BF16),
        post: T.Tensor((tokens, hc), F32),
        comb: T.Tensor((tokens, hc, hc), F32),
        fn: T.Tensor((rows, cfg.columns), F32),
        out: T.Tensor((tokens, hc, hidden), BF16),
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, TOKENS), splits, threads=THREADS) as (block, split):
            mixed = T.alloc_shared((hc, TOKENS, COLUMNS), BF16)
            parts = T.alloc_shared((cfg.together, PARTS, cfg.padded, COLUMNS), BF16)
            coefficients = T.alloc_shared((TOKENS, hc), F32), T.alloc_shared((TOKENS, hc, hc), F32)
            acc = T.alloc_fragment((TOKENS, cfg.padded), F32)
            square = T.alloc_fragment((TOKENS, COLUMNS // WIDTH), F32)
            T.clear(acc)
            T.clear(square)
            share(block, post, comb, Layer(x, y, *coefficients))
            for t in T.serial(cfg.tiles):
                first = (split * cfg.tiles + t) * COLUMNS
                for h in T.serial(TOKENS // TAKEN):
                    if block * TOKENS + h * TAKEN < tokens:
                        mix(cfg, Layer(x, y, *coefficients), block * TOKENS + h * TAKEN, first, out, mixed)
                    else:
                        for o, r, k in T.Parallel(hc, TAKEN, COLUMNS):
                            mixed[o, h * TAKEN + r, k] = 0
                add_products(cfg, Products(mixed, parts, acc, square), fn, first)
            store_products(cfg, Products(mixed, parts, acc, square), block, split, sums, squares)

    return mhc_mix


def of_all_columns(cfg: Config) -> Streams:
    """Return how a block has all columns of a token at once."""
    return Streams(cfg.hc, cfg.hidden, 2 * THREADS)


def by_few(cfg: Config) -> Streams:
    """Return the same with half as many threads, where they have registers for the streams: one of them runs Sinkhorn."""
    few = Streams(cfg.hc, cfg.hidden, THREADS)
    return few if few.hc * few.steps * few.width <= IN_REGISTERS else of_all_columns(cfg)


@T.macro
def load_all(at, token, x, streams):
    """Read all columns of all streams of a token, zeros beyond the last one."""
    for i, s, t, j in T.Parallel(at.hc, at.steps, at.threads, at.width):
        c = (s * at.threads + t) * at.width + j
        streams[i, s, t, j] = T.if_then_else(c < at.hidden, x[token, i, c], 0)


@T.macro
def weigh_all(at, streams, weights, rounded):
    """Sum the columns of the streams with their weights, and round the sums."""
    acc = T.alloc_fragment((at.steps, at.threads, at.width), F32)
    T.clear(acc)
    for i in T.serial(at.hc):
        for s, t, j in T.Parallel(at.steps, at.threads, at.width):
            acc[s, t, j] += weights[i] * streams[i, s, t, j]
    T.copy(acc, rounded)


@T.macro
def square_up(at, row, total):
    """Sum the squares of a row, each thread its own columns first."""
    squares = T.alloc_fragment((at.threads,), F32)
    T.clear(squares)
    for s in T.unroll(at.steps):
        for t in T.Parallel(at.threads):
            for j in T.unroll(at.width):
                squares[t] += T.cast(row[s, t, j], F32) * T.cast(row[s, t, j], F32)
    T.reduce_sum(squares, total, dim=0)


def mhc_weigh_norm(cfg: Config) -> T.PrimFunc:
    """Make the coefficients of each token, sum its streams with their weights, and normalise the sum: in two blocks."""
    hc, hidden, rows, splits, at = cfg.hc, cfg.hidden, cfg.rows, cfg.splits, by_few(cfg)
    tokens, shape = T.dynamic("tokens"), (at.steps, at.threads, at.width)

    @T.prim_func
    def mhc_weigh_norm(
        x: T.Tensor((tokens, hc, hidden), BF16),
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
        scale: T.Tensor((3,), F32),
        base: T.Tensor((rows,), F32),
        norm_weight: T.Tensor((hidden,), F32),
        y: T.Tensor((tokens, hidden), BF16),
        post: T.Tensor((tokens, hc), F32),
        comb: T.Tensor((tokens, hc, hc), F32),
        pre: T.Tensor((tokens, hc), F32),
    ):
        with T.Kernel(2 * tokens, threads=at.threads) as block:
            token = block // 2
            mu_shared, weights = T.alloc_shared((rows,), F32), T.alloc_shared((hc,), F32)
            logits, total = T.alloc_shared((1, hc, hc), F32), T.alloc_fragment((1,), F32)
            streams, rounded = T.alloc_fragment((hc, *shape), BF16), T.alloc_fragment(shape, BF16)
            normalise(cfg, token, Coefficients(sums, squares, scale, base), mu_shared)
            T.sync_threads()  # TileLang leaves out that of one of the two arms
            if block % 2 < 1:
                weights_of(cfg, Coefficients(sums, squares, scale, base), mu_shared, weights)
                for o in T.Parallel(hc):
                    pre[token, o] = weights[o]
                load_all(at, token, x, streams)
                weigh_all(at, streams, weights, rounded)
                square_up(at, rounded, total)
                for s, t, j in T.Parallel(*shape):
                    c = (s * at.threads + t) * at.width + j
                    if c < hidden:
                        y[token, c] = norm_weight[c] * (rounded[s, t, j] * T.rsqrt(total[0] / hidden + cfg.norm_eps))
            else:
                others_of(cfg, token, Coefficients(sums, squares, scale, base), mu_shared, post, logits)
                normalise_comb(cfg.sinkhorn, token, logits, comb)

    return mhc_weigh_norm


class Plan(NamedTuple):
    """What a forward launches, and the sizes of what it keeps in between."""

    splits: int
    rows: int
    mix: Launch
    weigh: Launch


@planned
def _plan(hc: int, hidden: int, eps: float, norm_eps: float, iterations: int) -> Plan:
    cfg = Config(hc, hidden, eps, norm_eps, iterations=iterations)
    return Plan(cfg.splits, cfg.rows, build(mhc_mix, cfg), build(mhc_weigh_norm, cfg))


def forward(x, y, post, comb, fn, scale, base, norm_weight, iterations: int, eps: float, norm_eps: float):
    """Launch the kernels on CUDA tensors; return the streams, the next layer's input, post and comb, and its pre."""
    hc, hidden = x.shape[-2:]
    out, next_y, next_pre = x.new_empty(x.shape), y.new_empty(y.shape), post.new_empty(post.shape)
    next_post, next_comb = post.new_empty(post.shape), comb.new_empty(comb.shape)
    if x.numel():
        plan = _plan(hc, hidden, eps, norm_eps, iterations)
        x, y, post, comb, fn, scale, base, norm_weight = map(aligned, (x, y, post, comb, fn, scale, base, norm_weight))
        streams, row, one, square = (-1, hc, hidden), (-1, hidden), (-1, hc), (-1, hc, hc)
        new = out.view(streams)
        sums, squares = fn.new_empty((len(new), plan.splits, plan.rows)), fn.new_empty((len(new), plan.splits))
        plan.mix(x.view(streams), y.view(row), post.view(one), comb.view(square), fn, new, sums, squares)
        written = next_y.view(row), next_post.view(one), next_comb.view(square), next_pre.view(one)
        plan.weigh(new, sums, squares, scale, base, norm_weight, *written)
    return out, next_y, next_post, next_comb, next_pre
