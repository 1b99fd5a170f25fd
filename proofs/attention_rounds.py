"""Blocks of threads that take one query after another, in the proofs of attention."""

from __future__ import annotations

from ..kernels.sparse_attention import BLOCKS, NAMES
from .attention import Block
from .engine.execution.symbolic import block, round_of
from .engine.forms.normal_form import Form


class InRounds(Block):
    """Such a block, in one of its rounds."""

    @staticmethod
    def begin() -> Form:
        """Return the number of the block's first query and of its block of heads, among those of the sequence."""
        return block()

    @classmethod
    def item(cls) -> Form:
        """Return the number of those of the round."""
        return cls.begin() + BLOCKS * round_of(NAMES.round)
