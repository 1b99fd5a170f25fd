"""Check whether a row of indices is the top-k, one block of threads for each row (criterion: reference/topk_check.py).

Scores are compared as integers, so that every bit pattern has its place. The bits b of an fp32 number are a sign and a
magnitude. The integer signed_magnitude is b for b >= 0, else -2^31 - b. It has the order of the numbers, and -0 equals 0.
Together with the index it gives a rank that no two entries of a row share, higher for the entry that is selected first:

    rank(j) = 2^20 signed_magnitude(score_j) - j,   j < 2^20
"""

from dataclasses import dataclass
from typing import NamedTuple

import tilelang.language as T

from .build import build

I32, I64 = "int32", "int64"
INFINITY = 0x7F800000  # the bits of +inf; a larger magnitude is NaN
NAN = 0x7FC00000
STEP = 2**20  # more than any index
LOWEST = -(2**62)  # below every rank


class Names(NamedTuple):
    """The buffers that the proof binds: for each thread, how many of its entries have at least the rank of the last one."""

    ahead: str = "ahead"


NAMES = Names()


@dataclass(frozen=True)
class Config:
    """The operator's k and the dtype of the scores; the threads of a block."""

    k: int = 512
    dtype: str = "float32"
    threads: int = 256


def as_bits(score):
    """Return the bits of a number as fp32."""
    return T.reinterpret(T.cast(score, "float32"), I32)


def signed_magnitude(bits):
    """Return the integer that has the order of the numbers."""
    return T.if_then_else(bits >= 0, bits, -(2**31) - bits)


def is_valid(magnitude):
    """Return whether the number is neither NaN nor -inf."""
    return T.And(magnitude > -INFINITY, magnitude <= INFINITY)


def rank(magnitude, j):
    """Return the rank of an entry, higher for the one that is selected first."""
    return T.cast(magnitude, I64) * STEP - j


def topk_check(cfg: Config) -> T.PrimFunc:
    """Write to ``out`` 1 for each row of indices that is the answer, else 0."""
    k, threads = cfg.k, cfg.threads
    width = 1 << (k - 1).bit_length()  # reductions need a power of two; slots beyond k repeat the last index
    rows, columns = T.dynamic("R"), T.dynamic("T")

    @T.prim_func
    def topk_check(
        scores: T.Tensor((rows, columns), cfg.dtype),
        lengths: T.Tensor((rows,), I32),
        indices: T.Tensor((rows, k), I32),
        out: T.Tensor((rows,), I32),
    ):
        with T.Kernel(rows, threads=threads) as row:
            wrong, selected = T.alloc_fragment((width,), I32), T.alloc_fragment((width,), I32)
            ranks, ahead = T.alloc_fragment((width,), I64), T.alloc_fragment((threads,), I32)
            any_wrong, count = T.alloc_fragment((1,), I32), T.alloc_fragment((1,), I32)
            last, ahead_sum = T.alloc_fragment((1,), I64), T.alloc_fragment((1,), I32)
            for slot in T.Parallel(width):
                p = T.min(slot, k - 1)
                j = indices[row, p]
                before = indices[row, T.max(p - 1, 0)]
                inside = j >= 0 and j < lengths[row] and j < columns
                bits = T.if_then_else(inside, as_bits(scores[row, j]), 0)
                magnitude = signed_magnitude(bits)
                follows = p == 0 or (before >= 0 and before < j)
                right = j == -1 or (inside and is_valid(magnitude) and follows)
                wrong[slot] = T.if_then_else(right, 0, 1)
                selected[slot] = T.if_then_else(j >= 0, p + 1, 0)
                ranks[slot] = T.if_then_else(inside, rank(magnitude, j), LOWEST)
            T.reduce_max(wrong, any_wrong)
            T.reduce_max(selected, count)  # if no index is wrong, the selected ones come first
            T.reduce_min(ranks, last)  # rank of the last one selected; LOWEST if fewer than k are
            T.clear(ahead)
            for tile in T.serial(T.ceildiv(columns, threads)):
                for i in T.Parallel(threads):
                    j = tile * threads + i
                    bits = T.if_then_else(j < columns and j < lengths[row], as_bits(scores[row, j]), NAN)
                    magnitude = signed_magnitude(bits)
                    ahead[i] += T.if_then_else(is_valid(magnitude) and rank(magnitude, j) >= last[0], 1, 0)
            T.reduce_sum(ahead, ahead_sum)
            if T.get_thread_binding() == 0:
                out[row] = T.if_then_else(any_wrong[0] == 0 and ahead_sum[0] == count[0], 1, 0)

    return topk_check


def check(scores, lengths, indices):
    """Launch ``topk_check`` on CUDA tensors; return int32 [R], 1 for each row of indices that is the answer, else 0."""
    out = lengths.new_empty(lengths.shape)
    if out.numel():
        kernel = build(topk_check, Config(indices.shape[-1], str(scores.dtype).removeprefix("torch.")))
        kernel(scores.contiguous(), lengths.contiguous(), indices.contiguous(), out)
    return out
