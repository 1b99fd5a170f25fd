"""The residual streams after a layer, and its backward (formula: reference/mhc.py).

A block of threads has as many columns of a token as it takes at once, 8 columns of all streams to a thread, so that every
access to them is of 16 bytes and happens once; 4 of more than 4 streams, for which there would not be registers.

In the backward a block has all columns of a token, and takes them in steps, 4 to a thread, of 8 bytes, so that more blocks have
room at once. A thread also sums the products of its columns, one sum for each gradient of a coefficient. In the end these lie
side by side in shared memory, and warps add them up, in an order that depends on nothing but the width.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import tilelang.language as T

from .build import aligned, build

BF16, F32 = "bfloat16", "float32"
WARPS = 4


@dataclass(frozen=True)
class Config:
    """How many streams there are, how wide they are, how many threads a block has, and how many columns of a thread at most."""

    hc: int = 4
    hidden: int = 4096
    threads: int = 32 * WARPS
    most: int = 8

    @property
    def width(self) -> int:
        """Return how many columns a thread takes at once."""
        return min(self.most, 8 if self.hc <= 4 else 4)

    @property
    def padded(self) -> int:
        """Return the number of streams, or the next that the warps of a block divide."""
        return -(-self.hc // WARPS) * WARPS

    @property
    def step(self) -> int:
        """Return how many columns a block takes at once."""
        return self.threads * self.width

    @property
    def steps(self) -> int:
        """Return how often it does until it has them all, or how many blocks share them."""
        return -(-self.hidden // self.step)


def of_backward(cfg: Config) -> Config:
    """Return how the backward goes through the columns."""
    return replace(cfg, most=4)


class Columns(NamedTuple):
    """Where a block works: the columns of a token from ``first`` on."""

    cfg: Config
    token: Any
    first: Any


@T.macro
def load_streams(at, source, rows):
    """Read the columns of all streams, zeros beyond the last one."""
    for i, t, j in T.Parallel(at.cfg.hc, at.cfg.threads, at.cfg.width):
        c = at.first + t * at.cfg.width + j
        rows[i, t, j] = T.if_then_else(c < at.cfg.hidden, source[at.token, i, c], 0)


@T.macro
def load_row(at, source, row):
    """Read the columns of a tensor with one row for each token, zeros beyond the last one."""
    for t, j in T.Parallel(at.cfg.threads, at.cfg.width):
        c = at.first + t * at.cfg.width + j
        row[t, j] = T.if_then_else(c < at.cfg.hidden, source[at.token, c], 0)


@T.macro
def store_streams(at, rows, target):
    """Write the columns of all streams, rounded."""
    rounded = T.alloc_fragment((at.cfg.hc, at.cfg.threads, at.cfg.width), BF16)
    T.copy(rows, rounded)
    for i, t, j in T.Parallel(at.cfg.hc, at.cfg.threads, at.cfg.width):
        c = at.first + t * at.cfg.width + j
        if c < at.cfg.hidden:
            target[at.token, i, c] = rounded[i, t, j]


@T.macro
def store_row(at, row, target):
    """Write the columns of a tensor with one row for each token, rounded."""
    rounded = T.alloc_fragment((at.cfg.threads, at.cfg.width), BF16)
    T.copy(row, rounded)
    for t, j in T.Parallel(at.cfg.threads, at.cfg.width):
        c = at.first + t * at.cfg.width + j
        if c < at.cfg.hidden:
            target[at.token, c] = rounded[t, j]


def mhc_post_fwd(cfg: Config) -> T.PrimFunc:
    """Mix the streams and add the result of the layer."""
    hc, hidden, threads, width = cfg.hc, cfg.hidden, cfg.threads, cfg.width
    tokens = T.dynamic("tokens")

    @T.prim_func
    def mhc_post_fwd(
        x: T.Tensor((tokens, hc, hidden), BF16),
        y: T.Tensor((tokens, hidden), BF16),
        post: T.Tensor((tokens, hc), F32),
        comb: T.Tensor((tokens, hc, hc), F32),
        out: T.Tensor((tokens, hc, hidden), BF16),
    ):
        with T.Kernel(tokens * cfg.steps, threads=threads) as block:
            rows, row = T.alloc_fragment((hc, threads, width), BF16), T.alloc_fragment((threads, width), BF16)
            acc = T.alloc_fragment((hc, threads, width), F32)
            token, step = block // cfg.steps, block % cfg.steps
            at = Columns(cfg, token, step * cfg.step)
            load_streams(at, x, rows)
            load_row(at, y, row)
            for o, t, j in T.Parallel(hc, threads, width):
                acc[o, t, j] = post[token, o] * row[t, j]
            for i in T.unroll(hc):
                for o, t, j in T.Parallel(hc, threads, width):
                    acc[o, t, j] += comb[token, i, o] * rows[i, t, j]
            store_streams(at, acc, out)

    return mhc_post_fwd


@T.macro
def add_up(sums, parts, total):
    """Add up the sums of all threads: side by side, so that each warp has all those of a row."""
    rows = T.alloc_fragment(parts.shape, F32)
    T.copy(sums, parts)
    T.copy(parts, rows)
    T.reduce_sum(rows, total, dim=-1)


def mhc_post_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradients of the streams, of the layer's result and of the coefficients."""
    cfg = of_backward(cfg)
    hc, hidden, threads, width = cfg.hc, cfg.hidden, cfg.threads, cfg.width
    tokens = T.dynamic("tokens")
    streams, row_shape = (hc, threads, width), (threads, width)
    of_comb, of_post = (hc, cfg.padded), (cfg.padded,)  # zeros beyond hc

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
            grads, rows, row = (T.alloc_fragment(shape, BF16) for shape in (streams, streams, row_shape))
            acc, acc_y = T.alloc_fragment(streams, F32), T.alloc_fragment(row_shape, F32)
            comb_sums, post_sums = (T.alloc_fragment((*shape, threads), F32) for shape in (of_comb, of_post))
            comb_parts, post_parts = (T.alloc_shared((*shape, threads), F32) for shape in (of_comb, of_post))
            comb_total, post_total = (T.alloc_fragment(shape, F32) for shape in (of_comb, of_post))
            T.clear(comb_sums)
            T.clear(post_sums)
            for step in T.serial(cfg.steps):
                at = Columns(cfg, token, step * cfg.step)
                load_streams(at, grad_out, grads)
                load_streams(at, x, rows)
                load_row(at, y, row)
                for i, o, t in T.Parallel(hc, hc, threads):
                    for j in T.unroll(width):
                        comb_sums[i, o, t] += T.cast(rows[i, t, j], F32) * T.cast(grads[o, t, j], F32)
                for o, t in T.Parallel(hc, threads):
                    for j in T.unroll(width):
                        post_sums[o, t] += T.cast(row[t, j], F32) * T.cast(grads[o, t, j], F32)
                T.clear(acc)
                T.clear(acc_y)
                for o in T.unroll(hc):
                    for i, t, j in T.Parallel(hc, threads, width):
                        acc[i, t, j] += comb[token, i, o] * grads[o, t, j]
                    for t, j in T.Parallel(threads, width):
                        acc_y[t, j] += post[token, o] * grads[o, t, j]
                store_streams(at, acc, grad_x)
                store_row(at, acc_y, grad_y)
            add_up(comb_sums, comb_parts, comb_total)
            add_up(post_sums, post_parts, post_total)
            for i, o in T.Parallel(hc, hc):
                grad_comb[token, i, o] = comb_total[i, o]
            for o in T.Parallel(hc):
                grad_post[token, o] = post_total[o]

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
