"""The records of hyper-connections: oracles, planted errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import lemmata
from lemmata.reference import mhc
from opspec import Array, OpSpec

T = TypeVar("T")
TINY = 1e-30  # what fp32 loses to underflow, and no result is about


def in_bf16(g: Array) -> Array:
    """A gradient as it arrives at an operator whose result is in bf16."""
    return torch.tensor(g).bfloat16().double().numpy()  # type: ignore[no-any-return]


def post_oracle(x: Array, y: Array, post: Array, comb: Array) -> Array:
    """One product of matrices: the streams and the layer's result as rows, their weights as columns."""
    rows, weights = np.concatenate([x, y[..., None, :]], -2), np.concatenate([comb, post[..., None, :]], -2)
    return weights.swapaxes(-1, -2) @ rows  # type: ignore[no-any-return]


def post_oracle_bwd(g: Array, *arrays: Array) -> tuple[Array, ...]:
    """What torch finds of the sum, written as one contraction."""
    x, y, post, comb = (torch.tensor(a, requires_grad=True) for a in arrays)
    out = torch.einsum("...io,...ih->...oh", comb, x) + torch.einsum("...o,...h->...oh", post, y)
    grads = torch.autograd.grad(out, (x, y, post, comb), torch.tensor(in_bf16(g)))
    return tuple(grad.numpy() for grad in grads)


def post_scale(*arrays: Array) -> Array:
    return post_oracle(*map(abs, arrays)) + TINY


def post_scale_bwd(g: Array, x: Array, y: Array, post: Array, comb: Array) -> tuple[Array, ...]:
    """Sums of absolute values; those of products over the columns in fp32, which the others are not."""
    of_x, of_y, of_post, of_comb = post_oracle_bwd(*map(abs, (g, x, y, post, comb)))
    return of_x + TINY, of_y + TINY, of_post * 2.0**-8 + TINY, of_comb * 2.0**-8 + TINY


MHC_POST = OpSpec(
    name="mhc_post",
    operator="mhc",
    op=lemmata.mhc_post,
    overload=torch.ops.lemmata.mhc_post_fwd.default,
    contract=mhc.MHC_POST,
    sizes={"tokens": 24},
    large={"tokens": 4099},
    batch="tokens",
    configurations=(
        {"hc": 4, "hidden": 64},
        {"hc": 4, "hidden": 1088},
        {"hc": 2, "hidden": 192},
        {"hc": 3, "hidden": 128},
        {"hc": 8, "hidden": 64},
    ),
    reference=mhc.mhc_post,
    oracle=post_oracle,
    wrong={
        "comb not transposed": lambda x, y, post, comb: mhc.mhc_post(x, y, post, comb.mT),
        "post of another stream": lambda x, y, post, comb: mhc.mhc_post(x, y, post.roll(1, -1), comb),
        "another token's result": lambda x, y, post, comb: mhc.mhc_post(x, y.roll(1, 0), post, comb),
        "coefficients in bf16": lambda x, y, post, comb: mhc.mhc_post(x, y, post.bfloat16(), comb.bfloat16()),
        "no mixing": lambda x, y, post, comb: x + mhc.mhc_post(torch.zeros_like(x), y, post, comb),
    },
    differentiable=("x", "y", "post", "comb"),
    oracle_bwd=post_oracle_bwd,
    scale=post_scale,
    scale_bwd=post_scale_bwd,
)


HALF = 2.0**-15  # what an fp32 rounds by, in units of what a bf16 rounds by


class Reading:
    """What reads the streams, in torch and fp64: the head of a model, or with post and comb the part before a layer.

    The streams are normalised before they are projected, where the operator normalises the projections.
    """

    def __init__(self, given: Sequence[Array | Tensor], eps: float, norm_eps: float, iterations: int = 0) -> None:
        self.leaves = [a if isinstance(a, Tensor) else torch.tensor(a, requires_grad=True) for a in given]
        x, fn, scale, base = self.leaves
        self.hc = hc = x.shape[-2]
        flat = x.flatten(-2)
        self.normed = flat / (flat.square().mean(-1, keepdim=True) + norm_eps).sqrt()
        self.each = torch.repeat_interleave(scale, torch.tensor([hc, hc, hc * hc][: len(scale)]))
        self.logits = torch.einsum("...k,mk->...m", self.normed, fn) * self.each + base
        self.pre = torch.sigmoid(self.logits[..., :hc]) + eps
        self.results = [torch.einsum("...i,...ih->...h", self.pre, x)]
        if iterations:
            comb = self._sinkhorn(self.logits[..., 2 * hc :].unflatten(-1, (hc, hc)), iterations, eps)
            self.results += [1 + torch.tanh(self.logits[..., hc : 2 * hc] / 2), comb.flatten(-2)]

    @staticmethod
    def _sinkhorn(x: Tensor, iterations: int, eps: float) -> Tensor:
        """Sums as products with a vector of ones."""
        ones, e = x.new_ones(x.shape[-1]), (x - x.amax(-1, keepdim=True)).exp()
        c = e / (e @ ones).unsqueeze(-1) + eps
        for step in range(2 * iterations - 1):
            sums = (ones @ c).unsqueeze(-2) if step % 2 == 0 else (c @ ones).unsqueeze(-1)
            c = c / (sums + eps)
        return c

    @property
    def size(self) -> Tensor:
        """1 and the sum of absolute values of each logit: what its rounding is relative to."""
        _, fn, _, base = self.leaves
        terms = torch.einsum("...k,mk->...m", self.normed.abs(), fn.abs())
        return 1 + terms * self.each.abs() + base.abs()

    @property
    def slope(self) -> Tensor:
        """How far a coefficient follows its logit: the derivative of a sigmoid, and for those of comb at most 1."""
        slope = torch.sigmoid(self.logits.detach())
        slope = slope * (1 - slope)
        return torch.cat([slope[..., : 2 * self.hc], torch.ones_like(slope[..., 2 * self.hc :])], -1)

    def out(self) -> Array:
        return torch.cat(self.results, -1).detach().numpy()  # type: ignore[no-any-return]

    def scale(self) -> Array:
        x, hc, size = self.leaves[0], self.hc, HALF * self.size
        scales = [torch.einsum("...i,...ih->...h", self.pre * (1 + size[..., :hc]), x.abs()) + TINY]
        if len(self.results) > 1:
            largest = size[..., 2 * hc :].amax(-1, keepdim=True)
            scales += [size[..., hc : 2 * hc], largest.expand(*largest.shape[:-1], hc * hc)]
        return torch.cat(scales, -1).detach().numpy()  # type: ignore[no-any-return]

    def _arrived(self, g: Array) -> list[Tensor]:
        """The gradients of the results; that of y as it arrives."""
        hc, hidden = self.leaves[0].shape[-2:]
        parts = torch.tensor(g).split([hidden, hc, hc * hc][: len(self.results)], -1)
        return [parts[0].bfloat16().double(), *parts[1:]]

    def gradients(self, g: Array) -> tuple[Array, ...]:
        grads = torch.autograd.grad(self.results, self.leaves, self._arrived(g), retain_graph=True)
        return tuple(grad.numpy() for grad in grads)

    def gradient_scales(self, g: Array, in_bf16: float = 0.0) -> tuple[Array, ...]:
        """The gradient of the streams, and what was rounded in fp32: what a logit's gradient is made of, and its products.

        The gradient of scale is one sum over all tokens, whose roundings are at random: the root of the sum of squares. Where
        the gradient of y was rounded to bf16 before, ``in_bf16`` is 1.
        """
        hc, leaves = self.hc, [leaf.detach() for leaf in self.leaves]
        x, fn, normed, each = (t.detach().abs() for t in (leaves[0], leaves[1], self.normed, self.each))
        of_y, *others = (part.abs() for part in self._arrived(g))
        of_pre = torch.einsum("...h,...ih->...i", of_y, x)
        of_logits = [of_pre, *others[:1]]
        of_logits += [part.sum(-1, keepdim=True).expand(part.shape) for part in others[1:]]
        of_logits = HALF * torch.cat(of_logits, -1)
        size = (1 + self.size.detach() * self.slope) * of_logits
        size[..., :hc] += in_bf16 * self.slope[..., :hc] * of_pre
        projected = torch.einsum("...k,mk->...m", normed, fn)
        factor = normed.amax(-1, keepdim=True) / x.flatten(-2).amax(-1, keepdim=True).clamp(min=TINY)
        radial = (size * each * projected).sum(-1, keepdim=True) * normed / normed.shape[-1]
        of_x = factor * ((size * each) @ fn + radial) + torch.tensor(self.gradients(g)[0]).abs().flatten(-2)
        of_fn = torch.einsum("...m,...k->mk", size * each, normed)
        mu = torch.einsum("...k,mk->...m", self.normed.detach(), leaves[1]).abs()
        rounded = (size * mu + self.slope * of_logits * projected).flatten(0, -2).square().sum(0)
        of_scale = torch.stack([part.sum().sqrt() for part in rounded.split([hc, hc, hc * hc][: len(leaves[2])])])
        found = of_x, of_fn, of_scale, size.flatten(0, -2).sum(0)
        return tuple((t.reshape(leaf.shape) + TINY).numpy() for t, leaf in zip(found, leaves, strict=True))


def pre(*arrays: Array, iterations: int, eps: float, norm_eps: float) -> Reading:
    return Reading(arrays, eps, norm_eps, iterations)


def head(*arrays: Array, eps: float, norm_eps: float) -> Reading:
    return Reading(arrays, eps, norm_eps)


def join(results: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The results side by side, in fp32."""
    y, post, comb = results
    return torch.cat([y.float(), post, comb.flatten(-2)], -1)


def _pre(x: Tensor, *weights: Tensor, **statics: Any) -> Tensor:
    """The reference on streams in fp32, so that torch sums their gradients in fp32."""
    y, post, comb = mhc.mhc_pre(x.float(), *weights, **statics)
    return join((y.type_as(x), post, comb))


def _head(x: Tensor, *weights: Tensor, **statics: Any) -> Tensor:
    """The reference on streams in fp32, so that torch sums their gradients in fp32."""
    return mhc.mhc_head(x.float(), *weights, **statics).type_as(x)


class _Projected(torch.autograd.Function):
    """fn x by tensor cores, whose sums cut off what they cannot hold: of bf16 and the three numbers of bf16 that make fn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fn: Tensor) -> Tensor:
        ctx.save_for_backward(x, fn)
        parts, rest = [], fn
        for _ in range(3):
            parts.append(rest.bfloat16())
            rest = rest - parts[-1].float()
        streams = x.flatten(0, -2).bfloat16().repeat(1, 3)
        sums: Tensor = torch.mm(streams, torch.cat(parts, -1).mT, out_dtype=torch.float32)
        return sums.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, fn = ctx.saved_tensors
        return grad @ fn, grad.flatten(0, -2).mT @ x.flatten(0, -2)


_Right = mhc._Projection


def _project(x: Tensor, fn: Tensor, norm_eps: float) -> _Right:
    """The reference's projection, by tensor cores."""
    right = _Right.of(x, fn, norm_eps)
    return replace(right, u=_Projected.apply(right.x, fn))  # type: ignore[no-untyped-call]


def on_tensor_cores(of: Callable[..., T]) -> Callable[..., T]:
    """The same on a GPU, whose projections are sums of tensor cores."""

    def call(*tensors: Tensor, **statics: Any) -> T:
        with mock.patch.object(mhc, "_Projection", mock.Mock(of=_project)):
            return of(*tensors, **statics)

    return call


def unnormalised(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same of streams so long that it does not matter how long they are."""
    return lambda x, fn, *more, **statics: of(x, fn, *more, **(statics | {"norm_eps": 1.0}))


def with_sum(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The root of the sum of squares in the place of that of their mean."""
    return lambda x, fn, *more, **statics: of(x, fn * fn.shape[1] ** -0.5, *more, **statics)


MHC_PRE = OpSpec(
    name="mhc_pre",
    operator="mhc",
    op=lambda *tensors, **statics: join(lemmata.mhc_pre(*tensors, **statics)),
    overload=torch.ops.lemmata.mhc_pre_fwd.default,
    contract=mhc.MHC_PRE,
    sizes={"tokens": 24},
    large={"tokens": 1031},
    batch="tokens",
    configurations=(
        {"hc": 4, "hidden": 64, "iterations": 20, "eps": 1e-6, "norm_eps": 1e-6},
        {"hc": 2, "hidden": 128, "iterations": 1, "eps": 1e-3, "norm_eps": 1e-3},
        {"hc": 3, "hidden": 64, "iterations": 5, "eps": 1e-6, "norm_eps": 1e-6},
        {"hc": 8, "hidden": 64, "iterations": 20, "eps": 1e-6, "norm_eps": 1e-6},
    ),
    reference=_pre,
    oracle=lambda *arrays, **statics: pre(*arrays, **statics).out(),
    wrong={
        "the norm's eps of 1": unnormalised(_pre),
        "the sum of squares": with_sum(_pre),
        "comb transposed": lambda *t, **s: join((lambda y, p, c: (y, p, c.mT))(*mhc.mhc_pre(*t, **s))),
        "post not doubled": lambda *t, **s: join((lambda y, p, c: (y, p / 2, c))(*mhc.mhc_pre(*t, **s))),
        "one step short": lambda *t, iterations, **s: _pre(*t, iterations=iterations - 1, **s),
        "scales in another order": lambda x, fn, scale, base, **s: _pre(x, fn, scale.roll(1), base, **s),
        "coefficients in bf16": lambda x, fn, *t, **s: _pre(x, fn.bfloat16().float(), *t, **s),
        "another token's streams": lambda x, *t, **s: _pre(x.roll(1, 0), *t, **s),
    },
    differentiable=("x", "fn", "scale", "base"),
    oracle_bwd=lambda g, *arrays, **statics: pre(*arrays, **statics).gradients(g),
    scale=lambda *arrays, **statics: pre(*arrays, **statics).scale(),
    scale_bwd=lambda g, *arrays, **statics: pre(*arrays, **statics).gradient_scales(g),
    plain_bwd=on_tensor_cores(_pre),
    compiled=5,
)
MHC_HEAD = OpSpec(
    name="mhc_head",
    operator="mhc",
    op=lemmata.mhc_head,
    overload=torch.ops.lemmata.mhc_head_fwd.default,
    contract=mhc.MHC_HEAD,
    sizes={"tokens": 24},
    large={"tokens": 1031},
    batch="tokens",
    configurations=(
        {"hc": 4, "hidden": 64, "eps": 1e-6, "norm_eps": 1e-6},
        {"hc": 2, "hidden": 128, "eps": 1e-3, "norm_eps": 1e-3},
        {"hc": 7, "hidden": 64, "eps": 1e-6, "norm_eps": 1e-6},
    ),
    reference=_head,
    oracle=lambda *arrays, **statics: head(*arrays, **statics).out(),
    wrong={
        "the sum of squares": with_sum(_head),
        "another base": lambda x, fn, scale, base, **s: _head(x, fn, scale, base - 1, **s),
        "another stream's base": lambda x, fn, scale, base, **s: _head(x, fn, scale, base.roll(1), **s),
        "another token's streams": lambda x, *t, **s: _head(x.roll(1, 0), *t, **s),
    },
    differentiable=("x", "fn", "scale", "base"),
    oracle_bwd=lambda g, *arrays, **statics: head(*arrays, **statics).gradients(g),
    scale=lambda *arrays, **statics: head(*arrays, **statics).scale(),
    scale_bwd=lambda g, *arrays, **statics: head(*arrays, **statics).gradient_scales(g),
    plain_bwd=on_tensor_cores(_head),
)


class Between:
    """The way from a layer's result to the next layer's normalised input, in fp64; the streams are rounded, as they are read.

    A gradient goes through that rounding as if it were none.
    """

    def __init__(self, arrays: tuple[Array, ...], eps: float, norm_eps: float, iterations: int) -> None:
        self.leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        x, y, post, comb, *weights, self.norm_weight = self.leaves
        self.streams = torch.einsum("...io,...ih->...oh", comb, x) + torch.einsum("...o,...h->...oh", post, y)
        read = self.streams + (self.streams.bfloat16().double() - self.streams).detach()
        self.reading = Reading((read, *weights), eps, norm_eps, iterations)
        self.y, *others = self.reading.results
        self.root = (self.y.square().mean(-1, keepdim=True) + norm_eps).sqrt()
        self.results = [self.streams.flatten(-2), self.y / self.root * self.norm_weight, *others]

    def out(self) -> Array:
        return torch.cat(self.results, -1).detach().numpy()  # type: ignore[no-any-return]

    @property
    def absolute(self) -> Array:
        """The streams after the layer, of absolute values."""
        return post_scale(*(leaf.detach().numpy() for leaf in self.leaves[:4]))

    def scale(self) -> Array:
        """As for ``mhc_pre``, and one element of the streams, near a tie, may be rounded the other way."""
        hc, reading = self.reading.hc, self.reading
        streams = torch.tensor(self.absolute)
        other = (reading.normed.unsqueeze(-2) * reading.leaves[1]).abs().amax(-1) * reading.each.abs()
        size = other + HALF * reading.size
        pre = reading.pre + (reading.slope * size)[..., :hc]
        y = torch.einsum("...i,...ih->...h", pre, streams) / self.root * self.norm_weight.abs() + TINY
        largest = size[..., 2 * hc :].amax(-1, keepdim=True)
        comb = largest.expand(*largest.shape[:-1], hc * hc)
        return torch.cat([streams.flatten(-2), y, size[..., hc : 2 * hc], comb], -1).detach().numpy()  # type: ignore[no-any-return]

    def _arrived(self, g: Array) -> list[Tensor]:
        """The gradients of the results; those of bf16 as they arrive."""
        streams, y, *others = torch.tensor(g).split([result.shape[-1] for result in self.results], -1)
        return [streams.bfloat16().double(), y.bfloat16().double(), *others]

    def gradients(self, g: Array) -> tuple[Array, ...]:
        grads = torch.autograd.grad(self.results, self.leaves, self._arrived(g), retain_graph=True)
        return tuple(grad.numpy() for grad in grads)

    def gradient_scales(self, g: Array) -> tuple[Array, ...]:
        """Sums of absolute values, also of what is in bf16 on its way: the gradients of the streams and of their sum."""
        of_streams, of_next, *others = self._arrived(g)
        y, root, weight = (t.detach().abs() for t in (self.y, self.root, self.norm_weight))
        scaled = weight * of_next.abs()
        of_sum = scaled / root + y / root**3 * (y * scaled).mean(-1, keepdim=True)
        of_read, *of_site = self.reading.gradient_scales(torch.cat([of_sum, *others], -1).numpy(), in_bf16=1.0)
        total = of_streams.abs() + torch.tensor(of_read).flatten(-2)
        given = (leaf.detach().abs().numpy() for leaf in self.leaves[:4])
        of_x, of_y, of_post, of_comb = post_oracle_bwd(total.view(self.streams.shape).numpy(), *given)
        of_layer = of_x + TINY, of_y + TINY, of_post / 8 + TINY, of_comb / 8 + TINY  # whose roundings are at random
        return *of_layer, *of_site, (of_next.abs() * y / root).flatten(0, -2).sum(0).numpy() + TINY


def between(*arrays: Array, iterations: int, eps: float, norm_eps: float) -> Between:
    return Between(arrays, eps, norm_eps, iterations)


def in_a_row(results: tuple[Tensor, ...]) -> Tensor:
    """The results side by side, in fp32."""
    out, y, post, comb = results
    return torch.cat([out.flatten(-2).float(), y.float(), post, comb.flatten(-2)], -1)


def _post_pre(*tensors: Tensor, **statics: Any) -> Tensor:
    return in_a_row(mhc.mhc_post_pre(*tensors, **statics)[:4])


def from_before(x: Tensor, y: Tensor, post: Tensor, comb: Tensor, *weights: Tensor, **statics: Any) -> Tensor:
    """The next layer's input from the streams before the layer."""
    same = torch.eye(x.shape[-2], device=x.device).expand_as(comb)
    _, z, p, c, _ = mhc.mhc_post_pre(x, torch.zeros_like(y), post, same, *weights, **statics)
    return in_a_row((mhc.mhc_post(x, y, post, comb), z, p, c))


def with_pre(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The streams after the layer, and then the record of ``mhc_pre`` on them with a planted error, its result normalised."""

    def call(x: Tensor, y: Tensor, post: Tensor, comb: Tensor, *weights: Tensor, **statics: Any) -> Tensor:
        *site, norm_weight = weights
        out = mhc.mhc_post(x, y, post, comb)
        z, *others = of(out, *site, **statics).split([x.shape[-1], x.shape[-2], x.shape[-2] ** 2], -1)
        z = mhc.normed(z.type_as(x), norm_weight, statics["norm_eps"])
        return torch.cat([out.flatten(-2).float(), z.float(), *others], -1)

    return call


MHC_POST_PRE = OpSpec(
    name="mhc_post_pre",
    operator="mhc",
    op=lambda *tensors, **statics: in_a_row(lemmata.mhc_post_pre(*tensors, **statics)),
    overload=torch.ops.lemmata.mhc_post_pre_fwd.default,
    contract=mhc.MHC_POST_PRE,
    sizes={"tokens": 24},
    large={"tokens": 1031},
    batch="tokens",
    configurations=(
        {"hc": 4, "hidden": 64, "iterations": 20, "eps": 1e-6, "norm_eps": 1e-6},
        {"hc": 2, "hidden": 128, "iterations": 1, "eps": 1e-3, "norm_eps": 1e-3},
        {"hc": 3, "hidden": 192, "iterations": 5, "eps": 1e-6, "norm_eps": 1e-6},
        {"hc": 8, "hidden": 64, "iterations": 20, "eps": 1e-6, "norm_eps": 1e-6},
    ),
    reference=_post_pre,
    oracle=lambda *arrays, **statics: between(*arrays, **statics).out(),
    wrong={
        "comb not transposed": lambda x, y, post, comb, *t, **s: _post_pre(x, y, post, comb.mT, *t, **s),
        "another token's result": lambda x, y, *t, **s: _post_pre(x, y.roll(1, 0), *t, **s),
        "no weight of the norm": lambda *t, **s: _post_pre(*t[:-1], torch.ones_like(t[-1]), **s),
        "another column's weight": lambda *t, **s: _post_pre(*t[:-1], t[-1].roll(1), **s),
        "no norm": lambda *t, **s: torch.cat(
            [_post_pre(*t, **s)[..., : t[0][0].numel()], _pre(mhc.mhc_post(*t[:4]), *t[4:7], **s)], -1
        ),
        "the streams before the layer": from_before,
        "the norm's eps of 1": lambda *t, norm_eps, **s: _post_pre(*t, norm_eps=1.0, **s),
        "scales in another order": lambda *t, **s: _post_pre(*t[:5], t[5].roll(1), *t[6:], **s),
        "comb transposed at the end": with_pre(MHC_PRE.wrong["comb transposed"]),
        "post not doubled": with_pre(MHC_PRE.wrong["post not doubled"]),
    },
    differentiable=("x", "y", "post", "comb", "fn", "scale", "base", "norm_weight"),
    oracle_bwd=lambda g, *arrays, **statics: between(*arrays, **statics).gradients(g),
    scale=lambda *arrays, **statics: between(*arrays, **statics).scale(),
    scale_bwd=lambda g, *arrays, **statics: between(*arrays, **statics).gradient_scales(g),
    plain_bwd=on_tensor_cores(_post_pre),
    compiled=5,
)

SPECS = (MHC_PRE, MHC_POST, MHC_POST_PRE, MHC_HEAD)
