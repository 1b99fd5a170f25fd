"""The config of the kernels of CSA and HCA."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

BF16, F32, I32 = "bfloat16", "float32", "int32"
LOG2E = math.log2(math.e)
KEYS, HEADS, PANEL = 64, 64, 64  # keys of half a tile, heads of a block, columns of a swizzled row of shared memory
FEW, MOST_RANGES = 8, 5  # blocks of a sequence that are too few; ranges of its keys


@dataclass(frozen=True)
class Config:
    """Static parameters: the operator's; the ranges of keys."""

    H: int = 64
    D: int = 512
    window: int = 128
    scale: float = 512**-0.5
    ratio: int = 128
    ranges: int = 1

    @property
    def parts(self) -> int:
        """Blocks of a query in a range."""
        return -(-self.H // HEADS)

    @property
    def out_dtype(self) -> str:
        """Of one range the result, of several what is still to be combined."""
        return BF16 if self.ranges == 1 else F32

    @property
    def stats(self) -> int:
        """Numbers of a row beside it: the lse, or what combining needs."""
        return 1 if self.ranges == 1 else 2

    @property
    def tile(self) -> int:
        """Keys of a tile: a half for each role that multiplies."""
        return 2 * KEYS

    @property
    def window_tiles(self) -> int:
        """Tiles that hold the window."""
        return -(-self.window // self.tile)

    @property
    def columns(self) -> int:
        """Columns of the result that a role that multiplies has: half of them, in whole panels."""
        return -(-self.D // (2 * PANEL)) * PANEL


def in_ranges(cfg: Config, queries: int, ranges: int) -> Config:
    """Few queries of a sequence leave most of a GPU idle: their keys are shared out.

    The batch has no say, so that no result depends on it.
    """
    return replace(cfg, ranges=min(ranges, MOST_RANGES)) if queries * cfg.parts <= FEW else cfg
