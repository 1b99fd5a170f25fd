"""Top-k's records: an oracle that sorts in numpy, planted errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import lemmata
from lemmata.reference import topk
from opspec import Array, OpSpec

INF = float("inf")


def oracle(scores: Array, lengths: Array, k: int) -> Array:
    """A row at a time: its valid entries by falling score, then by index; the first k of them by index."""
    out = np.full((len(scores), k), -1.0)
    for r, (row, length) in enumerate(zip(scores, lengths, strict=True)):
        inside = row[: max(int(length), 0)]
        valid = np.flatnonzero(inside > -np.inf)
        best = valid[np.lexsort((valid, -inside[valid]))][:k]
        out[r, : len(best)] = np.sort(best)
    return out


def _ties_to_the_larger_index(scores: Tensor, lengths: Tensor, k: int) -> Tensor:
    T = scores.shape[-1]
    inside = torch.arange(T, device=scores.device) < lengths[:, None]
    found = topk.topk(torch.where(inside, scores, -INF).flip(-1), torch.full_like(lengths, T), k)
    backwards = torch.where(found >= 0, T - 1 - found, T).sort(-1).values
    return torch.where(backwards < T, backwards, -1)


def _by_score(scores: Tensor, lengths: Tensor, k: int) -> Tensor:
    index = topk.topk(scores, lengths, k)
    value = torch.where(index >= 0, scores.gather(-1, index.clamp(0).long()), -INF)
    return index.gather(-1, value.argsort(dim=-1, descending=True, stable=True))


TOPK = OpSpec(
    name="topk",
    operator="topk",
    op=lambda scores, lengths, *, k: lemmata.topk(scores, lengths=lengths, k=k),
    overload=torch.ops.lemmata.topk_fwd.default,
    contract=topk.TOPK,
    sizes={"R": 33, "T": 70},
    large={"R": 259, "T": 5003},
    batch="R",
    configurations=({"k": 5}, {"k": 1}, {"k": 33}, {"k": 512}, {"k": 2048}),
    reference=topk.topk,
    oracle=oracle,
    wrong={
        "ties to the larger index": _ties_to_the_larger_index,
        "by score": _by_score,
        "one fewer": lambda scores, lengths, k: (
            topk.topk(scores, lengths, k).roll(1, -1).index_fill(-1, torch.tensor([0], device=scores.device), -1)
        ),
        "lengths ignored": lambda scores, lengths, k: topk.topk(scores, torch.full_like(lengths, 2**20), k),
        "one entry too many": lambda scores, lengths, k: topk.topk(scores, lengths + 1, k),
    },
    exact=True,
    optional=("lengths",),
)
TOPK_BF16 = replace(
    TOPK,
    name="topk_bf16",
    contract=replace(topk.TOPK, inputs=(replace(topk.TOPK.inputs[0], dtypes=(torch.bfloat16,)), topk.TOPK.inputs[1])),
)

SPECS = (TOPK, TOPK_BF16)
