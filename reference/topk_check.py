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
    """Return the bits b of fp32 numbers as integers in the order of the numbers: b, or -2^31 - b where b < 0."""
    bits = scores.float().view(torch.int32).long()  # -2^31 - b need not fit 32 bits where it is not chosen
    return torch.where(bits >= 0, bits, -(2**31) - bits)


def is_valid(magnitude: Tensor) -> Tensor:
    """Neither NaN nor -inf."""
    return (magnitude > -INFINITY) & (magnitude <= INFINITY)


def rank(magnitude: Tensor, index: Tensor) -> Tensor:
    """Higher for the entry that is selected first; no two entries of a row share one."""
    return magnitude * STEP - index


def ahead(scores: Tensor, lengths: Tensor, last: Tensor) -> Tensor:
    """Return whether an entry is valid and at least as high as ``last`` [R, 1]."""
    entry, magnitude = torch.arange(scores.shape[-1], device=scores.device), signed_magnitude(scores)
    return (entry < lengths.unsqueeze(-1)) & is_valid(magnitude) & (rank(magnitude, entry) >= last)


def selection(scores: Tensor, lengths: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each row, [R, 1], whether an index is wrong by itself, how many are selected, and the last one's rank."""
    indices = indices.long()
    T, slot = scores.shape[-1], torch.arange(indices.shape[-1], device=scores.device)
    inside = (indices >= 0) & (indices < lengths.unsqueeze(-1)) & (indices < T)
    place = torch.where(inside, indices, T)
    magnitude = torch.where(inside, pad(signed_magnitude(scores), (0, 1)).gather(-1, place), 0)
    before = indices[:, (slot - 1).clamp(min=0)]
    follows = (slot == 0) | ((before >= 0) & (before < indices))
    right = (indices == -1) | (inside & is_valid(magnitude) & follows)
    wrong = torch.where(right, 0, 1).amax(-1, keepdim=True)
    count = torch.where(indices >= 0, slot + 1, 0).amax(-1, keepdim=True)  # if none is wrong, those selected come first
    return wrong, count, torch.where(inside, rank(magnitude, indices), LOWEST).amin(-1, keepdim=True)


def topk_check(scores: Tensor, lengths: Tensor, indices: Tensor) -> Tensor:
    """Return 1 for each row of indices [R, k] that is the answer for its row of scores [R, T], else 0."""
    wrong, count, last = selection(scores, lengths, indices)
    right = (wrong == 0) & (ahead(scores, lengths, last).sum(-1, keepdim=True) == count)
    return right.squeeze(-1).int()
