"""A layer's input and coefficients from the residual streams (formula: reference/mhc.py).

1. ``mhc_project``: the products of the streams with fn, and Σ x², on tensor cores. Each element of fn is three numbers of bf16
   whose sum it is, so that products with the streams are exact. A split of the columns takes the same columns of all streams;
   splits make blocks enough for a GPU.
2. ``mhc_weigh``: for each token the splits added up in their order, normalised, and made weights of the streams, ``post``, and
   ``comb``, whose logits a thread normalises (kernels/sinkhorn.py); and the sum of the streams with these weights.

At the head of a model there is neither ``post`` nor ``comb``: ``mhc_head_weigh`` makes weights alone. How the columns are
split depends on their number, and so does the order of every sum.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T

from . import sinkhorn
from .build import Launch, aligned, build, planned, row_loop
from .mhc_post import Columns, load_streams, store_row
from .mhc_post import Config as Streams
from .sinkhorn import column_step, row_step, softmax, start

BF16, F32 = "bfloat16", "float32"
PARTS = 3  # numbers of bf16 that make one of fp32
TOKENS, COLUMNS = 64, 64  # of a product
PARTS_BYTES = 48 * 1024  # of shared memory for the parts of fn
THREADS, WIDTH = 128, 8  # columns of which a thread sums the squares


@dataclass(frozen=True)
class Config:
    """What the kernels of a site, or of the head of a model, are made for.

    Attributes:
        hc: how many streams there are.
        hidden: how wide each is.
        eps: added to the weights, and that of Sinkhorn.
        norm_eps: added to the mean of the squares.
        head: whether this is the head.
        iterations: of Sinkhorn.
        chunks: of the tokens, in the backward.
        parts_bytes: of shared memory for the parts of fn.
    """

    hc: int = 4
    hidden: int = 4096
    eps: float = 1e-6
    norm_eps: float = 1e-6
    head: bool = False
    iterations: int = 20
    chunks: int = 1
    parts_bytes: int = PARTS_BYTES

    @property
    def columns(self) -> int:
        """Return how many columns all streams have together."""
        return self.hc * self.hidden

    @property
    def rows(self) -> int:
        """Return how many coefficients a token has."""
        return self.hc if self.head else self.hc * (self.hc + 2)

    @property
    def padded(self) -> int:
        """Return that number, or the next multiple of 16, as tensor cores take them."""
        return -(-self.rows // 16) * 16

    @property
    def tiles(self) -> int:
        """Return how many tiles of a stream's columns a split takes."""
        return 1 if self.hidden // COLUMNS % 2 else 2

    @property
    def splits(self) -> int:
        """Return how many splits of the columns there are."""
        return self.hidden // COLUMNS // self.tiles

    @property
    def together(self) -> int:
        """Return for how many streams a block has fn in shared memory at once: as many as fit, of those that divide all."""
        fit = self.parts_bytes // (2 * PARTS * self.padded * COLUMNS)
        return max(n for n in range(1, self.hc + 1) if self.hc % n == 0 and n <= max(fit, 1))

    @property
    def streams(self) -> Streams:
        """Return how a block goes through all columns of a token."""
        return Streams(self.hc, self.hidden)

    @property
    def sinkhorn(self) -> sinkhorn.Config:
        """Return how ``comb`` is normalised."""
        return sinkhorn.Config(self.hc, self.iterations, self.eps)


class Products(NamedTuple):
    """What a block multiplies, and the sums in its registers."""

    x: Any  # [stream, token, column] in shared memory
    parts: Any  # [stream of some, part, coefficient, column] in shared memory: of fn
    acc: Any  # [token, coefficient]
    square: Any  # [token, group of columns]


@T.macro
def split_up(cfg, fn, first, parts):
    """Write columns of fn as three numbers of bf16: what rounding leaves over is rounded again. Zeros fill up the rows.

    They are the columns from ``first`` on of as many streams as ``parts`` has.
    """
    for i, m, k in T.Parallel(parts.shape[0], cfg.padded, COLUMNS):
        value = T.if_then_else(m < cfg.rows, fn[m, first + i * cfg.hidden + k], 0)
        rest = value - T.cast(T.cast(value, BF16), F32)
        parts[i, 0, m, k] = value
        parts[i, 1, m, k] = rest
        parts[i, 2, m, k] = rest - T.cast(T.cast(rest, BF16), F32)


@T.macro
def add_products(cfg, of, fn, first):
    """Add the products of a tile of columns with fn to the sums, and the squares, stream by stream."""
    for n in T.unroll(cfg.hc // cfg.together):
        split_up(cfg, fn, n * cfg.together * cfg.hidden + first, of.parts)
        for i in T.unroll(cfg.together):
            for p in T.unroll(PARTS):
                T.gemm(
                    of.x[n * cfg.together + i, :, :],
                    of.parts[i, p, :, :],
                    of.acc,
                    transpose_B=True,
                    policy=T.GemmWarpPolicy.FullRow,
                )
    for i in T.unroll(cfg.hc):
        for r, k in T.Parallel(TOKENS, COLUMNS // WIDTH):
            for j in T.unroll(WIDTH):
                value = T.cast(of.x[i, r, k * WIDTH + j], F32)
                of.square[r, k] += value * value


@T.macro
def store_products(cfg, of, block, split, sums, squares):
    """Write the sums of a block's split."""
    total = T.alloc_fragment((TOKENS,), F32)
    T.reduce_sum(of.square, total, dim=1)
    for r, m in T.Parallel(TOKENS, cfg.padded):
        if block * TOKENS + r < sums.shape[0] and m < cfg.rows:
            sums[block * TOKENS + r, split, m] = of.acc[r, m]
    for r in T.Parallel(TOKENS):
        if block * TOKENS + r < sums.shape[0]:
            squares[block * TOKENS + r, split] = total[r]


def mhc_project(cfg: Config) -> T.PrimFunc:
    """Multiply each token's streams by fn, and sum their squares, for each split of the columns."""
    hc, hidden, rows, splits = cfg.hc, cfg.hidden, cfg.rows, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_project(
        x: T.Tensor((tokens, hc, hidden), BF16),
        fn: T.Tensor((rows, cfg.columns), F32),
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, TOKENS), splits, threads=THREADS) as (block, split):
            x_shared = T.alloc_shared((hc, TOKENS, COLUMNS), BF16)
            parts = T.alloc_shared((cfg.together, PARTS, cfg.padded, COLUMNS), BF16)
            acc = T.alloc_fragment((TOKENS, cfg.padded), F32)
            square = T.alloc_fragment((TOKENS, COLUMNS // WIDTH), F32)
            T.clear(acc)
            T.clear(square)
            for t in T.serial(cfg.tiles):
                first = (split * cfg.tiles + t) * COLUMNS
                for i, r, k in T.Parallel(hc, TOKENS, COLUMNS):
                    x_shared[i, r, k] = x[T.min(block * TOKENS + r, tokens - 1), i, first + k]
                add_products(cfg, Products(x_shared, parts, acc, square), fn, first)
            store_products(cfg, Products(x_shared, parts, acc, square), block, split, sums, squares)

    return mhc_project


class Coefficients(NamedTuple):
    """What the coefficients of a token are made of."""

    sums: Any  # [token, split, coefficient]
    squares: Any  # [token, split]
    scale: Any
    base: Any


@T.macro
def normalise(cfg, token, of, mu_shared):
    """Set mu to a token's projections: the sums of all splits, normalised."""
    mu, square = (T.alloc_fragment((cfg.rows,), F32) for _ in range(2))
    T.clear(mu)
    T.clear(square)
    for s in T.unroll(cfg.splits):
        for m in T.Parallel(cfg.rows):
            mu[m] += of.sums[token, s, m]
            square[m] += of.squares[token, s]
    for m in T.Parallel(cfg.rows):
        mu_shared[m] = mu[m] * T.rsqrt(square[m] / cfg.columns + cfg.norm_eps)


@T.macro
def weights_of(cfg, of, mu_shared, weights):
    """Set the weights of a token's streams."""
    for o in T.Parallel(cfg.hc):
        weights[o] = T.sigmoid(of.scale[0] * mu_shared[o] + of.base[o]) + cfg.eps


@T.macro
def others_of(cfg, token, of, mu_shared, post, logits):
    """Write a token's ``post``, and set the logits of its ``comb``."""
    for o in T.Parallel(cfg.hc):
        post[token, o] = 2 * T.sigmoid(of.scale[1] * mu_shared[cfg.hc + o] + of.base[cfg.hc + o])
    for a, b in T.Parallel(cfg.hc, cfg.hc):
        row = (2 + a) * cfg.hc + b
        logits[0, a, b] = of.scale[2] * mu_shared[row] + of.base[row]


@T.macro
def normalise_comb(cfg, token, logits, comb):
    """Write Sinkhorn's result on the logits of a token, which one thread computes."""
    n = cfg.n
    p = T.alloc_local((n, n), F32)
    u, v = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
    r, c = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
    if T.get_thread_binding() < 1:
        softmax(n, cfg.eps, logits, 0, p)
        start(cfg, p, u, v, r, c)
        for _ in T.serial(cfg.iterations - 1):
            row_step(cfg, p, u, r, c)
            column_step(cfg, p, v, r, c)
        for i in T.unroll(n):
            for j in row_loop(n):
                comb[token, i, j] = r[i] * p[i, j] * c[j]


@T.macro
def weigh(cfg, at, weights, x, acc):
    """Sum the columns of the streams with their weights."""
    rows = T.alloc_fragment((cfg.hc, cfg.threads, cfg.width), BF16)
    load_streams(at, x, rows)
    T.clear(acc)
    for i in T.unroll(cfg.hc):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            acc[t, j] += weights[i] * rows[i, t, j]


def mhc_weigh(cfg: Config) -> T.PrimFunc:
    """Make the coefficients of each token, and sum its streams with their weights."""
    hc, hidden, rows, splits, streams = cfg.hc, cfg.hidden, cfg.rows, cfg.splits, cfg.streams
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_weigh(
        x: T.Tensor((tokens, hc, hidden), BF16),
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
        scale: T.Tensor((3,), F32),
        base: T.Tensor((rows,), F32),
        y: T.Tensor((tokens, hidden), BF16),
        post: T.Tensor((tokens, hc), F32),
        comb: T.Tensor((tokens, hc, hc), F32),
    ):
        with T.Kernel(tokens, threads=streams.threads) as token:
            mu_shared, weights = T.alloc_shared((rows,), F32), T.alloc_shared((hc,), F32)
            logits = T.alloc_shared((1, hc, hc), F32)
            acc = T.alloc_fragment((streams.threads, streams.width), F32)
            normalise(cfg, token, Coefficients(sums, squares, scale, base), mu_shared)
            weights_of(cfg, Coefficients(sums, squares, scale, base), mu_shared, weights)
            others_of(cfg, token, Coefficients(sums, squares, scale, base), mu_shared, post, logits)
            for step in T.serial(streams.steps):
                weigh(streams, Columns(streams, token, step * streams.step), weights, x, acc)
                store_row(Columns(streams, token, step * streams.step), acc, y)
            normalise_comb(cfg.sinkhorn, token, logits, comb)

    return mhc_weigh


def mhc_head_weigh(cfg: Config) -> T.PrimFunc:
    """Make the weights of each token's streams, and sum them."""
    hc, hidden, rows, splits, streams = cfg.hc, cfg.hidden, cfg.rows, cfg.splits, cfg.streams
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_head_weigh(
        x: T.Tensor((tokens, hc, hidden), BF16),
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
        scale: T.Tensor((1,), F32),
        base: T.Tensor((rows,), F32),
        y: T.Tensor((tokens, hidden), BF16),
    ):
        with T.Kernel(tokens, threads=streams.threads) as token:
            mu_shared, weights = T.alloc_shared((rows,), F32), T.alloc_shared((hc,), F32)
            acc = T.alloc_fragment((streams.threads, streams.width), F32)
            normalise(cfg, token, Coefficients(sums, squares, scale, base), mu_shared)
            weights_of(cfg, Coefficients(sums, squares, scale, base), mu_shared, weights)
            for step in T.serial(streams.steps):
                weigh(streams, Columns(streams, token, step * streams.step), weights, x, acc)
                store_row(Columns(streams, token, step * streams.step), acc, y)

    return mhc_head_weigh


class Plan(NamedTuple):
    """What a forward launches, and the sizes of what it keeps in between."""

    splits: int
    rows: int
    project: Launch
    weigh: Launch


@planned
def _plan(hc: int, hidden: int, eps: float, norm_eps: float, iterations: int) -> Plan:
    cfg = Config(hc, hidden, eps, norm_eps, iterations=iterations)
    return Plan(cfg.splits, cfg.rows, build(mhc_project, cfg), build(mhc_weigh, cfg))


@planned
def _head_plan(hc: int, hidden: int, eps: float, norm_eps: float) -> Plan:
    cfg = Config(hc, hidden, eps, norm_eps, head=True)
    return Plan(cfg.splits, cfg.rows, build(mhc_project, cfg), build(mhc_head_weigh, cfg))


def _run(plan: Plan, x, fn, scale, base, *results):
    """Launch both kernels on the streams of all tokens."""
    tokens = len(x)
    x, fn, scale, base = map(aligned, (x, fn, scale, base))
    sums, squares = fn.new_empty((tokens, plan.splits, plan.rows)), fn.new_empty((tokens, plan.splits))
    plan.project(x, fn, sums, squares)
    plan.weigh(x, sums, squares, scale, base, *results)


def forward(x, fn, scale, base, iterations: int, eps: float, norm_eps: float):
    """Launch the kernels on CUDA tensors; return a layer's input, post and comb."""
    *leading, hc, hidden = x.shape
    y, post, comb = x.new_empty((*leading, hidden)), *(fn.new_empty((*leading, hc, *more)) for more in ((), (hc,)))
    if y.numel():
        results = y.view(-1, hidden), post.view(-1, hc), comb.view(-1, hc, hc)
        plan = _plan(hc, hidden, eps, norm_eps, iterations)
        _run(plan, x.reshape(-1, hc, hidden), fn, scale, base, *results)
    return y, post, comb


def head(x, fn, scale, base, eps: float, norm_eps: float):
    """Launch the kernels of the head on CUDA tensors; return the streams as one."""
    *leading, hc, hidden = x.shape
    y = x.new_empty((*leading, hidden))
    if y.numel():
        plan = _head_plan(hc, hidden, eps, norm_eps)
        _run(plan, x.reshape(-1, hc, hidden), fn, scale, base, y.view(-1, hidden))
    return y
