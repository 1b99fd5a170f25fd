"""The k largest of each row, by a total order: score descending, then index ascending; -0.0 equals 0.0.

Row r has ``min(lengths[r], T)`` entries. Of these, NaN and -inf are never selected; +inf is a score like any other. The
indices of the selected come ascending, then -1 as often as fewer than k could be selected. So the result is a function
of the row alone: no padding, sharding or order of evaluation changes it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .contract import Contract, Elements, Size, Static, TensorSpec

_SIZES = {"R": Size(), "T": Size(0, 2**20)}
_STATICS = {"k": Static(int, 1, 2048)}
_PROBES = ({"R": 37, "T": 1009}, {"R": 2**20, "T": 2**20})
_ROWS = (
    TensorSpec("scores", "R T", (torch.float32, torch.bfloat16)),
    TensorSpec("lengths", "R", (torch.int32,)),
)

TOPK = Contract(
    "topk", _SIZES, _STATICS, _ROWS, (TensorSpec("out", "R k", (torch.int32,), Elements(-1, "T")),), _PROBES
)
WHOLE = Contract("topk", _SIZES, _STATICS, _ROWS[:1], TOPK.outputs, _PROBES)
"""The contract for rows without lengths, which have all T entries."""
CHECK = Contract(
    "topk_check",
    _SIZES,
    _STATICS,
    (*_ROWS, TensorSpec("indices", "R k", (torch.int32,))),
    (TensorSpec("out", "R", (torch.int32,), Elements(0, 2)),),
    _PROBES,
)


def topk(scores: Tensor, lengths: Tensor | None, k: int) -> Tensor:
    """Return the indices [R, k] of the k largest entries of each row [R, T]; without lengths, of all of them."""
    T = scores.shape[-1]
    index = torch.arange(T, device=scores.device)
    valid = scores > float("-inf")  # false of NaN
    if lengths is not None:
        valid = valid & (index < lengths.unsqueeze(-1))
    key = torch.where(valid, scores + 0.0, float("-inf"))  # -0.0 + 0.0 is 0.0
    order = key.argsort(dim=-1, descending=True, stable=True)[:, :k]
    selected = torch.where(index[:k] < valid.sum(-1, keepdim=True), order, T).sort(-1).values
    return pad(torch.where(selected < T, selected, -1), (0, max(k - T, 0)), value=-1).int()
