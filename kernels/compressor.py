"""Entries of the KV compressor (formula: reference/compressor.py).

Of few candidates, a block of threads makes an entry at once, ``compress_fwd``: a thread has a few channels of all candidates in
registers, so that each element of values and logits is read once, in accesses of 16 bytes, and a channel's softmax is its
thread's own affair. The norm alone needs a sum over the threads.

Of more candidates than registers hold, ``compress_pool`` takes them in 64 channels at a time, shared out among groups of
threads, and ``compress_norm`` normalises and rotates what that has pooled.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T
import torch

from .build import Launch, aligned, build, planned

BF16, F32, FP8, I32 = "bfloat16", "float32", "float8_e4m3fn", "int32"
BLOCK, FLOOR, LARGEST = 64, 1e-4, 448.0  # of e4m3: channels of one scale, the least size of them, the largest number
MANTISSA_BITS, BIAS, INFINITE = 23, 127, 255  # of fp32; the last is an exponent
MANTISSA = (1 << MANTISSA_BITS) - 1
FEW = 16  # candidates that a thread holds
GROUPS, LANES = 16, 16  # of compress_pool: threads that share out candidates, and that share out channels
WIDTH = 4  # channels of each


@dataclass(frozen=True)
class Config:
    """The static parameters: tokens of a block, channels, overlap, pairs that rotate, rows of the past, eps, and e4m3."""

    ratio: int = 4
    D: int = 512
    overlap: bool = True
    pairs: int = 32
    past: int = 0
    eps: float = 1e-6
    simulate_fp8: bool = False

    @property
    def wide(self) -> int:
        """Return how many channels a row has."""
        return (1 + self.overlap) * self.D

    @property
    def few(self) -> bool:
        """Return whether a thread can hold all candidates of a channel."""
        return self.candidates <= FEW

    @property
    def candidates(self) -> int:
        """Return how many candidates an entry has."""
        return (1 + self.overlap) * self.ratio

    @property
    def padded(self) -> int:
        """Return that number, or the next that the groups of threads divide."""
        return -(-self.candidates // GROUPS) * GROUPS

    @property
    def width(self) -> int:
        """Return how many channels a thread has, so that a warp has something to do."""
        return min(self.D // 32, 4)

    @property
    def threads(self) -> int:
        """Return how many threads have channels of an entry."""
        return self.D // self.width

    @property
    def turning(self) -> int:
        """Return how many of them, the last ones, have channels that rotate."""
        return 2 * self.pairs // self.width


class Entry(NamedTuple):
    """Where a block works: the entry, its sequence, its first token's row, whether there is a block before it, its position."""

    cfg: Config
    i: Any
    b: Any
    row: Any
    before: Any
    position: Any


def entry(cfg: Config, i: Any, b: Any, offset: Any) -> Entry:
    """Return where the block of an entry works."""
    before = offset[b] + (i - 1) * cfg.ratio >= 0 if cfg.past else i >= 1
    return Entry(cfg, i, b, cfg.past + i * cfg.ratio, before, offset[b] + i * cfg.ratio)


class Candidates(NamedTuple):
    """Values and logits of candidates, [n, threads, width]."""

    values: Any
    logits: Any


@T.macro
def load_own(at, kv, gate, ape, own):
    """Read the candidates of the entry's own block."""
    cfg = at.cfg
    for r, t, j in T.Parallel(cfg.ratio, cfg.threads, cfg.width):
        own.values[r, t, j] = kv[at.b, at.row + r, cfg.wide - cfg.D + t * cfg.width + j]
    for r, t, j in T.Parallel(cfg.ratio, cfg.threads, cfg.width):
        c = cfg.wide - cfg.D + t * cfg.width + j
        own.logits[r, t, j] = gate[at.b, at.row + r, c] + ape[r, c]


@T.macro
def load_before(at, kv, gate, ape, before):
    """Read the candidates of the block before: values 0 and logits -inf where there is none."""
    cfg = at.cfg
    for r, t, j in T.Parallel(cfg.ratio, cfg.threads, cfg.width):
        row, c = T.max(at.row - cfg.ratio, 0) + r, t * cfg.width + j
        before.values[r, t, j] = T.if_then_else(at.before, kv[at.b, row, c], 0)
    for r, t, j in T.Parallel(cfg.ratio, cfg.threads, cfg.width):
        row, c = T.max(at.row - cfg.ratio, 0) + r, t * cfg.width + j
        before.logits[r, t, j] = T.if_then_else(at.before, gate[at.b, row, c] + ape[r, c], -T.infinity(F32))


@T.macro
def raise_top(cfg, of, top):
    """Let no logit be above the top."""
    for r in T.unroll(cfg.ratio):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            top[t, j] = T.max(top[t, j], of.logits[r, t, j])


@T.macro
def weigh(cfg, of, top, total, acc):
    """Put exp(logit - top) in the place of the logits, and add them and the values that they weigh."""
    for r in T.unroll(cfg.ratio):
        for t, j in T.Parallel(cfg.threads, cfg.width):
            of.logits[r, t, j] = T.exp(of.logits[r, t, j] - top[t, j])
        for t, j in T.Parallel(cfg.threads, cfg.width):
            total[t, j] += of.logits[r, t, j]
            acc[t, j] += of.logits[r, t, j] * of.values[r, t, j]


@T.macro
def pool(cfg, own, before, total, acc):
    """Set the sum of the weights and of what they weigh, the block before first."""
    top = T.alloc_fragment((cfg.threads, cfg.width), F32)
    for t, j in T.Parallel(cfg.threads, cfg.width):
        top[t, j] = own.logits[0, t, j]
    raise_top(cfg, own, top)
    T.clear(total)
    T.clear(acc)
    if cfg.overlap:
        raise_top(cfg, before, top)
        weigh(cfg, before, top, total, acc)
    weigh(cfg, own, top, total, acc)


@T.macro
def mean_square(cfg, x, mean):
    """Set the mean over the channels of what all threads have."""
    squares, total = T.alloc_fragment((cfg.threads,), F32), T.alloc_fragment((1,), F32)
    T.clear(squares)
    for t in T.Parallel(cfg.threads):
        for j in T.unroll(cfg.width):
            squares[t] += x[t, j] * x[t, j]
    T.reduce_sum(squares, total, dim=0)
    mean[0] = total[0] / cfg.D


@T.macro
def load_angles(at, rotation, cos, sin):
    """Read the angles of the entry's position, those of no rotation if that has no row."""
    cfg, count = at.cfg, at.cfg.width // 2
    for t, k in T.Parallel(cfg.turning, count):
        position = at.position
        row = T.max(T.min(position, rotation.shape[0] - 1), 0)
        cos[t, k] = T.if_then_else(position < rotation.shape[0], rotation[row, t * count + k, 0], 1)
    for t, k in T.Parallel(cfg.turning, count):
        position = at.position
        row = T.max(T.min(position, rotation.shape[0] - 1), 0)
        sin[t, k] = T.if_then_else(position < rotation.shape[0], rotation[row, t * count + k, 1], 0)


@T.macro
def through_fp8(cfg, y):
    """Put in the place of blocks of 64 channels what e4m3 keeps of them (formula: reference/fp8.py)."""
    still, lanes = cfg.threads - cfg.turning, BLOCK // cfg.width
    sizes, top = T.alloc_shared((cfg.threads,), F32), T.alloc_fragment((cfg.threads,), F32)
    for t in T.Parallel(cfg.threads):
        top[t] = FLOOR
        for j in T.unroll(cfg.width):
            top[t] = T.max(top[t], T.abs(T.cast(y[t, j], F32)))
        sizes[t] = top[t]
    for t in T.Parallel(cfg.threads):
        for k in T.unroll(lanes):
            top[t] = T.max(top[t], sizes[t // lanes * lanes + k])
    power = T.alloc_fragment((cfg.threads,), I32)
    for t in T.Parallel(cfg.threads):
        bits = T.reinterpret(I32, top[t] * T.float32(1 / LARGEST))
        up = T.if_then_else((bits & MANTISSA) > 0, 1, 0)  # unless it is a power of two
        power[t] = T.max(T.min((bits >> MANTISSA_BITS) + up, INFINITE), 0)
    for t, j in T.Parallel(cfg.threads, cfg.width):
        if t < still:
            scale = T.reinterpret(F32, power[t] << MANTISSA_BITS)
            inverse = T.reinterpret(F32, T.max(2 * BIAS - power[t], 0) << MANTISSA_BITS)
            y[t, j] = T.cast(T.cast(T.cast(y[t, j], F32) * inverse, FP8), F32) * scale


class Last(NamedTuple):
    """What the last steps to an entry take besides what was pooled: the norm's weights, and the angles."""

    weight: Any
    cos: Any
    sin: Any


def alloc_last(cfg: Config) -> Last:
    """Return registers for them."""
    cos, sin = (T.alloc_fragment((cfg.turning, cfg.width // 2), F32) for _ in range(2))
    return Last(T.alloc_fragment((cfg.threads, cfg.width), F32), cos, sin)


@T.macro
def load_last(at, norm_weight, rotation, last):
    """Read the norm's weights, and the angles of the entry's position."""
    cfg = at.cfg
    for t, j in T.Parallel(cfg.threads, cfg.width):
        last.weight[t, j] = norm_weight[t * cfg.width + j]
    load_angles(at, rotation, last.cos, last.sin)


@T.macro
def finish(at, x, last, out):
    """Normalise what was pooled and rounded, round, rotate the last channels, and write the entry."""
    cfg, width = at.cfg, at.cfg.width
    mean, still = T.alloc_fragment((1,), F32), cfg.threads - cfg.turning
    mean_square(cfg, x, mean)
    y, tail = T.alloc_fragment((cfg.threads, width), BF16), T.alloc_shared((cfg.turning, width), BF16)
    for t, j in T.Parallel(cfg.threads, width):
        y[t, j] = last.weight[t, j] * (x[t, j] * T.rsqrt(mean[0] + cfg.eps))
    if cfg.simulate_fp8:
        through_fp8(cfg, y)
    for t, j in T.Parallel(cfg.threads, width):
        if t < still:
            out[at.b, at.i, t * width + j] = y[t, j]
        else:
            tail[t - still, j] = y[t, j]
    for h in T.unroll(2):
        for t, k in T.Parallel(cfg.turning, width // 2):
            a, b = T.cast(tail[t, 2 * k], F32), T.cast(tail[t, 2 * k + 1], F32)
            cos, sin = last.cos[t, k], last.sin[t, k]
            out[at.b, at.i, (still + t) * width + 2 * k + h] = T.if_then_else(
                h == 0, a * cos - b * sin, a * sin + b * cos
            )


def compress_fwd(cfg: Config) -> T.PrimFunc:
    """Pool the candidates of each entry, normalise and rotate."""
    B, S, L, positions = T.dynamic("B"), T.dynamic("S"), T.dynamic("T"), T.dynamic("positions")
    shape = (cfg.threads, cfg.width)

    @T.prim_func
    def compress_fwd(
        kv: T.Tensor((B, S, cfg.wide), F32),
        gate: T.Tensor((B, S, cfg.wide), F32),
        ape: T.Tensor((cfg.ratio, cfg.wide), F32),
        norm_weight: T.Tensor((cfg.D,), F32),
        rotation: T.Tensor((positions, cfg.pairs, 2), F32),
        offset: T.Tensor((B,), I32),
        out: T.Tensor((B, L, cfg.D), BF16),
        pooled: T.Tensor((B, L, cfg.D), BF16),
    ):
        with T.Kernel(L, B, threads=cfg.threads) as (i, b):
            at, last = entry(cfg, i, b, offset), alloc_last(cfg)
            own = Candidates(*(T.alloc_fragment((cfg.ratio, *shape), F32) for _ in range(2)))
            before = Candidates(*(T.alloc_fragment((cfg.ratio, *shape), F32) for _ in range(2)))
            load_own(at, kv, gate, ape, own)
            if cfg.overlap:
                load_before(at, kv, gate, ape, before)
            load_last(at, norm_weight, rotation, last)
            total, acc, x = (T.alloc_fragment(shape, F32) for _ in range(3))
            rounded = T.alloc_fragment(shape, BF16)
            pool(cfg, own, before, total, acc)
            for t, j in T.Parallel(*shape):
                rounded[t, j] = acc[t, j] / total[t, j]
            for t, j in T.Parallel(*shape):
                pooled[b, i, t * cfg.width + j] = rounded[t, j]
            T.copy(rounded, x)
            finish(at, x, last, out)

    return compress_fwd


@T.macro
def load_slice(at, first, kv, gate, ape, of):
    """Read some channels of all candidates: values 0 and logits -inf where there is none."""
    cfg = at.cfg
    ahead = cfg.candidates - cfg.ratio  # candidates of the block before
    for n, t, j in T.Parallel(cfg.padded, LANES, WIDTH):
        row, c = T.max(at.row - ahead + n, 0), first + T.if_then_else(n < ahead, 0, cfg.wide - cfg.D) + t * WIDTH + j
        there = n < cfg.candidates and (n >= ahead or at.before)
        of.values[n, t, j] = T.if_then_else(there, kv[at.b, row, c], 0)
    for n, t, j in T.Parallel(cfg.padded, LANES, WIDTH):
        row, c = T.max(at.row - ahead + n, 0), first + T.if_then_else(n < ahead, 0, cfg.wide - cfg.D) + t * WIDTH + j
        there = n < cfg.candidates and (n >= ahead or at.before)
        of.logits[n, t, j] = T.if_then_else(there, gate[at.b, row, c] + ape[n % cfg.ratio, c], -T.infinity(F32))


@T.macro
def pool_slice(cfg, of, total, acc):
    """Put the weights in the place of the logits, and what they weigh in that of the values, and add both up."""
    top = T.alloc_fragment((LANES, WIDTH), F32)
    T.reduce_max(of.logits, top, dim=0)
    for n, t, j in T.Parallel(cfg.padded, LANES, WIDTH):
        of.logits[n, t, j] = T.exp(of.logits[n, t, j] - top[t, j])
    for n, t, j in T.Parallel(cfg.padded, LANES, WIDTH):
        of.values[n, t, j] *= of.logits[n, t, j]
    T.reduce_sum(of.logits, total, dim=0)
    T.reduce_sum(of.values, acc, dim=0)


def compress_pool(cfg: Config) -> T.PrimFunc:
    """Pool the candidates of each entry, 64 channels at a time."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")
    shape = (LANES, WIDTH)

    @T.prim_func
    def compress_pool(
        kv: T.Tensor((B, S, cfg.wide), F32),
        gate: T.Tensor((B, S, cfg.wide), F32),
        ape: T.Tensor((cfg.ratio, cfg.wide), F32),
        offset: T.Tensor((B,), I32),
        pooled: T.Tensor((B, L, cfg.D), BF16),
    ):
        with T.Kernel(L, B, cfg.D // (LANES * WIDTH), threads=GROUPS * LANES) as (i, b, part):
            at = entry(cfg, i, b, offset)
            of = Candidates(*(T.alloc_fragment((cfg.padded, *shape), F32) for _ in range(2)))
            total, acc = (T.alloc_fragment(shape, F32) for _ in range(2))
            load_slice(at, part * LANES * WIDTH, kv, gate, ape, of)
            pool_slice(cfg, of, total, acc)
            for t, j in T.Parallel(*shape):
                pooled[b, i, part * LANES * WIDTH + t * WIDTH + j] = acc[t, j] / total[t, j]

    return compress_pool


def compress_norm(cfg: Config) -> T.PrimFunc:
    """Normalise and rotate what has been pooled."""
    B, L, positions = T.dynamic("B"), T.dynamic("T"), T.dynamic("positions")

    @T.prim_func
    def compress_norm(
        pooled: T.Tensor((B, L, cfg.D), BF16),
        norm_weight: T.Tensor((cfg.D,), F32),
        rotation: T.Tensor((positions, cfg.pairs, 2), F32),
        offset: T.Tensor((B,), I32),
        out: T.Tensor((B, L, cfg.D), BF16),
    ):
        with T.Kernel(L, B, threads=cfg.threads) as (i, b):
            at, last = entry(cfg, i, b, offset), alloc_last(cfg)
            x = T.alloc_fragment((cfg.threads, cfg.width), F32)
            load_last(at, norm_weight, rotation, last)
            for t, j in T.Parallel(cfg.threads, cfg.width):
                x[t, j] = pooled[b, i, t * cfg.width + j]
            finish(at, x, last, out)

    return compress_norm


def forward_kernels(cfg: Config) -> Iterator[tuple[Any, Config]]:
    """Yield the kernels that make entries, each with its config."""
    for factory in (compress_fwd,) if cfg.few else (compress_pool, compress_norm):
        yield factory, cfg


@planned
def _plan(cfg: Config) -> list[Launch]:
    """Return the kernels of a call, in their order."""
    return [build(factory, each) for factory, each in forward_kernels(cfg)]


def config(kv, ape, norm_weight, rotation, past: int, eps: float, simulate_fp8: bool = False) -> Config:
    """Return the static parameters of a call."""
    D = norm_weight.shape[0]
    return Config(ape.shape[0], D, kv.shape[-1] > D, rotation.shape[1], past, eps, simulate_fp8)


def table(rotation):
    """Return the table of angles, of which there must be a row: one of no rotation, if there is none."""
    if rotation.shape[0]:
        return aligned(rotation)
    still = rotation.new_zeros(1, *rotation.shape[1:])
    still[..., 0] = 1
    return still


def forward(kv, gate, ape, norm_weight, rotation, offset, past: int, eps: float, simulate_fp8: bool = False):
    """Launch the kernels on CUDA tensors; return the entries, and what they were pooled to."""
    cfg = config(kv, ape, norm_weight, rotation, past, eps, simulate_fp8)
    shape = kv.shape[0], (kv.shape[1] - past) // cfg.ratio, cfg.D
    out, pooled = (kv.new_empty(shape, dtype=torch.bfloat16) for _ in range(2))
    if not out.numel():
        return out, pooled
    kv, gate, ape, norm_weight, offset = map(aligned, (kv, gate, ape, norm_weight, offset))
    first, *norm = _plan(cfg)
    if not norm:
        first(kv, gate, ape, norm_weight, table(rotation), offset, out, pooled)
        return out, pooled
    first(kv, gate, ape, offset, pooled)
    norm[0](pooled, norm_weight, table(rotation), offset, out)
    return out, pooled
