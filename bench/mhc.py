"""Hyper-connections of 4 streams: lemmata, TileKernels (before a layer after DeepGEMM's projections), torch.compile.

``lemmata bench mhc`` takes device time on a GPU; ``pytest bench/mhc.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lemmata.bench.peers import difference, find
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.bindings.mhc import mhc_post
from lemmata.operators import OPERATORS
from lemmata.reference import mhc as reference
from lemmata.warmup import Job, to_disk

HC = 4
SHAPES = ((1, 4096), (32, 4096), (4096, 4096), (4096, 7168))
LIMITS = {("forward", 4096, 4096): 75.4, ("forward", 4096, 7168): 130.3}
LIMITS |= {("backward", tokens, hidden): 2.5 * limit for (_, tokens, hidden), limit in LIMITS.items()}
PRE_LIMITS = {("forward", 4096, 4096): 50.0, ("forward", 4096, 7168): 85.0}
PRE_LIMITS |= {("backward", tokens, hidden): 2.5 * limit for (_, tokens, hidden), limit in PRE_LIMITS.items()}
BETWEEN_LIMITS = {(1, 4096): 12.0, (32, 4096): 12.0, (4096, 4096): 105.0, (4096, 7168): 180.0}
ROWS, ITERATIONS, EPS, SPLITS = HC * (HC + 2), 20, 1e-6, 16
_PEER, _GEMM = "tile_kernels.mhc", "deep_gemm"


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: all that ships."""
    for factory, config in OPERATORS["mhc"].shipped():
        yield to_disk, factory, config


def inputs(tokens: int, hidden: int, device: str = "cuda") -> tuple[Tensor, ...]:
    """Return x, y, post and comb of one call."""
    x, y = (torch.randn(tokens, *shape, device=device, dtype=torch.bfloat16) for shape in ((HC, hidden), (hidden,)))
    return x, y, torch.rand(tokens, HC, device=device), torch.rand(tokens, HC, HC, device=device)


def _with_gradient(tokens: int, hidden: int) -> tuple[Tensor, ...]:
    """Return a gradient of the result, then x, y, post and comb."""
    return inputs(tokens, hidden)[0], *inputs(tokens, hidden)


def _theirs(x: Tensor, y: Tensor, post: Tensor, comb: Tensor, *grad: Tensor) -> Call:
    """Return TileKernels' call on the same tensors: a batch of one, their names' order; with a gradient its backward."""
    peer = find(_PEER)
    assert peer
    run = peer.mhc_post_bwd if grad else peer.mhc_post_fwd
    return functools.partial(run, *(t.unsqueeze(0) for t in (y, x, post.unsqueeze(-1), comb, *grad)))


def _agree(run: Callable[..., Tensor], shape: tuple[int, int]) -> None:
    """Raise RuntimeError unless both compute the same from the same inputs."""
    tensors = inputs(*shape)
    apart = difference(run(*tensors), _theirs(*tensors)()[0])  # type: ignore[index]
    if not apart <= 1e-5:
        raise RuntimeError(f"mhc_post {shape}: expected TileKernels' result, got one that differs by {apart:.1e}")


def _forward(shape: tuple[int, int]) -> dict[str, Callable[[], Call]]:
    compiled = torch.compile(reference.mhc_post, dynamic=False)
    contenders: dict[str, Callable[[], Call]] = {
        "lemmata": lambda: functools.partial(torch.ops.lemmata.mhc_post_fwd.default, *inputs(*shape)),
        "torch.compile": lambda: functools.partial(compiled, *inputs(*shape)),
    }
    if find(_PEER):
        contenders["TileKernels"] = lambda: _theirs(*inputs(*shape))
    return contenders


def _backward(shape: tuple[int, int]) -> dict[str, Callable[[], Call]]:
    contenders: dict[str, Callable[[], Call]] = {
        "lemmata": lambda: functools.partial(torch.ops.lemmata.mhc_post_bwd.default, *_with_gradient(*shape))
    }
    if find(_PEER):
        contenders["TileKernels"] = lambda: _theirs(*inputs(*shape), inputs(*shape)[0])
    return contenders


def weights(hidden: int, rows: int = ROWS, device: str = "cuda") -> tuple[Tensor, ...]:
    """Return fn, scale and base of a site, or of the head."""
    fn = torch.randn(rows, HC * hidden, device=device) * (HC * hidden) ** -0.5
    return fn, torch.rand(3 if rows > HC else 1, device=device), torch.randn(rows, device=device)


def _their_pre(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor) -> Call:
    """Return DeepGEMM's projections and TileKernels' coefficients and sum of the streams after them, as one call."""
    gemm, peer = find(_GEMM), find(_PEER)
    assert gemm
    assert peer
    tokens, hidden = x.shape[0], x.shape[-1]
    sums, squares = fn.new_empty((SPLITS, tokens, ROWS)), fn.new_empty((SPLITS, tokens))
    results = fn.new_empty((tokens, HC)), fn.new_empty((tokens, HC * HC)), x.new_empty((tokens, hidden))

    def call() -> tuple[Tensor, ...]:
        gemm.tf32_hc_prenorm_gemm(x.view(tokens, -1), fn, sums, squares, num_splits=SPLITS)
        peer.mhc_pre_big_fuse_fwd(
            sums, squares, scale, base, x, *results, EPS, EPS, EPS, 2.0, ITERATIONS, n_splits=SPLITS
        )
        return results[2], results[0], results[1].view(tokens, HC, HC)

    return call


def _pre_agrees(shape: tuple[int, int]) -> None:
    """Raise RuntimeError unless both compute the same from the same inputs; theirs rounds fn to tf32."""
    tensors = inputs(*shape)[0], *weights(shape[1])
    ours = torch.ops.lemmata.mhc_pre_fwd.default(*tensors, ITERATIONS, EPS, EPS)
    theirs: Any = _their_pre(*tensors)()
    for name, a, b in zip(("y", "post", "comb"), ours, theirs, strict=True):
        if not (apart := difference(a, b)) <= 1e-5:
            raise RuntimeError(f"mhc_pre {shape}: expected their {name}, got one that differs by {apart:.1e}")


def _reading(op: Callable[..., object], shape: tuple[int, int], rows: int, *statics: float) -> Call:
    """Return a call of what reads the streams, on inputs of its own."""
    return functools.partial(op, inputs(*shape)[0], *weights(shape[1], rows), *statics)


def _pre_cases(shape: tuple[int, int]) -> Iterator[Case]:
    """Yield the part before a layer, and the head of a model, each as if it read the streams once."""
    tokens, hidden = shape
    name, absent = f"forward {tokens} x {hidden}", () if find(_PEER) and find(_GEMM) else ("DeepGEMM and TileKernels",)
    pre, head = torch.ops.lemmata.mhc_pre_fwd.default, torch.ops.lemmata.mhc_head_fwd.default
    compiled = torch.compile(reference.mhc_pre, dynamic=False)
    contenders: dict[str, Callable[[], Call]] = {
        "lemmata": functools.partial(_reading, pre, shape, ROWS, ITERATIONS, EPS, EPS),
        "torch.compile": functools.partial(_reading, compiled, shape, ROWS, ITERATIONS, EPS, EPS),
    }
    agree: Callable[[], None] = lambda: None  # noqa: E731
    if not absent:
        contenders["DeepGEMM and TileKernels"] = lambda: _their_pre(inputs(*shape)[0], *weights(hidden))
        agree = functools.partial(_pre_agrees, shape)
    for op, rows in (("mhc_pre", ROWS), ("mhc_head", HC)):
        coefficients = HC * (HC + 1) if rows == ROWS else 0
        traffic = tokens * (2 * (HC + 1) * hidden + 4 * coefficients) + 4 * rows * HC * hidden
        least, why = bound(bytes=traffic, bf16=2 * 3 * tokens * rows * HC * hidden)
        if rows == ROWS:
            yield Case(op, name, traffic, least, why, PRE_LIMITS.get(("forward", *shape)), contenders, absent, agree)
        else:
            alone = {"lemmata": functools.partial(_reading, head, shape, HC, EPS, EPS)}
            yield Case(op, name, traffic, least, why, None, alone)


def _reading_bwd(op: Callable[..., object], shape: tuple[int, int], rows: int) -> Call:
    """Return a call of the gradients of what reads the streams, on inputs of its own."""
    given = inputs(*shape)
    tensors = given[0], *weights(shape[1], rows)
    if rows == HC:
        return functools.partial(op, given[1], *tensors, EPS, EPS)
    return functools.partial(op, given[1], *given[2:], *tensors, ITERATIONS, EPS, EPS)


def _pre_bwd_cases(shape: tuple[int, int]) -> Iterator[Case]:
    """Yield the gradients of the part before a layer, and of the head; the bound reads and writes the streams once."""
    tokens, hidden = shape
    ops = torch.ops.lemmata.mhc_pre_bwd.default, torch.ops.lemmata.mhc_head_bwd.default
    formulas = reference.mhc_pre_bwd, reference.mhc_head_bwd
    for at, (op, rows) in enumerate((("mhc_pre", ROWS), ("mhc_head", HC))):
        coefficients = HC * (HC + 1) if rows == ROWS else 0
        traffic = tokens * (2 * (2 * HC + 1) * hidden + 4 * coefficients) + 2 * 4 * rows * HC * hidden
        least, why = bound(bytes=traffic, bf16=3 * 2 * 3 * tokens * rows * HC * hidden)
        limit = PRE_LIMITS.get(("backward", *shape)) if rows == ROWS else None
        contenders: dict[str, Callable[[], Call]] = {
            "lemmata": functools.partial(_reading_bwd, ops[at], shape, rows),
            "torch.compile": functools.partial(_reading_bwd, torch.compile(formulas[at], dynamic=False), shape, rows),
        }
        yield Case(op, f"backward {tokens} x {hidden}", traffic, least, why, limit, contenders)


def _between(shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the inputs from a layer's result to the next layer's input: of both parts, and a norm's weight."""
    tokens, hidden = shape
    return *inputs(tokens, hidden), *weights(hidden), torch.rand(hidden, device="cuda")


def _one_by_one(normed: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the streams after a layer by one operator, and by another the next layer's input, which torch normalises."""
    x, y, post, comb, *site, norm_weight = tensors
    out = torch.ops.lemmata.mhc_post_fwd.default(x, y, post, comb)
    z, *others = torch.ops.lemmata.mhc_pre_fwd.default(out, *site, ITERATIONS, EPS, EPS)
    return out, normed(z, norm_weight, EPS), *others


def _theirs_one_by_one(normed: Callable[..., Tensor], *tensors: Tensor) -> Call:
    """Return the same by TileKernels and DeepGEMM, as one call."""
    x, y, post, comb, *site, norm_weight = tensors
    after = _theirs(x, y, post, comb)

    def call() -> tuple[Tensor, ...]:
        out = after()[0]  # type: ignore[index]
        before: Any = _their_pre(out, *site)()
        z, *others = before
        return out, normed(z, norm_weight, EPS), *others

    return call


def _between_agrees(shape: tuple[int, int], others: list[Callable[..., Any]]) -> None:
    """Raise RuntimeError unless all compute the same from the same inputs."""
    tensors = _between(shape)
    ours = torch.ops.lemmata.mhc_post_pre_fwd.default(*tensors, ITERATIONS, EPS, EPS)
    for other in others:
        for name, a, b in zip(("streams", "y", "post", "comb"), ours, other(*tensors), strict=False):
            if not (apart := difference(a, b)) <= 1e-5:
                raise RuntimeError(
                    f"mhc_post_pre {shape}: expected the same {name}, got one that differs by {apart:.1e}"
                )


def _between_cases(shape: tuple[int, int]) -> Iterator[Case]:
    """Yield the way from a layer's result to the next layer's input, as if streams were read and written once."""
    tokens, hidden = shape
    ours, normed = torch.ops.lemmata.mhc_post_pre_fwd.default, torch.compile(reference.normed, dynamic=False)
    absent = () if find(_PEER) and find(_GEMM) else ("DeepGEMM and TileKernels",)
    contenders: dict[str, Callable[[], Call]] = {
        "lemmata": lambda: functools.partial(ours, *_between(shape), ITERATIONS, EPS, EPS),
        "one by one": lambda: functools.partial(_one_by_one, normed, *_between(shape)),
    }
    others: list[Callable[..., Any]] = [functools.partial(_one_by_one, normed)]
    if not absent:
        contenders["DeepGEMM and TileKernels"] = lambda: _theirs_one_by_one(normed, *_between(shape))
        others.append(lambda *tensors: _theirs_one_by_one(normed, *tensors)())
    traffic = tokens * (2 * (2 * HC + 2) * hidden + 4 * HC * (2 * HC + 3)) + 4 * (ROWS * HC + 1) * hidden
    least, why = bound(bytes=traffic, bf16=2 * 3 * tokens * ROWS * HC * hidden)
    agree = functools.partial(_between_agrees, shape, others)
    name, limit = f"forward {tokens} x {hidden}", BETWEEN_LIMITS.get(shape)
    yield Case("mhc_post_pre", name, traffic, least, why, limit, contenders, absent, agree)


def _one_by_one_bwd(normed_bwd: Callable[..., tuple[Tensor, Tensor]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients by the operators' own, one after the other, of a sum of the streams that was kept."""
    grad_out, grad_y, grad_post, grad_comb, x, y, post, comb, *site, norm_weight, out, z = tensors
    of_z, of_weight = normed_bwd(grad_y, z, norm_weight, EPS)
    grads = of_z.bfloat16(), grad_post, grad_comb
    of_out, *of_site = torch.ops.lemmata.mhc_pre_bwd.default(*grads, out, *site, ITERATIONS, EPS, EPS)
    of_layer = torch.ops.lemmata.mhc_post_bwd.default(grad_out + of_out, x, y, post, comb)
    return *of_layer, *of_site, of_weight.sum(0)


def _between_bwd_cases(shape: tuple[int, int]) -> Iterator[Case]:
    """Yield the gradients of the same; the bound reads and writes what is in bf16 once."""
    tokens, hidden = shape
    ours, normed_bwd = torch.ops.lemmata.mhc_post_pre_bwd.default, torch.compile(reference.normed_bwd, dynamic=False)

    def given() -> tuple[Tensor, ...]:
        x, y, post, comb, *more = _between(shape)
        return (
            torch.randn_like(x),
            torch.randn_like(y),
            torch.randn_like(post),
            torch.randn_like(comb),
            x,
            y,
            post,
            comb,
            *more,
        )

    contenders: dict[str, Callable[[], Call]] = {
        "lemmata": lambda: functools.partial(ours, *given(), *inputs(*shape)[::2], ITERATIONS, EPS, EPS),
        "one by one": lambda: functools.partial(_one_by_one_bwd, normed_bwd, *given(), *inputs(*shape)[:2]),
    }
    traffic = tokens * (2 * (4 * HC + 3) * hidden + 4 * HC * (4 * HC + 5)) + 2 * 4 * (ROWS * HC + 1) * hidden
    least, why = bound(bytes=traffic, bf16=3 * 2 * 3 * tokens * ROWS * HC * hidden)
    yield Case("mhc_post_pre", f"backward {tokens} x {hidden}", traffic, least, why, None, contenders)


def cases() -> Iterator[Case]:
    """Yield the part before a layer and the head, from a layer to the next, and the streams after one, at every shape."""
    for shape in SHAPES:
        yield from _pre_cases(shape)
        yield from _pre_bwd_cases(shape)
    for shape in SHAPES:
        yield from _between_cases(shape)
        yield from _between_bwd_cases(shape)
    absent = () if find(_PEER) else ("TileKernels",)
    for direction in ("forward", "backward"):
        for shape in SHAPES:
            tokens, hidden = shape
            rows, coefficients = (2 * HC + 1, 1) if direction == "forward" else (3 * HC + 2, 2)
            traffic = tokens * (2 * rows * hidden + 4 * coefficients * HC * (HC + 1))
            products = tokens * hidden * HC * (HC + 1) * coefficients
            least, why = bound(bytes=traffic, fp32=products)
            forward = direction == "forward"
            contenders = _forward(shape) if forward else _backward(shape)
            ours = torch.ops.lemmata.mhc_post_fwd.default
            agree = functools.partial(_agree, ours, shape) if forward and not absent else (lambda: None)
            limit = LIMITS.get((direction, *shape))
            name = f"{direction} {tokens} x {hidden}"
            yield Case("mhc_post", name, traffic, least, why, limit, contenders, absent, agree)


@pytest.mark.parametrize("tokens", [1, 1024])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_eager_call(benchmark: BenchmarkFixture, direction: str, tokens: int) -> None:
    """Return what one call of the public function costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    leaves = [t.requires_grad_(direction == "backward") for t in inputs(tokens, 1024, device)]

    def step() -> None:
        out = mhc_post(*leaves)
        if direction == "backward":
            torch.autograd.grad(out, leaves, out.detach())
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
