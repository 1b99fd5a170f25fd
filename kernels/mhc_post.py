"""The residual streams after a layer, and its backward: a block of threads for each token (formula: reference/mhc.py).

A thread takes 8 columns of all streams at a time, so that every access to them is of 16 bytes and happens once. In the
backward it also sums the products of its columns, one sum for each of the hc² + hc gradients of coefficients. The block adds
these up in shared memory, in an order that depends on nothing but the size.
"""

from dataclasses import dataclass

import tilelang.language as T

from .build import aligned, build

BF16, F32 = "bfloat16", "float32"
WIDTH = 8  # columns of a thread, 16 bytes


@dataclass(frozen=True)
class Config:
    """How many streams there are, how wide they are, and how many threads a block has."""

    hc: int = 4
    hidden: int = 4096
    threads: int = 128

    @property
    def steps(self) -> int:
        """Return how often a block takes columns until it has them all."""
        return -(-self.hidden // (WIDTH * self.threads))

    @property
    def sums(self) -> int:
        """Return how many sums the backward takes, filled up to a multiple of 4, so that rows of threads divide them."""
        return -(-self.hc * (self.hc + 1) // 4) * 4


@T.macro
def weigh(weights, rows, result):
    """Set the result to Σ_i weights[i] rows[i], summed in fp32."""
    acc = T.alloc_local((WIDTH,), F32)
    for j in T.unroll(WIDTH):
        acc[j] = 0
    for i in T.unroll(rows.shape[0]):
        for j in T.unroll(WIDTH):
            acc[j] += weights[i] * rows[i, j]
    for j in T.vectorized(WIDTH):
        result[j] = acc[j]


@T.macro
def add_products(row, grads, sums, first):
    """Add to the sums, from ``first`` on, the products of a row with each row of the gradients."""
    for o in T.unroll(grads.shape[0]):
        for j in T.unroll(WIDTH):
            sums[first + o] += T.cast(row[j], F32) * grads[o, j]


def mhc_post_fwd(cfg: Config) -> T.PrimFunc:
    """Mix the streams and add the result of the layer."""
    hc, hidden, threads = cfg.hc, cfg.hidden, cfg.threads
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_post_fwd(
        x: T.Tensor((tokens, hc, hidden), BF16),
        y: T.Tensor((tokens, hidden), BF16),
        post: T.Tensor((tokens, hc), F32),
        comb: T.Tensor((tokens, hc, hc), F32),
        out: T.Tensor((tokens, hc, hidden), BF16),
    ):
        with T.Kernel(tokens, threads=threads) as token:
            thread = T.get_thread_binding()
            rows = T.alloc_local((hc + 1, WIDTH), BF16)  # the streams, and the layer's result
            weights, result = T.alloc_local((hc + 1,), F32), T.alloc_local((WIDTH,), BF16)
            for step in T.serial(cfg.steps):
                first = (step * threads + thread) * WIDTH
                if first < hidden:
                    for i in T.unroll(hc):
                        for j in T.vectorized(WIDTH):
                            rows[i, j] = x[token, i, first + j]
                    for j in T.vectorized(WIDTH):
                        rows[hc, j] = y[token, first + j]
                    for o in T.unroll(hc):
                        for i in T.unroll(hc):
                            weights[i] = comb[token, i, o]
                        weights[hc] = post[token, o]
                        weigh(weights, rows, result)
                        for j in T.vectorized(WIDTH):
                            out[token, o, first + j] = result[j]

    return mhc_post_fwd


def mhc_post_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradients of the streams, of the layer's result and of the coefficients."""
    hc, hidden, threads = cfg.hc, cfg.hidden, cfg.threads
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_post_bwd(
        grad_out: T.Tensor((tokens, hc, hidden), BF16),
        x: T.Tensor((tokens, hc, hidden), BF16),
        y: T.Tensor((tokens, hidden), BF16),
        post: T.Tensor((tokens, hc), F32),
        comb: T.Tensor((tokens, hc, hc), F32),
        grad_x: T.Tensor((tokens, hc, hidden), BF16),
        grad_y: T.Tensor((tokens, hidden), BF16),
        grad_post: T.Tensor((tokens, hc), F32),
        grad_comb: T.Tensor((tokens, hc, hc), F32),
    ):
        with T.Kernel(tokens, threads=threads) as token:
            thread = T.get_thread_binding()
            grads, weights = T.alloc_local((hc, WIDTH), BF16), T.alloc_local((hc,), F32)
            row, result = T.alloc_local((WIDTH,), BF16), T.alloc_local((WIDTH,), BF16)
            sums, parts = T.alloc_local((cfg.sums,), F32), T.alloc_shared((cfg.sums, threads), F32)
            rows, totals = T.alloc_fragment((cfg.sums, threads), F32), T.alloc_fragment((cfg.sums,), F32)
            for k in T.unroll(cfg.sums):
                sums[k] = 0
            for step in T.serial(cfg.steps):
                first = (step * threads + thread) * WIDTH
                if first < hidden:
                    for o in T.unroll(hc):
                        for j in T.vectorized(WIDTH):
                            grads[o, j] = grad_out[token, o, first + j]
                    for i in T.unroll(hc):
                        for j in T.vectorized(WIDTH):
                            row[j] = x[token, i, first + j]
                        add_products(row, grads, sums, i * hc)
                        for o in T.unroll(hc):
                            weights[o] = comb[token, i, o]
                        weigh(weights, grads, result)
                        for j in T.vectorized(WIDTH):
                            grad_x[token, i, first + j] = result[j]
                    for j in T.vectorized(WIDTH):
                        row[j] = y[token, first + j]
                    add_products(row, grads, sums, hc * hc)
                    for o in T.unroll(hc):
                        weights[o] = post[token, o]
                    weigh(weights, grads, result)
                    for j in T.vectorized(WIDTH):
                        grad_y[token, first + j] = result[j]
            for k in T.unroll(cfg.sums):
                parts[k, thread] = sums[k]
            T.copy(parts, rows)
            T.reduce_sum(rows, totals, dim=1)
            for k in T.Parallel(cfg.sums):
                if k < hc * hc:
                    grad_comb[token, k // hc, k % hc] = totals[k]
                elif k < hc * hc + hc:
                    grad_post[token, k - hc * hc] = totals[k]

    return mhc_post_bwd


def forward(x, y, post, comb):
    """Launch ``mhc_post_fwd`` on CUDA tensors; return the streams after the layer."""
    out = x.new_empty(x.shape)
    if out.numel():
        _launch(mhc_post_fwd, (x, y, post, comb), (out,))
    return out


def backward(grad_out, x, y, post, comb):
    """Launch ``mhc_post_bwd`` on CUDA tensors; return the gradients of x, y, post and comb."""
    grads = tuple(tensor.new_empty(tensor.shape) for tensor in (x, y, post, comb))
    if x.numel():
        _launch(mhc_post_bwd, (grad_out, x, y, post, comb), grads)
    return grads


def _launch(factory, inputs, outputs):
    """Run a kernel on the tensors of all tokens; the first input ends in the streams and their columns."""
    *leading, hc, hidden = inputs[0].shape
    tensors = (*map(aligned, inputs), *outputs)
    build(factory, Config(hc, hidden))(*(x.view(-1, *x.shape[len(leading) :]) for x in tensors))
