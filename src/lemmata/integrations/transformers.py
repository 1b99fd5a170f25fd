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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from torch import nn

from . import sight
from .attention import attention
from .classes import foreign_forward, keeps_forward, rebind
from .hyper_connection import hyper_connection
from .indexer import indexer
from .originals import UnknownVersionError, check_version, modeling
from .paths import FallbackError, Path, Shared, attach, detach, paths, record, say

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


@dataclass(frozen=True)
class Swap:
    """One place in the model: its name, the class that computes it, and the forward that calls lemmata instead."""

    op: str
    replaces: str
    forward: Callable[..., Any]

    @property
    def name(self) -> str:
        """The name of the class that modules are rebound to."""
        return f"Lemmata{self.replaces}"

    @staticmethod
    def original_of(ours: type[nn.Module]) -> type[nn.Module]:
        """Return the class that one of ours stands for."""
        return ours.__bases__[0]

    def classes(self) -> tuple[type[nn.Module], type[nn.Module]]:
        """Return the class in transformers, and its subclass that differs in ``forward``."""
        return _classes(self, getattr(modeling(), self.replaces))


@cache
def _classes(swap: Swap, original: type[nn.Module]) -> tuple[type[nn.Module], type[nn.Module]]:
    members = {"forward": swap.forward, "lemmata_original": original, "__module__": __name__}
    return original, type(swap.name, (original,), members)


SWAPS = (
    Swap("sinkhorn", "DeepseekV4HyperConnection", hyper_connection),
    Swap("indexer", "DeepseekV4Indexer", indexer),
    Swap("attention", "DeepseekV4Attention", attention),
)
"""Every swap `apply_to` makes. Attention is one, though each kind of layer has an operator of its own."""


def __getattr__(name: str) -> type[nn.Module]:
    # Pickle looks a class up by name: a saved model loads in a process that never called apply_to.
    for swap in SWAPS:
        if swap.name == name:
            return swap.classes()[1]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _selected(only: Iterable[str] | None) -> list[Swap]:
    ops = {swap.op for swap in SWAPS}
    wanted = ops if only is None else set(only)
    if not wanted <= ops:
        raise ValueError(f"only: expected operators among {sorted(ops)}, got {sorted(wanted - ops)}")
    return [swap for swap in SWAPS if swap.op in wanted]


def _ours(module: nn.Module, swap: Swap) -> type[nn.Module] | None:
    """Return the class of ours that the module's descends from, whatever wraps it, or None."""
    named = (c for c in type(module).__mro__ if c.__name__ == swap.name and c.__module__ == __name__)
    return next(named, None)


_RECIPE = (
    "it would go on calling what it calls. With accelerate, call remove_hook_from_submodules(model) of accelerate.hooks, "
    "then this function, then dispatch_model; a forward of your own, del the attribute and set it again after"
)


def _refuse_foreign(changes: list[tuple[str, nn.Module, type, type]]) -> None:
    for name, module, old, _ in changes:
        if foreign_forward(module, (old.forward,)):  # type: ignore[attr-defined]
            raise RuntimeError(f"model: expected no instance attribute forward, got one in {name}: {_RECIPE}")


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
    selected = _selected(only)
    check_version((*(swap.op for swap in selected), "mask"))
    shared = next((r.shared for r in map(record, model.modules()) if r is not None), Shared())
    changes: list[tuple[str, nn.Module, type, type]] = []
    swaps: list[Swap] = []
    kept: list[tuple[str, Swap]] = []
    absent = []
    for swap in selected:
        original, ours = swap.classes()
        found = [(name, module) for name, module in model.named_modules() if isinstance(module, original)]
        absent += [] if found else [swap.replaces]
        fresh = [(name, module) for name, module in found if _ours(module, swap) is None]
        kept += [(name, swap) for name, module in fresh if not keeps_forward(type(module), original)]
        chosen = [(name, module, original, ours) for name, module in fresh if keeps_forward(type(module), original)]
        changes, swaps = changes + chosen, swaps + [swap] * len(chosen)
    if absent and len(absent) == len(selected):
        raise ValueError(f"model: expected a {' or '.join(absent)} inside, got none in {type(model).__name__}")
    _refuse_foreign(changes)
    for name, swap in kept:
        say(Shared(strict), swap.op, name, f"a subclass of {swap.replaces} with a forward of its own")
    shared.strict = strict
    for (name, module, *classes), swap in zip(changes, swaps, strict=True):
        rebind(module, *classes)
        attach(module, swap.op, name, shared)
    _hook(model, on=any(swap.op == "attention" for swap in selected))
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
    selected = _selected(only)
    changes = [
        (name, module, ours, swap.original_of(ours))
        for swap in selected
        for name, module in model.named_modules()
        if (ours := _ours(module, swap)) is not None
    ]
    _refuse_foreign(changes)
    for _, module, *classes in changes:
        rebind(module, *classes)
        detach(module)
    if any(swap.op == "attention" for swap in selected):
        _unhook(model)
    return model


def swapped(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the names of the modules that run on lemmata now, by operator."""
    names = {
        swap.op: tuple(name for name, module in model.named_modules() if _ours(module, swap) is not None)
        for swap in SWAPS
    }
    return {op: modules for op, modules in names.items() if modules}
