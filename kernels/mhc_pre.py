"""A layer's input and coefficients from the residual streams, in five launches (formula: reference/mhc.py).

1. ``mhc_split``: each element of fn as three numbers of bf16 whose sum it is.
2. ``mhc_project``: products of the streams with these, which are exact, and Σ x², on tensor cores. The columns are split among
   blocks, so that there are enough for a GPU.
3. ``mhc_gates``: the parts added up in their order, normalised, and made weights of the streams, ``post``, and logits.
4. Sinkhorn of the logits (kernels/sinkhorn.py).
5. ``mhc_weigh``: the sum of the streams with their weights.

At the head of a model there is neither ``post`` nor ``comb``: ``mhc_head_gates`` makes weights alone. How the columns are
split depends on their number, and so does the order of every sum.
"""

from dataclasses import dataclass

import tilelang.language as T
import torch

from . import sinkhorn
from .build import aligned, build
from .mhc_post import Columns, load_streams, store_row
from .mhc_post import Config as Streams

BF16, F32 = "bfloat16", "float32"
PARTS = 3  # numbers of bf16 that make one of fp32
TOKENS, COLUMNS = 64, 64  # of a product
THREADS, WIDTH = 128, 8  # columns of which a thread sums the squares
GATED = 16  # tokens of a block of mhc_gates


@dataclass(frozen=True)
class Config:
    """How many streams there are, how wide they are, the eps of the weights and of the norm; whether this is the head."""

    hc: int = 4
    hidden: int = 4096
    eps: float = 1e-6
    norm_eps: float = 1e-6
    head: bool = False

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
        """Return that number, or the next multiple of 8, so that the threads of a block divide the coefficients."""
        return -(-self.rows // 8) * 8

    @property
    def wide(self) -> int:
        """Return how many rows the parts of fn have together, filled up to a multiple of 16, as tensor cores take them."""
        return -(-PARTS * self.rows // 16) * 16

    @property
    def products(self) -> int:
        """Return how many products a split of the columns takes: what divides all and is nearest below 16."""
        total = self.columns // COLUMNS
        return max(n for n in range(1, 17) if total % n == 0)

    @property
    def splits(self) -> int:
        """Return how many splits of the columns there are."""
        return self.columns // COLUMNS // self.products


def mhc_split(cfg: Config) -> T.PrimFunc:
    """Write each element of fn as three numbers of bf16: what rounding leaves over is rounded again. The rest is zeros."""
    rows, columns, wide = cfg.rows, cfg.columns, cfg.wide

    @T.prim_func
    def mhc_split(fn: T.Tensor((rows, columns), F32), parts: T.Tensor((wide, columns), BF16)):
        with T.Kernel(columns // COLUMNS, wide, threads=COLUMNS) as (block, row):
            c = block * COLUMNS + T.get_thread_binding()
            value, rest = T.alloc_var(F32), T.alloc_var(F32)
            value = fn[row % rows, c]
            rest = value - T.cast(T.cast(value, BF16), F32)
            if row >= rows:
                value = rest
            if row >= 2 * rows:
                value = rest - T.cast(T.cast(rest, BF16), F32)
            parts[row, c] = T.if_then_else(row < PARTS * rows, value, 0)

    return mhc_split


def mhc_project(cfg: Config) -> T.PrimFunc:
    """Multiply each token's streams by the parts of fn, and sum their squares, for each split of the columns."""
    wide, splits = cfg.wide, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_project(
        x: T.Tensor((tokens, cfg.columns), BF16),
        fn: T.Tensor((wide, cfg.columns), BF16),
        sums: T.Tensor((tokens, splits, wide), F32),
        squares: T.Tensor((tokens, splits), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, TOKENS), splits, threads=THREADS) as (block, split):
            x_shared, fn_shared = T.alloc_shared((TOKENS, COLUMNS), BF16), T.alloc_shared((wide, COLUMNS), BF16)
            acc, total = T.alloc_fragment((TOKENS, wide), F32), T.alloc_fragment((TOKENS,), F32)
            square = T.alloc_fragment((TOKENS, COLUMNS // WIDTH), F32)
            T.clear(acc)
            T.clear(square)
            for t in T.serial(cfg.products):
                first = (split * cfg.products + t) * COLUMNS
                for i, k in T.Parallel(TOKENS, COLUMNS):
                    x_shared[i, k] = x[T.min(block * TOKENS + i, tokens - 1), first + k]
                for m, k in T.Parallel(wide, COLUMNS):
                    fn_shared[m, k] = fn[m, first + k]
                T.gemm(x_shared, fn_shared, acc, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                for i, k in T.Parallel(TOKENS, COLUMNS // WIDTH):
                    for j in T.unroll(WIDTH):
                        value = T.cast(x_shared[i, k * WIDTH + j], F32)
                        square[i, k] += value * value
            T.reduce_sum(square, total, dim=1)
            for i, m in T.Parallel(TOKENS, wide):
                if block * TOKENS + i < tokens:
                    sums[block * TOKENS + i, split, m] = acc[i, m]
            for i in T.Parallel(TOKENS):
                if block * TOKENS + i < tokens:
                    squares[block * TOKENS + i, split] = total[i]

    return mhc_project


@T.macro
def add_parts(cfg, block, sums, squares, mu_shared):
    """Set mu to the sums of the parts, normalised, for the tokens of a block and the coefficients, the last one repeated."""
    mu, square = (T.alloc_fragment((GATED, cfg.padded), F32) for _ in range(2))
    T.clear(mu)
    T.clear(square)
    for s in T.serial(cfg.splits):
        for i, m in T.Parallel(GATED, cfg.padded):
            token, row = T.min(block * GATED + i, sums.shape[0] - 1), T.min(m, cfg.rows - 1)
            square[i, m] += squares[token, s]
            mu[i, m] += sums[token, s, row] + sums[token, s, cfg.rows + row] + sums[token, s, 2 * cfg.rows + row]
    for i, m in T.Parallel(GATED, cfg.padded):
        mu_shared[i, m] = mu[i, m] * T.rsqrt(square[i, m] / cfg.columns + cfg.norm_eps)


@T.macro
def weights_of(cfg, block, mu_shared, scale, base, pre):
    """Write the weights of the streams for the tokens of a block."""
    for i, o in T.Parallel(GATED, cfg.hc):
        if block * GATED + i < pre.shape[0]:
            pre[block * GATED + i, o] = T.sigmoid(scale[0] * mu_shared[i, o] + base[o]) + cfg.eps


def mhc_gates(cfg: Config) -> T.PrimFunc:
    """Add up the parts of the projections, and make the weights of the streams, ``post`` and the logits of ``comb``."""
    hc, rows, splits = cfg.hc, cfg.rows, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_gates(
        sums: T.Tensor((tokens, splits, cfg.wide), F32),
        squares: T.Tensor((tokens, splits), F32),
        scale: T.Tensor((3,), F32),
        base: T.Tensor((rows,), F32),
        pre: T.Tensor((tokens, hc), F32),
        post: T.Tensor((tokens, hc), F32),
        logits: T.Tensor((tokens, hc, hc), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, GATED), threads=THREADS) as block:
            mu_shared = T.alloc_shared((GATED, cfg.padded), F32)
            add_parts(cfg, block, sums, squares, mu_shared)
            weights_of(cfg, block, mu_shared, scale, base, pre)
            for i, o in T.Parallel(GATED, hc):
                if block * GATED + i < tokens:
                    post[block * GATED + i, o] = 2 * T.sigmoid(scale[1] * mu_shared[i, hc + o] + base[hc + o])
            for a in T.unroll(hc):
                for i, b in T.Parallel(GATED, hc):
                    if block * GATED + i < tokens:
                        logits[block * GATED + i, a, b] = (
                            scale[2] * mu_shared[i, (2 + a) * hc + b] + base[(2 + a) * hc + b]
                        )

    return mhc_gates


def mhc_head_gates(cfg: Config) -> T.PrimFunc:
    """Add up the parts of the projections, and make the weights of the streams."""
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_head_gates(
        sums: T.Tensor((tokens, cfg.splits, cfg.wide), F32),
        squares: T.Tensor((tokens, cfg.splits), F32),
        scale: T.Tensor((1,), F32),
        base: T.Tensor((cfg.hc,), F32),
        pre: T.Tensor((tokens, cfg.hc), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, GATED), threads=THREADS) as block:
            mu_shared = T.alloc_shared((GATED, cfg.padded), F32)
            add_parts(cfg, block, sums, squares, mu_shared)
            weights_of(cfg, block, mu_shared, scale, base, pre)

    return mhc_head_gates


def mhc_weigh(cfg: Streams) -> T.PrimFunc:
    """Sum the streams with their weights."""
    hc, hidden, threads, width = cfg.hc, cfg.hidden, cfg.threads, cfg.width
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_weigh(
        x: T.Tensor((tokens, hc, hidden), BF16),
        pre: T.Tensor((tokens, hc), F32),
        y: T.Tensor((tokens, hidden), BF16),
    ):
        with T.Kernel(tokens, threads=threads) as token:
            rows, acc = T.alloc_fragment((hc, threads, width), BF16), T.alloc_fragment((threads, width), F32)
            for step in T.serial(cfg.steps):
                at = Columns(cfg, token, step * cfg.step)
                load_streams(at, x, rows)
                T.clear(acc)
                for i in T.unroll(hc):
                    for t, j in T.Parallel(threads, width):
                        acc[t, j] += pre[token, i] * rows[i, t, j]
                store_row(at, acc, y)

    return mhc_weigh


def _projected(x, fn, cfg: Config):
    """Launch ``mhc_split`` and ``mhc_project`` on the streams of all tokens; return the sums and the sums of squares."""
    parts = fn.new_empty((cfg.wide, cfg.columns), dtype=torch.bfloat16)
    sums, squares = fn.new_empty((len(x), cfg.splits, cfg.wide)), fn.new_empty((len(x), cfg.splits))
    build(mhc_split, cfg)(aligned(fn), parts)
    build(mhc_project, cfg)(x.view(len(x), cfg.columns), parts, sums, squares)
    return sums, squares


def _weighted(x, pre, y):
    """Launch ``mhc_weigh`` on the streams of all tokens."""
    if len(x):
        build(mhc_weigh, Streams(*x.shape[1:]))(x, pre, y.view(len(x), -1))
    return y


def forward(x, fn, scale, base, iterations: int, eps: float, norm_eps: float):
    """Launch the kernels on CUDA tensors; return a layer's input, post and comb."""
    *leading, hc, hidden = x.shape
    cfg = Config(hc, hidden, eps, norm_eps)
    y, post, logits = x.new_empty((*leading, hidden)), *(fn.new_empty((*leading, hc, *more)) for more in ((), (hc,)))
    x = aligned(x).view(-1, hc, hidden)
    pre = fn.new_empty((len(x), hc))
    if len(x):
        gates = aligned(scale), aligned(base), pre, post.view(-1, hc), logits.view(-1, hc, hc)
        build(mhc_gates, cfg)(*_projected(x, fn, cfg), *gates)
    return _weighted(x, pre, y), post, sinkhorn.forward(logits, iterations, eps)


def head(x, fn, scale, base, eps: float, norm_eps: float):
    """Launch the kernels of the head on CUDA tensors; return the streams as one."""
    *leading, hc, hidden = x.shape
    cfg = Config(hc, hidden, eps, norm_eps, head=True)
    y = x.new_empty((*leading, hidden))
    x = aligned(x).view(-1, hc, hidden)
    pre = fn.new_empty((len(x), hc))
    if len(x):
        build(mhc_head_gates, cfg)(*_projected(x, fn, cfg), aligned(scale), aligned(base), pre)
    return _weighted(x, pre, y)
