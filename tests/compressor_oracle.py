"""The entries of the KV compressor in fp64, written independently of the reference: what its records are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from opspec import Array

TINY = 1e-30  # what fp32 loses to underflow, and no result is about


def softmax_pool(value: Tensor, logit: Tensor) -> Tensor:
    """A quotient of two sums over the candidates."""
    e = torch.exp(logit - logit.amax(1, keepdim=True))
    return (e * value).sum(1) / e.sum(1)


class Entries:
    """The entries in fp64, one after the other, as complex numbers where they rotate."""

    def __init__(self, arrays: tuple[Array, ...], past: int, eps: float) -> None:
        self.leaves = [torch.tensor(a, requires_grad=at < 4) for at, a in enumerate(arrays)]
        self.past, self.eps = past, eps
        kv, _, ape, weight, _, offset = self.leaves
        self.ratio, self.D = len(ape), len(weight)
        shape = len(kv), max((kv.shape[1] - past) // self.ratio, 0), self.D
        self.starts = offset.long()
        columns = [self._entry(i) for i in range(shape[1])]
        self.pooled, self.sizes, self.turns, self.entries = (
            torch.stack(x, 1) if columns else torch.zeros(shape, dtype=torch.float64)
            for x in (zip(*columns, strict=True) if columns else ((), (), (), ()))
        )

    def _entry(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is pooled, the same of absolute values, how much longer rotating makes it, and the entry, of each sequence."""
        kv, gate, ape, weight, rotation, _ = self.leaves
        first = self.past + i * self.ratio
        own, position = slice(first, first + self.ratio), self.starts + i * self.ratio
        value, logit = kv[:, own, -self.D :], (gate[:, own] + ape)[..., -self.D :]
        if kv.shape[-1] > self.D and first >= self.ratio:
            before, none = slice(first - self.ratio, first), (position < self.ratio) & (self.past > 0)
            value = torch.cat([kv[:, before, : self.D], value], 1)
            earlier = (gate[:, before] + ape)[..., : self.D].masked_fill(none[:, None, None], -torch.inf)
            logit = torch.cat([earlier, logit], 1)
        x = softmax_pool(value, logit)
        y = x * weight / torch.sqrt(x.pow(2).sum(-1, keepdim=True) / self.D + self.eps)
        pairs, longer, there = rotation.shape[1], torch.ones_like(x), (position < len(rotation))[:, None]
        if there.any():
            found = rotation[position.clamp(max=len(rotation) - 1)]
            tail = torch.view_as_complex(y[:, -2 * pairs :].reshape(-1, pairs, 2)) * torch.view_as_complex(
                found.contiguous()
            )
            turned = torch.cat([y[:, : -2 * pairs], torch.view_as_real(tail).flatten(1)], -1)
            longer[:, -2 * pairs :] = found.abs().sum(-1).repeat_interleave(2, -1)
            y, longer = torch.where(there, turned, y), longer.where(there, 1.0)
        return x, softmax_pool(value.abs(), logit), longer.detach(), y

    def out(self) -> Array:
        return self.entries.detach().numpy()  # type: ignore[no-any-return]  # torch types numpy() as Any

    @property
    def factor(self) -> Tensor:
        return (self.pooled.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def _rotated(self, size: Tensor) -> Tensor:
        """How large an entry may be whose channels are so large before they rotate."""
        pairs = self.leaves[4].shape[1]
        tail = size[..., -2 * pairs :].unflatten(-1, (-1, 2)).sum(-1, keepdim=True).expand(*size.shape[:-1], pairs, 2)
        return torch.cat([size[..., : -2 * pairs], tail.flatten(-2)], -1) * self.turns

    def scale(self) -> Array:
        """Entries of absolute values, whose sums do not cancel."""
        return (self._rotated(self.sizes * self.factor * self.leaves[3].abs()) + TINY).detach().numpy()  # type: ignore[no-any-return]  # torch types numpy() as Any

    def gradients(self, g: Array) -> tuple[Array, ...]:
        leaves, given = self.leaves[:4], torch.tensor(g).bfloat16().double()
        if not self.entries.requires_grad:
            return tuple(torch.zeros_like(leaf).detach().numpy() for leaf in leaves)
        grads = torch.autograd.grad(self.entries, leaves, given, retain_graph=True, allow_unused=True)
        return tuple((torch.zeros_like(x) if d is None else d).numpy() for x, d in zip(leaves, grads, strict=True))

    def gradient_scales(self, g: Array) -> tuple[Array, ...]:
        """Gradients of absolute values; of sums over entries the root of the sum of squares, unless sequences are equal.

        Equal sequences are rounded alike, so that nothing cancels.
        """
        kv, _, _, weight = self.leaves[:4]
        if not self.entries.requires_grad:
            return tuple(torch.full(leaf.shape, TINY).numpy() for leaf in self.leaves[:4])
        given = self._rotated(torch.tensor(g).bfloat16().double().abs())
        x, r, sizes = self.pooled.detach(), self.factor.detach(), self.sizes.detach()
        scaled = given * weight.detach().abs()
        of_pooled = r * scaled + x.abs() * r.pow(3) * (x.abs() * scaled).mean(-1, keepdim=True)
        of_kv, of_sizes = (
            torch.autograd.grad(self.pooled, kv, out, retain_graph=True)[0] for out in (of_pooled, of_pooled * sizes)
        )
        of_gate = of_kv * kv.detach().abs() + of_sizes
        blocks = of_gate[:, : self.past + x.shape[1] * self.ratio].unflatten(1, (-1, self.ratio))
        alike = len(kv) ** 0.5 if torch.equal(kv, kv[:1].expand(kv.shape)) else 1.0
        of_ape, of_weight = (alike * t.square().sum((0, 1)).sqrt() for t in (blocks, given * sizes * r))
        return tuple((t + TINY).numpy() for t in (of_kv, of_gate, of_ape, of_weight))


def oracle(*arrays: Array, past: int, eps: float) -> Entries:
    return Entries(arrays, past, eps)
