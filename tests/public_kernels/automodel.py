"""Contracts for the TileLang kernels inside ``nemo-automodel``: sparse attention and its indexer, of DeepSeek-V4 and of GLM.

Its launchers pad queries to whole blocks and clamp indices; the contracts say what they ensure.
"""

from __future__ import annotations

from tilelang import language as T

from lemmata.reference.contract import Elements, Size

from .entry import Entry

_MODELS = "nemo_automodel.components.models"
_INDEXER = {"heads": 64, "index_dim": 128}
_BATCH = Size(1, 64)
_LONG = Size(1, 2**17)
_CALL = {"batch": _BATCH, "seq_len": _LONG, "seq_len_kv": _LONG}
_BSK = {"B": _BATCH, "S": _LONG, "S_kv": _LONG}


def _symbols(*names: str) -> dict[str, object]:
    """Return sizes that the launcher fixes when it builds, left open here."""
    return {name: T.dynamic(name) for name in names}


def indexer(folder: str) -> tuple[Entry, ...]:
    """Return the kernels of the indexer, which three packages have in the same words."""
    ends = Elements(low=0, high="ends")
    return (
        Entry(
            f"{folder}.tilelang_indexer_fwd",
            "tl_indexer_fwd_impl",
            _INDEXER,
            {"seq_len": _LONG, "seq_len_kv": _LONG, "ends": Size(2, 2**17 + 1)},
            [],
            {"CuSeqLenKS": ends, "CuSeqLenKE": ends},
            ("seq_len % 2 == 0", "seq_len_kv % 256 == 0", "ends == seq_len_kv + 1"),
            updated=["Logits"],
            probes=tuple({"seq_len": s, "seq_len_kv": kv, "ends": kv + 1} for s, kv in ((1010, 1024), (2**17, 2**17))),
        ),
        Entry(
            f"{folder}.tilelang_indexer_fwd",
            "clean_logits_",
            {},
            {"seq_len": _LONG, "seq_len_kv": _LONG},
            [],
            updated=["Logits"],
        ),
        Entry(
            f"{folder}.tilelang_indexer_bwd",
            "tl_indexer_bwd_impl",
            {"heads": 64, "dim": 128, "topk": 512},
            {"seq_len": _LONG, "q_seq_len": _LONG},
            ["dIndexQ", "dWeights"],
            updated=["dIndexK"],
        ),
    )


_NO_FENCE = (
    "Wrong as TileLang 0.1.15 builds it, by PTX's memory model: beyond the last iteration of its pipeline the product reads "
    "rows that cp.async has just copied to shared memory, without a proxy fence after the wait. Within the loop there is one."
)
_MINUS_ONE = (
    "The index -1, by which the launcher says that there is no key, is read as KV[b, -1]: only the compiler's guard keeps that "
    "in bounds, with Indices[0, 0, 0, 510] = -1 for one."
)

V4 = f"{_MODELS}.deepseek_v4.kernels"
GLM = f"{_MODELS}.glm_moe_dsa.kernels"
ENTRIES = (
    *indexer(V4),
    Entry(
        f"{V4}.tilelang_sparse_mla_fwd",
        "sparse_mqa_fwd",
        {"heads": 64, "dim": 512, "topk": 512},
        _CALL,
        ["Output", "Lse"],
        {"Indices": Elements(low=0, high="seq_len_kv")},
        judged=_NO_FENCE,
    ),
    Entry(
        f"{V4}.tilelang_sparse_mla_bwd",
        "preprocess",
        {**_symbols("B", "S"), "H": 64, "D": 512},
        {"B": _BATCH, "S": _LONG},
        ["Delta"],
    ),
    Entry(
        f"{V4}.tilelang_sparse_mla_bwd",
        "postprocess",
        {**_symbols("B", "S_kv"), "D": 512},
        {"B": _BATCH, "S_kv": _LONG},
        ["dKV_out"],
    ),
    Entry(
        f"{V4}.tilelang_sparse_mla_bwd",
        "bwd",
        {**_symbols("B", "S", "S_kv"), "H": 64, "D": 512, "topk": 512},
        _BSK,
        ["dQ"],
        {"Indices": Elements(low=0, high="S_kv"), "ValidMask": Elements(low=0, high=2)},
        updated=["dKV", "dAttnSink"],
    ),
    Entry(
        f"{_MODELS}.deepseek_v41.indexer",
        "_indexer_fwd",
        _INDEXER,
        {"batch": _BATCH, "sequence": _LONG, "width": _LONG},
        ["Scores"],
    ),
    *indexer(GLM),
    Entry(
        f"{GLM}.tilelang_sparse_mla_fwd",
        "sparse_mla_fwd",
        {"heads": 64, "dim": 512, "tail_dim": 64, "topk": 512},
        _CALL,
        ["Output", "Lse"],
        {"Indices": Elements(low=-1, high="seq_len_kv")},
        judged=_NO_FENCE,
    ),
    Entry(
        f"{GLM}.tilelang_sparse_mla_bwd",
        "preprocess",
        {**_symbols("B", "S"), "H": 64, "D": 512},
        {"B": _BATCH, "S": _LONG},
        ["Delta"],
    ),
    Entry(
        f"{GLM}.tilelang_sparse_mla_bwd",
        "postprocess",
        {**_symbols("B", "S_kv"), "D": 512, "D_tail": 64},
        {"B": _BATCH, "S_kv": _LONG},
        ["dKV_out"],
    ),
    Entry(
        f"{GLM}.tilelang_sparse_mla_bwd",
        "bwd",
        {**_symbols("B", "S", "S_kv"), "H": 64, "D": 512, "D_tail": 64, "topk": 512},
        _BSK,
        ["dQ"],
        {"Indices": Elements(low=-1, high="S_kv")},
        updated=["dKV"],
        judged=_MINUS_ONE,
    ),
)
