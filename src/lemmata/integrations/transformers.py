"""DeepSeek-V4 of Hugging Face transformers, running on lemmata's operators.

Usage::

    model = DeepseekV4ForCausalLM.from_pretrained(...)
    apply_to(model)  # from here on, prefill, decode, generate and training use lemmata
    paths(model)  # which code each module ran last, and why
    undo(model)  # the very classes it had before

Only this model's modules change class; parameters, hooks and every other model stay as they were. The model itself
records what was swapped, so these functions may be called any number of times.

Every call that the untouched model runs, the swapped one runs. What an operator computes, it computes; any other call is
the module's own, and that is said once for each reason, or raised if the swap is strict. ``docs/transformers.md`` lists
what runs where.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

from . import sight, swaps
from .attention import attention
from .compressor import compressor
from .hyper_connection import decoder_layer, hyper_connection, hyper_head
from .indexer import indexer
from .originals import UnknownVersionError, check_version, modeling
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
_MODEL = "DeepseekV4Model"  # it makes the mask

SWAPS = (
    Swap("mhc_pre", "DeepseekV4HyperConnection", hyper_connection, __name__, modeling),
    Swap("mhc_post", "DeepseekV4DecoderLayer", decoder_layer, __name__, modeling, keeps_name=True),
    Swap("mhc_head", "DeepseekV4HyperHead", hyper_head, __name__, modeling),
    Swap("compressor", "DeepseekV4CSACompressor", compressor, __name__, modeling),
    Swap("compressor", "DeepseekV4HCACompressor", compressor, __name__, modeling),
    Swap("indexer", "DeepseekV4Indexer", indexer, __name__, modeling),
    Swap("attention", "DeepseekV4Attention", attention, __name__, modeling),
)
"""Every swap `apply_to` makes. Attention is one, though each kind of layer has an operator of its own."""


def __getattr__(name: str) -> type[nn.Module]:
    return swaps.class_named(name, SWAPS)  # a saved model loads in a process that never called apply_to


def apply_to(model: Model, *, only: Iterable[str] | None = None, strict: bool = False) -> Model:
    """Make the DeepSeek-V4 modules inside ``model`` compute with lemmata's operators.

    Args:
        model: a transformers DeepSeek-V4 model, or any module that contains parts of one.
        only: the operators to use, all by default. `SWAPS` names them.
        strict: raise `FallbackError` where a module would run its own code, here or in a forward, instead of a warning in
            the logger ``lemmata``. Modules that were swapped before take it over.

    Returns:
        The same model. Modules that were swapped before stay as they are, as do, with a warning, subclasses that have a
        forward of their own.

    Raises:
        UnknownVersionError: transformers is absent, or a function that a swap replaces is not one of a version known.
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling the old class.
        ValueError: ``only`` names no operator, or the model has none of the modules to swap.
        FallbackError: the swap is strict, and a module cannot be swapped.
    """
    chosen = swaps.selected(SWAPS, only)
    check_version((*(swap.op for swap in chosen), "mask"))
    swaps.swap_in(model, chosen, strict=strict, client="transformers")
    _hook(model, on=any(swap.op == "attention" for swap in chosen))
    return model


def _hook(model: nn.Module, *, on: bool) -> None:
    """Have each model inside tell its layers what its queries see, once."""
    if not on:
        return
    for module in model.modules():
        if isinstance(module, getattr(modeling(), _MODEL)) and sight.tell not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(sight.tell, with_kwargs=True)


def _unhook(model: nn.Module) -> None:
    for module in model.modules():
        for number in [n for n, hook in module._forward_pre_hooks.items() if hook is sight.tell]:
            del module._forward_pre_hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)


def undo(model: Model, *, only: Iterable[str] | None = None) -> Model:
    """Give every module that `apply_to` swapped its class back, and return the model.

    Raises:
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling lemmata.
        ValueError: ``only`` names no operator.
    """
    chosen = swaps.selected(SWAPS, only)
    swaps.swap_out(model, chosen)
    if any(swap.op == "attention" for swap in chosen):
        _unhook(model)
    return model


def swapped(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the names of the modules that run on lemmata now, by operator."""
    return swaps.swapped(model, SWAPS)
