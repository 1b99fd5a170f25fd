"""What is claimed of the kernels of sliding-window attention: those of hca, launched with no entries.

They are proved for any number of entries, none among them, where the reference of hca is that of swa. The sums of a
backward without entries are those of the window alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..kernels import gradient_sums
from ..kernels.sparse_attention_config import BackwardConfig, Config
from . import hca
from .attention import PRO
from .attention_lemmas import WINDOW
from .gradient_sums import products, summing
from .suite import Proof


def proofs() -> Iterator[Proof]:
    """Yield all keys in one split, as decode has them too; then the backward."""
    yield replace(hca._proof(Config(), lemmas=(WINDOW,)), op="swa")
    yield replace(hca._backward(BackwardConfig(ratio=1)), op="swa")
    yield replace(hca._proof(Config(PRO)), op="swa")  # DeepSeek-V4-Pro's heads
    yield replace(hca._backward(BackwardConfig(PRO, ratio=1)), op="swa")
    yield products("swa", gradient_sums.Config())
    yield from summing("swa", gradient_sums.Config())
