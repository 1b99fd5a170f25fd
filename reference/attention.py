"""Attention with a sink over keys that are their own values and serve all heads: what CSA and HCA share.

For a query q of head h, the keys k_j that it sees and the sink s_h, which is a logit already and is not scaled,

    z_j = scale (q · k_j),    lse = log Σ_j exp z_j,    p_j = exp(z_j - lse)

    out = σ(lse - s_h) Σ_j p_j k_j,    σ(lse - s) = Σ_j exp z_j / (Σ_j exp z_j + exp s)

so that the sink adds mass to the denominator only, and lse does not hold it. A query that sees no key has out = 0 and
lse = +inf. What is not seen is selected away, never multiplied by zero.

The arithmetic is that of the sink, fp32 or fp64; q and the keys may be narrower.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .contract import Elements, Size, Static, TensorSpec
from .indexer import OFFSETS

BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32

SIZES = {"B": Size(0, 65535), "S": Size(0, OFFSETS - 1), "P": Size(0, OFFSETS - 1), "T": Size(0, 2**20)}
STATICS = {
    "H": Static.one_of(8, 16, 32, 64, 128),
    "D": Static.one_of(*range(64, 513, 64)),
    "window": Static(int, 1, 512),
    "scale": Static(float, 1e-6, 1e3),
}

QUERIES = TensorSpec("q", "B S H D", (BF16,))
WINDOW = TensorSpec("window_kv", "B P+S D", (BF16,))
COMPRESSED = TensorSpec("compressed_kv", "B T D", (BF16,))
SINK = TensorSpec("sink", "H", (F32,))
OFFSET = TensorSpec("offset", "B", (I32,), Elements(-OFFSETS, OFFSETS))  # below 0 where a prompt is padded on the left
RESULTS = TensorSpec("out", "B S H D", (BF16,)), TensorSpec("lse", "B S H", (F32,))
GRADIENTS_IN = TensorSpec("grad_out", "B S H D", (BF16,)), TensorSpec("grad_lse", "B S H", (F32,))
GRADIENTS = (
    TensorSpec("grad_q", "B S H D", (BF16,)),
    TensorSpec("grad_window_kv", "B P+S D", (BF16,)),
    TensorSpec("grad_compressed_kv", "B T D", (BF16,)),
    TensorSpec("grad_sink", "H", (F32,)),
)
TOTALS = RESULTS[1], TensorSpec("delta", "B S H", (F32,))
"""The lse and Δ = out · grad_out of all keys of a query, wherever these are."""


def in_fp32(gradients: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the gradients, those of keys in fp32."""
    return tuple(replace(g, dtypes=(F32,)) if g.name.endswith("_kv") else g for g in gradients)


class Keys(NamedTuple):
    """Some of the keys: ``rows`` [B, S, n, D], or [B, n, D] of all queries alike, and which are seen, [B, S, n]."""

    rows: Tensor
    seen: Tensor

    def of_each_query(self, like: Tensor) -> Tensor:
        """Return the rows in the dtype of the arithmetic, [B, S or 1, n, D]."""
        rows = self.rows if self.rows.ndim == 4 else self.rows.unsqueeze(1)
        return rows.type_as(like)


def in_window(window_kv: Tensor, S: int, offset: Tensor, window: int) -> Keys:
    """Return the last ``window`` tokens up to each query's own, of those that have a row and a position of at least 0."""
    P = window_kv.shape[1] - S
    rows = pad(window_kv, (0, 0, window - 1, 0)).unfold(1, window, 1)[:, P:].mT
    token = torch.arange(S, device=offset.device).unsqueeze(-1) + torch.arange(1 - window, 1, device=offset.device)
    return Keys(rows, (P + token >= 0) & (offset.view(-1, 1, 1) + token >= 0))


def in_window_bwd(grad_rows: Tensor, window_kv: Tensor) -> Tensor:
    """Return the gradient of ``window_kv`` from that of the rows of ``in_window``, summed over the windows of each token."""
    B, S, window, D = grad_rows.shape
    P = window_kv.shape[1] - S
    grad = torch.ops.aten.unfold_backward(grad_rows.mT, (B, S + window - 1, D), 1, window, 1)
    return pad(grad, (0, 0, P, 0))[:, window - 1 :]


def logits(q: Tensor, keys: Keys, scale: float) -> Tensor:
    """Return z, -inf where a key is not seen, [B, S, H, n]."""
    return torch.where(keys.seen.unsqueeze(2), scale * (q @ keys.of_each_query(q).mT), -math.inf)


def as_values(keys: Keys, like: Tensor) -> Tensor:
    """Return the rows as values; one that is not finite reaches the queries that see it through z, and no other."""
    return keys.of_each_query(like).nan_to_num(0, 0, 0)


def attend(q: Tensor, parts: tuple[Keys, ...], sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return ``out`` and ``lse`` over all the keys; the formula of this module's docstring."""
    wide = q.type_as(sink)
    z = torch.cat([logits(wide, keys, scale) for keys in parts], -1)
    some = torch.cat([keys.seen for keys in parts], -1).any(-1, keepdim=True)
    top = torch.where(some, z.amax(-1), 0.0)
    e = (z - top.unsqueeze(-1)).exp()
    total = torch.where(some, e.sum(-1), 1.0)
    lse = top + total.log()
    of_keys = torch.where(some, (lse - sink).sigmoid() / total, 0.0)
    weights = torch.split(e, [keys.seen.shape[-1] for keys in parts], -1)
    out = sum((w @ as_values(keys, wide) for w, keys in zip(weights, parts, strict=True)), torch.zeros_like(wide))
    return (of_keys.unsqueeze(-1) * out).type_as(q), torch.where(some, lse, math.inf)


class Upstream(NamedTuple):
    """What the backward has of each query and head: gradients of its results, and of all keys the lse and Δ = out · dout."""

    grad_out: Tensor
    grad_lse: Tensor
    lse: Tensor
    delta: Tensor


def delta_of(out: Tensor, grad_out: Tensor, sink: Tensor) -> Tensor:
    """Return Δ = out · grad_out, [B, S, H], in the dtype of the sink."""
    return (out.type_as(sink) * grad_out.type_as(sink)).sum(-1)


def weights_bwd(up: Upstream, q: Tensor, keys: Keys, sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return scale dz and P of some keys, [B, S, H, n], in the dtype of the sink.

    With p_j = exp(z_j - lse), P_j = σ(lse - s) p_j and dP_j = dout · k_j:    dz_j = P_j (dP_j - Δ) + p_j dlse
    """
    some = up.lse != math.inf
    of_keys = torch.where(some, (up.lse - sink).sigmoid(), 0.0).unsqueeze(-1)
    p = (logits(q.type_as(sink), keys, scale) - torch.where(some, up.lse, 0.0).unsqueeze(-1)).exp()
    grad = up.grad_out.type_as(sink)
    grad_p = grad @ as_values(keys, grad).mT
    grad_z = p * (of_keys * (grad_p - up.delta.unsqueeze(-1)) + up.grad_lse.unsqueeze(-1))
    return torch.where(keys.seen.unsqueeze(2), scale * grad_z, 0.0), of_keys * p


def attend_parts(
    up: Upstream, q: Tensor, parts: tuple[Keys, ...], sink: Tensor, scale: float, blocks: int
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradient of q, and each query's parts of the gradients of the rows of each part, [B, S, n, blocks, D].

    dq = Σ_j scale dz_j k_j over all keys. The heads of a query are so many blocks of as many heads each, in their order, and
    the part of k_j that a block has is Σ_h (scale dz_j q + P_j dout) over its heads.
    """

    def of_blocks(weights: Tensor, x: Tensor) -> Tensor:
        w, rows = (t.reshape(*t.shape[:2], blocks, t.shape[2] // blocks, t.shape[3]) for t in (weights, x))
        return torch.einsum("bsghn,bsghd->bsngd", w, rows)

    wide, grad = q.type_as(sink), up.grad_out.type_as(sink)
    grad_q, grad_rows = torch.zeros_like(wide), []
    for keys in parts:
        grad_z, p = weights_bwd(up, q, keys, sink, scale)
        grad_q = grad_q + grad_z @ as_values(keys, wide)
        grad_rows.append(of_blocks(grad_z, wide) + of_blocks(p, grad))
    return grad_q.type_as(q), grad_rows


def attend_bwd(
    up: Upstream, q: Tensor, parts: tuple[Keys, ...], sink: Tensor, scale: float
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the gradients of q, of the rows of each part and of the sink, in closed form.

    That of q is ``attend_parts``'s, and those of rows that each query has of its own are its parts of one block. Those of
    rows that all queries share are summed over the queries. That of the sink is -Σ_{b,t} Δ σ(s - lse).
    """
    wide, grad = q.type_as(sink), up.grad_out.type_as(sink)
    grad_sink = -torch.where(up.lse != math.inf, up.delta * (sink - up.lse).sigmoid(), 0.0).sum((0, 1))
    grad_q, grad_rows = torch.zeros_like(wide), []
    for keys in parts:
        grad_z, p = weights_bwd(up, q, keys, sink, scale)
        grad_q = grad_q + grad_z @ as_values(keys, wide)
        if keys.rows.ndim == 4:
            grad_rows.append(grad_z.mT @ wide + p.mT @ grad)
        else:
            into_rows = "bshn,bshd->bnd"
            grad_rows.append(torch.einsum(into_rows, grad_z, wide) + torch.einsum(into_rows, p, grad))
    return grad_q.type_as(q), grad_rows, grad_sink
