"""Manifold-constrained hyper-connections of DeepSeek-V4 (arXiv 2606.19348, section 2.2): streams beside each layer.

A token has hc residual streams x_i. Coefficients come from all of them together, x as one vector of hc hidden numbers:

    μ = (fn x) rsqrt(mean(x²) + norm_eps)
    pre = sigmoid(scale_0 μ + base) + eps           of the first hc rows of fn and base
    post = 2 sigmoid(scale_1 μ + base)              of the next hc
    comb = sinkhorn(scale_2 μ + base)               of the other hc², by rows (reference/sinkhorn.py)

A layer's input is y = Σ_i pre_i x_i. After the layer, whose result is y, stream o becomes

    out_o = post_o y + Σ_i comb[i,o] x_i

Both are computed in the dtype of the coefficients, and rounded to that of the streams. The first index of comb is the stream
that is read. Before the last norm of a model the streams become one by a ``pre`` of their own, without post and comb.

Between two layers, one after the other: the streams after the first, out, then y of out by the coefficients of the second, and
the second's own norm, whose result is rounded as y was:

    next_y = norm_weight y rsqrt(mean(y²) + norm_eps)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Contract, Size, Static, TensorSpec
from .sinkhorn import sinkhorn, sinkhorn_bwd

F32, BF16 = torch.float32, torch.bfloat16


class Multiple(Static):
    """An integer that must be a multiple of its lowest value."""

    def admits(self, value: float) -> bool:
        """Return whether the parameter may have this value."""
        return super().admits(value) and not value % self.low

    @property
    def pretty(self) -> str:
        """The admissible values as an error message shows them."""
        return f"multiples of {self.low} in {super().pretty}"


SIZES = {"tokens": Size(high=2**24)}
STATICS = {"hc": Static(int, 2, 8), "hidden": Multiple(int, 64, 8192)}
PROBES = ({"tokens": 1009}, {"tokens": 2**24})

X = TensorSpec("x", "*tokens hc hidden", (BF16,))
Y = TensorSpec("y", "*tokens hidden", (BF16,))
POST = TensorSpec("post", "*tokens hc", (F32,))
COMB = TensorSpec("comb", "*tokens hc hc", (F32,))
OUT = TensorSpec("out", "*tokens hc hidden", (BF16,))


def gradient_of(spec: TensorSpec) -> TensorSpec:
    """Return the tensor of a gradient, named after what it is the gradient of."""
    return TensorSpec(f"grad_{spec.name}", spec.shape, spec.dtypes)


MHC_POST = Contract("mhc_post", SIZES, STATICS, (X, Y, POST, COMB), (OUT,), PROBES)
MHC_POST_BWD = Contract(
    "mhc_post_bwd",
    SIZES,
    STATICS,
    (gradient_of(OUT), X, Y, POST, COMB),
    (gradient_of(X), gradient_of(Y), gradient_of(POST), gradient_of(COMB)),
    PROBES,
)


def mhc_post(x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """Mix the streams and add the result of a layer; the formula of this module's docstring."""
    mixed = (comb.unsqueeze(-1) * x.type_as(comb).unsqueeze(-2)).sum(-3)
    return (post.unsqueeze(-1) * y.type_as(post).unsqueeze(-2) + mixed).type_as(x)


def mhc_post_bwd(grad_out: Tensor, x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of x, y, post and comb, in closed form.

    With g the gradient of the result: dx_i = Σ_o comb[i,o] g_o, dy = Σ_o post_o g_o, dpost_o = g_o · y and
    dcomb[i,o] = x_i · g_o.
    """
    g = grad_out.type_as(comb)
    of_x = (comb.unsqueeze(-1) * g.unsqueeze(-3)).sum(-2)
    of_y = (post.unsqueeze(-1) * g).sum(-2)
    of_post = (y.type_as(g).unsqueeze(-2) * g).sum(-1)
    of_comb = (x.type_as(g).unsqueeze(-2) * g.unsqueeze(-3)).sum(-1)
    return of_x.type_as(x), of_y.type_as(y), of_post, of_comb


_PARAMETERS = {
    "iterations": Static(int, 1, 100),
    "eps": Static(float, 1e-12, 1.0),
    "norm_eps": Static(float, 1e-12, 1.0),
}
_NORMS = {name: _PARAMETERS[name] for name in ("eps", "norm_eps")}
PRE_WEIGHTS = (
    TensorSpec("fn", "hc*hc+2*hc hc*hidden", (F32,)),
    TensorSpec("scale", "3", (F32,)),
    TensorSpec("base", "hc*hc+2*hc", (F32,)),
)
HEAD_WEIGHTS = (
    TensorSpec("fn", "hc hc*hidden", (F32,)),
    TensorSpec("scale", "1", (F32,)),
    TensorSpec("base", "hc", (F32,)),
)


def _contracts(
    op: str, statics: dict[str, Static], weights: tuple[TensorSpec, ...], results: tuple[TensorSpec, ...]
) -> tuple[Contract, Contract]:
    """Return the contracts of what reads the streams, and of its backward."""
    statics, inputs = STATICS | statics, (X, *weights)
    back = (*map(gradient_of, results), *inputs)
    return (
        Contract(op, SIZES, statics, inputs, results, PROBES),
        Contract(f"{op}_bwd", SIZES, statics, back, tuple(map(gradient_of, inputs)), PROBES),
    )


MHC_PRE, MHC_PRE_BWD = _contracts("mhc_pre", _PARAMETERS, PRE_WEIGHTS, (Y, POST, COMB))
MHC_HEAD, MHC_HEAD_BWD = _contracts("mhc_head", _NORMS, HEAD_WEIGHTS, (Y,))


def _next(spec: TensorSpec) -> TensorSpec:
    """Return a tensor of the next layer, named after that of a layer."""
    return TensorSpec(f"next_{spec.name}", spec.shape, spec.dtypes)


NORM_WEIGHT = TensorSpec("norm_weight", "hidden", (F32,))
NEXT_PRE = _next(TensorSpec("pre", "*tokens hc", (F32,)))
_BETWEEN = X, Y, POST, COMB, *PRE_WEIGHTS, NORM_WEIGHT
_RESULTS = OUT, *map(_next, (Y, POST, COMB))
MHC_POST_PRE = Contract("mhc_post_pre", SIZES, STATICS | _PARAMETERS, _BETWEEN, (*_RESULTS, NEXT_PRE), PROBES)
MHC_POST_PRE_BWD = Contract(
    "mhc_post_pre_bwd",
    SIZES,
    STATICS | _PARAMETERS,
    (*map(gradient_of, _RESULTS), *_BETWEEN, OUT, NEXT_PRE),
    tuple(map(gradient_of, _BETWEEN)),
    PROBES,
)


@dataclass(frozen=True)
class _Projection:
    """The projections of streams: x as one vector, fn x, the sum of x², and rsqrt(mean(x²) + norm_eps)."""

    x: Tensor
    u: Tensor
    squares: Tensor
    factor: Tensor

    @classmethod
    def of(cls, x: Tensor, fn: Tensor, norm_eps: float) -> _Projection:
        """Project streams."""
        wide = x.type_as(fn).flatten(-2)
        squares = wide.square().sum(-1, keepdim=True)
        return cls(wide, wide @ fn.mT, squares, (squares / wide.shape[-1] + norm_eps).rsqrt())

    def backward(self, grad: Tensor, fn: Tensor, norm_eps: float) -> tuple[Tensor, Tensor]:
        """Return the gradients of x as one vector, and of fn, from that of μ.

        With u = fn x and S = Σ x²: du = r dμ and dS = -½ (Σ dμ u) r / (S + norm_eps n), so that dx = fnᵀ du + 2 x dS.
        """
        of_u = grad * self.factor
        of_squares = -(grad * self.u).sum(-1, keepdim=True) * self.factor / 2
        of_squares = of_squares / (self.squares + norm_eps * self.x.shape[-1])
        of_fn = of_u.reshape(-1, fn.shape[0]).mT @ self.x.reshape(-1, fn.shape[1])
        return of_u @ fn + 2 * self.x * of_squares, of_fn


def _weighted(x: Tensor, pre: Tensor) -> Tensor:
    """Return the sum of the streams with these weights."""
    return (pre.unsqueeze(-1) * x.type_as(pre)).sum(-2).type_as(x)


def _weighted_bwd(grad_y: Tensor, x: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the streams, in the dtype of the weights, and of the weights."""
    grad = grad_y.type_as(pre).unsqueeze(-2)
    return pre.unsqueeze(-1) * grad, (x.type_as(pre) * grad).sum(-1)


def _summed(x: Tensor) -> Tensor:
    """Return the sum over all tokens."""
    return x.reshape(-1, x.shape[-1]).sum(0)


def mhc_pre(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer's input, post and comb; the formula of this module's docstring."""
    pre, post, comb = _coefficients(x, fn, scale, base, iterations, eps, norm_eps)
    return _weighted(x, pre), post, comb


def _coefficients(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iterations: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return pre, post and comb."""
    hc = x.shape[-2]
    projection = _Projection.of(x, fn, norm_eps)
    logits = projection.u * projection.factor * _of_each(scale, hc) + base
    of_pre, of_post, of_comb = torch.split(logits, [hc, hc, hc * hc], -1)
    comb = sinkhorn(of_comb.reshape(*of_comb.shape[:-1], hc, hc), iterations, eps)
    return of_pre.sigmoid() + eps, 2 * of_post.sigmoid(), comb


def mhc_pre_bwd(
    grad_y: Tensor,
    grad_post: Tensor,
    grad_comb: Tensor,
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, fn, scale and base, in closed form.

    With σ a sigmoid: the gradient of its logit is dpre σ (1 - σ), and that of post = 2 σ is dpost post (1 - post / 2).
    """
    hc = x.shape[-2]
    projection, of_each = _Projection.of(x, fn, norm_eps), _of_each(scale, hc)
    mu = projection.u * projection.factor
    of_pre, of_post, of_comb = torch.split(mu * of_each + base, [hc, hc, hc * hc], -1)
    sigmoid, post = of_pre.sigmoid(), 2 * of_post.sigmoid()
    grad_x, grad_pre = _weighted_bwd(grad_y, x, sigmoid + eps)
    sections = (
        grad_pre * sigmoid * (1 - sigmoid),
        grad_post * post * (1 - post / 2),
        sinkhorn_bwd(grad_comb, of_comb.reshape(*of_comb.shape[:-1], hc, hc), iterations, eps).flatten(-2),
    )
    grad = torch.cat(sections, -1)
    of_x, grad_fn = projection.backward(grad * of_each, fn, norm_eps)
    each = torch.split(_summed(grad * mu), [hc, hc, hc * hc])
    grad_scale = torch.stack([section.sum() for section in each])
    return (grad_x + of_x.reshape(x.shape)).type_as(x), grad_fn, grad_scale, _summed(grad)


def _of_each(scale: Tensor, hc: int) -> Tensor:
    """Return the scale of each coefficient: the first of those of pre, the second of post's, the third of comb's."""
    return torch.cat([scale[0].expand(hc), scale[1].expand(hc), scale[2].expand(hc * hc)])


def normed(y: Tensor, norm_weight: Tensor, norm_eps: float) -> Tensor:
    """Return a layer's input after the layer's own norm, computed in the dtype of its weight and rounded once."""
    wide = y.type_as(norm_weight)
    return (norm_weight * (wide * _factor(wide, norm_eps))).type_as(y)


def _factor(wide: Tensor, norm_eps: float) -> Tensor:
    """Return what a norm multiplies by: one over the root of the mean of squares."""
    return ((wide * wide).sum(-1, keepdim=True) / wide.shape[-1] + norm_eps).rsqrt()


def normed_bwd(grad: Tensor, y: Tensor, norm_weight: Tensor, norm_eps: float) -> tuple[Tensor, Tensor]:
    """Return the gradient of y, and what each token adds to that of the norm's weight, in the dtype of the weight.

    With r the norm's factor, w its weight and g the gradient of its result: dy = r w g - y r³ mean(y w g), and dw = Σ g y r.
    """
    wide, g = y.type_as(norm_weight), grad.type_as(norm_weight)
    factor, scaled = _factor(wide, norm_eps), norm_weight * g
    mean = (wide * scaled).sum(-1, keepdim=True) / wide.shape[-1]
    return factor * scaled - wide * (factor * factor * factor) * mean, g * wide * factor


def mhc_post_pre(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    norm_weight: Tensor,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the streams after a layer; the next layer's input, normalised, its post and comb; and its pre."""
    out = mhc_post(x, y, post, comb)
    pre, next_post, next_comb = _coefficients(out, fn, scale, base, iterations, eps, norm_eps)
    return out, normed(_weighted(out, pre), norm_weight, norm_eps), next_post, next_comb, pre


def mhc_post_pre_bwd(
    grad_out: Tensor,
    grad_next_y: Tensor,
    grad_next_post: Tensor,
    grad_next_comb: Tensor,
    x: Tensor,
    y: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    norm_weight: Tensor,
    out: Tensor,
    next_pre: Tensor,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, ...]:
    """Return the gradients of all inputs: through the norm, ``mhc_pre_bwd`` and ``mhc_post_bwd``, rounded in between."""
    of_sum, of_weight = normed_bwd(grad_next_y, _weighted(out, next_pre), norm_weight, norm_eps)
    into = grad_next_post, grad_next_comb, out, fn, scale, base
    of_out, *of_site = mhc_pre_bwd(of_sum.type_as(x), *into, iterations, eps, norm_eps)
    return *mhc_post_bwd(grad_out + of_out, x, y, post, comb), *of_site, _summed(of_weight)


def mhc_head(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, eps: float = 1e-6, norm_eps: float = 1e-6) -> Tensor:
    """Return the streams as one: as the input of a layer, with a ``pre`` of their own."""
    projection = _Projection.of(x, fn, norm_eps)
    return _weighted(x, (projection.u * projection.factor * scale + base).sigmoid() + eps)


def mhc_head_bwd(
    grad_y: Tensor,
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, fn, scale and base, in closed form, as ``mhc_pre_bwd`` does."""
    projection = _Projection.of(x, fn, norm_eps)
    mu = projection.u * projection.factor
    sigmoid = (mu * scale + base).sigmoid()
    grad_x, grad_pre = _weighted_bwd(grad_y, x, sigmoid + eps)
    grad = grad_pre * sigmoid * (1 - sigmoid)
    of_x, grad_fn = projection.backward(grad * scale, fn, norm_eps)
    of_x = (grad_x + of_x.reshape(x.shape)).type_as(x)
    return of_x, grad_fn, _summed(grad * mu).sum().unsqueeze(0), _summed(grad)
