"""The record of csa."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

import lemmata
from lemmata.reference import csa
from lemmata.reference.attention import in_window
from opspec import Array, OpSpec
from specs_attention import (
    LARGE,
    SIZES,
    Dense,
    changed,
    in_bf16,
    index_counts,
    join,
    once,
    plain,
    planted,
    planted_in_entries,
    split,
    window_counts,
)

NAMES = tuple(spec.name for spec in csa.CSA.inputs)


@once
def dense_csa(
    q: Array,
    window_kv: Array,
    compressed_kv: Array,
    indices: Array,
    sink: Array,
    offset: Array,
    window: int,
    scale: float,
) -> Dense:
    S, T = q.shape[1], compressed_kv.shape[1]
    tokens = window_counts(S, window_kv.shape[1] - S, offset, window)
    counts = np.concatenate([tokens, index_counts(indices, T)], -1)
    return Dense(q, np.concatenate([window_kv, compressed_kv], 1), counts, sink, scale)


_csa = plain(csa.csa)


def _in_bf16(q: Tensor, window_kv: Tensor, compressed_kv: Tensor, indices: Tensor, sink: Tensor, offset: Tensor,
             window: int, scale: float) -> Tensor:  # fmt: skip
    parts = in_window(window_kv.float(), q.shape[1], offset, window), csa._selected(compressed_kv.float(), indices)
    return in_bf16(q, parts, sink, scale)


_changed = functools.partial(changed, _csa, NAMES)


def _once(a: dict[str, Tensor]) -> Tensor:
    ordered = a["indices"].sort(-1).values
    again = torch.nn.functional.pad(ordered[..., 1:] == ordered[..., :-1], (1, 0))
    return torch.where(again, -1, ordered)


CSA = OpSpec(
    name="csa",
    operator="csa",
    op=lambda q, window_kv, compressed_kv, indices, sink, offset, **statics: join(
        lemmata.csa(q, window_kv, compressed_kv, indices, sink, offset=offset, **statics)
    ),
    overload=torch.ops.lemmata.csa_fwd.default,
    contract=csa.CSA,
    sizes=SIZES | {"K": 6},
    large=LARGE | {"K": 70},
    batch="B",
    configurations=(
        {"H": 8, "D": 64, "window": 5, "scale": 0.05},
        {"H": 32, "D": 64, "window": 1, "scale": 0.3},
        {"H": 16, "D": 64, "window": 128, "scale": 0.125},
        {"H": 8, "D": 256, "window": 3, "scale": 0.0625},
    ),
    reference=_csa,
    oracle=lambda *arrays, **statics: dense_csa(*arrays, **statics).results(),
    wrong=planted(_csa, NAMES)
    | planted_in_entries(_csa, NAMES)
    | {
        "-1 taken as row 0": _changed(indices=lambda a: a["indices"].clamp(min=0)),
        "-1 taken as the last row": _changed(
            indices=lambda a: torch.where(a["indices"] == -1, a["compressed_kv"].shape[1] - 1, a["indices"])
        ),
        "T taken as the last row": _changed(indices=lambda a: a["indices"].clamp(max=a["compressed_kv"].shape[1] - 1)),
        "duplicates count once": _changed(indices=_once),
        "another query's indices": _changed(indices=lambda a: a["indices"].roll(1, 1)),
        "the last index missing": _changed(indices=lambda a: a["indices"][..., :-1]),
    },
    plain_bwd=_in_bf16,
    differentiable=("q", "window_kv", "compressed_kv", "sink"),
    oracle_bwd=lambda g, *arrays, **statics: split(dense_csa(*arrays, **statics).gradients(g), arrays[2].shape[1]),
    scale=lambda *arrays, **statics: dense_csa(*arrays, **statics).scales(),
    scale_bwd=lambda g, *arrays, **statics: split(dense_csa(*arrays, **statics).gradient_scales(g), arrays[2].shape[1]),
    optional=("scale",),
    edges={"B": (0, 1, 2, 3)},
)

SPECS = (CSA,)
