"""Gradients of the way from the result of a layer to the normalised input of the next one (formula: reference/mhc.py).

``mhc_norm_bwd`` goes back through the norm: a block for each token sums the streams again, with the weights that the forward
has kept, to y. With r the norm's factor and g the gradient of its result,

    ȳ = r weight g - y r³ mean(y weight g),    of_weight = g y r.

ȳ is rounded, and goes on through the kernels of kernels/mhc_pre_backward.py, then through that of kernels/mhc_post.py. The
gradient of the norm's weight is the sum of ``of_weight`` over all tokens, which torch takes, in an order that depends on the
shapes alone.
"""

import tilelang.language as T

from . import mhc_post, mhc_pre_backward
from .build import aligned, build
from .mhc_post_pre import load_all, of_all_columns, square_up, weigh_all
from .mhc_project import BF16, F32, Config


@T.macro
def load_grad(at, token, grad_y, grad):
    """Read a token's gradient of the norm's result, zeros beyond the last column."""
    for s, t, j in T.Parallel(at.steps, at.threads, at.width):
        c = (s * at.threads + t) * at.width + j
        grad[s, t, j] = T.if_then_else(c < at.hidden, grad_y[token, c], 0)


@T.macro
def dot_up(at, row, grad, norm_weight, dot):
    """Sum the products of y, the weight and the gradient, each thread its own columns first."""
    dots = T.alloc_fragment((at.threads,), F32)
    T.clear(dots)
    for s in T.unroll(at.steps):
        for t in T.Parallel(at.threads):
            for j in T.unroll(at.width):
                c = (s * at.threads + t) * at.width + j
                scaled = T.if_then_else(c < at.hidden, norm_weight[c], 0) * grad[s, t, j]
                dots[t] += T.cast(row[s, t, j], F32) * scaled
    T.reduce_sum(dots, dot, dim=0)


def mhc_norm_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradient of the sum of the streams, and what each token adds to that of the norm's weight."""
    hc, hidden, at = cfg.hc, cfg.hidden, of_all_columns(cfg)
    tokens, shape = T.dynamic("tokens"), (at.steps, at.threads, at.width)

    @T.prim_func
    def mhc_norm_bwd(
        grad_y: T.Tensor((tokens, hidden), BF16),
        x: T.Tensor((tokens, hc, hidden), BF16),
        pre: T.Tensor((tokens, hc), F32),
        norm_weight: T.Tensor((hidden,), F32),
        of_sum: T.Tensor((tokens, hidden), BF16),
        of_weight: T.Tensor((tokens, hidden), F32),
    ):
        with T.Kernel(tokens, threads=at.threads) as token:
            streams, weights = T.alloc_fragment((hc, *shape), BF16), T.alloc_fragment((hc,), F32)
            row, grad = T.alloc_fragment(shape, BF16), T.alloc_fragment(shape, BF16)
            total, dot = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            load_all(at, token, x, streams)
            load_grad(at, token, grad_y, grad)
            for o in T.Parallel(hc):
                weights[o] = pre[token, o]
            weigh_all(at, streams, weights, row)
            square_up(at, row, total)
            dot_up(at, row, grad, norm_weight, dot)
            for s, t, j in T.Parallel(*shape):
                c = (s * at.threads + t) * at.width + j
                if c < hidden:
                    r = T.rsqrt(total[0] / hidden + cfg.norm_eps)
                    of_weight[token, c] = grad[s, t, j] * row[s, t, j] * r
            for s, t, j in T.Parallel(*shape):
                c = (s * at.threads + t) * at.width + j
                if c < hidden:
                    r = T.rsqrt(total[0] / hidden + cfg.norm_eps)
                    scaled = norm_weight[c] * grad[s, t, j]
                    of_sum[token, c] = r * scaled - row[s, t, j] * (r * r * r) * (dot[0] / hidden)

    return mhc_norm_bwd


def backward(grad_out, grad_next_y, grad_next_post, grad_next_comb, *more):
    """Launch the kernels on CUDA tensors; return the gradients of x, y, post, comb, fn, scale, base and weight."""
    *layer, fn, scale, base, norm_weight, out, next_pre, iterations, eps, norm_eps = more
    hc, hidden = out.shape[-2:]
    of_sum, of_weight = out.new_empty(grad_next_y.shape), norm_weight.new_empty((grad_next_y[..., 0].numel(), hidden))
    if out.numel():
        grad_y, streams, pre = aligned(grad_next_y), aligned(out).view(-1, hc, hidden), aligned(next_pre).view(-1, hc)
        results = of_sum.view(-1, hidden), of_weight
        build(mhc_norm_bwd, Config(hc, hidden, eps, norm_eps))(
            grad_y.view(-1, hidden), streams, pre, aligned(norm_weight), *results
        )
    into = grad_next_post, grad_next_comb, out, fn, scale, base
    of_out, *of_site = mhc_pre_backward.backward(of_sum, *into, iterations, eps, norm_eps)
    return *mhc_post.backward(grad_out + of_out, *layer), *of_site, of_weight.sum(0)
