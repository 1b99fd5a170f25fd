"""Giving modules of a model the classes that call lemmata, and their own back: what every integration does alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from .classes import foreign_forward, keeps_forward, rebind
from .paths import Shared, attach, detach, record, say


@dataclass(frozen=True)
class Swap:
    """One place in a model: its name, the class that computes it, and the forward that calls lemmata instead.

    Attributes:
        op: the name of the place.
        replaces: the name of the class.
        forward: what computes it on lemmata.
        home: the module of lemmata in which pickle finds the class of ours.
        modeling: returns the library's module that holds the class.
        keeps_name: whether the class of ours has the name of the library's, by which FSDP's policies and accelerate's maps of
            devices find layers.
    """

    op: str
    replaces: str
    forward: Callable[..., Any]
    home: str
    modeling: Callable[[], ModuleType]
    keeps_name: bool = False

    @property
    def name(self) -> str:
        """The name of the class that modules are rebound to."""
        return self.replaces if self.keeps_name else f"Lemmata{self.replaces}"

    @staticmethod
    def original_of(ours: type[nn.Module]) -> type[nn.Module]:
        """Return the class that one of ours stands for."""
        return ours.__bases__[0]

    def classes(self) -> tuple[type[nn.Module], type[nn.Module]]:
        """Return the class in the library, and its subclass that differs in ``forward``."""
        return _classes(self, getattr(self.modeling(), self.replaces))

    def ours(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the class of ours that the module's descends from, whatever wraps it, or None."""
        named = (c for c in type(module).__mro__ if c.__name__ == self.name and c.__module__ == self.home)
        return next(named, None)


@cache
def _classes(swap: Swap, original: type[nn.Module]) -> tuple[type[nn.Module], type[nn.Module]]:
    members = {"forward": swap.forward, "lemmata_original": original, "__module__": swap.home}
    return original, type(swap.name, (original,), members)


def class_named(name: str, swaps: Sequence[Swap]) -> type[nn.Module]:
    """Return the class of ours with this name, for a module's ``__getattr__``: pickle looks a class up by its name.

    Raises:
        AttributeError: no swap has such a class.
    """
    for swap in swaps:
        if swap.name == name:
            return swap.classes()[1]
    raise AttributeError(f"module {swaps[0].home!r} has no attribute {name!r}")


def selected(swaps: Sequence[Swap], only: Iterable[str] | None) -> list[Swap]:
    """Return the swaps of these operators, or all.

    Raises:
        ValueError: a name is no operator's.
    """
    ops = {swap.op for swap in swaps}
    wanted = ops if only is None else set(only)
    if not wanted <= ops:
        raise ValueError(f"only: expected operators among {sorted(ops)}, got {sorted(wanted - ops)}")
    return [swap for swap in swaps if swap.op in wanted]


_RECIPE = (
    "it would go on calling what it calls. With accelerate, call remove_hook_from_submodules(model) of accelerate.hooks, "
    "then this function, then dispatch_model; a forward of your own, del the attribute and set it again after"
)


def _refuse_foreign(changes: list[tuple[str, nn.Module, type, type]]) -> None:
    for name, module, old, _ in changes:
        if foreign_forward(module, (old.forward,)):  # type: ignore[attr-defined]
            raise RuntimeError(f"model: expected no instance attribute forward, got one in {name}: {_RECIPE}")


def swap_in(model: nn.Module, swaps: Sequence[Swap], *, strict: bool, client: str) -> None:
    """Rebind every module inside a model that one of the swaps is for, and give it a record.

    Args:
        model: any module.
        swaps: what to swap.
        strict: what `Shared` says, here and for modules that were swapped before.
        client: the name of the integration.

    Raises:
        RuntimeError: a module carries a ``forward`` of its own.
        ValueError: the model has none of the modules to swap.
        FallbackError: the swap is strict, and a module cannot be swapped.
    """
    shared = next((r.shared for r in map(record, model.modules()) if r is not None), Shared(client=client))
    changes: list[tuple[str, nn.Module, type, type]] = []
    of: list[Swap] = []
    kept: list[tuple[str, Swap]] = []
    absent = []
    for swap in swaps:
        original, ours = swap.classes()
        found = [(name, module) for name, module in model.named_modules() if isinstance(module, original)]
        absent += [] if found else [swap.replaces]
        fresh = [(name, module) for name, module in found if swap.ours(module) is None]
        kept += [(name, swap) for name, module in fresh if not keeps_forward(type(module), original)]
        chosen = [(name, module, original, ours) for name, module in fresh if keeps_forward(type(module), original)]
        changes, of = changes + chosen, of + [swap] * len(chosen)
    if absent and len(absent) == len(swaps):
        raise ValueError(f"model: expected a {' or '.join(absent)} inside, got none in {type(model).__name__}")
    _refuse_foreign(changes)
    for name, swap in kept:
        reason = f"a subclass of {swap.replaces} with a forward of its own"
        say(Shared(strict, client=client), swap.op, name, reason)
    shared.strict = strict
    for (name, module, *classes), swap in zip(changes, of, strict=True):
        rebind(module, *classes)
        attach(module, swap.op, name, shared)


def swap_out(model: nn.Module, swaps: Sequence[Swap]) -> None:
    """Give every module that `swap_in` rebound its class back.

    Raises:
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling lemmata.
    """
    changes = [
        (name, module, ours, swap.original_of(ours))
        for swap in swaps
        for name, module in model.named_modules()
        if (ours := swap.ours(module)) is not None
    ]
    _refuse_foreign(changes)
    for _, module, *classes in changes:
        rebind(module, *classes)
        detach(module)


def swapped(model: nn.Module, swaps: Sequence[Swap]) -> dict[str, tuple[str, ...]]:
    """Return the names of the modules inside a model that run on lemmata now, by operator."""
    names: dict[str, tuple[str, ...]] = {}
    for swap in swaps:
        found = tuple(name for name, module in model.named_modules() if swap.ours(module) is not None)
        names[swap.op] = names.get(swap.op, ()) + found
    return {op: modules for op, modules in names.items() if modules}
