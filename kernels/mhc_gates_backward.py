"""Gradients of the coefficients by which the residual streams are read (formula: reference/mhc.py).

With μ the projections of a token, u before they are normalised, r the norm's factor, K the columns of all streams and a bar
for a gradient,

    ū = r μ̄,    shrink = 2 S̄ = -(r²/K) Σ_m μ̄_m μ_m.

``mhc_normalise`` adds up the splits of what kernels/mhc_pre_backward.py has projected. ``mhc_gates_bwd`` goes back through the
sigmoids. ``mhc_sum_gates`` and ``mhc_add_gates`` sum the gradients of the logits over the tokens, for scale and base: chunks of
the tokens first, and then the chunks in their order. A head has the weights of the streams alone.
"""

from typing import Any, NamedTuple

import tilelang.language as T

from .mhc_pre import Coefficients, normalise
from .mhc_project import F32, THREADS, Config

WARP, GATED = 32, 32  # threads of a block of few numbers; tokens of a block of mhc_gates_bwd
SUMMED, AHEAD = 64, 16  # chunks of the sums for scale and base; tokens that are read before they are added


def of_token(cfg: Config) -> int:
    """Return how many threads have a token's coefficients: a warp, unless these are more."""
    return WARP if cfg.rows <= WARP else THREADS


class Token(NamedTuple):
    """What the backward keeps of a token."""

    mu: Any  # [token, coefficient]
    factor: Any  # [token]: r
    grad_pre: Any  # [token, stream]


@T.macro
def keep(cfg, token, of, dots, mu_shared, into):
    """Add up the splits of a token, and write what the backward keeps of it."""
    square, grad_pre = T.alloc_fragment((1,), F32), T.alloc_fragment((cfg.hc,), F32)
    normalise(cfg, token, of, mu_shared)
    T.clear(square)
    T.clear(grad_pre)
    for s in T.unroll(cfg.splits):
        for i in T.Parallel(1):
            square[i] += of.squares[token, s]
        for i in T.Parallel(cfg.hc):
            grad_pre[i] += dots[token, s, i]
    for m in T.Parallel(cfg.rows):
        into.mu[token, m] = mu_shared[m]
    for i in T.Parallel(1):
        into.factor[token + i] = T.rsqrt(square[i] / cfg.columns + cfg.norm_eps)
    for i in T.Parallel(cfg.hc):
        into.grad_pre[token, i] = grad_pre[i]


def mhc_normalise(cfg: Config) -> T.PrimFunc:
    """Add up the splits, and write μ, r, the gradient of the weights of the streams, and the logits of ``comb``."""
    hc, rows, splits = cfg.hc, cfg.rows, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_normalise(
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
        dots: T.Tensor((tokens, splits, hc), F32),
        scale: T.Tensor((3,), F32),
        base: T.Tensor((rows,), F32),
        mu: T.Tensor((tokens, rows), F32),
        factor: T.Tensor((tokens,), F32),
        grad_pre: T.Tensor((tokens, hc), F32),
        logits: T.Tensor((tokens, hc, hc), F32),
    ):
        with T.Kernel(tokens, threads=of_token(cfg)) as token:
            mu_shared = T.alloc_shared((rows,), F32)
            keep(cfg, token, Coefficients(sums, squares, scale, base), dots, mu_shared, Token(mu, factor, grad_pre))
            for a, b in T.Parallel(hc, hc):
                row = (2 + a) * hc + b
                logits[token, a, b] = scale[2] * mu_shared[row] + base[row]

    return mhc_normalise


def mhc_head_normalise(cfg: Config) -> T.PrimFunc:
    """Add up the splits, and write μ, r and the gradient of the weights of the streams."""
    hc, rows, splits = cfg.hc, cfg.rows, cfg.splits
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_head_normalise(
        sums: T.Tensor((tokens, splits, rows), F32),
        squares: T.Tensor((tokens, splits), F32),
        dots: T.Tensor((tokens, splits, hc), F32),
        mu: T.Tensor((tokens, rows), F32),
        factor: T.Tensor((tokens,), F32),
        grad_pre: T.Tensor((tokens, hc), F32),
    ):
        with T.Kernel(tokens, threads=of_token(cfg)) as token:
            mu_shared = T.alloc_shared((rows,), F32)
            keep(cfg, token, Coefficients(sums, squares, None, None), dots, mu_shared, Token(mu, factor, grad_pre))

    return mhc_head_normalise


class Gates(NamedTuple):
    """The tensors of the sigmoids, of all tokens, and gradients of the logits and of μ in shared memory."""

    kept: Token
    scale: Any
    base: Any
    grads: Any  # [token of the block, coefficient]
    grads_mu: Any  # [token of the block, coefficient]


class Results(NamedTuple):
    """What the gates' backward writes."""

    pre: Any  # [token, stream]: weights of the streams
    grad_u: Any  # [token, coefficient]
    shrink: Any  # [token]
    grads: Any  # [token, coefficient]: of the logits


@T.macro
def through_weights(cfg, block, of, pre):
    """Set the gradients of the logits of the streams' weights, the last token repeated, and write the weights."""
    for i, o in T.Parallel(GATED, cfg.hc):
        token = T.min(block * GATED + i, pre.shape[0] - 1)
        sigmoid = T.sigmoid(of.scale[0] * of.kept.mu[token, o] + of.base[o])
        grad = of.kept.grad_pre[token, o] * sigmoid * (1 - sigmoid)
        of.grads[i, o] = grad
        of.grads_mu[i, o] = of.grads[i, o] * of.scale[0]
        if block * GATED + i < pre.shape[0]:
            pre[block * GATED + i, o] = sigmoid + cfg.eps


@T.macro
def through_others(cfg, block, of, grad_post, grad_logits):
    """Set the gradients of the logits of ``post`` and of ``comb``."""
    for i, o in T.Parallel(GATED, cfg.hc):
        token = T.min(block * GATED + i, grad_post.shape[0] - 1)
        sigmoid = T.sigmoid(of.scale[1] * of.kept.mu[token, cfg.hc + o] + of.base[cfg.hc + o])
        grad = grad_post[token, o] * 2 * sigmoid * (1 - sigmoid)
        of.grads[i, cfg.hc + o] = grad
        of.grads_mu[i, cfg.hc + o] = of.grads[i, cfg.hc + o] * of.scale[1]
    for i, o in T.Parallel(GATED, cfg.hc * cfg.hc):
        token = T.min(block * GATED + i, grad_post.shape[0] - 1)
        of.grads[i, 2 * cfg.hc + o] = grad_logits[token, o // cfg.hc, o % cfg.hc]
        of.grads_mu[i, 2 * cfg.hc + o] = of.grads[i, 2 * cfg.hc + o] * of.scale[2]


@T.macro
def through_norm(cfg, block, of, into):
    """Write ū, shrink and the gradients of the logits of a block's tokens."""
    radial = T.alloc_fragment((GATED,), F32)
    tokens = into.shrink.shape[0]
    for i, m in T.Parallel(GATED, cfg.rows):
        if block * GATED + i < tokens:
            into.grad_u[block * GATED + i, m] = of.kept.factor[block * GATED + i] * of.grads_mu[i, m]
            into.grads[block * GATED + i, m] = of.grads[i, m]
    T.clear(radial)
    for m in T.serial(cfg.rows):
        for i in T.Parallel(GATED):
            radial[i] += of.grads_mu[i, m] * of.kept.mu[T.min(block * GATED + i, tokens - 1), m]
    for i in T.Parallel(GATED):
        if block * GATED + i < tokens:
            factor = of.kept.factor[block * GATED + i]
            into.shrink[block * GATED + i] = -radial[i] * factor * factor / cfg.columns


def mhc_gates_bwd(cfg: Config) -> T.PrimFunc:
    """Go back through sigmoids, scale, base and norm: weights, ū, shrink and the gradients of the logits."""
    hc, rows = cfg.hc, cfg.rows
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_gates_bwd(
        grad_post: T.Tensor((tokens, hc), F32),
        grad_logits: T.Tensor((tokens, hc, hc), F32),
        mu: T.Tensor((tokens, rows), F32),
        factor: T.Tensor((tokens,), F32),
        grad_pre: T.Tensor((tokens, hc), F32),
        scale: T.Tensor((3,), F32),
        base: T.Tensor((rows,), F32),
        pre: T.Tensor((tokens, hc), F32),
        grad_u: T.Tensor((tokens, rows), F32),
        shrink: T.Tensor((tokens,), F32),
        grad_gates: T.Tensor((tokens, rows), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, GATED), threads=THREADS) as block:
            grads, grads_mu = (T.alloc_shared((GATED, rows), F32) for _ in range(2))
            of = Gates(Token(mu, factor, grad_pre), scale, base, grads, grads_mu)
            through_weights(cfg, block, of, pre)
            through_others(cfg, block, of, grad_post, grad_logits)
            through_norm(cfg, block, of, Results(pre, grad_u, shrink, grad_gates))

    return mhc_gates_bwd


def mhc_head_gates_bwd(cfg: Config) -> T.PrimFunc:
    """Go back through sigmoids, scale, base and norm at the head of a model."""
    hc, rows = cfg.hc, cfg.rows
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_head_gates_bwd(
        mu: T.Tensor((tokens, rows), F32),
        factor: T.Tensor((tokens,), F32),
        grad_pre: T.Tensor((tokens, hc), F32),
        scale: T.Tensor((1,), F32),
        base: T.Tensor((rows,), F32),
        pre: T.Tensor((tokens, hc), F32),
        grad_u: T.Tensor((tokens, rows), F32),
        shrink: T.Tensor((tokens,), F32),
        grad_gates: T.Tensor((tokens, rows), F32),
    ):
        with T.Kernel(T.ceildiv(tokens, GATED), threads=THREADS) as block:
            grads, grads_mu = (T.alloc_shared((GATED, rows), F32) for _ in range(2))
            of = Gates(Token(mu, factor, grad_pre), scale, base, grads, grads_mu)
            through_weights(cfg, block, of, pre)
            through_norm(cfg, block, of, Results(pre, grad_u, shrink, grad_gates))

    return mhc_head_gates_bwd


def mhc_sum_gates(cfg: Config) -> T.PrimFunc:
    """Sum the gradients of the logits over each chunk of the tokens, as they are and times μ."""
    rows = cfg.rows
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_sum_gates(
        grad_gates: T.Tensor((tokens, rows), F32),
        mu: T.Tensor((tokens, rows), F32),
        sums: T.Tensor((SUMMED, 2, rows), F32),
    ):
        with T.Kernel(SUMMED, threads=THREADS) as chunk:
            of_base, of_scale = (T.alloc_fragment((rows,), F32) for _ in range(2))
            grads, products = (T.alloc_shared((AHEAD, rows), F32) for _ in range(2))
            first, end = T.ceildiv(tokens, AHEAD) * chunk // SUMMED, T.ceildiv(tokens, AHEAD) * (chunk + 1) // SUMMED
            T.clear(of_base)
            T.clear(of_scale)
            for t in T.serial(first, end):
                for u, m in T.Parallel(AHEAD, rows):
                    grads[u, m] = T.if_then_else(t * AHEAD + u < tokens, grad_gates[t * AHEAD + u, m], 0)
                    products[u, m] = grads[u, m] * T.if_then_else(t * AHEAD + u < tokens, mu[t * AHEAD + u, m], 0)
                for u in T.unroll(AHEAD):
                    for m in T.Parallel(rows):
                        of_base[m] += grads[u, m]
                        of_scale[m] += products[u, m]
            for m in T.Parallel(rows):
                sums[chunk, 0, m] = of_base[m]
                sums[chunk, 1, m] = of_scale[m]

    return mhc_sum_gates


def mhc_add_gates(cfg: Config) -> T.PrimFunc:
    """Add up the sums of all chunks, in their order: those for base as they are, those for scale by coefficients too."""
    hc, rows, sections = cfg.hc, cfg.rows, 1 if cfg.head else 3

    @T.prim_func
    def mhc_add_gates(
        sums: T.Tensor((SUMMED, 2, rows), F32),
        grad_scale: T.Tensor((sections,), F32),
        grad_base: T.Tensor((rows,), F32),
    ):
        with T.Kernel(1, threads=THREADS) as _:
            of_base, of_scale = (T.alloc_fragment((rows,), F32) for _ in range(2))
            scale_shared, section = T.alloc_shared((rows,), F32), T.alloc_fragment((sections,), F32)
            T.clear(of_base)
            T.clear(of_scale)
            for n in T.unroll(SUMMED):
                for m in T.Parallel(rows):
                    of_base[m] += sums[n, 0, m]
                    of_scale[m] += sums[n, 1, m]
            for m in T.Parallel(rows):
                grad_base[m] = of_base[m]
                scale_shared[m] = of_scale[m]
            T.clear(section)
            for m in T.unroll(rows):
                for s in T.Parallel(sections):
                    section[s] += T.if_then_else(T.min(m // hc, sections - 1) == s, scale_shared[m], 0)
            for s in T.Parallel(sections):
                grad_scale[s] = section[s]

    return mhc_add_gates
