"""``lemmata.mhc_post``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..operators import Kernel
from ..reference import mhc as reference
from .flops import Shape
from .registry import Implementation, check, define
from .vmap import leading

_POST = "lemmata.kernels.mhc_post"


def _contiguous(reference: Implementation) -> Implementation:
    """Return the reference on contiguous tensors, so that strides change no bit, and results are contiguous."""

    @functools.wraps(reference)
    def call(*args: Any) -> Any:
        return reference(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))

    return call


def _empty_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def _fake_post(x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    reference.MHC_POST.check(x, y, post, comb)
    return x.new_empty(x.shape)


def _fake_post_bwd(grad_out: Tensor, x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> tuple[Tensor, ...]:
    reference.MHC_POST_BWD.check(grad_out, x, y, post, comb)
    return _empty_like(x, y, post, comb)


def _flops_of_post(x: Shape, y: Shape, post: Shape, *_: Shape, **__: object) -> int:
    """Return 2 (hc + 1) for each element of the streams: a product with each of them and one with the layer's result."""
    count = 2 * (post[-1] + 1)
    for size in x:
        count *= size
    return count


def _flops_of_post_bwd(grad_out: Shape, x: Shape, y: Shape, post: Shape, *_: Shape, **__: object) -> int:
    """Return twice the forward's: products for the gradients of what is mixed, and for those of the coefficients."""
    return 2 * _flops_of_post(x, y, post)


_post_bwd = define(
    "mhc_post_bwd",
    "(Tensor grad_out, Tensor x, Tensor y, Tensor post, Tensor comb)"
    " -> (Tensor grad_x, Tensor grad_y, Tensor grad_post, Tensor grad_comb)",
    reference=_contiguous(reference.mhc_post_bwd),
    kernel=(_POST, "backward"),
    fake=_fake_post_bwd,
    vmap=leading,
    flops=_flops_of_post_bwd,
    shards="leading",
)
_post_fwd = define(
    "mhc_post_fwd",
    "(Tensor x, Tensor y, Tensor post, Tensor comb) -> (Tensor out)",
    reference=_contiguous(reference.mhc_post),
    kernel=(_POST, "forward"),
    fake=_fake_post,
    vmap=leading,
    gradient=_post_bwd,
    flops=_flops_of_post,
    shards="leading",
)


def shipped() -> Iterator[Kernel]:
    """Yield the kernels that DeepSeek-V4 launches, each with its config: Flash's width, then Pro's."""
    from ..kernels.mhc_post import Config, mhc_post_bwd, mhc_post_fwd

    for hidden in (4096, 7168):
        yield mhc_post_fwd, Config(hidden=hidden)
        yield mhc_post_bwd, Config(hidden=hidden)


def mhc_post(x: Tensor, y: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """Return the residual streams after a layer: manifold-constrained hyper-connections mix them and add its result.

    ``out[o] = post[o] * y + sum over i of comb[i, o] * x[i]`` for each token, summed in fp32 and rounded once. The first
    index of ``comb`` is the stream that is read, as ``lemmata.sinkhorn`` returns it.

    Args:
        x: ``[..., hc, hidden]`` bf16, the streams before the layer; hc from 2 to 8, hidden a multiple of 64 up to 8192. Any
            strides, as of all tensors here; the leading dimensions may be empty.
        y: ``[..., hidden]`` bf16, the layer's result.
        post: ``[..., hc]`` fp32, how much of it each stream takes.
        comb: ``[..., hc, hc]`` fp32, how the streams are mixed.

    Returns:
        ``[..., hc, hidden]`` bf16, contiguous. Differentiable once, with respect to all four. Bitwise deterministic, with
        its gradients; a token does not depend on its neighbours.

    A NaN or an infinity in a token's tensors makes some of that token's results NaN or infinite, and no other token's.

    Raises:
        TypeError: an argument is not a tensor of the right dtype.
        ValueError: a shape or a device does not fit.

    Formula: arXiv 2606.19348, section 2.2, with the rounding of DeepSeek-V4's released inference code.
    """
    check(reference.MHC_POST, x, y, post, comb)
    return _post_fwd(x, y, post, comb)  # type: ignore[no-any-return]
