"""Sinkhorn, 4 x 4 and 20 iterations: lemmata, TileKernels, torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from ..bindings.sinkhorn import sinkhorn
from ..reference import sinkhorn as reference
from .peers import find
from .roofline import bound
from .timing import Call, Case

N, ITERATIONS, EPS = 4, 20, 1e-6
COUNTS = (1024, 4096, 32768, 131072)
LIMITS = {("forward", 4096): 3.5, ("forward", 131072): 15.0, ("backward", 4096): 7.0, ("backward", 131072): 45.0}

# Per matrix: a step is n² + n multiply-adds and n reciprocals; undoing it 2n² + n; softmax n² exponentials.
STEPS = 2 * ITERATIONS - 1
STEP, STEP_BACK, SOFTMAX = N * N + N, 2 * N * N + N, 6 * N * N


def _logits(count: int) -> torch.Tensor:
    return torch.randn(count, N, N, device="cuda")


def _forward(count: int) -> dict[str, Callable[[], Call]]:
    def lemmata() -> Call:
        return functools.partial(torch.ops.lemmata.sinkhorn_fwd.default, _logits(count), ITERATIONS, EPS)

    compiled = torch.compile(reference.sinkhorn, dynamic=False)

    def torch_compile() -> Call:
        return functools.partial(compiled, _logits(count), ITERATIONS, EPS)

    contenders: dict[str, Callable[[], Call]] = {"lemmata": lemmata, "torch.compile": torch_compile}
    if peer := find("tile_kernels.mhc"):

        def tile_kernels() -> Call:
            x = _logits(count)
            return functools.partial(peer.mhc_sinkhorn_fwd, x, torch.empty_like(x), ITERATIONS, EPS)

        contenders["TileKernels"] = tile_kernels
    return contenders


def _backward(count: int) -> dict[str, Callable[[], Call]]:
    def lemmata() -> Call:
        op = torch.ops.lemmata.sinkhorn_bwd.default
        return functools.partial(op, _logits(count), _logits(count), ITERATIONS, EPS)

    contenders: dict[str, Callable[[], Call]] = {"lemmata": lemmata}
    if peer := find("tile_kernels.mhc"):

        def tile_kernels() -> Call:
            x = _logits(count)
            return functools.partial(peer.mhc_sinkhorn_bwd, _logits(count), x, torch.empty_like(x), ITERATIONS, EPS)

        contenders["TileKernels"] = tile_kernels
    return contenders


def cases(*, full: bool = True) -> Iterator[Case]:
    """Forward and backward at every count; ``full=False`` only where a limit is set."""
    for direction in ("forward", "backward"):
        for count in COUNTS:
            limit = LIMITS.get((direction, count))
            if not full and limit is None:
                continue
            back = direction == "backward"
            traffic = count * N * N * 4 * (3 if back else 2)
            least, why = bound(
                bytes=traffic,
                fp32=count * (STEPS * (STEP + back * STEP_BACK) + (1 + back) * SOFTMAX),
                special=count * (STEPS * N + (1 + back) * (N * N + N)),
            )
            contenders = _backward(count) if back else _forward(count)
            yield Case("sinkhorn", f"{direction} {count}", traffic, least, why, limit, contenders)


def call(device: str) -> Callable[[], torch.Tensor]:
    """One eager call of the public function, for the host's share of its time."""
    x = torch.randn(4096, N, N, device=device)
    return lambda: sinkhorn(x)
