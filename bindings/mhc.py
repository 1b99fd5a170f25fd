"""``lemmata.mhc_pre``, ``lemmata.mhc_post``, ``lemmata.mhc_head``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import mhc as reference
from ..reference.contract import Contract
from .flops import Shape
from .registry import check, define, plain
from .tokens import contiguous, in_chunks, said
from .vmap import leading, one_by_one

_PRE, _POST = "lemmata.kernels.mhc_pre", "lemmata.kernels.mhc_post"


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
    reference=contiguous(reference.mhc_post_bwd),
    kernel=(_POST, "backward"),
    fake=_fake_post_bwd,
    vmap=leading,
    flops=_flops_of_post_bwd,
    shards="leading",
)
_post_fwd = define(
    "mhc_post_fwd",
    "(Tensor x, Tensor y, Tensor post, Tensor comb) -> (Tensor out)",
    reference=contiguous(reference.mhc_post),
    kernel=(_POST, "forward"),
    fake=_fake_post,
    vmap=leading,
    gradient=_post_bwd,
    flops=_flops_of_post,
    shards="leading",
)


def _fake_pre(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    _checked(reference.MHC_PRE, x, *args)
    hc = x.shape[-2]
    y, post = x.new_empty((*x.shape[:-2], x.shape[-1])), args[0].new_empty(x.shape[:-1])
    return y, post, post.new_empty((*x.shape[:-2], hc, hc))


def _fake_head(x: Tensor, *args: Any) -> Tensor:
    _checked(reference.MHC_HEAD, x, *args)
    return x.new_empty((*x.shape[:-2], x.shape[-1]))


def _fake_pre_bwd(*args: Any) -> tuple[Tensor, ...]:
    _checked(reference.MHC_PRE_BWD, *args)
    return _empty_like(*args[3:7])


def _fake_head_bwd(*args: Any) -> tuple[Tensor, ...]:
    _checked(reference.MHC_HEAD_BWD, *args)
    return _empty_like(*args[1:5])


def _checked(contract: Contract, *args: Any) -> None:
    """Check tensors and, after them, those static parameters that no shape tells."""
    count = len(contract.inputs)
    names = [name for name in contract.statics if name not in reference.STATICS]
    contract.check(*args[:count], **dict(zip(names, args[count:], strict=True)))


def _flops_of_reading(x: Shape, fn: Shape, products: int) -> int:
    """Return those of ``products`` products with fn, and of as many of the streams with their weights."""
    count = 2 * products * (fn[0] + 1)
    for size in x:
        count *= size
    return count


def _flops_of_streams(x: Shape, fn: Shape, *_: Any, **__: Any) -> int:
    """Return those of a product with fn, and of the sum of the streams."""
    return _flops_of_reading(x, fn, 1)


def _flops_of_pre_bwd(
    grad_y: Shape, grad_post: Shape, grad_comb: Shape, x: Shape, fn: Shape, *_: Any, **__: Any
) -> int:
    """Return those of three products with fn: the forward's again, and two into the gradients."""
    return _flops_of_reading(x, fn, 3)


def _flops_of_head_bwd(grad_y: Shape, x: Shape, fn: Shape, *_: Any, **__: Any) -> int:
    """Return those of three products with fn, as for ``mhc_pre``."""
    return _flops_of_reading(x, fn, 3)


_WEIGHTS = "Tensor fn, Tensor scale, Tensor base"
_GRADS = "(Tensor grad_x, Tensor grad_fn, Tensor grad_scale, Tensor grad_base)"
_pre_bwd = define(
    "mhc_pre_bwd",
    f"(Tensor grad_y, Tensor grad_post, Tensor grad_comb, Tensor x, {_WEIGHTS}, int iterations, float eps,"
    f" float norm_eps) -> {_GRADS}",
    reference=in_chunks(reference.MHC_PRE_BWD, reference.mhc_pre_bwd),
    kernel=said("mhc_pre", in_chunks(reference.MHC_PRE_BWD, reference.mhc_pre_bwd)),
    fake=_fake_pre_bwd,
    vmap=one_by_one,
    flops=_flops_of_pre_bwd,
    shards="leading",
)
_pre_fwd = define(
    "mhc_pre_fwd",
    f"(Tensor x, {_WEIGHTS}, int iterations, float eps, float norm_eps) -> (Tensor y, Tensor post, Tensor comb)",
    reference=in_chunks(reference.MHC_PRE, reference.mhc_pre),
    kernel=(_PRE, "forward"),
    fake=_fake_pre,
    vmap=one_by_one,
    gradient=_pre_bwd,
    flops=_flops_of_streams,
    shards="leading",
)
_head_bwd = define(
    "mhc_head_bwd",
    f"(Tensor grad_y, Tensor x, {_WEIGHTS}, float eps, float norm_eps) -> {_GRADS}",
    reference=in_chunks(reference.MHC_HEAD_BWD, reference.mhc_head_bwd),
    kernel=said("mhc_head", in_chunks(reference.MHC_HEAD_BWD, reference.mhc_head_bwd)),
    fake=_fake_head_bwd,
    vmap=one_by_one,
    flops=_flops_of_head_bwd,
    shards="leading",
)
_head_fwd = define(
    "mhc_head_fwd",
    f"(Tensor x, {_WEIGHTS}, float eps, float norm_eps) -> (Tensor y)",
    reference=in_chunks(reference.MHC_HEAD, reference.mhc_head),
    kernel=(_PRE, "head"),
    fake=_fake_head,
    vmap=one_by_one,
    gradient=_head_bwd,
    flops=_flops_of_streams,
    shards="leading",
)


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its config."""
    from ..kernels import mhc_post, mhc_pre, sinkhorn

    streams = mhc_post.Config(model.streams, model.hidden)
    yield mhc_post.mhc_post_fwd, streams
    yield mhc_post.mhc_post_bwd, streams
    yield mhc_pre.mhc_weigh, streams
    for head, gates in ((False, mhc_pre.mhc_gates), (True, mhc_pre.mhc_head_gates)):
        for factory in (mhc_pre.mhc_split, mhc_pre.mhc_project, gates):
            yield factory, mhc_pre.Config(model.streams, model.hidden, model.eps, model.norm_eps, head)
    yield sinkhorn.sinkhorn_fwd, sinkhorn.Config(model.streams, model.iterations, model.eps)


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


def mhc_pre(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer's input and the coefficients of ``lemmata.mhc_post`` after it, from the residual streams.

    All streams of a token are one vector. ``mu = fn @ x * rsqrt(mean(x ** 2) + norm_eps)`` has ``hc * hc + 2 * hc`` numbers:
    ``pre = sigmoid(scale[0] * mu + base) + eps`` of the first hc, ``post = 2 * sigmoid(scale[1] * mu + base)`` of the next
    hc, and ``comb``, which is ``lemmata.sinkhorn`` of ``scale[2] * mu + base`` of the others, by rows. The layer's input is
    ``y = sum over i of pre[i] * x[i]``, summed in fp32 and rounded once; the layer's own norm comes after it.

    Args:
        x: ``[..., hc, hidden]`` bf16, the streams; hc from 2 to 8, hidden a multiple of 64 up to 8192. Any strides, as of all
            tensors here; the leading dimensions may be empty.
        fn: ``[hc * hc + 2 * hc, hc * hidden]`` fp32, the projections.
        scale: ``[3]`` fp32, of pre, post and comb.
        base: ``[hc * hc + 2 * hc]`` fp32, added to the projections.
        iterations: of Sinkhorn, 1 to 100. DeepSeek-V4 uses 20.
        eps: added to pre, and as in ``lemmata.sinkhorn``, 1e-12 to 1.
        norm_eps: added to the mean of the squares, 1e-12 to 1.

    Returns:
        ``y`` ``[..., hidden]`` bf16, ``post`` ``[..., hc]`` and ``comb`` ``[..., hc, hc]`` fp32, contiguous. Differentiable
        once, with respect to all four tensors. Bitwise deterministic, with its gradients; a token's results and the gradient
        of its streams do not depend on other tokens.

    The gradient has no kernel yet: a GPU runs the PyTorch reference for it, on 256 tokens at a time, and says so once.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not a number.
        ValueError: a shape, a device or a parameter does not fit.

    Formula: arXiv 2606.19348, section 2.2, with order, eps and rounding of DeepSeek-V4's released inference code.
    """
    iterations, eps, norm_eps = plain(iterations), plain(eps), plain(norm_eps)
    check(reference.MHC_PRE, x, fn, scale, base, iterations=iterations, eps=eps, norm_eps=norm_eps)
    return _pre_fwd(x, fn, scale, base, iterations, eps, norm_eps)  # type: ignore[no-any-return]


def mhc_head(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *, eps: float = 1e-6, norm_eps: float = 1e-6
) -> Tensor:
    """Return the residual streams as one, before the last norm of a model.

    The sum of the streams with weights ``sigmoid(scale * mu + base) + eps``, with ``mu`` as in ``lemmata.mhc_pre``, of
    projections of its own.

    Args:
        x: ``[..., hc, hidden]`` bf16, as for ``lemmata.mhc_pre``. Any strides, as of all tensors here.
        fn: ``[hc, hc * hidden]`` fp32, the projections.
        scale: ``[1]`` fp32.
        base: ``[hc]`` fp32, added to the projections.
        eps: added to the weights, 1e-12 to 1.
        norm_eps: added to the mean of the squares, 1e-12 to 1.

    Returns:
        ``[..., hidden]`` bf16, contiguous. Differentiable once, with respect to all four tensors. Bitwise deterministic, with
        its gradients; a token's result and the gradient of its streams do not depend on other tokens.

    The gradient has no kernel yet: a GPU runs the PyTorch reference for it, on 256 tokens at a time, and says so once.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not a number.
        ValueError: a shape, a device or a parameter does not fit.

    Formula: the head of DeepSeek-V4's released inference code.
    """
    eps, norm_eps = plain(eps), plain(norm_eps)
    check(reference.MHC_HEAD, x, fn, scale, base, eps=eps, norm_eps=norm_eps)
    return _head_fwd(x, fn, scale, base, eps, norm_eps)  # type: ignore[no-any-return]
