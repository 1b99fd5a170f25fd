"""TileLang kernels for DeepSeek-V4's sparse operators, each with a PyTorch reference and Z3 proofs about its own IR.

Every operator is a torch custom op: CUDA tensors run the kernel, CPU tensors the reference. Importing this package
needs torch alone; tilelang is imported at the first call on a CUDA tensor.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _is_command() -> bool:
    """Whether this process is ``lemmata`` or ``python -m lemmata``, which say their help without torch."""
    first = Path((sys.argv or [""])[0]).name
    looking = first == "-m"  # python has not found the module to run yet
    return first in ("lemmata", "lemmata.exe") or (looking and any(a.split(".")[0] == "lemmata" for a in sys.orig_argv))


if TYPE_CHECKING or not _is_command():
    from .bindings.compressor import compress, compress_step
    from .bindings.csa import csa, csa_shard_bwd
    from .bindings.hca import hca, hca_shard_bwd
    from .bindings.indexer import indexer_scores, indexer_topk
    from .bindings.indexer_loss import indexer_loss
    from .bindings.mhc import mhc_head, mhc_post, mhc_post_pre, mhc_pre
    from .bindings.sinkhorn import sinkhorn
    from .bindings.swa import swa, swa_shard_bwd
    from .bindings.topk import topk

__all__ = [
    "compress",
    "compress_step",
    "csa",
    "csa_shard_bwd",
    "hca",
    "hca_shard_bwd",
    "indexer_loss",
    "indexer_scores",
    "indexer_topk",
    "mhc_head",
    "mhc_post",
    "mhc_post_pre",
    "mhc_pre",
    "sinkhorn",
    "swa",
    "swa_shard_bwd",
    "topk",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    from importlib import import_module

    from .operators import of_function

    if name in __all__ and (operator := of_function(name)):
        return getattr(import_module(f".bindings.{operator.name}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
