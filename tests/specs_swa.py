"""The record of swa."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import lemmata
from lemmata.reference import swa
from lemmata.reference.attention import in_window
from opspec import Array, OpSpec
from specs_attention import LARGE, SIZES, Dense, in_bf16, join, once, planted, window_counts

NAMES = tuple(spec.name for spec in swa.SWA.inputs)


@once
def dense_swa(q: Array, window_kv: Array, sink: Array, offset: Array, window: int, scale: float) -> Dense:
    counts = window_counts(q.shape[1], window_kv.shape[1] - q.shape[1], offset, window)
    return Dense(q, window_kv, counts, sink, scale)


def _swa(q: Tensor, window_kv: Tensor, *more: Tensor, **statics: float) -> Tensor:
    """The reference on keys in fp32, so that torch sums their gradients in fp32."""
    return join(swa.swa(q, window_kv.float(), *more, **statics))


def _in_bf16(q: Tensor, window_kv: Tensor, sink: Tensor, offset: Tensor, window: int, scale: float) -> Tensor:
    return in_bf16(q, (in_window(window_kv.float(), q.shape[1], offset, window),), sink, scale)


def _without(sizes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if name != "T"}


def _bwd(of: Callable[[Dense, Array], tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    return lambda g, *arrays, **statics: of(dense_swa(*arrays, **statics), g)


SWA = OpSpec(
    name="swa",
    operator="swa",
    op=lambda q, window_kv, sink, offset, **statics: join(lemmata.swa(q, window_kv, sink, offset=offset, **statics)),
    overload=torch.ops.lemmata.swa_fwd.default,
    contract=swa.SWA,
    sizes=_without(SIZES),
    large=_without(LARGE),
    batch="B",
    configurations=(
        {"H": 8, "D": 64, "window": 5, "scale": 0.05},
        {"H": 32, "D": 64, "window": 1, "scale": 0.3},
        {"H": 16, "D": 64, "window": 128, "scale": 0.125},
        {"H": 8, "D": 256, "window": 3, "scale": 0.0625},
    ),
    reference=_swa,
    oracle=lambda *arrays, **statics: dense_swa(*arrays, **statics).results(),
    wrong=planted(_swa, NAMES),
    plain_bwd=_in_bf16,
    differentiable=("q", "window_kv", "sink"),
    oracle_bwd=_bwd(Dense.gradients),
    scale=lambda *arrays, **statics: dense_swa(*arrays, **statics).scales(),
    scale_bwd=_bwd(Dense.gradient_scales),
    optional=("scale",),
    edges={"B": (0, 1, 2, 3)},
)

SPECS = (SWA,)
