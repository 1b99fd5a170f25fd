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
MODULES = ("layers", "optimized_kernels", "cp", "model", "mtp", "../common/utils")
"""The modules that hold the originals, by their paths from AutoModel's DeepSeek-V4."""

_CALLED = ("_apply_partial_rope", "_apply_partial_rope_interleaved", "_query_positions", "dsv4_cp_enabled")
_GATHERED = (*_CALLED, "dsv4_cp_all_gather", "dsv4_cp_rank", "dsv4_cp_size")
_POOLED = "_compressed_window_metadata", "_pool_windows", "_rope_pool_positions", "dsv4_cp_all_gather_metadata"
_CACHE = "DeepseekV4TrainCache.accumulate_windows", "DeepseekV4TrainCache.update_pool"

SEAMS = {
    "mhc_pre": (
        "DeepseekV4HyperConnection.forward",
        "DeepseekV4HyperConnection.compute_weights",
        "dsv4_sinkhorn_normalize",
        "sinkhorn_normalize_torch",
    ),
    "mhc_post": (),
    "mhc_head": ("_rms_norm_last_dim",),
    "compressor": (),
    "entries": (
        "_pool_windows",
        "_overlap_transform_with_cp",
        "_overlap_transform",
        "_apply_partial_rope",
        "_apply_partial_rope_interleaved",
        "DeepseekV4RotaryEmbedding.forward",
        "Float32RMSNorm.forward",
        "_float32_rms_norm_fwd",
        "_float32_rms_norm_impl",
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
"""The functions that each swap replaces, besides the forward of the module itself. Where one of them is patched, the module's
own code runs; of the entries, which compressors and indexers make, what makes them."""

ORIGINALS = {
    "mhc_pre": (*SEAMS["mhc_pre"], "_rms_norm_last_dim"),
    "mhc_post": ("DeepseekV4Block.forward", "DeepseekV4MTPBlock.forward"),
    "mhc_head": (*SEAMS["mhc_head"], "DeepseekV4HyperHead.forward"),
    "compressor": (
        "DeepseekV4Compressor.forward",
        "DeepseekV4Compressor._compute_fsdp_group_has_complete_hca_window",
        *SEAMS["entries"],
        *_GATHERED,
        *_POOLED,
        *_CACHE,
    ),
    "indexer": (*SEAMS["indexer"], *SEAMS["entries"], *_GATHERED, *_POOLED, *_CACHE, "_dsv4_kernel_backend"),
    "attention": (*SEAMS["attention"], *_GATHERED, "_rms_norm_last_dim", "DeepseekV4Compressor.forward"),
}
"""The functions that each swap replaces or calls. Those that it only calls may be patched."""


def modeling() -> ModuleType:
    """Return AutoModel's module of DeepSeek-V4's layers."""
    from nemo_automodel.components.models.deepseek_v4 import layers

    return layers  # type: ignore[no-any-return]


def blocks() -> ModuleType:
    """Return AutoModel's module of DeepSeek-V4's blocks."""
    return importlib.import_module(f"{_PACKAGE}.model")


def further_blocks() -> ModuleType:
    """Return AutoModel's module of the layers that predict further tokens."""
    return importlib.import_module(f"{_PACKAGE}.mtp")


@functools.cache
def _modules() -> list[ModuleType]:
    names = ["." + module.replace("../", ".").replace("/", ".") for module in MODULES]
    return [importlib.import_module(name, _PACKAGE) for name in names]


def named(name: str) -> Any:
    """Return the function that stands under this name now: a module's function, or a method of a class in it.

    Raises:
        AttributeError: none of the modules has it.
    """
    first, *rest = name.split(".")
    found = next((vars(module)[first] for module in _modules() if first in vars(module)), None)
    if found is None:
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    found = functools.reduce(getattr, rest, found)
    return getattr(found, "_init_fn", found)  # of an operator of torch's, the function that it was made of


def known(name: str, function: Any) -> str:
    """Return "known", "patched" or "unknown": what is known of the function that stands in the place of the named one."""
    return state(name, function, FUNCTIONS, _LIBRARIES)


_INSTALL = ": pip install 'lemmata[automodel]'"  # which takes the release that is known


def check_version(swaps: tuple[str, ...] = tuple(ORIGINALS)) -> None:
    """Raise `UnknownVersionError`, in one line, unless each function that these swaps replace or call is a known one.

    A function that was patched is no matter of the version: the module that it belongs to runs as it is.
    """
    try:
        installed = version("nemo-automodel")
    except PackageNotFoundError:
        raise UnknownVersionError(f"nemo-automodel: expected it installed, got none{_INSTALL}") from None
    try:
        modeling()
    except ModuleNotFoundError:
        words = f"nemo-automodel: expected a version with DeepSeek-V4, got {installed}{_INSTALL}"
        raise UnknownVersionError(words) from None
    unknown = [n for swap in swaps for n in ORIGINALS[swap] if not _exists(n) or known(n, named(n)) == "unknown"]
    if unknown:
        raise UnknownVersionError(
            f"nemo-automodel: expected the {unknown[0]} of version {' or '.join(RELEASES)}, "
            f"got another in {installed}{_INSTALL}"
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
