"""L3: how far the results of Sinkhorn and of attention lie from those over the reals.

The roundings are counted on the kernel that ships (`engine.interpreter.rounding`); over the reals it equals its formula,
which is the claim of L2. With u = 2^-24 and γ(θ) = θ u / (1 - θ u):

Sinkhorn. For all logits in whose rows no two differ by more than ``largest``,

    |float - real| ≤ γ(θ) real    for each element of the result.

Attention without splits. For each query and head with weights p_j = exp(z_j) / (Σ exp(z) + exp(sink)) over its keys k_j,

    |float - real| ≤ γ(θ) Σ p_j |k_j|    for each element of ``out``,    |float - real| ≤ γ(θ)    for ``lse``,

if none of these is above ``largest``: Σ |scale q_i k_i| log2(e) of a key, a maximum of these, |sink| log2(e), and |lse|. The
counts are those of a number of tiles of 128 keys. From the second tile on each adds the same: a tile multiplies the sums by
rescalings and adds products to them, so that a sum's count is that of the tile before and a constant more, once it is above
that of the products.

A maximum is raised only where a score exceeds it by more than 8 bits, and floats may decide otherwise than the reals where
that is close. Both ways are followed. Either leads to the formula: whoever multiplies by a rescaling compares the same two
maxima in the same operations, and a maximum that was not raised differs from itself by exactly 0, whose rescaling is 1. Over
the reals that is the kernel with another threshold than 8, above 0 as well, and L2 uses no more of it.

Assumed are the errors of CUDA's functions (``rounding_rules.ULPS``), that tensor cores add with an error of less than one
unit in the last place (``rounding_rules.TRUNCATION``), and that nothing over- or underflows. Decode with splits and the
backward are not covered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .engine.interpreter.rounding import count_roundings
from .engine.interpreter.rounding_rules import TRUNCATION, Assumed, gamma

__all__ = ["attention", "gamma", "sinkhorn"]


def sinkhorn(kernel: Any, n: int, *, largest: int) -> int:
    """Return the count θ of the result of Sinkhorn's forward kernel, the PrimFunc of n x n matrices."""
    logits = {"logits": torch.zeros(1, n, n)}
    ((count, _),) = count_roundings(kernel, logits, scores={"logits"}, assumed=Assumed(largest)).values()
    return count


def attention(kernel: Any, cfg: Any, *, tiles: int, largest: int) -> Mapping[str, int]:
    """Return the counts of ``out`` and ``stats``, which is the lse, of the forward kernel of csa or hca with so many tiles.

    Args:
        kernel: the PrimFunc of ``cfg``, without splits.
        cfg: its ``Config``.
        tiles: of 128 keys; the window fills the first.
        largest: the bound of the scores in bits, a sum of sizes as above.
    """
    names = [str(buffer.name) for buffer in kernel.buffer_map.values()]
    listed, tokens = 128 * (tiles - cfg.window_tiles), cfg.window
    inputs = {
        "q": torch.zeros(1, 1, cfg.H, cfg.D),
        "window_kv": torch.zeros(1, tokens, cfg.D),
        "compressed_kv": torch.zeros(1, listed, cfg.D),
        "indices": torch.arange(listed, dtype=torch.int32).reshape(1, 1, -1),
        "sink": torch.zeros(cfg.H),
        "offset": torch.full((1,), max(cfg.ratio * listed, tokens) - 1, dtype=torch.int32),
    }
    assumed = Assumed(largest, dot=TRUNCATION * cfg.D * largest)
    given = {name: value for name, value in inputs.items() if name in names}
    return {
        name: count for name, (count, _) in count_roundings(kernel, given, scores={"sink"}, assumed=assumed).items()
    }
