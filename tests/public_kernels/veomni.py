"""Contracts for the TileLang kernels inside ``veomni``: DeepSeek-V4's sparse attention, its indexer, and quantisation.

Its kernels of attention clamp indices themselves, so that these may be any.
"""

from __future__ import annotations

from tilelang import language as T

from lemmata.reference.contract import Size

from .automodel import indexer
from .entry import ROWS, Entry

_FOLDER = "veomni.ops.kernels.deepseek_v4"
_BATCH, _LONG = Size(1, 64), Size(1, 2**17)
_CALL = {"batch": _BATCH, "seq_len": _LONG, "seq_len_kv": _LONG}

_ROWS_OF_SCALES = (
    "Only the compiler's guards keep it from writing scales of rows that do not exist: with M = 1, thread 4 of block 0 is "
    "at S[1, 0]. The kernel beside it, act_quant_kernel, asks for the row itself."
)

ENTRIES = (
    Entry(f"{_FOLDER}.quant", "act_quant_kernel", {"N": 4096}, {"M": ROWS}, ["Y", "S"]),
    Entry(f"{_FOLDER}.quant", "fp8_weight_quant_kernel", {"M": 2048, "N": 4096}, {}, ["Y", "S"]),
    Entry(
        f"{_FOLDER}.quant",
        "fp4_quant_kernel",
        {"N": 4096, "dequant": True},
        {"M": ROWS},
        ["Y", "S"],
        judged=_ROWS_OF_SCALES,
    ),
    *indexer(_FOLDER),
    Entry(
        f"{_FOLDER}.tilelang_sparse_mla_fwd",
        "sparse_mqa_fwd",
        {"heads": 64, "dim": 512, "topk": 512},
        _CALL,
        ["Output", "Lse"],
    ),
    Entry(
        f"{_FOLDER}.tilelang_sparse_mla_target",
        "sparse_mqa_target",
        {"heads": 64, "dim": 512, "topk": 512},
        _CALL,
        ["Target"],
    ),
    Entry(
        f"{_FOLDER}.tilelang_sparse_mla_bwd",
        "preprocess",
        {"B": T.dynamic("B"), "S": T.dynamic("S"), "H": 64, "D": 512},
        {"B": _BATCH, "S": _LONG},
        ["Delta"],
    ),
    Entry(
        f"{_FOLDER}.tilelang_sparse_mla_bwd",
        "postprocess",
        {"B": T.dynamic("B"), "S_kv": T.dynamic("S_kv"), "D": 512},
        {"B": _BATCH, "S_kv": _LONG},
        ["dKV_out"],
    ),
    Entry(
        f"{_FOLDER}.tilelang_sparse_mla_bwd",
        "bwd",
        {**{name: T.dynamic(name) for name in ("B", "S", "S_kv")}, "H": 64, "D": 512, "topk": 512},
        {"B": _BATCH, "S": _LONG, "S_kv": _LONG},
        ["dQ"],
        updated=["dKV", "dAttnSink"],
    ),
)
