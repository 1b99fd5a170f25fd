"""The projections of the residual streams that make coefficients, on tensor cores (formula: reference/mhc.py).

A block takes 64 tokens and the same columns of all streams, a split of the columns; splits make blocks enough for a GPU. It
multiplies them with fn, and sums their squares. Each element of fn is three numbers of bf16 whose sum it is, so that products
with the streams are exact.

``mhc_project`` makes these parts in each block. For many tokens ``mhc_split`` makes them once, and ``mhc_multiply`` copies the
next tiles while it multiplies one; its sums are the same to the last bit. How the columns are split depends on their number
alone, and so does the order of every sum.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T

from . import sinkhorn
from .mhc_post import Config as Streams

BF16, F32 = "bfloat16", "float32"
PARTS = 3  # numbers of bf16 that make one of fp32
TOKENS, COLUMNS = 64, 64  # of a product
AHEAD = 2  # tiles whose copies are under way
PARTS_BYTES = 48 * 1024  # of shared memory for the parts of fn
THREADS, WIDTH = 128, 8  # columns of which a thread sums the squares
MANY = 1024  # tokens from which on parts that are made once are worth a launch


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
def add_squares(x, i, square):
    """Add the squares of the i-th tile, each thread those of some columns."""
    for r, k in T.Parallel(TOKENS, COLUMNS // WIDTH):
        for j in T.unroll(WIDTH):
            value = T.cast(x[i, r, k * WIDTH + j], F32)
            square[r, k] += value * value


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
        add_squares(of.x, i, of.square)


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


def mhc_split(cfg: Config) -> T.PrimFunc:
    """Write fn as three numbers of bf16 for each element, as ``split_up`` makes them, and zeros for the rows that fill up."""

    @T.prim_func
    def mhc_split(
        fn: T.Tensor((cfg.rows, cfg.columns), F32),
        parts: T.Tensor((PARTS, cfg.padded, cfg.columns), BF16),
    ):
        with T.Kernel(cfg.columns // COLUMNS, cfg.padded, threads=COLUMNS // 2) as (tile, m):
            for k in T.Parallel(COLUMNS):
                value = T.if_then_else(m < cfg.rows, fn[T.min(m, cfg.rows - 1), tile * COLUMNS + k], 0)
                rest = value - T.cast(T.cast(value, BF16), F32)
                parts[0, m, tile * COLUMNS + k] = value
                parts[1, m, tile * COLUMNS + k] = rest
                parts[2, m, tile * COLUMNS + k] = rest - T.cast(T.cast(rest, BF16), F32)

    return mhc_split


def mhc_multiply(cfg: Config) -> T.PrimFunc:
    """Do what ``mhc_project`` does, to the last bit, with parts of fn that are made beforehand: it copies a tile ahead."""
    hc, hidden, rows, splits = cfg.hc, cfg.hidden, cfg.rows, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_multiply(
        x: T.Tensor((tokens, hc, hidden), BF16),
        parts: T.Tensor((PARTS, cfg.padded, cfg.columns), BF16),
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, TOKENS), splits, threads=THREADS) as (block, split):
            x_shared = T.alloc_shared((1, TOKENS, COLUMNS), BF16)
            parts_shared = T.alloc_shared((PARTS, cfg.padded, COLUMNS), BF16)
            acc = T.alloc_fragment((TOKENS, cfg.padded), F32)
            square = T.alloc_fragment((TOKENS, COLUMNS // WIDTH), F32)
            T.clear(acc)
            T.clear(square)
            for n in T.Pipelined(cfg.tiles * hc, num_stages=AHEAD):
                first = (split * cfg.tiles + n // hc) * COLUMNS
                for r, k in T.Parallel(TOKENS, COLUMNS):
                    x_shared[0, r, k] = x[T.min(block * TOKENS + r, tokens - 1), n % hc, first + k]
                for p, m, k in T.Parallel(PARTS, cfg.padded, COLUMNS):
                    parts_shared[p, m, k] = parts[p, m, n % hc * hidden + first + k]
                for p in T.unroll(PARTS):
                    if p < 1:
                        T.fence_proxy_async()  # TileLang's own is missing behind the last tile
                    T.wgmma_gemm(x_shared[0, :, :], parts_shared[p, :, :], acc, transpose_B=True)
                    if p == PARTS - 1:
                        T.wait_wgmma(0)  # in the loop, so that no copy of a further tile comes before it
                        T.warpgroup_fence_operand(acc, num_regs=TOKENS * cfg.padded // THREADS)
                add_squares(x_shared, 0, square)
            store_products(cfg, Products(x_shared, parts_shared, acc, square), block, split, sums, squares)

    return mhc_multiply
