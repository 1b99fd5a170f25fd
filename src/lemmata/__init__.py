"""TileLang kernels for DeepSeek-V4's sparse operators, each with a PyTorch reference and Z3 proofs about its own IR.

Every operator is a torch custom op: CUDA tensors run the kernel, CPU tensors the reference. Importing this package
needs torch alone; tilelang is imported at the first call on a CUDA tensor.
"""

from .bindings.csa import csa
from .bindings.hca import hca
from .bindings.indexer import indexer_scores, indexer_topk
from .bindings.sinkhorn import sinkhorn
from .bindings.swa import swa
from .bindings.topk import topk

__all__ = ["csa", "hca", "indexer_scores", "indexer_topk", "sinkhorn", "swa", "topk"]
__version__ = "0.1.0"
