"""Gradients of what reads the residual streams: of a layer's input and coefficients, and of the head of a model.

With μ the projections of a token x, u before they are normalised, r the norm's factor, K the columns of all streams, g the
gradient of y and a bar for a gradient (formula: reference/mhc.py),

    ū = r μ̄,    shrink = 2 S̄ = -(r²/K) Σ_m μ̄_m μ_m,    x̄_i = pre_i g + fnᵀ ū + shrink x_i,    f̄n = Σ_t ū xᵀ.

1. ``mhc_project_bwd``: the forward's projection again, and with the same tiles of x their products with g, Σ_c x_i g.
2. ``mhc_normalise``: for each token the splits of these added up, and the logits of ``comb``.
3. Sinkhorn's backward (kernels/sinkhorn.py).
4. ``mhc_gates_bwd``: back through the sigmoids to the gradients of logits, to ū and to shrink.
5. ``mhc_read_bwd``: a block has 64 columns of a stream, their fn in shared memory, and goes through a chunk of the tokens: of
   n chunks, every n-th tile of 64. For each it computes x̄ on tensor cores and adds to f̄n what its tokens give.
6. ``mhc_sum_gates``: the sums for scale and base over chunks of the tokens.
7. ``mhc_add_chunks`` and ``mhc_add_gates``: the sums of the chunks, in their order.

The second, the fourth and those of the gates stand in kernels/mhc_gates_backward.py.

Where both factors of a product are in fp32, each is three numbers of bf16, and the six products of them that are not below what
fp32 rounds are added. Tensor cores cut off what their sums cannot hold, so the smallest numbers come first, and their sum for
f̄n is that of one tile, which is added in fp32. No float atomics: how tokens are chunked depends on their number alone, so that
results repeat bit for bit.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import tilelang.language as T

from . import sinkhorn
from .build import aligned, build
from .mhc_gates_backward import (
    SUMMED,
    WARP,
    Results,
    Token,
    mhc_add_gates,
    mhc_gates_bwd,
    mhc_head_gates_bwd,
    mhc_head_normalise,
    mhc_normalise,
    mhc_sum_gates,
)
from .mhc_project import (
    BF16,
    COLUMNS,
    F32,
    PARTS,
    THREADS,
    TOKENS,
    WIDTH,
    Config,
    Products,
    add_products,
    split_up,
    store_products,
)

CHUNKS = {16: 256, 4: 32, 1: 0}  # chunks of the gradient of fn, and tiles of tokens from which on there are so many
QUAD = 4  # columns that a thread of mhc_add_chunks has; half as many where warps would not divide all columns


def mhc_project_bwd(cfg: Config) -> T.PrimFunc:
    """Project the streams as the forward does, and multiply them by the gradient of y, for each split of the columns."""
    hc, hidden, rows, splits = cfg.hc, cfg.hidden, cfg.rows, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_project_bwd(
        grad_y: T.Tensor((tokens, hidden), BF16),
        x: T.Tensor((tokens, hc, hidden), BF16),
        fn: T.Tensor((rows, cfg.columns), F32),
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
        dots: T.Tensor((tokens, splits, hc), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, TOKENS), splits, threads=THREADS) as (block, split):
            x_shared = T.alloc_shared((hc, TOKENS, COLUMNS), BF16)
            grad_shared = T.alloc_shared((TOKENS, COLUMNS), BF16)
            parts = T.alloc_shared((cfg.together, PARTS, cfg.padded, COLUMNS), BF16)
            acc = T.alloc_fragment((TOKENS, cfg.padded), F32)
            square = T.alloc_fragment((TOKENS, COLUMNS // WIDTH), F32)
            dot = T.alloc_fragment((hc, TOKENS, COLUMNS // WIDTH), F32)
            total = T.alloc_fragment((hc, TOKENS), F32)
            T.clear(acc)
            T.clear(square)
            T.clear(dot)
            for t in T.serial(cfg.tiles):
                first = (split * cfg.tiles + t) * COLUMNS
                for i, r, k in T.Parallel(hc, TOKENS, COLUMNS):
                    x_shared[i, r, k] = x[T.min(block * TOKENS + r, tokens - 1), i, first + k]
                for r, k in T.Parallel(TOKENS, COLUMNS):
                    grad_shared[r, k] = grad_y[T.min(block * TOKENS + r, tokens - 1), first + k]
                add_products(cfg, Products(x_shared, parts, acc, square), fn, first)
                for i, r, k in T.Parallel(hc, TOKENS, COLUMNS // WIDTH):
                    for j in T.unroll(WIDTH):
                        dot[i, r, k] += T.cast(x_shared[i, r, k * WIDTH + j], F32) * T.cast(
                            grad_shared[r, k * WIDTH + j], F32
                        )
            store_products(cfg, Products(x_shared, parts, acc, square), block, split, sums, squares)
            T.reduce_sum(dot, total, dim=2)
            for i, r in T.Parallel(hc, TOKENS):
                if block * TOKENS + r < tokens:
                    dots[block * TOKENS + r, split, i] = total[i, r]

    return mhc_project_bwd


@T.macro
def load_tile(cfg, token, stream, first, sources, shared):
    """Read a tile of tokens: columns of the stream and of the gradient of y, ū in parts, weights; zeros beyond the last."""
    x, grad_y, grad_u, pre, shrink = sources
    x_shared, grad_shared, u_parts, pre_shared, shrink_shared = shared
    for r, k in T.Parallel(TOKENS, COLUMNS):
        x_shared[r, k] = T.if_then_else(token + r < x.shape[0], x[token + r, stream, first + k], 0)
    for r, k in T.Parallel(TOKENS, COLUMNS):
        grad_shared[r, k] = T.if_then_else(token + r < x.shape[0], grad_y[token + r, first + k], 0)
    for r, m in T.Parallel(TOKENS, cfg.padded):
        value = T.if_then_else(token + r < x.shape[0] and m < cfg.rows, grad_u[token + r, m], 0)
        rest = value - T.cast(T.cast(value, BF16), F32)
        u_parts[0, r, m] = value
        u_parts[1, r, m] = rest
        u_parts[2, r, m] = rest - T.cast(T.cast(rest, BF16), F32)
    for r in T.Parallel(TOKENS):
        pre_shared[r] = T.if_then_else(token + r < x.shape[0], pre[token + r, stream], 0)
        shrink_shared[r] = T.if_then_else(token + r < x.shape[0], shrink[token + r], 0)


def mhc_read_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradient of the streams, and for each chunk of the tokens that of fn."""
    hc, hidden, rows, padded = cfg.hc, cfg.hidden, cfg.rows, cfg.padded
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_read_bwd(
        grad_y: T.Tensor((tokens, hidden), BF16),
        x: T.Tensor((tokens, hc, hidden), BF16),
        fn: T.Tensor((rows, cfg.columns), F32),
        pre: T.Tensor((tokens, hc), F32),
        grad_u: T.Tensor((tokens, rows), F32),
        shrink: T.Tensor((tokens,), F32),
        grad_x: T.Tensor((tokens, hc, hidden), BF16),
        parts: T.Tensor((cfg.chunks, rows, cfg.columns), F32),
    ):
        with T.Kernel(cfg.chunks, hc, hidden // COLUMNS, threads=THREADS) as (chunk, stream, tile):
            x_shared, grad_shared = (T.alloc_shared((TOKENS, COLUMNS), BF16) for _ in range(2))
            out_shared = T.alloc_shared((TOKENS, COLUMNS), BF16)
            pre_shared, shrink_shared = (T.alloc_shared((TOKENS,), F32) for _ in range(2))
            u_parts = T.alloc_shared((PARTS, TOKENS, padded), BF16)
            fn_parts = T.alloc_shared((1, PARTS, padded, COLUMNS), BF16)
            acc_x, acc_fn = T.alloc_fragment((TOKENS, COLUMNS), F32), T.alloc_fragment((COLUMNS, padded), F32)
            of_tile = T.alloc_fragment((COLUMNS, padded), F32)
            split_up(cfg, fn, stream * hidden + tile * COLUMNS, fn_parts)
            T.clear(acc_fn)
            for t in T.serial((T.ceildiv(tokens, TOKENS) + cfg.chunks - 1 - chunk) // cfg.chunks):
                token = (t * cfg.chunks + chunk) * TOKENS
                load_tile(
                    cfg,
                    token,
                    stream,
                    tile * COLUMNS,
                    (x, grad_y, grad_u, pre, shrink),
                    (x_shared, grad_shared, u_parts, pre_shared, shrink_shared),
                )
                T.clear(acc_x)
                T.clear(of_tile)
                for smaller in T.unroll(PARTS):
                    p = PARTS - 1 - smaller
                    for q in T.unroll(PARTS - p):
                        T.gemm(u_parts[p, :, :], fn_parts[0, q, :, :], acc_x, policy=T.GemmWarpPolicy.FullRow)
                    T.gemm(x_shared, u_parts[p, :, :], of_tile, transpose_A=True, policy=T.GemmWarpPolicy.FullRow)
                for k, m in T.Parallel(COLUMNS, padded):
                    acc_fn[k, m] += of_tile[k, m]
                for r, k in T.Parallel(TOKENS, COLUMNS):
                    acc_x[r, k] += pre_shared[r] * grad_shared[r, k] + shrink_shared[r] * x_shared[r, k]
                T.copy(acc_x, out_shared)
                for r, k in T.Parallel(TOKENS, COLUMNS):
                    if token + r < tokens:
                        grad_x[token + r, stream, tile * COLUMNS + k] = out_shared[r, k]
            for k, m in T.Parallel(COLUMNS, padded):
                if m < rows:
                    parts[chunk, m, stream * hidden + tile * COLUMNS + k] = acc_fn[k, m]

    return mhc_read_bwd


def mhc_add_chunks(cfg: Config) -> T.PrimFunc:
    """Add up the gradients of fn of all chunks, in their order."""
    rows, columns = cfg.rows, cfg.columns
    taken = WARP * QUAD if columns % (WARP * QUAD) == 0 else WARP * QUAD // 2

    @T.prim_func
    def mhc_add_chunks(
        parts: T.Tensor((cfg.chunks, rows, columns), F32),
        grad_fn: T.Tensor((rows, columns), F32),
    ):
        with T.Kernel(columns // taken, rows, threads=WARP) as (block, m):
            acc = T.alloc_fragment((taken,), F32)
            T.clear(acc)
            for n in T.unroll(cfg.chunks):
                for k in T.Parallel(taken):
                    acc[k] += parts[n, m, block * taken + k]
            for k in T.Parallel(taken):
                grad_fn[m, block * taken + k] = acc[k]

    return mhc_add_chunks


def launched(cfg: Config):
    """Yield the kernels that a backward launches, Sinkhorn's left out, for any number of tokens, each with its config."""
    own = (mhc_head_normalise, mhc_head_gates_bwd) if cfg.head else (mhc_normalise, mhc_gates_bwd)
    for factory in (mhc_project_bwd, *own, mhc_sum_gates, mhc_add_gates):
        yield factory, cfg
    for chunks in CHUNKS:
        for factory in (mhc_read_bwd, mhc_add_chunks):
            yield factory, replace(cfg, chunks=chunks)


class Call(NamedTuple):
    """The inputs of a backward, the streams of all tokens in one row."""

    grad_y: Any
    x: Any
    fn: Any
    scale: Any
    base: Any


def _call(grad_y, x, fn, scale, base):
    """Return the inputs as the kernels take them."""
    hc, hidden = x.shape[-2:]
    grad_y, x, fn, scale, base = map(aligned, (grad_y, x, fn, scale, base))
    return Call(grad_y.view(-1, hidden), x.view(-1, hc, hidden), fn, scale, base)


def _empty(like, *shape):
    """Return a tensor of fp32 beside another one."""
    return like.fn.new_empty(shape)


def _projected(cfg, call):
    """Launch ``mhc_project_bwd``; return what it writes."""
    tokens = len(call.x)
    sums, squares, dots = (_empty(call, tokens, cfg.splits, *more) for more in ((cfg.rows,), (), (cfg.hc,)))
    build(mhc_project_bwd, cfg)(call.grad_y, call.x, call.fn, sums, squares, dots)
    return sums, squares, dots


def _kept(cfg, call):
    """Return what the backward keeps of the tokens, uninitialised."""
    tokens = len(call.x)
    return Token(_empty(call, tokens, cfg.rows), _empty(call, tokens), _empty(call, tokens, cfg.hc))


def _results(cfg, call):
    """Return what the gates' backward writes, uninitialised."""
    tokens, rows = len(call.x), cfg.rows
    return Results(
        _empty(call, tokens, cfg.hc), _empty(call, tokens, rows), _empty(call, tokens), _empty(call, tokens, rows)
    )


def _gradients(cfg, call, of, mu, shape):
    """Launch the kernels that read the streams again and add up; return the gradients of x, fn, scale and base."""
    grad_x, grad_fn, grad_scale, grad_base = (t.new_empty(t.shape) for t in call[1:])
    chunked = replace(cfg, chunks=chunks_of(len(call.x)))
    parts, sums = _empty(call, chunked.chunks, *call.fn.shape), _empty(call, SUMMED, 2, cfg.rows)
    build(mhc_read_bwd, chunked)(call.grad_y, call.x, call.fn, of.pre, of.grad_u, of.shrink, grad_x, parts)
    build(mhc_add_chunks, chunked)(parts, grad_fn)
    build(mhc_sum_gates, cfg)(of.grads, mu, sums)
    build(mhc_add_gates, cfg)(sums, grad_scale, grad_base)
    return grad_x.view(shape), grad_fn, grad_scale, grad_base


def chunks_of(tokens: int) -> int:
    """Return how many chunks the tokens make: at least 8 tiles each, if there is more than one."""
    tiles = -(-tokens // TOKENS)
    return next(chunks for chunks, least in CHUNKS.items() if tiles >= least)


def _of_none(*tensors):
    """Return the gradients of what no token reads: zeros."""
    return tuple(tensor.new_zeros(tensor.shape) for tensor in tensors)


def backward(grad_y, grad_post, grad_comb, x, fn, scale, base, iterations: int, eps: float, norm_eps: float):
    """Launch the kernels on CUDA tensors; return the gradients of x, fn, scale and base."""
    hc, hidden = x.shape[-2:]
    if not x.numel():
        return _of_none(x, fn, scale, base)
    cfg = Config(hc, hidden, eps, norm_eps, iterations=iterations)
    call, shape = _call(grad_y, x, fn, scale, base), x.shape
    kept, of, logits = _kept(cfg, call), _results(cfg, call), _empty(call, len(call.x), hc, hc)
    build(mhc_normalise, cfg)(*_projected(cfg, call), call.scale, call.base, *kept, logits)
    grad_logits = sinkhorn.backward(grad_comb.reshape(logits.shape), logits, iterations, eps)
    grad_post = aligned(grad_post).view(-1, hc)
    build(mhc_gates_bwd, cfg)(grad_post, grad_logits, *kept, call.scale, call.base, *of)
    return _gradients(cfg, call, of, kept.mu, shape)


def head_backward(grad_y, x, fn, scale, base, eps: float, norm_eps: float):
    """Launch the kernels of the head on CUDA tensors; return the gradients of x, fn, scale and base."""
    hc, hidden = x.shape[-2:]
    if not x.numel():
        return _of_none(x, fn, scale, base)
    cfg = Config(hc, hidden, eps, norm_eps, head=True)
    call, shape = _call(grad_y, x, fn, scale, base), x.shape
    kept, of = _kept(cfg, call), _results(cfg, call)
    build(mhc_head_normalise, cfg)(*_projected(cfg, call), *kept)
    build(mhc_head_gates_bwd, cfg)(*kept, call.scale, call.base, *of)
    return _gradients(cfg, call, of, kept.mu, shape)
