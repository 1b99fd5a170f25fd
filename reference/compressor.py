"""The KV compressor of DeepSeek-V4 (arXiv 2606.19348, section 2.3.1): a few tokens become one entry.

A token's row holds values and logits, to which ``ape`` adds a bias by the token's place in its block of ``ratio`` tokens:

    s[t] = gate[t] + ape[t mod ratio]

Entry i pools its candidates, channel by channel, with p = softmax over them of s:

    pooled_i = Σ_j p_j kv_j

Without overlap the candidates are the tokens of block i. With overlap a row has two halves: the second is the token's part in
the entry of its own block, the first its part in the entry after. So the candidates of entry i are the first halves of block
i - 1 and the second halves of block i. Before the first block there is none.

The result is pooled_i, normalised and rotated, and rounded after each of these three:

    x = round(pooled_i),   y = round(norm_weight x rsqrt(mean(x²) + eps)),   out_i = round(rotate(y))

The last 2 ``pairs`` channels are rotated in pairs (2 c, 2 c + 1), by the angle of position offset + i ratio, that of the first
token of the block: (a, b) becomes (a cos - b sin, a sin + b cos). Tokens after the last whole block make no entry.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Contract, Elements, Size, Static, TensorSpec
from .fp8 import through_fp8
from .indexer import OFFSETS

BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32

SIZES = {"B": Size(0, 65535), "S": Size(0, OFFSETS - 1), "positions": Size(0, 2**24)}
STATICS = {
    "ratio": Static(int, 1, 256),
    "D": Static.one_of(64, 128, 256, 512),
    "pairs": Static.one_of(4, 8, 16, 32),
    "past": Static(int, 0, 256),
    "eps": Static(float, 1e-12, 1.0),
}
PROBES = ({"B": 3, "S": 1009, "positions": 4099}, {"B": 1, "S": 2**20, "positions": 2**20})


def _inputs(halves: str) -> tuple[TensorSpec, ...]:
    """Return the tensors of a call, whose rows are so many times as wide as an entry."""
    return (
        TensorSpec("kv", f"B S {halves}D", (F32,)),
        TensorSpec("gate", f"B S {halves}D", (F32,)),
        TensorSpec("ape", f"ratio {halves}D", (F32,)),
        TensorSpec("norm_weight", "D", (F32,)),
        TensorSpec("rotation", "positions pairs 2", (F32,)),
        TensorSpec("offset", "B", (I32,), Elements(0, OFFSETS)),
    )


OUT, POOLED = (TensorSpec(name, "B (S-past)//ratio D", (BF16,)) for name in ("out", "pooled"))


def _contracts(halves: str) -> tuple[Contract, Contract]:
    """Return the contracts of the operator, with overlap or without, and of its backward."""
    inputs = _inputs(halves)
    grads = tuple(TensorSpec(f"grad_{spec.name}", spec.shape, spec.dtypes) for spec in inputs[:4])
    back = (TensorSpec("grad_out", "B T D", (BF16,)), *inputs, TensorSpec("pooled", "B T D", (BF16,)))
    return (
        Contract("compress", SIZES, STATICS, inputs, (OUT, POOLED), PROBES),
        Contract("compress_bwd", SIZES | {"T": SIZES["S"]}, STATICS, back, grads),
    )


COMPRESS, COMPRESS_BWD = _contracts("")
OVERLAP, OVERLAP_BWD = _contracts("2*")


class Given(NamedTuple):
    """The tensors of a call, and which row the first block begins in."""

    kv: Tensor
    gate: Tensor
    ape: Tensor
    norm_weight: Tensor
    rotation: Tensor
    offset: Tensor
    past: int

    @property
    def ratio(self) -> int:
        """Return how many tokens a block has."""
        return self.ape.shape[0]

    @property
    def D(self) -> int:  # noqa: N802
        """Return how many channels an entry has."""
        return self.norm_weight.shape[0]

    @property
    def T(self) -> int:  # noqa: N802
        """Return how many whole blocks there are."""
        return (self.kv.shape[1] - self.past) // self.ratio


class Pooled(NamedTuple):
    """The candidates of each entry, [B, T, n, D], 0 where there is none, their weights, and what they make, [B, T, D]."""

    values: Tensor
    weights: Tensor
    total: Tensor


def pool(x: Given, T: int) -> Pooled:
    """Pool the candidates of T entries; of rows with two halves, the first of those of the block before."""
    halves = x.kv.shape[-1] // x.D
    place = torch.arange((1 - halves) * x.ratio, x.ratio, device=x.kv.device)  # below 0 in the block before
    first = torch.arange(T, device=x.kv.device) * x.ratio
    row = (first + x.past).unsqueeze(-1) + place
    before = x.offset.view(-1, 1) + first >= x.ratio if x.past else (first >= x.ratio).unsqueeze(0)
    own = (place >= 0).unsqueeze(-1)
    there = own | before.unsqueeze(-1).unsqueeze(-1)
    values, logits = x.kv[:, row.clamp(0)], x.gate[:, row.clamp(0)] + x.ape[place + x.ratio * (place < 0).long()]
    values, logits = (torch.where(own, t[..., -x.D :], t[..., : x.D]) for t in (values, logits))
    return weighted(values, logits, there)


def weighted(values: Tensor, logits: Tensor, there: Tensor) -> Pooled:
    """Weigh candidates [B, T, n, D] by the softmax of their logits; what is not there counts for nothing."""
    values = values.masked_fill(~there, 0.0)
    weights = logits.masked_fill(~there, float("-inf")).softmax(2)
    return Pooled(values, weights, (values * weights).sum(2))


def rotate(y: Tensor, x: Given, *, inverse: bool = False) -> Tensor:
    """Rotate the last channels of T entries in pairs, by the angle of each entry's position; not where that has no row."""
    position = x.offset.view(-1, 1) + torch.arange(y.shape[1], device=y.device) * x.ratio
    P, pairs, _ = x.rotation.shape
    table = x.rotation if P else x.rotation.new_zeros(1, pairs, 2)
    channel = torch.arange(x.D, device=y.device)
    pair = channel // 2 - (x.D // 2 - pairs)
    turned = (position < P).unsqueeze(-1) & (pair >= 0)
    cos, sin = (table[..., n][position.clamp(0, table.shape[0] - 1)][..., pair.clamp(0)].type_as(y) for n in (0, 1))
    other = y[..., 4 * (channel // 2) + 1 - channel] * (-sin if inverse else sin)
    other = torch.where(channel - 2 * (channel // 2) > 0, other, -other)
    return torch.where(turned, y * cos + other, y)


def normalised(pooled: Tensor, x: Given, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what was pooled and rounded, rsqrt of its mean square, and the normalised, all in the dtype of the arithmetic."""
    wide = pooled.type_as(x.norm_weight)
    r = ((wide * wide).mean(-1, keepdim=True) + eps).rsqrt()
    return wide, r, x.norm_weight * (wide * r)


def entries(pooled: Tensor, x: Given, eps: float, dtype: torch.dtype, simulate_fp8: bool = False) -> Tensor:
    """Return the entries of what was pooled, normalised, rotated and rounded to ``dtype``, and what does not rotate to e4m3."""
    y = normalised(pooled, x, eps)[2].to(dtype)
    out = rotate(y.type_as(x.norm_weight), x).to(dtype)
    return through_fp8(out, x.D - 2 * x.rotation.shape[1]) if simulate_fp8 else out


def compress(
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm_weight: Tensor,
    rotation: Tensor,
    offset: Tensor,
    past: int = 0,
    eps: float = 1e-6,
    simulate_fp8: bool = False,
    dtype: torch.dtype = BF16,
) -> tuple[Tensor, Tensor]:
    """Return the entries [B, T, D], and what was pooled, which their gradient needs; both rounded to ``dtype``.

    The formula is that of this module's docstring, and then that of fp8.py beside it if asked for. The first ``past`` rows, a
    block or none, are of tokens before the first of which an entry is made.
    """
    x = Given(kv, gate, ape, norm_weight, rotation, offset, past)
    pooled = pool(x, x.T).total.to(dtype)
    return entries(pooled, x, eps, dtype, simulate_fp8), pooled


def through_norm(grad_out: Tensor, pooled: Tensor, x: Given, eps: float) -> tuple[Tensor, Tensor]:
    """Return the gradient of what was pooled, and what each entry adds to that of norm_weight.

    A rotation's gradient is turned back by its angle. With g the gradient of y and r = rsqrt(mean(x²) + eps): that of x is
    r norm_weight g - x r³ mean(x norm_weight g), and that of norm_weight Σ g x r. What is rounded has the gradient of what it
    was before.
    """
    rounded, r, _ = normalised(pooled, x, eps)
    g = rotate(grad_out.type_as(rounded), x, inverse=True)
    scaled = x.norm_weight * g
    return r * scaled - rounded * r**3 * (rounded * scaled).mean(-1, keepdim=True), g * rounded * r


def through_pool(of_pooled: Tensor, pooled: Pooled) -> tuple[Tensor, Tensor]:
    """Return the gradients of candidates: with G that of what they make, p G of a value and p (value - pooled) G of a logit."""
    of_values = pooled.weights * of_pooled.unsqueeze(2)
    return of_values, of_values * (pooled.values - pooled.total.unsqueeze(2))


def compress_bwd(
    grad_out: Tensor,
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm_weight: Tensor,
    rotation: Tensor,
    offset: Tensor,
    pooled: Tensor,
    past: int = 0,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of kv, gate, ape and norm_weight, in closed form."""
    x = Given(kv, gate, ape, norm_weight, rotation, offset, past)
    of_pooled, of_weight = through_norm(grad_out, pooled, x, eps)
    of_values, of_logits = through_pool(of_pooled, pool(x, x.T))
    grad_gate = scattered(of_logits, x)
    blocks = in_blocks(grad_gate, past // x.ratio + x.T, x.ratio)
    return scattered(of_values, x), grad_gate, blocks.sum((0, 1)), of_weight.sum((0, 1))


def in_blocks(rows: Tensor, blocks: int, ratio: int) -> Tensor:
    """Return a view of the first rows as blocks of ``ratio`` rows each."""
    return rows[:, : blocks * ratio].view(rows.shape[0], blocks, ratio, rows.shape[-1])


def scattered(grad: Tensor, x: Given) -> Tensor:
    """Return the gradient of rows from that of candidates: each is one half of a row, and has it alone; others have 0."""
    total = torch.zeros_like(x.kv)
    blocks = x.past // x.ratio  # before the first entry's own
    rows = in_blocks(total, blocks + grad.shape[1], x.ratio)
    rows[:, blocks:, :, -x.D :] = grad[:, :, -x.ratio :]
    if x.kv.shape[-1] > x.D:
        first = 1 - blocks  # entry of which the block before has rows
        rows[:, : max(grad.shape[1] - first, 0), :, : x.D] = grad[:, first:, : x.ratio]
    return total
