"""The records of the indexer's loss, over a list and over all that a query sees: an oracle in fp64 over all entries; errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import lemmata
from lemmata.reference import csa, hca, indexer_loss
from opspec import Array, OpSpec
from specs_attention import HALF, TINY, changed, index_counts, past_counts

LISTED_NAMES, DENSE_NAMES = (
    tuple(spec.name for spec in contract.inputs) for contract in (indexer_loss.LISTED, indexer_loss.DENSE)
)


class Oracle:
    """Teacher and student over all entries, each as often a candidate as ``counts`` [B, S, T] says."""

    def __init__(self, named: dict[str, Array], counts: Array, scale: float) -> None:
        self.named, self.counts = named, counts
        logits = scale * np.einsum("bshd,btd->bsht", named["core_q"], named["compressed_kv"])
        total = np.logaddexp(named["lse"], named["sink"])[..., None]
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.where(counts[:, :, None] > 0, logits - total, -np.inf)
            top = logs.max((2, 3), initial=-np.inf)
            self.weighed = np.isfinite(top)
            mass = np.exp(logs - np.where(self.weighed, top, 0)[..., None, None]).sum(2) * counts
            self.p = np.where(self.weighed[..., None], mass / mass.sum(-1, keepdims=True), 0)
        terms = scale * np.einsum("bshd,btd->bsht", abs(named["core_q"]), abs(named["compressed_kv"])).max(2)
        finite = np.where(np.isfinite(total), abs(total), 0).max(2)
        self.terms_p = self._largest(terms) + finite[..., 0]
        products = np.einsum("bshd,btd->bsht", abs(named["q"]), abs(named["k"]))
        self.terms_s = self._largest(np.einsum("bsh,bsht->bst", abs(named["weights"]), products))

    def _largest(self, terms: Array) -> Array:
        """Return the largest of the candidates', [B, S]."""
        return np.where(self.counts > 0, terms, 0).max(-1, initial=0)  # type: ignore[no-any-return]

    def _log_s(self, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return log S and P of the queries whose teacher weighs a candidate, from q, k and weights."""
        q, k, weights = leaves
        dots = torch.einsum("bshd,btd->bsht", q, k).clamp(min=0)
        scores = (weights.unsqueeze(-1) * dots).sum(2) + torch.tensor(self.counts).log()
        some = torch.tensor(self.weighed)
        return scores[some].log_softmax(-1), torch.tensor(self.p)[some]

    def _leaves(self) -> list[Tensor]:
        return [torch.tensor(self.named[name], requires_grad=True) for name in ("q", "k", "weights")]

    def _each(self, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the terms of the sum, of these queries, and P log P - P log S in absolute values."""
        log_s, p = self._log_s(leaves)
        apart = torch.where(p > 0, p.log() - log_s, 0.0)
        return (p * apart).sum(-1), (p * apart.abs()).sum(-1)

    def losses(self) -> Array:
        out = np.zeros(self.weighed.shape)
        out[self.weighed] = self._each(self._leaves())[0].detach().numpy()
        return out

    def scales(self) -> Array:
        """Return what a rounding of scores or logits moves the loss by, in units of it."""
        spread = np.zeros(self.weighed.shape)
        spread[self.weighed] = self._each(self._leaves())[1].detach().numpy()
        return 1 + self.terms_s + (1 + spread) * (1 + self.terms_p)  # type: ignore[no-any-return]

    def gradients(self, g: Array) -> tuple[Array, ...]:
        """Torch differentiates the sum."""
        leaves = self._leaves()
        total = (self._each(leaves)[0] * torch.tensor(g[self.weighed])).sum()
        grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        return tuple(t.numpy() for t in grads)

    def gradient_scales(self, g: Array) -> tuple[Array, ...]:
        """Sums of absolute values; more where scores or logits are sums of large terms."""
        s = np.zeros_like(self.p)
        s[self.weighed] = self._log_s(self._leaves())[0].exp().detach().numpy()
        parts = s * (1 + HALF * self.terms_s[..., None]) + self.p * (1 + HALF * self.terms_p[..., None])
        parts = abs(g)[..., None] * parts
        q, k, weights = (abs(self.named[name]) for name in ("q", "k", "weights"))
        return (
            np.einsum("bst,bsh,btd->bshd", parts, weights, k) + TINY,
            np.einsum("bst,bsh,bshd->btd", parts, weights, q) + TINY,
            np.einsum("bst,bshd,btd->bsh", parts, q, k) + TINY,
        )


def listed(*arrays: Array, scale: float) -> Oracle:
    named = dict(zip(LISTED_NAMES, arrays, strict=True))
    return Oracle(named, index_counts(named["indices"], named["k"].shape[1]), scale)


def dense(*arrays: Array, ratio: int, scale: float) -> Oracle:
    named = dict(zip(DENSE_NAMES, arrays, strict=True))
    return Oracle(named, past_counts(named["q"].shape[1], named["k"].shape[1], named["offset"], ratio), scale)


def _wide(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The reference on keys in fp32, so that torch sums their gradients in fp32."""

    def call(q: Tensor, k: Tensor, *others: Tensor, **statics: float) -> Tensor:
        return loss(q, k.float(), *others, **statics)

    return call


_listed, _dense = _wide(indexer_loss.indexer_loss), _wide(indexer_loss.indexer_loss_dense)


class _GradientInBf16(torch.autograd.Function):
    """The number itself, whose gradient is rounded to bf16, as a product on tensor cores takes it."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.bfloat16().to(grad.dtype)


def _gradients_in_bf16(q: Tensor, weights: Tensor, keys: hca.Keys, log_p: Tensor) -> Tensor:
    """The loss by scores in fp32; torch multiplies their gradients in bf16, as it rounds those of the keys."""
    dots: Tensor = _GradientInBf16.apply(indexer_loss._dots(q.type_as(weights), keys))  # type: ignore[no-untyped-call]
    scores = (weights.unsqueeze(-1) * dots.relu()).sum(2)
    return indexer_loss.divergence(log_p, indexer_loss._log_normalised(torch.where(keys.seen, scores, -math.inf)))


def _listed_in_bf16(q: Tensor, k: Tensor, weights: Tensor, core_q: Tensor, *core: Tensor, scale: float) -> Tensor:
    """The same over a list."""
    entries, indices, sink, lse = core
    log_p = indexer_loss.log_teacher(core_q, csa._selected(entries, indices), sink, lse, scale)
    return _gradients_in_bf16(q, weights, csa._selected(k.bfloat16(), indices), log_p)


def _dense_in_bf16(
    q: Tensor, k: Tensor, weights: Tensor, core_q: Tensor, *core: Tensor, ratio: int, scale: float
) -> Tensor:
    """The same over all that is seen."""
    entries, sink, lse, offset = core
    rows, seen = hca._entries(entries, q.shape[1], offset, ratio), hca._entries(k.bfloat16(), q.shape[1], offset, ratio)
    return _gradients_in_bf16(q, weights, seen, indexer_loss.log_teacher(core_q, rows, sink, lse, scale))


_right = indexer_loss.divergence


def _planted(loss: Callable[..., Tensor], names: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    """Errors that both forms could have."""
    change = functools.partial(changed, loss, names)

    def with_divergence(divergence: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def call(*tensors: Tensor, **statics: float) -> Tensor:
            with mock.patch.object(indexer_loss, "divergence", divergence):
                return loss(*tensors, **statics)

        return call

    return {
        "student and teacher exchanged": with_divergence(lambda p, s: _right(s, p)),
        "no entropy of the teacher": with_divergence(lambda p, s: torch.where(p.exp() > 0, -p.exp() * s, 0.0).sum(-1)),
        "each head with the same weight": change(
            sink=lambda a: torch.full_like(a["sink"], -1e30), lse=lambda a: _lse_of_entries(a)
        ),
        "no sink": change(sink=lambda a: torch.full_like(a["sink"], -float("inf"))),
        "the sink scaled": change(sink=lambda a: a["sink"] * a["scale"]),
        "lse with the sink already": change(lse=lambda a: torch.logaddexp(a["lse"], a["sink"])),
        "lse in base 2": change(lse=lambda a: a["lse"] / np.log(2)),
        "another head's lse": change(lse=lambda a: a["lse"].roll(1, -1)),
        "not scaled": change(scale=lambda a: 1.0),
        "another sequence's entries": change(compressed_kv=lambda a: a["compressed_kv"].roll(1, 0)),
        "another entry's key": change(k=lambda a: a["k"].roll(1, 1)),
        "a head of the indexer missing": change(
            weights=lambda a: a["weights"] * (torch.arange(a["weights"].shape[-1], device=a["weights"].device) > 0)
        ),
        "weights of no sign": change(weights=lambda a: a["weights"].abs()),
    }


def _lse_of_entries(a: dict[str, Tensor]) -> Tensor:
    """Return the lse of each head by itself, so that its weights sum to 1 over all entries."""
    logits = a["scale"] * torch.einsum("bshd,btd->bsht", a["core_q"].float(), a["compressed_kv"].float())
    return logits.logsumexp(-1)


def _once(a: dict[str, Tensor]) -> Tensor:
    ordered = a["indices"].sort(-1).values
    again = torch.nn.functional.pad(ordered[..., 1:] == ordered[..., :-1], (1, 0))
    return torch.where(again, -1, ordered)


_other_list = functools.partial(changed, _listed, LISTED_NAMES)
_other_view = functools.partial(changed, _dense, DENSE_NAMES)
_SIZES, _LARGE = {"B": 3, "S": 9, "T": 35}, {"B": 2, "S": 65, "T": 131}
_OF_INDEXER = {"H": 8, "D": 32}, {"H": 64, "D": 128}, {"H": 16, "D": 64}
_OF_CORE = {"core_H": 8, "core_D": 64}, {"core_H": 16, "core_D": 128}, {"core_H": 32, "core_D": 64}
_BOTH = [a | b for a, b in zip(_OF_INDEXER, _OF_CORE, strict=True)]

INDEXER_LOSS = OpSpec(
    name="indexer_loss",
    operator="indexer_loss",
    op=lambda *tensors, **statics: lemmata.indexer_loss(*tensors, **statics),
    overload=torch.ops.lemmata.indexer_loss_fwd.default,
    contract=indexer_loss.LISTED,
    sizes=_SIZES | {"K": 6},
    large=_LARGE | {"K": 40},
    batch="B",
    configurations=tuple(both | {"scale": scale} for both, scale in zip(_BOTH, (0.125, 0.05, 0.3), strict=True)),
    reference=_listed,
    oracle=lambda *arrays, **statics: listed(*arrays, **statics).losses(),
    wrong=_planted(_listed, LISTED_NAMES)
    | {
        "-1 taken as entry 0": _other_list(indices=lambda a: a["indices"].clamp(min=0)),
        "T taken as the last entry": _other_list(indices=lambda a: a["indices"].clamp(max=a["k"].shape[1] - 1)),
        "duplicates count once": _other_list(indices=_once),
        "another query's indices": _other_list(indices=lambda a: a["indices"].roll(1, 1)),
        "the last index missing": _other_list(indices=lambda a: a["indices"][..., :-1]),
    },
    differentiable=("q", "k", "weights"),
    oracle_bwd=lambda g, *arrays, **statics: listed(*arrays, **statics).gradients(g),
    scale=lambda *arrays, **statics: listed(*arrays, **statics).scales(),
    scale_bwd=lambda g, *arrays, **statics: listed(*arrays, **statics).gradient_scales(g),
    plain_bwd=_listed_in_bf16,
    optional=("scale", "indices"),
    edges={"B": (0, 1, 2, 3)},
)

INDEXER_LOSS_DENSE = OpSpec(
    name="indexer_loss_dense",
    operator="indexer_loss",
    op=lambda *tensors, **statics: lemmata.indexer_loss(
        *tensors[:5], None, *tensors[5:7], offset=tensors[7], **statics
    ),
    overload=torch.ops.lemmata.indexer_loss_dense_fwd.default,
    contract=indexer_loss.DENSE,
    sizes=_SIZES,
    large=_LARGE,
    batch="B",
    configurations=tuple(
        both | {"ratio": ratio, "scale": scale}
        for both, ratio, scale in zip(_BOTH, (4, 1, 128), (0.125, 0.05, 0.3), strict=True)
    ),
    reference=_dense,
    oracle=lambda *arrays, **statics: dense(*arrays, **statics).losses(),
    wrong=_planted(_dense, DENSE_NAMES)
    | {
        "seen a token late": _other_view(offset=lambda a: a["offset"] - 1),
        "seen a token early": _other_view(offset=lambda a: a["offset"] + 1),
        "all entries": _other_view(offset=lambda a: a["offset"] + 2**20),
        "another ratio": _other_view(ratio=lambda a: a["ratio"] + 1),
    },
    differentiable=("q", "k", "weights"),
    oracle_bwd=lambda g, *arrays, **statics: dense(*arrays, **statics).gradients(g),
    scale=lambda *arrays, **statics: dense(*arrays, **statics).scales(),
    scale_bwd=lambda g, *arrays, **statics: dense(*arrays, **statics).gradient_scales(g),
    plain_bwd=_dense_in_bf16,
    optional=("scale",),
    edges={"B": (0, 1, 2, 3)},
)

SPECS = (INDEXER_LOSS, INDEXER_LOSS_DENSE)
