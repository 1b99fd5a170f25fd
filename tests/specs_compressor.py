"""The records of the KV compressor, with overlap and without: oracles, planted errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import lemmata
from lemmata.reference import compressor
from opspec import Array, OpSpec

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
        return self.entries.detach().numpy()  # type: ignore[no-any-return]

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
        return (self._rotated(self.sizes * self.factor * self.leaves[3].abs()) + TINY).detach().numpy()  # type: ignore[no-any-return]

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


class _Rounded(torch.autograd.Function):
    """Rounding to bf16, whose gradient is not rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().type_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def _plain(*tensors: Tensor, past: int, eps: float) -> Tensor:
    """The reference with gradients in fp32, as torch would round them where it rounds a result."""
    given = compressor.Given(*tensors, past)
    x = _Rounded.apply(compressor.pool(given, given.T).total)  # type: ignore[no-untyped-call]
    y = given.norm_weight * (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt())
    return compressor.rotate(_Rounded.apply(y), given).bfloat16()  # type: ignore[no-untyped-call]


def _gate(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with other logits."""
    return lambda kv, gate, *t, **s: compressor.compress(kv, of(gate), *t, **s)[0]


def _ape(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with other biases."""
    return lambda kv, gate, ape, *t, **s: compressor.compress(kv, gate, of(ape), *t, **s)[0]


def _turned(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with other angles."""
    return lambda kv, gate, ape, w, rotation, *t, **s: compressor.compress(kv, gate, ape, w, of(rotation), *t, **s)[0]


def _swapped(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, -1)[::-1], -1)


def _op(overlap: bool) -> Callable[..., Tensor]:
    def op(kv: Any, gate: Any, ape: Any, norm_weight: Any, rotation: Any, offset: Any, **statics: Any) -> Tensor:
        return lemmata.compress(kv, gate, ape, norm_weight, rotation, offset=offset, overlap=overlap, **statics)

    return op


PLANTED: dict[str, Callable[..., Tensor]] = {
    "no bias": _ape(torch.zeros_like),
    "biases of the next token": _ape(lambda ape: ape.roll(1, 0)),
    "no gate": _gate(torch.zeros_like),
    "logits in bf16": _gate(lambda gate: gate.bfloat16().float()),
    "turned the other way": _turned(lambda rotation: rotation * torch.tensor([1.0, -1.0], device=rotation.device)),
    "angles of the next position": _turned(lambda rotation: rotation.roll(-1, 0)),
    "the norm's eps of 1": lambda *t, past, eps: compressor.compress(*t, past, 1.0)[0],
    "the next token": lambda kv, *t, **s: compressor.compress(kv.roll(1, 1), *t, **s)[0],
}
PLAIN = OpSpec(
    name="compress",
    operator="compressor",
    op=_op(False),
    overload=torch.ops.lemmata.compress_fwd.default,
    contract=compressor.COMPRESS,
    sizes={"B": 4, "S": 14, "positions": 40},
    large={"B": 3, "S": 1031, "positions": 900},
    batch="B",
    configurations=(
        {"ratio": 3, "D": 64, "pairs": 8, "past": 0, "eps": 1e-6},
        {"ratio": 2, "D": 128, "pairs": 32, "past": 0, "eps": 1e-6},
        {"ratio": 8, "D": 64, "pairs": 4, "past": 0, "eps": 1e-3},
    ),
    reference=_plain,
    oracle=lambda *arrays, **statics: oracle(*arrays, **statics).out(),
    wrong=PLANTED,
    differentiable=("kv", "gate", "ape", "norm_weight"),
    oracle_bwd=lambda g, *arrays, **statics: oracle(*arrays, **statics).gradients(g),
    scale=lambda *arrays, **statics: oracle(*arrays, **statics).scale(),
    scale_bwd=lambda g, *arrays, **statics: oracle(*arrays, **statics).gradient_scales(g),
    edges={"B": (0, 1, 2, 5), "S": (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 33), "positions": (0, 1, 9, 40)},
    compiled=9,
)
OVERLAP = replace(
    PLAIN,
    name="compress_overlap",
    op=_op(True),
    contract=compressor.OVERLAP,
    configurations=(
        {"ratio": 4, "D": 64, "pairs": 8, "past": 0, "eps": 1e-6},
        {"ratio": 4, "D": 64, "pairs": 32, "past": 4, "eps": 1e-6},
        {"ratio": 2, "D": 128, "pairs": 4, "past": 0, "eps": 1e-6},
    ),
    edges=PLAIN.edges | {"S": (4, 5, 6, 7, 8, 9, 12, 33)},  # the past is there; fewer rows are in test_compressor.py
    wrong=PLANTED
    | {
        "halves exchanged": lambda kv, gate, ape, *t, **s: compressor.compress(
            _swapped(kv), _swapped(gate), _swapped(ape), *t, **s
        )[0],
        "no block before": lambda kv, gate, ape, w, *t, **s: compressor.compress(
            kv[..., w.shape[0] :], gate[..., w.shape[0] :], ape[:, w.shape[0] :], w, *t, **s
        )[0],
    },
)
SPECS = (PLAIN, OVERLAP)
