"""Whether the functions of NeMo AutoModel that the swaps replace or call still are what the swaps were written against.

As for transformers, a function is known by what it says, so that a release which alters one is noticed whatever its
number, and so is a function that someone put in the place of one.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from .automodel_fingerprints import FUNCTIONS, RELEASES
from .originals import UnknownVersionError, state

_PACKAGE = "nemo_automodel.components.models.deepseek_v4"
_LIBRARIES = ("nemo_automodel", "torch")  # whose decorators may stand around a function
MODULES = ("layers", "optimized_kernels", "cp")
"""The modules of AutoModel's DeepSeek-V4 that hold the originals."""

_CALLED = ("_apply_partial_rope", "_apply_partial_rope_interleaved", "_query_positions", "dsv4_cp_enabled")
_GATHERED = (*_CALLED, "dsv4_cp_all_gather", "dsv4_cp_rank", "dsv4_cp_size")
_POOLED = "_compressed_window_metadata", "_pool_windows", "_rope_pool_positions", "dsv4_cp_all_gather_metadata"
_CACHE = "DeepseekV4TrainCache.accumulate_windows", "DeepseekV4TrainCache.update_pool"

SEAMS = {
    "sinkhorn": (
        "DeepseekV4HyperConnection.forward",
        "DeepseekV4HyperConnection.compute_weights",
        "dsv4_sinkhorn_normalize",
        "sinkhorn_normalize_torch",
    ),
    "indexer": ("DeepseekV4Indexer.forward", "dsv4_indexer_scores", "indexer_scores_torch"),
    "attention": (
        "DeepseekV4Attention.forward",
        "eager_attention_with_sink",
        "repeat_kv",
        "dsv4_sparse_attention",
        "sparse_attention_torch",
        "build_dsv4_sparse_topk_indices",
        "_build_indexer_topk_compressed_mask",
    ),
}
"""The functions that each swap replaces. Where one of them is patched, the module's own code runs."""

ORIGINALS = {
    "sinkhorn": (*SEAMS["sinkhorn"], "_rms_norm_last_dim"),
    "indexer": (*SEAMS["indexer"], *_GATHERED, *_POOLED, *_CACHE, "_dsv4_kernel_backend"),
    "attention": (*SEAMS["attention"], *_GATHERED, "_rms_norm_last_dim", "DeepseekV4Compressor.forward"),
}
"""The functions that each swap replaces or calls. Those that it only calls may be patched."""


def modeling() -> ModuleType:
    """Return AutoModel's module of DeepSeek-V4's layers."""
    from nemo_automodel.components.models.deepseek_v4 import layers

    return layers  # type: ignore[no-any-return]


def named(name: str) -> Any:
    """Return the function that stands under this name now: a module's function, or a method of a class in it.

    Raises:
        AttributeError: none of the modules has it.
    """
    first, *rest = name.split(".")
    modules = [importlib.import_module(f"{_PACKAGE}.{module}") for module in MODULES]
    found = next((vars(module)[first] for module in modules if first in vars(module)), None)
    if found is None:
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    return functools.reduce(getattr, rest, found)


def known(name: str, function: Any) -> str:
    """Return "known", "patched" or "unknown": what is known of the function that stands in the place of the named one."""
    return state(name, function, FUNCTIONS, _LIBRARIES)


def check_version(swaps: tuple[str, ...] = tuple(ORIGINALS)) -> None:
    """Raise `UnknownVersionError`, in one line, unless each function that these swaps replace or call is a known one.

    A function that was patched is no matter of the version: the module that it belongs to runs as it is.
    """
    try:
        installed = version("nemo-automodel")
    except PackageNotFoundError:
        raise UnknownVersionError(
            "nemo-automodel: expected it installed, got none: pip install nemo-automodel"
        ) from None
    try:
        modeling()
    except ModuleNotFoundError:
        raise UnknownVersionError(f"nemo-automodel: expected a version with DeepSeek-V4, got {installed}") from None
    unknown = [n for swap in swaps for n in ORIGINALS[swap] if not _exists(n) or known(n, named(n)) == "unknown"]
    if unknown:
        raise UnknownVersionError(
            f"nemo-automodel: expected the {unknown[0]} of version {' or '.join(RELEASES)}, got another in {installed}"
        )


def _exists(name: str) -> bool:
    try:
        named(name)
    except AttributeError:
        return False
    return True


def patched(op: str, *methods: tuple[str, Any]) -> str | None:
    """Return which of the functions that a swap replaces is not AutoModel's own, or None.

    Args:
        op: the swap's.
        *methods: further functions, each beside the name that it has in AutoModel.
    """
    for name, function in (*((name, named(name)) for name in SEAMS[op]), *methods):
        if known(name, function) != "known":
            return f"{name} is patched"
    return None
