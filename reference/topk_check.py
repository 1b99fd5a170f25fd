"""Whether indices are the k largest entries of each row, in the order of ``topk``: a criterion, not a second search.

Row r of ``indices`` is right exactly if

* each index is -1, or that of a valid entry and larger than the index before it, which is not -1;
* as many valid entries come first in the order, up to the last one selected, as are selected. Where a -1 is among the
  indices, every valid entry counts.

An entry is valid if it is within ``lengths[r]`` and the row, and neither NaN nor -inf. Scores are compared as integers, so
that this holds of every bit pattern. The bits of an fp32 number are a sign and a magnitude; ``signed_magnitude`` has the
order of the numbers and makes -0.0 equal 0.0. With the index it gives each entry of a row a rank of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

INFINITY = 0x7F800000  # the bits of +inf; a larger magnitude is NaN
STEP = 2**20  # more than any index
LOWEST = -(2**62)  # below every rank


def signed_magnitude(scores: Tensor) -> Tensor:
    """The bits b of fp32 numbers as integers in the order of the numbers: b, or -2^31 - b where b < 0."""
    bits = scores.float().view(torch.int32)
    return torch.where(bits >= 0, bits, -(2**31) - bits)


def is_valid(magnitude: Tensor) -> Tensor:
    """Neither NaN nor -inf."""
    return (magnitude > -INFINITY) & (magnitude <= INFINITY)


def rank(magnitude: Tensor, index: Tensor) -> Tensor:
    """Higher for the entry that is selected first; no two entries of a row share one."""
    return magnitude.long() * STEP - index


def topk_check(scores: Tensor, lengths: Tensor, indices: Tensor) -> Tensor:
    """1 for each row of indices [R, k] that is the answer for its row of scores [R, T], else 0."""
    T, k = scores.shape[-1], indices.shape[-1]
    length = lengths.unsqueeze(-1)
    entry, slot = torch.arange(T, device=scores.device), torch.arange(k, device=scores.device)
    magnitude = signed_magnitude(scores)
    inside = (indices >= 0) & (indices < length) & (indices < T)
    selected = pad(magnitude, (0, 1)).gather(-1, torch.where(inside, indices, T).long())
    before = indices[:, (slot - 1).clamp(min=0)]
    follows = (slot == 0) | ((before >= 0) & (before < indices))
    wrong = ~((indices == -1) | (inside & is_valid(selected) & follows))
    last = torch.where(inside, rank(selected, indices), LOWEST).amin(-1, keepdim=True)
    ahead = (entry < length) & is_valid(magnitude) & (rank(magnitude, entry) >= last)
    return ((wrong.sum(-1) == 0) & (ahead.sum(-1) == (indices >= 0).sum(-1))).int()
