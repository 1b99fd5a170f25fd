"""Manifold-constrained hyper-connections of DeepSeek-V4 (arXiv 2606.19348, section 2.2): streams beside each layer.

A token has hc residual streams x_i. After a layer, whose result is y, stream o becomes

    out_o = post_o y + Σ_i comb[i,o] x_i

in the dtype of the coefficients, rounded to that of the streams. The first index of comb is the stream that is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contract import Contract, Size, Static, TensorSpec

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
