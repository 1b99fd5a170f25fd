"""A layer's input and coefficients from the residual streams (formula: reference/mhc.py).

1. The projections of the streams, and Σ x², for each split of the columns (kernels/mhc_project.py).
2. ``mhc_weigh``: for each token the splits added up in their order, normalised, and made weights of the streams, ``post``, and
   ``comb``, whose logits a thread normalises (kernels/sinkhorn.py); and the sum of the streams with these weights.

At the head of a model there is neither ``post`` nor ``comb``: ``mhc_head_weigh`` makes weights alone.
"""

from typing import Any, NamedTuple

import tilelang.language as T

from .build import Launch, aligned, build, planned, row_loop
from .mhc_post import Columns, load_streams, store_row
from .mhc_project import BF16, F32, MANY, PARTS, Config, mhc_multiply, mhc_project, mhc_split
from .sinkhorn import column_step, row_step, softmax, start


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


class Projection(NamedTuple):
    """The kernels that project: of few tokens ``project`` alone, of many the other two."""

    cfg: Config
    project: Launch
    split: Launch
    multiply: Launch


class Plan(NamedTuple):
    """What a forward launches."""

    projection: Projection
    weigh: Launch


def _projection(cfg: Config) -> Projection:
    return Projection(cfg, *(build(factory, cfg) for factory in (mhc_project, mhc_split, mhc_multiply)))


@planned
def _plan(hc: int, hidden: int, eps: float, norm_eps: float, iterations: int) -> Plan:
    cfg = Config(hc, hidden, eps, norm_eps, iterations=iterations)
    return Plan(_projection(cfg), build(mhc_weigh, cfg))


@planned
def _head_plan(hc: int, hidden: int, eps: float, norm_eps: float) -> Plan:
    cfg = Config(hc, hidden, eps, norm_eps, head=True)
    return Plan(_projection(cfg), build(mhc_head_weigh, cfg))


def _projected(by: Projection, x, fn):
    """Launch the kernels that project the streams of all tokens; return their sums and those of the squares."""
    cfg, tokens = by.cfg, len(x)
    sums, squares = fn.new_empty((tokens, cfg.splits, cfg.rows)), fn.new_empty((tokens, cfg.splits))
    if tokens < MANY:
        by.project(x, fn, sums, squares)
    else:
        parts = x.new_empty((PARTS, cfg.padded, cfg.columns))
        by.split(fn, parts)
        by.multiply(x, parts, sums, squares)
    return sums, squares


def _run(plan: Plan, x, fn, scale, base, *results):
    """Launch the kernels on the streams of all tokens."""
    x, fn, scale, base = map(aligned, (x, fn, scale, base))
    plan.weigh(x, *_projected(plan.projection, x, fn), scale, base, *results)


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
