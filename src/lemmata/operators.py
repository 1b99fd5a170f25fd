"""The operators of lemmata, each declared once. The command line, proofs, benchmarks, records, docs and tests read this.

One word names an operator in every folder: what concerns it stands in ``reference/NAME.py`` (formula and contracts),
``bindings/NAME.py`` (torch ops, the public functions, and ``shipped``, the configs that a model needs),
``proofs/NAME.py``, ``bench/NAME.py``, ``docs/NAME.md`` and ``tests/specs_NAME.py``. Importing this module loads none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .models import DEEPSEEK_V4, Model

Kernel = tuple[Callable[[Any], Any], Hashable]
"""A factory, and one of its configs."""


@dataclass(frozen=True)
class Operator:
    """What lemmata knows of an operator without loading it.

    Attributes:
        name: the word that names it in every folder.
        title: what people call it.
        functions: its public functions in ``lemmata``.
        kernels: every factory that its calls on a GPU may launch, as ``module:factory`` in ``kernels/``; none where the
            PyTorch reference runs there too, and then there is nothing to prove or to build.
        backwards: public functions that compute gradients alone, for engines that have a forward in parts.
    """

    name: str
    title: str
    functions: tuple[str, ...]
    kernels: tuple[str, ...]
    backwards: tuple[str, ...] = ()

    def module(self, folder: str) -> ModuleType:
        """Import the operator's file in ``reference``, ``bindings``, ``proofs`` or ``bench``."""
        return importlib.import_module(f"lemmata.{folder}.{self.name}")

    @property
    def public(self) -> tuple[str, ...]:
        """All that ``lemmata`` has of it."""
        return *self.functions, *self.backwards

    @property
    def kernel_modules(self) -> tuple[str, ...]:
        """The modules that hold its factories, by their full names."""
        return tuple(dict.fromkeys(f"lemmata.kernels.{kernel.partition(':')[0]}" for kernel in self.kernels))

    def shipped(self, models: Iterable[Model] = DEEPSEEK_V4) -> Iterator[Kernel]:
        """Yield the kernels that calls of these models launch, each with its configs, once each; needs TileLang."""
        if self.kernels:
            shipped = self.module("bindings").shipped
            yield from dict.fromkeys(kernel for model in models for kernel in shipped(model))


_TOPK = "topk:topk", "topk:topk_merge", "topk_check:topk_check"
_SUMS = "gradient_sums:delta", "gradient_sums:sum_window"
_CSA = "csa:csa_fwd", "combine:combine", "csa:csa_bwd", *_SUMS, "gradient_sums:sum_listed"
_HCA = "hca:hca_fwd", "combine:combine", "hca:hca_bwd", *_SUMS, "gradient_sums:sum_visible"
_SWA = "hca:hca_fwd", "hca:hca_bwd", *_SUMS
_SCORES = "indexer:indexer_scores", "indexer:indexer_scores_fp8"
_READING = (
    "mhc_project:mhc_project",
    "mhc_project:mhc_split",
    "mhc_project:mhc_multiply",
    "mhc_pre:mhc_weigh",
    "mhc_pre:mhc_head_weigh",
)
_READING_BWD = (
    "mhc_pre_backward:mhc_project_bwd",
    "mhc_gates_backward:mhc_normalise",
    "mhc_gates_backward:mhc_head_normalise",
    "sinkhorn:sinkhorn_bwd",
    "mhc_gates_backward:mhc_gates_bwd",
    "mhc_gates_backward:mhc_head_gates_bwd",
    "mhc_pre_backward:mhc_read_bwd",
    "mhc_gates_backward:mhc_sum_gates",
    "mhc_pre_backward:mhc_add_chunks",
    "mhc_gates_backward:mhc_add_gates",
)
_BETWEEN = "mhc_post_pre:mhc_mix", "mhc_post_pre:mhc_weigh_norm", "mhc_post_pre_backward:mhc_norm_bwd"
_MHC = *_READING, *_READING_BWD, "mhc_post:mhc_post_fwd", "mhc_post:mhc_post_bwd", *_BETWEEN
_COMPRESSOR = (
    "compressor:compress_fwd",
    "compressor:compress_pool",
    "compressor:compress_norm",
    "compressor_backward:compress_norm_bwd",
    "compressor_backward:compress_few_bwd",
    "compressor_backward:compress_pool_bwd",
    "compressor_step:compress_step",
    "compressor_step:compress_step_pool",
    "compressor_step:compress_step_norm",
    "compressor_step:compress_keep",
)
_LOSS = "indexer_loss:loss_teacher", "indexer_loss:loss_student", "indexer_loss_rows:loss_rows"
_LOSS_BWD = "indexer_loss_rows:loss_scores_bwd", "indexer_loss_backward:loss_bwd_listed", "gradient_sums:sum_listed"
_SCORES_BWD = "indexer_backward:indexer_scores_bwd_q", "indexer_backward:indexer_scores_bwd_k"

OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("sinkhorn", "Sinkhorn", ("sinkhorn",), ("sinkhorn:sinkhorn_fwd", "sinkhorn:sinkhorn_bwd")),
        Operator("mhc", "Hyper-connections", ("mhc_pre", "mhc_post", "mhc_post_pre", "mhc_head"), _MHC),
        Operator("topk", "Top-k", ("topk",), _TOPK),
        Operator("indexer", "Lightning Indexer", ("indexer_scores", "indexer_topk"), (*_SCORES, *_SCORES_BWD, *_TOPK)),
        Operator("indexer_loss", "Loss of the indexer", ("indexer_loss",), (*_LOSS, *_LOSS_BWD)),
        Operator("compressor", "KV compressor", ("compress", "compress_step"), _COMPRESSOR),
        Operator("csa", "Compressed sparse attention", ("csa",), _CSA, ("csa_shard_bwd",)),
        Operator("hca", "Heavily compressed attention", ("hca",), _HCA, ("hca_shard_bwd",)),
        Operator("swa", "Sliding-window attention", ("swa",), _SWA, ("swa_shard_bwd",)),
    )
}
"""Every operator by its name, in the order in which they are proved, timed and listed."""


def find(name: str) -> Operator:
    """Return the operator of that name, or the one that a public function of that name belongs to.

    Raises:
        ValueError: there is none.
    """
    operator = OPERATORS.get(name) or of_function(name)
    if operator is None:
        raise ValueError(f"op: expected one of {', '.join(names())}, got {name!r}")
    return operator


def names() -> list[str]:
    """Return the names that the command line takes for operators: their own, and those of their public functions."""
    found = (name for operator in OPERATORS.values() for name in (operator.name, *operator.functions))
    return list(dict.fromkeys(found))


def of_function(name: str) -> Operator | None:
    """Return the operator that a public function belongs to, or None."""
    return next((operator for operator in OPERATORS.values() if name in operator.public), None)
