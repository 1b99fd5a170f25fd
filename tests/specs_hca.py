"""The record of hca."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

import lemmata
from lemmata.reference import hca
from lemmata.reference.attention import in_window
from opspec import Array, OpSpec
from specs_attention import (
    LARGE,
    SIZES,
    Dense,
    changed,
    in_bf16,
    join,
    once,
    past_counts,
    plain,
    planted,
    planted_in_entries,
    split,
    window_counts,
)

NAMES = tuple(spec.name for spec in hca.HCA.inputs)


@once
def dense_hca(
    q: Array,
    window_kv: Array,
    compressed_kv: Array,
    sink: Array,
    offset: Array,
    ratio: int,
    window: int,
    scale: float,
) -> Dense:
    S, T = q.shape[1], compressed_kv.shape[1]
    tokens = window_counts(S, window_kv.shape[1] - S, offset, window)
    counts = np.concatenate([tokens, past_counts(S, T, offset, ratio)], -1)
    return Dense(q, np.concatenate([window_kv, compressed_kv], 1), counts, sink, scale)


_hca = plain(hca.hca)


def _in_bf16(q: Tensor, window_kv: Tensor, compressed_kv: Tensor, sink: Tensor, offset: Tensor, ratio: int, window: int,
             scale: float) -> Tensor:  # fmt: skip
    S = q.shape[1]
    parts = in_window(window_kv.float(), S, offset, window), hca._entries(compressed_kv.float(), S, offset, ratio)
    return in_bf16(q, parts, sink, scale)


_changed = functools.partial(changed, _hca, NAMES)


HCA = OpSpec(
    name="hca",
    operator="hca",
    op=lambda q, window_kv, compressed_kv, sink, offset, **statics: join(
        lemmata.hca(q, window_kv, compressed_kv, sink, offset=offset, **statics)
    ),
    overload=torch.ops.lemmata.hca_fwd.default,
    contract=hca.HCA,
    sizes=SIZES,
    large=LARGE,
    batch="B",
    configurations=(
        {"H": 8, "D": 64, "ratio": 4, "window": 5, "scale": 0.05},
        {"H": 32, "D": 64, "ratio": 1, "window": 1, "scale": 0.3},
        {"H": 16, "D": 64, "ratio": 128, "window": 128, "scale": 0.125},
        {"H": 8, "D": 256, "ratio": 32, "window": 3, "scale": 0.0625},
    ),
    reference=_hca,
    oracle=lambda *arrays, **statics: dense_hca(*arrays, **statics).results(),
    wrong=planted(_hca, NAMES)
    | planted_in_entries(_hca, NAMES)
    | {
        "seen a token early": _changed(offset=lambda a: a["offset"] + 1),
        "seen a token late": _changed(offset=lambda a: a["offset"] - 1),
        "seen from the first token of an entry": _changed(offset=lambda a: a["offset"] + a["ratio"] - 1),
        "one offset for all": _changed(offset=lambda a: a["offset"][:1].expand(len(a["offset"]))),
    },
    plain_bwd=_in_bf16,
    differentiable=("q", "window_kv", "compressed_kv", "sink"),
    oracle_bwd=lambda g, *arrays, **statics: split(dense_hca(*arrays, **statics).gradients(g), arrays[2].shape[1]),
    scale=lambda *arrays, **statics: dense_hca(*arrays, **statics).scales(),
    scale_bwd=lambda g, *arrays, **statics: split(dense_hca(*arrays, **statics).gradient_scales(g), arrays[2].shape[1]),
    optional=("scale",),
    edges={"B": (0, 1, 2, 3)},
)

SPECS = (HCA,)
