"""DeepSeek-V4 of NeMo AutoModel, training on lemmata's operators.

Usage::

    model = DeepseekV4ForCausalLM(config, backend=backend)
    apply_to(model)  # before or after fully_shard
    paths(model)  # which code each module ran last, and why
    undo(model)  # the very classes it had before

Only this model's modules change class; parameters, hooks, AutoModel's own functions and every other model stay as they
were. The model itself records what was swapped, so these functions may be called any number of times.

Every call that the untouched model runs, the swapped one runs, whatever backend it was built for. What an operator
computes, it computes; any other call is the module's own, and that is said once for each reason, or raised if the swap is
strict. ``docs/automodel.md`` lists what runs where.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

from . import swaps
from .automodel_attention import attention
from .automodel_block import block, further_block
from .automodel_compressor import compressor
from .automodel_hyper_connection import hyper_connection, hyper_head
from .automodel_indexer import indexer
from .automodel_originals import blocks, check_version, further_blocks, modeling
from .originals import UnknownVersionError
from .paths import FallbackError, Path, paths
from .swaps import Swap

__all__ = [
    "SWAPS",
    "FallbackError",
    "Path",
    "Swap",
    "UnknownVersionError",
    "apply_to",
    "check_version",
    "paths",
    "swapped",
    "undo",
]

Model = TypeVar("Model", bound=nn.Module)

SWAPS = (
    Swap("mhc_pre", "DeepseekV4HyperConnection", hyper_connection, __name__, modeling),
    Swap("mhc_post", "DeepseekV4Block", block, __name__, blocks, keeps_name=True),
    Swap("mhc_post", "DeepseekV4MTPBlock", further_block, __name__, further_blocks, keeps_name=True),
    Swap("mhc_head", "DeepseekV4HyperHead", hyper_head, __name__, modeling),
    Swap("compressor", "DeepseekV4Compressor", compressor, __name__, modeling, keeps_name=True),
    Swap("indexer", "DeepseekV4Indexer", indexer, __name__, modeling),
    Swap("attention", "DeepseekV4Attention", attention, __name__, modeling),
)
"""Every swap `apply_to` makes. Attention is one, though each kind of layer has an operator of its own."""


def __getattr__(name: str) -> type[nn.Module]:
    return swaps.class_named(name, SWAPS)  # a saved model loads in a process that never called apply_to


def apply_to(model: Model, *, only: Iterable[str] | None = None, strict: bool = False) -> Model:
    """Make the DeepSeek-V4 modules inside ``model`` compute with lemmata's operators.

    Args:
        model: a NeMo AutoModel DeepSeek-V4 model, or any module that contains parts of one.
        only: the operators to use, all by default. `SWAPS` names them.
        strict: raise `FallbackError` where a module would run its own code, here or in a forward, instead of a warning in
            the logger ``lemmata``. Modules that were swapped before take it over.

    Returns:
        The same model. Modules that were swapped before stay as they are, as do, with a warning, subclasses that have a
        forward of their own.

    Raises:
        UnknownVersionError: AutoModel is absent, or a function that a swap replaces or calls is not one of a version known.
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling the old class.
        ValueError: ``only`` names no operator, or the model has none of the modules to swap.
        FallbackError: the swap is strict, and a module cannot be swapped.
    """
    chosen = swaps.selected(SWAPS, only)
    check_version(tuple(swap.op for swap in chosen))
    swaps.swap_in(model, chosen, strict=strict, client="automodel")
    return model


def undo(model: Model, *, only: Iterable[str] | None = None) -> Model:
    """Give every module that `apply_to` swapped its class back, and return the model.

    Raises:
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling lemmata.
        ValueError: ``only`` names no operator.
    """
    swaps.swap_out(model, swaps.selected(SWAPS, only))
    return model


def swapped(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the names of the modules that run on lemmata now, by operator."""
    return swaps.swapped(model, SWAPS)
