"""The static parameters of the kernels of CSA and HCA (schedule: kernels/sparse_attention.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

BF16, F32, I32 = "bfloat16", "float32", "int32"
LOG2E = math.log2(math.e)
KEYS, HEADS = 64, 64  # keys of half a tile, heads of a block
PANEL = 64  # columns of a swizzled row of shared memory
FEW_BLOCKS, MAX_SPLITS = 8, 5


@dataclass(frozen=True)
class Config:
    """The operator's static parameters, and into how many splits the keys of a query are cut."""

    H: int = 64
    D: int = 512
    window: int = 128
    scale: float = 512**-0.5
    ratio: int = 128
    splits: int = 1

    @property
    def log2_scale(self) -> float:
        """Return c with exp(scale x) = exp2(c x)."""
        return self.scale * LOG2E

    @property
    def head_blocks(self) -> int:
        """Return how many blocks share the heads of a query."""
        return -(-self.H // HEADS)

    @property
    def out_dtype(self) -> str:
        """Return the dtype of the output: bf16 for the result, fp32 for what is still to be combined."""
        return BF16 if self.splits == 1 else F32

    @property
    def stats(self) -> int:
        """Return how many numbers go with a row of the output: the lse, or the maximum and the sum of a split."""
        return 1 if self.splits == 1 else 2

    @property
    def tile(self) -> int:
        """Return the number of keys in a tile, half of them for each consumer."""
        return 2 * KEYS

    @property
    def window_tiles(self) -> int:
        """Return how many tiles hold the window."""
        return -(-self.window // self.tile)

    @property
    def columns(self) -> int:
        """Return how many columns of the output a consumer holds: half of D, rounded up to whole panels."""
        return -(-self.D // (2 * PANEL)) * PANEL


@dataclass(frozen=True)
class BackwardConfig(Config):
    """The static parameters of a backward, whose tiles are half as long."""

    @property
    def tile(self) -> int:
        """Return the number of keys in a tile."""
        return KEYS

    @property
    def piece(self) -> int:
        """Return how many columns of the parts of a tile a consumer computes at a time."""
        return 2 * PANEL if self.columns % (2 * PANEL) == 0 else PANEL

    def piece_columns(self, i: int) -> slice:
        """Return the columns of piece i, within a consumer's columns."""
        return slice(i * self.piece, (i + 1) * self.piece)


def with_splits(cfg: Config, queries: int, splits: int) -> Config:
    """Return the config with so many splits, at most MAX_SPLITS, if the queries of a sequence make few blocks.

    Few blocks leave most of a GPU idle. The batch has no say, so that no result depends on it.
    """
    return replace(cfg, splits=min(splits, MAX_SPLITS)) if queries * cfg.head_blocks <= FEW_BLOCKS else cfg
