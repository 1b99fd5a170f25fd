"""The records of hyper-connections: oracles, planted errors."""

from __future__ import annotations

import numpy as np
import torch

import lemmata
from lemmata.reference import mhc
from opspec import Array, OpSpec

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

SPECS = (MHC_POST,)
