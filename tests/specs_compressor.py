"""The records of the KV compressor, with overlap and without: oracles, planted errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import lemmata
from compressor_oracle import oracle
from lemmata.reference import compressor
from opspec import OpSpec
from specs_compressor_step import STEPS


class _Rounded(torch.autograd.Function):
    """Rounding to bf16, whose gradient is not rounded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().type_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def _plain(*tensors: Tensor, past: int, eps: float) -> Tensor:
    """The reference with gradients in fp32, as torch would round them where it rounds a result."""
    given = compressor.Given(*tensors, past)
    x = _Rounded.apply(compressor.pool(given, given.T).total)  # type: ignore[no-untyped-call]
    y = given.norm_weight * (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt())
    return compressor.rotate(_Rounded.apply(y), given).bfloat16()  # type: ignore[no-untyped-call]


def _gate(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with other logits."""
    return lambda kv, gate, *t, **s: compressor.compress(kv, of(gate), *t, **s)[0]


def _ape(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with other biases."""
    return lambda kv, gate, ape, *t, **s: compressor.compress(kv, gate, of(ape), *t, **s)[0]


def _turned(of: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The reference with other angles."""
    return lambda kv, gate, ape, w, rotation, *t, **s: compressor.compress(kv, gate, ape, w, of(rotation), *t, **s)[0]


def _swapped(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, -1)[::-1], -1)


def _op(overlap: bool) -> Callable[..., Tensor]:
    def op(kv: Any, gate: Any, ape: Any, norm_weight: Any, rotation: Any, offset: Any, **statics: Any) -> Tensor:
        return lemmata.compress(kv, gate, ape, norm_weight, rotation, offset=offset, overlap=overlap, **statics)

    return op


PLANTED: dict[str, Callable[..., Tensor]] = {
    "no bias": _ape(torch.zeros_like),
    "biases of the next token": _ape(lambda ape: ape.roll(1, 0)),
    "no gate": _gate(torch.zeros_like),
    "logits in bf16": _gate(lambda gate: gate.bfloat16().float()),
    "turned the other way": _turned(lambda rotation: rotation * torch.tensor([1.0, -1.0], device=rotation.device)),
    "angles of the next position": _turned(lambda rotation: rotation.roll(-1, 0)),
    "the norm's eps of 1": lambda *t, past, eps: compressor.compress(*t, past, 1.0)[0],
    "the next token": lambda kv, *t, **s: compressor.compress(kv.roll(1, 1), *t, **s)[0],
}
PLAIN = OpSpec(
    name="compress",
    operator="compressor",
    op=_op(False),
    overload=torch.ops.lemmata.compress_fwd.default,
    contract=compressor.COMPRESS,
    sizes={"B": 4, "S": 14, "positions": 40},
    large={"B": 3, "S": 1031, "positions": 900},
    batch="B",
    configurations=(
        {"ratio": 3, "D": 64, "pairs": 8, "past": 0, "eps": 1e-6},
        {"ratio": 2, "D": 128, "pairs": 32, "past": 0, "eps": 1e-6},
        {"ratio": 8, "D": 64, "pairs": 4, "past": 0, "eps": 1e-3},
    ),
    reference=_plain,
    oracle=lambda *arrays, **statics: oracle(*arrays, **statics).out(),
    wrong=PLANTED,
    differentiable=("kv", "gate", "ape", "norm_weight"),
    oracle_bwd=lambda g, *arrays, **statics: oracle(*arrays, **statics).gradients(g),
    scale=lambda *arrays, **statics: oracle(*arrays, **statics).scale(),
    scale_bwd=lambda g, *arrays, **statics: oracle(*arrays, **statics).gradient_scales(g),
    edges={"B": (0, 1, 2, 5), "S": (0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 33), "positions": (0, 1, 9, 40)},
    compiled=9,
)
OVERLAP = replace(
    PLAIN,
    name="compress_overlap",
    op=_op(True),
    contract=compressor.OVERLAP,
    configurations=(
        {"ratio": 4, "D": 64, "pairs": 8, "past": 0, "eps": 1e-6},
        {"ratio": 4, "D": 64, "pairs": 32, "past": 4, "eps": 1e-6},
        {"ratio": 2, "D": 128, "pairs": 4, "past": 0, "eps": 1e-6},
    ),
    edges=PLAIN.edges | {"S": (4, 5, 6, 7, 8, 9, 12, 33)},  # the past is there; fewer rows are in test_compressor.py
    wrong=PLANTED
    | {
        "halves exchanged": lambda kv, gate, ape, *t, **s: compressor.compress(
            _swapped(kv), _swapped(gate), _swapped(ape), *t, **s
        )[0],
        "no block before": lambda kv, gate, ape, w, *t, **s: compressor.compress(
            kv[..., w.shape[0] :], gate[..., w.shape[0] :], ape[:, w.shape[0] :], w, *t, **s
        )[0],
    },
)
SPECS = (PLAIN, OVERLAP, *STEPS)
