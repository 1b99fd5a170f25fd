"""``lemmata.mhc_pre``, ``lemmata.mhc_post``, ``lemmata.mhc_post_pre``, ``lemmata.mhc_head``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from ..models import Model
from ..operators import Kernel
from ..reference import mhc as reference
from ..reference.contract import Contract, TensorSpec
from .flops import Formula, Shape
from .registry import Implementation, check, define, plain, short
from .tokens import contiguous, in_chunks
from .vmap import Rule, leading, one_by_one

_PRE, _POST = "lemmata.kernels.mhc_pre", "lemmata.kernels.mhc_post"
_PRE_BWD = "lemmata.kernels.mhc_pre_backward"
_POST_PRE, _POST_PRE_BWD = "lemmata.kernels.mhc_post_pre", "lemmata.kernels.mhc_post_pre_backward"


def _parameters(contract: Contract) -> list[str]:
    """Return the static parameters that no shape tells; a call has them after the tensors."""
    return [name for name in contract.statics if name not in reference.STATICS]


def _schema(contract: Contract) -> str:
    """Return an operator's arguments and results in torch's notation."""
    statics = (f"{contract.statics[name].kind.__name__} {name}" for name in _parameters(contract))
    arguments = ", ".join((*(f"Tensor {spec.name}" for spec in contract.inputs), *statics))
    return f"({arguments}) -> ({', '.join(f'Tensor {spec.name}' for spec in contract.outputs)})"


def _fake(contract: Contract) -> Implementation:
    """Return what gives the shapes and dtypes of an operator's results: a gradient is as what it is the gradient of."""

    def call(*args: Any) -> Any:
        count = len(contract.inputs)
        contract.check(*args[:count], **dict(zip(_parameters(contract), args[count:], strict=True)))
        given = dict(zip((spec.name for spec in contract.inputs), args[:count], strict=True))
        x = given["x"]
        sizes = dict(zip(("hc", "hidden"), x.shape[-2:], strict=True))

        def shape(spec: TensorSpec) -> tuple[int, ...]:
            if (of := spec.name.removeprefix("grad_")) != spec.name:
                return tuple(given[of].shape)
            return *x.shape[:-2], *(sizes[str(name)] for (name,) in spec.dims)

        results = tuple(x.new_empty(shape(spec), dtype=spec.dtypes[0]) for spec in contract.outputs)
        return results if len(results) > 1 else results[0]

    return call


def _flops_of_post(x: Shape, y: Shape, post: Shape, *_: Shape, **__: object) -> int:
    """Return 2 (hc + 1) for each element of the streams: a product with each of them and one with the layer's result."""
    count = 2 * (post[-1] + 1)
    for size in x:
        count *= size
    return count


def _flops_of_post_bwd(grad_out: Shape, x: Shape, y: Shape, post: Shape, *_: Shape, **__: object) -> int:
    """Return twice the forward's: products for the gradients of what is mixed, and for those of the coefficients."""
    return 2 * _flops_of_post(x, y, post)


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


def _flops_of_post_pre(x: Shape, y: Shape, post: Shape, comb: Shape, fn: Shape, *_: Any, **__: Any) -> int:
    """Return those of the part after a layer and of the part before the next; the norm's are not counted."""
    return _flops_of_post(x, y, post) + _flops_of_reading(x, fn, 1)


def _flops_of_post_pre_bwd(*shapes: Any, **_: Any) -> int:
    """Return those of the backwards of both parts, and of the sum of the streams again."""
    x, y, post, _, fn = shapes[len(reference.MHC_POST_PRE.outputs) - 1 :][:5]
    return _flops_of_post_bwd(x, x, y, post) + _flops_of_reading(x, fn, 3) + _flops_of_reading(x, (0,), 1)


def _define(
    contract: Contract, run: Implementation, kernel: tuple[str, str], flops: Formula, gradient: OpOverload | None = None
) -> OpOverload:
    """Define the operator of a contract; one with a tensor that all tokens share takes them some at a time."""
    shared = not all(spec.leading for spec in contract.inputs)
    rule: Rule = one_by_one if shared else leading
    return define(
        contract.op if contract.op.endswith("_bwd") else f"{contract.op}_fwd",
        _schema(contract),
        reference=in_chunks(contract, run) if shared else contiguous(run),
        kernel=kernel,
        fake=_fake(contract),
        vmap=rule,
        gradient=gradient,
        flops=flops,
        shards="leading",
    )


_post_bwd = _define(reference.MHC_POST_BWD, reference.mhc_post_bwd, (_POST, "backward"), _flops_of_post_bwd)
_post_fwd = _define(reference.MHC_POST, reference.mhc_post, (_POST, "forward"), _flops_of_post, _post_bwd)
_pre_bwd = _define(reference.MHC_PRE_BWD, reference.mhc_pre_bwd, (_PRE_BWD, "backward"), _flops_of_pre_bwd)
_pre_fwd = _define(reference.MHC_PRE, reference.mhc_pre, (_PRE, "forward"), _flops_of_streams, _pre_bwd)
_head_bwd = _define(reference.MHC_HEAD_BWD, reference.mhc_head_bwd, (_PRE_BWD, "head_backward"), _flops_of_head_bwd)
_head_fwd = _define(reference.MHC_HEAD, reference.mhc_head, (_PRE, "head"), _flops_of_streams, _head_bwd)
_post_pre_bwd = _define(
    reference.MHC_POST_PRE_BWD, reference.mhc_post_pre_bwd, (_POST_PRE_BWD, "backward"), _flops_of_post_pre_bwd
)
_post_pre_fwd = _define(
    reference.MHC_POST_PRE, reference.mhc_post_pre, (_POST_PRE, "forward"), _flops_of_post_pre, _post_pre_bwd
)
_pre_call, _post_call, _post_pre_call, _head_call = map(short, (_pre_fwd, _post_fwd, _post_pre_fwd, _head_fwd))


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its config."""
    from ..kernels import (
        mhc_post,
        mhc_post_pre,
        mhc_post_pre_backward,
        mhc_pre,
        mhc_pre_backward,
        mhc_project,
        sinkhorn,
    )

    streams = mhc_post.Config(model.streams, model.hidden)
    yield mhc_post.mhc_post_fwd, streams
    yield mhc_post.mhc_post_bwd, streams
    before = mhc_project.Config(model.streams, model.hidden, model.eps, model.norm_eps, iterations=model.iterations)
    projecting = mhc_project.mhc_project, mhc_project.mhc_split, mhc_project.mhc_multiply
    for factory in (*projecting, mhc_pre.mhc_weigh, mhc_post_pre.mhc_mix, mhc_post_pre.mhc_weigh_norm):
        yield factory, before
    head = mhc_project.Config(model.streams, model.hidden, model.eps, model.norm_eps, head=True)
    for factory in (*projecting, mhc_pre.mhc_head_weigh):
        yield factory, head
    yield from mhc_pre_backward.launched(before)
    yield from mhc_pre_backward.launched(head)
    between = mhc_project.Config(model.streams, model.hidden, model.eps, model.norm_eps)
    yield mhc_post_pre_backward.mhc_norm_bwd, between
    yield sinkhorn.sinkhorn_bwd, sinkhorn.Config(model.streams, model.iterations, model.eps)


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
    return _post_call(x, y, post, comb)  # type: ignore[no-any-return]


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

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not a number.
        ValueError: a shape, a device or a parameter does not fit.

    Formula: arXiv 2606.19348, section 2.2, with order, eps and rounding of DeepSeek-V4's released inference code.
    """
    iterations, eps, norm_eps = plain(iterations), plain(eps), plain(norm_eps)
    check(reference.MHC_PRE, x, fn, scale, base, iterations=iterations, eps=eps, norm_eps=norm_eps)
    return _pre_call(x, fn, scale, base, iterations, eps, norm_eps)  # type: ignore[no-any-return]


def mhc_post_pre(
    x: Tensor,
    y: Tensor,
    post: Tensor,
    comb: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    norm_weight: Tensor,
    *,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the residual streams after a layer, and the next layer's input, normalised, with its coefficients.

    The same as ``out = lemmata.mhc_post(x, y, post, comb)``, then ``z, next_post, next_comb = lemmata.mhc_pre(out, fn, scale,
    base)``, then ``z * rsqrt(mean(z ** 2) + norm_eps) * norm_weight``, the next layer's own norm, in fp32 of the rounded z and
    rounded once. On a GPU it takes two launches, and the streams are projected while they are mixed.

    Args:
        x: ``[..., hc, hidden]`` bf16, the streams before the layer; hc from 2 to 8, hidden a multiple of 64 up to 8192. Any
            strides, as of all tensors here; the leading dimensions may be empty.
        y: ``[..., hidden]`` bf16, the layer's result.
        post: ``[..., hc]`` fp32, how much of it each stream takes.
        comb: ``[..., hc, hc]`` fp32, how the streams are mixed.
        fn: ``[hc * hc + 2 * hc, hc * hidden]`` fp32, the projections of the next layer's site.
        scale: ``[3]`` fp32, of its pre, post and comb.
        base: ``[hc * hc + 2 * hc]`` fp32, added to its projections.
        norm_weight: ``[hidden]`` fp32, of the next layer's norm.
        iterations: of Sinkhorn, 1 to 100. DeepSeek-V4 uses 20.
        eps: added to pre, and as in ``lemmata.sinkhorn``, 1e-12 to 1.
        norm_eps: added to the means of squares, of the streams and of the next layer's norm, 1e-12 to 1.

    Returns:
        The streams ``[..., hc, hidden]`` bf16, the next layer's input ``[..., hidden]`` bf16, its ``post`` ``[..., hc]`` and
        ``comb`` ``[..., hc, hc]`` fp32, contiguous. Differentiable once, with respect to all eight tensors. Bitwise
        deterministic, with its gradients; a token's results and the gradients of its tensors do not depend on other tokens.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not a number.
        ValueError: a shape, a device or a parameter does not fit.

    Formula: arXiv 2606.19348, section 2.2, with order, eps and rounding of DeepSeek-V4's released inference code.
    """
    iterations, eps, norm_eps = plain(iterations), plain(eps), plain(norm_eps)
    statics = {"iterations": iterations, "eps": eps, "norm_eps": norm_eps}
    tensors = x, y, post, comb, fn, scale, base, norm_weight
    check(reference.MHC_POST_PRE, *tensors, **statics)
    return _post_pre_call(*tensors, iterations, eps, norm_eps)[:4]  # type: ignore[no-any-return]


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

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not a number.
        ValueError: a shape, a device or a parameter does not fit.

    Formula: the head of DeepSeek-V4's released inference code.
    """
    eps, norm_eps = plain(eps), plain(norm_eps)
    check(reference.MHC_HEAD, x, fn, scale, base, eps=eps, norm_eps=norm_eps)
    return _head_call(x, fn, scale, base, eps, norm_eps)  # type: ignore[no-any-return]
