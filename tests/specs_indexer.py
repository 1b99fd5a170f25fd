"""The indexer's records: oracles in fp64, planted errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lemmata
import specs_topk
from lemmata.reference import indexer
from opspec import Array, OpSpec, array

SIZES, LARGE = {"B": 3, "S": 9, "T": 35}, {"B": 2, "S": 257, "T": 1031}
CONFIGURATIONS = (
    {"H": 8, "D": 128, "ratio": 4},
    {"H": 64, "D": 128, "ratio": 4},
    {"H": 16, "D": 64, "ratio": 1},
    {"H": 32, "D": 32, "ratio": 128},
)


def seen(B: int, S: int, T: int, offset: Array, ratio: int) -> NDArray[np.bool_]:
    """Entry j holds the tokens up to ratio (j + 1) - 1, and query t is the token offset + t."""
    last = (np.arange(T) + 1) * ratio - 1
    return last[None, None] <= (offset[:, None] + np.arange(S))[..., None]


def _sum(q: Array, k: Array, weights: Array) -> Array:
    """A head at a time."""
    total = np.zeros((*q.shape[:2], k.shape[1]))
    for h in range(q.shape[2]):
        total += weights[:, :, h, None] * np.maximum(q[:, :, h] @ k.swapaxes(1, 2), 0)
    return total


def oracle(q: Array, k: Array, weights: Array, offset: Array, ratio: int) -> Array:
    return np.where(seen(*q.shape[:2], k.shape[1], offset, ratio), _sum(q, k, weights), -np.inf)


def scale(q: Array, k: Array, weights: Array, offset: Array, ratio: int) -> Array:
    return _sum(abs(q), abs(k), abs(weights))


def oracle_fp8(q: Array, k: Array, weights: Array, k_scale: Array, offset: Array, ratio: int) -> Array:
    """The scale where DeepGEMM has it, at the key."""
    return oracle(q, k * k_scale[..., None], weights, offset, ratio)


def scale_fp8(q: Array, k: Array, weights: Array, k_scale: Array, offset: Array, ratio: int) -> Array:
    return _sum(abs(q), abs(k * k_scale[..., None]), abs(weights))


def oracle_bwd(g: Array, q: Array, k: Array, weights: Array, offset: Array, ratio: int) -> tuple[Array, ...]:
    """torch differentiates an einsum in fp64."""
    leaves = [torch.tensor(a, requires_grad=True) for a in (q, k, weights)]
    total = torch.einsum("bsht,bsh->bst", torch.einsum("bshd,btd->bsht", *leaves[:2]).clamp(min=0), leaves[2])
    shown = torch.tensor(seen(*q.shape[:2], k.shape[1], offset, ratio))
    grads = torch.autograd.grad((total * torch.tensor(g))[shown].sum(), leaves)
    return tuple(t.numpy() for t in grads)


def scale_bwd(g: Array, q: Array, k: Array, weights: Array, offset: Array, ratio: int) -> tuple[Array, ...]:
    g = abs(np.where(seen(*q.shape[:2], k.shape[1], offset, ratio), g, 0))
    q, k, weights = abs(q), abs(k), abs(weights)
    return (
        np.einsum("bst,bsh,btd->bshd", g, weights, k),
        np.einsum("bst,bsh,bshd->btd", g, weights, q),
        np.einsum("bst,bshd,btd->bsh", g, q, k),
    )


def oracle_topk(
    q: Array, k: Array, weights: Array, k_scale: Array, offset: Array, ratio: int, topk: int, workspace: int
) -> Array:
    """From the matrix of all scores, which are exact."""
    scores = oracle_fp8(q, k, weights, k_scale, offset, ratio)
    scores = scores.reshape(q.shape[0] * q.shape[1], k.shape[1])
    lengths = np.full(len(scores), k.shape[1])
    return specs_topk.oracle(scores, lengths, topk).reshape(*q.shape[:2], topk)


def _plain(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int) -> Tensor:
    """On a GPU, products of bf16 numbers summed in fp32 by the tensor cores."""
    if not q.is_cuda or not q.numel() or not k.numel():
        return indexer.indexer_scores(q, k, weights, offset, ratio)
    B, S, H, D = q.shape
    dots = torch.bmm(q.reshape(B, S * H, D), k.mT, out_dtype=torch.float32).view(B, S, H, -1)
    return _shown(_weighted(dots, weights), offset, ratio)


def _plain_fp8(q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor, offset: Tensor, ratio: int) -> Tensor:
    """On a GPU, products of fp8 numbers summed by the tensor cores, in fewer bits than fp32 has."""
    if not q.is_cuda or not q.numel() or not k.numel():
        return indexer.indexer_scores_fp8(q, k, weights, k_scale, offset, ratio)
    one, (B, S, H, D), T = torch.ones((), device=q.device), q.shape, k.shape[1]
    keys = k.new_zeros(B, -(-T // 16) * 16, D)
    keys[:, :T] = k
    dots = [
        torch._scaled_mm(
            q[b].reshape(S * H, D).contiguous(), keys[b].mT, one, one, out_dtype=torch.float32, use_fast_accum=True
        )
        for b in range(B)
    ]
    return _shown(_weighted(torch.stack(dots).view(B, S, H, -1)[..., :T], weights) * k_scale[:, None], offset, ratio)


def _in_bf16(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int) -> Tensor:
    """The scores as a model in bf16 computes them in torch: products and their gradients are rounded."""
    dots = torch.einsum("bshd,btd->bsht", q.bfloat16(), k.bfloat16())
    return _shown(_weighted(dots, weights), offset, ratio)


def _weighted(dots: Tensor, weights: Tensor) -> Tensor:
    return (weights[..., None] * dots.relu()).sum(-2)


def _shown(scores: Tensor, offset: Tensor, ratio: int) -> Tensor:
    hidden = ~seen(*scores.shape, array(offset), ratio)  # type: ignore[call-arg]
    return scores.masked_fill(torch.tensor(hidden, device=scores.device), -float("inf"))


def _linear(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int) -> Tensor:
    dots = torch.einsum("bshd,btd->bsht", q.float(), k.float())
    return _shown(torch.einsum("bsht,bsh->bst", dots, weights), offset, ratio)


def _relu_last(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int) -> Tensor:
    dots = torch.einsum("bshd,btd->bsht", q.float(), k.float())
    return _shown((dots * weights[..., None]).relu().sum(-2), offset, ratio)


_right = indexer.indexer_scores
_right_fp8 = indexer.indexer_scores_fp8
_WRONG: dict[str, Callable[..., Tensor]] = {
    "no relu": _linear,
    "relu of the weighted": _relu_last,
    "seen a token late": lambda q, k, w, offset, ratio: _right(q, k, w, offset - 1, ratio),
    "seen a token early": lambda q, k, w, offset, ratio: _right(q, k, w, offset + 1, ratio),
    "seen from the first token of an entry": lambda q, k, w, o, ratio: _right(q, k, w, o + ratio - 1, ratio),
    "one offset for all": lambda q, k, w, offset, ratio: _right(q, k, w, offset[:1].expand(len(q)), ratio),
    "another sequence's keys": lambda q, k, w, offset, ratio: _right(q, k.roll(1, 0), w, offset, ratio),
    "a head missing": lambda q, k, w, offset, ratio: _right(q[:, :, 1:], k, w[:, :, 1:], offset, ratio),
    "weights in bf16": lambda q, k, w, offset, ratio: _right(q, k, w.bfloat16().float(), offset, ratio),
}

INDEXER_SCORES = OpSpec(
    name="indexer_scores",
    operator="indexer",
    op=lambda q, k, weights, offset, *, ratio: lemmata.indexer_scores(q, k, weights, offset=offset, ratio=ratio),
    overload=torch.ops.lemmata.indexer_scores_fwd.default,
    contract=indexer.SCORES,
    sizes=SIZES,
    large=LARGE,
    batch="B",
    configurations=CONFIGURATIONS,
    edges={"B": (0, 1, 2, 3)},
    reference=indexer.indexer_scores,
    oracle=oracle,
    wrong=_WRONG,
    differentiable=("q", "k", "weights"),
    oracle_bwd=oracle_bwd,
    scale=scale,
    scale_bwd=scale_bwd,
    plain=_plain,
    plain_bwd=_in_bf16,
)

INDEXER_SCORES_FP8 = OpSpec(
    name="indexer_scores_fp8",
    operator="indexer",
    op=lambda q, k, weights, k_scale, offset, *, ratio: lemmata.indexer_scores(
        q, k, weights, k_scale=k_scale, offset=offset, ratio=ratio
    ),
    overload=torch.ops.lemmata.indexer_scores_fp8_fwd.default,
    contract=indexer.SCORES_FP8,
    sizes=SIZES,
    large=LARGE,
    batch="B",
    configurations=CONFIGURATIONS,
    edges={"B": (0, 1, 2, 3)},
    reference=indexer.indexer_scores_fp8,
    oracle=oracle_fp8,
    wrong={
        "no scale": lambda q, k, w, s, offset, ratio: _right_fp8(q, k, w, torch.ones_like(s), offset, ratio),
        "the scale twice": lambda q, k, w, s, offset, ratio: _right_fp8(q, k, w, s * s, offset, ratio),
        "another key's scale": lambda q, k, w, s, offset, ratio: _right_fp8(q, k, w, s.roll(1, 1), offset, ratio),
        "seen a token late": lambda q, k, w, s, offset, ratio: _right_fp8(q, k, w, s, offset - 1, ratio),
    },
    scale=scale_fp8,
    plain=_plain_fp8,
)


def _select(*tensors: Tensor, ratio: int, topk: int, workspace: int) -> Tensor:
    return indexer.indexer_topk(*tensors, ratio, topk)


INDEXER_TOPK = OpSpec(
    name="indexer_topk",
    operator="indexer",
    op=lambda q, k, weights, k_scale, offset, **statics: lemmata.indexer_topk(
        q, k, weights, k_scale=k_scale, offset=offset, **statics
    ),
    overload=torch.ops.lemmata.indexer_topk_fwd.default,
    contract=indexer.SELECT_FP8,
    sizes=SIZES,
    large=LARGE,
    batch="B",
    configurations=(
        {"H": 8, "D": 128, "ratio": 4, "topk": 5, "workspace": 2**20},
        {"H": 64, "D": 128, "ratio": 4, "topk": 16, "workspace": 1024},
        {"H": 16, "D": 64, "ratio": 1, "topk": 1, "workspace": 1000},
        {"H": 32, "D": 32, "ratio": 128, "topk": 2048, "workspace": 2**28},
    ),
    reference=_select,
    oracle=oracle_topk,
    wrong={
        "one fewer": lambda *t, ratio, topk, workspace: torch.nn.functional.pad(
            indexer.indexer_topk(*t, ratio, topk - 1), (0, 1), value=-1
        ),
        "entries not seen": lambda q, k, w, s, offset, ratio, topk, workspace: indexer.indexer_topk(
            q, k, w, s, offset + ratio, ratio, topk
        ),
        "the first": lambda q, k, w, s, offset, ratio, topk, workspace: indexer.indexer_topk(
            q, k, torch.zeros_like(w), s, offset, ratio, topk
        ),
        "another sequence's scales": lambda q, k, w, s, offset, ratio, topk, workspace: indexer.indexer_topk(
            q, k, w, s.roll(1, 0), offset, ratio, topk
        ),
    },
    exact=True,
)

SPECS = (INDEXER_SCORES, INDEXER_SCORES_FP8, INDEXER_TOPK)
