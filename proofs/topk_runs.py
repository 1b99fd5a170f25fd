"""Rows that the selection kernel is run on by the interpreter, where its result is not proved.

What it selects must pass the criterion, which the proved checker computes. This finds errors; it shows no absence of any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.topk import Config
from ..reference.topk_check import topk_check
from .engine.interpreter.interpret import interpret
from .engine.layers.lemmas import Examples

ONE, TWO, INF, NAN, MINUS = 0x3F800000, 0x40000000, 0x7F800000, 0x7FC00000, 2**31
FEW = (0, MINUS, 1, ONE, ONE + MINUS, TWO, INF - 1, INF - 1 + MINUS, INF, INF + MINUS, INF + 1, INF + 1 + MINUS, NAN)
"""The bits of +-0, +-1, 2, +-inf, of the numbers and the NaN next to +-inf, of a quiet NaN and the least number."""
LONGEST = 64  # no loop of the kernel has more iterations: 32 bits of a word, and k / threads

Case = tuple[str, Tensor, Sequence[int]]


def _numbers(bits: Tensor) -> Tensor:
    return bits.to(torch.uint32).view(torch.float32)


def _few(width: int, seed: int, bits: Sequence[int] = FEW) -> Tensor:
    """Return a row of few values, so that ties lie across the cut."""
    choice = torch.randint(len(bits), (width,), generator=torch.Generator().manual_seed(seed))
    return _numbers(torch.tensor(bits)[choice])


def _random(width: int, seed: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def _bins(width: int, count: int) -> Tensor:
    """Return equal numbers, but for some that fall into the four quarters of the histogram, ``count`` into each."""
    bits = torch.full((width,), ONE)
    bits[5 : 5 + 4 * count] += ((torch.arange(4 * count) + 1) / (4 * count) * (2**19 - 1)).long()
    return _numbers(bits)


def _one_bin(width: int) -> Tensor:
    """Return equal numbers, but for 40 in one bin of the histogram, ascending, and 7 above them.

    Of the 40 in that bin 33 are wanted.
    """
    bits = torch.full((width,), ONE)
    bits[5:45] += 2**18 + torch.arange(40)
    bits[50:57] += 2**19 - 1 - 2**9 * torch.arange(7)
    return _numbers(bits)


def _ties_at(width: int, first: int) -> Tensor:
    """Return zeros, but for 5 ones from an index on, and after them 38 twos: 2 of the ones belong to the 40 largest."""
    row = torch.zeros(width)
    row[first : first + 5], row[first + 6 : first + 44] = 1.0, 2.0
    return row


def _threads(width: int, threads: Sequence[int]) -> Tensor:
    """Return ones, but for a two that each of some threads holds: fewer than 40 of them bound nothing."""
    row = torch.ones(width)
    row[list(threads)] = 2.0
    return row


def _close(width: int) -> Tensor:
    """Return distinct numbers that only the last bits of a key tell apart, and a large one, which makes the first bins wide."""
    bits = ONE + torch.randperm(width, generator=torch.Generator().manual_seed(0))
    bits[width // 3] = INF - 1
    return _numbers(bits)


def cases(piece: int) -> Iterator[Case]:
    """Yield rows of one width, in words, and their lengths."""
    yield "few values", torch.stack([_few(70, 0), _few(70, 1)]), (70, 55)
    yield "random numbers that fill a block", torch.stack([_random(piece, 0), -_random(piece, 1).abs()]), (piece, piece)
    yield "a cut in each quarter of the bins", torch.stack([_bins(piece, n) for n in (50, 30, 16, 12)]), (piece,) * 4
    yield "a bin of as many as are wanted", torch.stack([_one_bin(piece)]), (piece,)
    yield "ties at either end", torch.stack([_ties_at(piece, 0), _ties_at(piece, piece - 44)]), (piece, piece)
    yield "close numbers", torch.stack([_close(piece - 7)]), (piece,)
    yield "all equal", torch.ones(1, 3 * piece // 4), (2**31 - 1,)
    yield "lengths of 0, below, of few entries", _random(4 * 70, 2).view(4, 70), (0, -3, 3, 69)
    yield "a row that lengths do not reach", torch.stack([_random(70, 6), _random(70, 7)]), (55,)
    yield "none valid", torch.stack([_few(70, 3, (INF + MINUS, INF + 1, INF + 1 + MINUS, NAN))]), (70,)
    few_lanes = [32 * warp + lane for warp in range(4) for lane in (0, 16, 24, 28, 30, 31, 1, 2, 3)]
    warps = [*range(32), 32, 64, 96], [0, 32, 64, *range(96, 128)]
    yield "the largest in few threads", torch.stack([_threads(piece, t) for t in (few_lanes, *warps)]), (piece,) * 3
    half_of_each_warp = [32 * warp + lane for warp in range(4) for lane in range(0, 16, 2)]
    half_of_the_warps = [32 * warp + lane for warp in (0, 2) for lane in range(0, 32, 2)]
    some_groups = half_of_each_warp, half_of_the_warps
    yield "the largest in some of the groups", torch.stack([_threads(piece, t) for t in some_groups]), (piece,) * 2
    width = 2 * piece + 9
    yield "three pieces", torch.stack([_random(width, 4), _few(width, 5)]), (2**31 - 1, piece + 9)


def right(kernel: Any, cfg: Config, scores: Tensor, lengths: Tensor) -> bool:
    """Return whether the criterion accepts what the kernel selects, for each piece of each row."""
    rows, width = scores.shape
    out = torch.empty(rows, -(-width // cfg.piece), cfg.k, dtype=torch.int32)
    interpret(kernel, scores, lengths, out, races=True, longest=LONGEST)
    lengths = torch.cat([lengths, lengths.new_full((rows - len(lengths),), width)])
    for p in range(out.shape[1]):
        first = p * cfg.piece
        selected = torch.where(out[:, p] >= 0, out[:, p] - first, out[:, p])
        piece = scores[:, first : first + cfg.piece]
        if not topk_check(piece, (lengths - first).clamp(min=0), selected).all():
            return False
    return True


def examples(cfg: Config) -> Examples:
    """Return the rows above, in the type of the kernel."""

    def check(kernel: Any) -> Iterator[tuple[str, bool]]:
        for words, scores, lengths in cases(cfg.piece):
            scores = scores.to(getattr(torch, cfg.dtype))
            yield words, right(kernel, cfg, scores, torch.tensor(lengths, dtype=torch.int32))

    return Examples("what the interpreted kernel selects passes the criterion, and no threads race", check)
