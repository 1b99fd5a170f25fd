"""DeepSeek-V4 of Hugging Face transformers, running on lemmata's operators.

Usage::

    model = DeepseekV4ForCausalLM.from_pretrained(...)
    apply_to(model)  # from here on, prefill, decode, generate and training use lemmata
    undo(model)  # the very classes it had before

Only this model's modules change class; parameters, hooks and every other model stay as they were. The model itself
records what was swapped, so both functions may be called any number of times.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch.nn.functional as F
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn

import lemmata

Model = TypeVar("Model", bound=nn.Module)

KNOWN = SpecifierSet(">=5.10,<5.24", prereleases=True)
"""The transformers versions whose modules are known to compute what the forwards below compute."""

_MODELING = "transformers.models.deepseek_v4.modeling_deepseek_v4"


def _hyper_connection(self: Any, hidden_streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = self.hc_mult
    weights = F.linear(self.input_norm(hidden_streams.flatten(2).float()), self.fn.float())
    pre, post, comb = weights.split([n, n, n * n], dim=-1)  # type: ignore[no-untyped-call]
    pre_base, post_base, comb_base = self.base.split([n, n, n * n])
    pre_scale, post_scale, comb_scale = self.scale.unbind()
    pre = (pre * pre_scale + pre_base).sigmoid() + self.hc_eps
    post = 2 * (post * post_scale + post_base).sigmoid()
    logits = (comb * comb_scale + comb_base).unflatten(-1, (n, n))
    comb = lemmata.sinkhorn(logits, iterations=self.hc_sinkhorn_iters, eps=self.hc_eps)
    collapsed = (pre.unsqueeze(-1) * hidden_streams).sum(2).to(hidden_streams.dtype)
    return post, comb, collapsed


@dataclass(frozen=True)
class Swap:
    """One operator's place in the model: the class that computes it, and the forward that calls lemmata instead."""

    op: str
    replaces: str
    forward: Callable[..., Any]

    @property
    def name(self) -> str:
        """The name of the class that modules are rebound to."""
        return f"Lemmata{self.replaces}"


SWAPS = (Swap("sinkhorn", "DeepseekV4HyperConnection", _hyper_connection),)
"""Every swap `apply_to` makes; an operator joins by one more entry."""


@cache
def _classes(swap: Swap) -> tuple[type[nn.Module], type[nn.Module]]:
    """The class in transformers, and its subclass that differs in ``forward`` alone."""
    original: type[nn.Module] = getattr(importlib.import_module(_MODELING), swap.replaces)
    return original, type(swap.name, (original,), {"forward": swap.forward, "__module__": __name__})


def __getattr__(name: str) -> type[nn.Module]:
    # Pickle looks a class up by name: a saved model loads in a process that never called apply_to.
    for swap in SWAPS:
        if swap.name == name:
            return _classes(swap)[1]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _selected(only: Iterable[str] | None) -> list[Swap]:
    ops = {swap.op for swap in SWAPS}
    wanted = ops if only is None else set(only)
    if not wanted <= ops:
        raise ValueError(f"only: expected operators among {sorted(ops)}, got {sorted(wanted - ops)}")
    return [swap for swap in SWAPS if swap.op in wanted]


class UnknownVersionError(RuntimeError):
    """The installed transformers is not one that the swaps were checked against."""


def check_version() -> None:
    """Raise `UnknownVersionError`, in one line, unless the installed transformers is in `KNOWN`."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        raise UnknownVersionError("transformers: expected it installed, got none: pip install 'lemmata[hf]'") from None
    if installed not in KNOWN:
        raise UnknownVersionError(f"transformers: expected a version in {KNOWN}, the ones checked, got {installed}")


def _rebind(changes: list[tuple[str, nn.Module, type[nn.Module]]]) -> None:
    for name, module, _ in changes:
        if "forward" in vars(module):  # so do accelerate's hooks
            raise RuntimeError(f"model: expected no instance attribute forward, got one in {name}: unhook it first")
    for _, module, new in changes:
        module.__class__ = new


def apply_to(model: Model, *, only: Iterable[str] | None = None) -> Model:
    """Make the DeepSeek-V4 modules inside ``model`` compute with lemmata's operators.

    Args:
        model: a transformers DeepSeek-V4 model, or any module that contains parts of one.
        only: the operators to use, all by default. `SWAPS` names them.

    Returns:
        The same model. Modules that were swapped before stay as they are.

    Raises:
        UnknownVersionError: this version of transformers is not in `KNOWN`.
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling the old class.
        ValueError: ``only`` names no operator, or the model has no module to swap.
    """
    check_version()
    changes: list[tuple[str, nn.Module, type[nn.Module]]] = []
    for swap in _selected(only):
        original, ours = _classes(swap)
        found = [(name, module) for name, module in model.named_modules() if type(module) in (original, ours)]
        if not found:
            raise ValueError(f"model: expected a {swap.replaces} inside, got none in {type(model).__name__}")
        changes += [(name, module, ours) for name, module in found if type(module) is original]
    _rebind(changes)
    return model


def undo(model: Model, *, only: Iterable[str] | None = None) -> Model:
    """Give every module that `apply_to` swapped its class back, and return the model.

    Raises:
        RuntimeError: a module carries a ``forward`` of its own, which would go on calling lemmata.
        ValueError: ``only`` names no operator.
    """
    ours = {swap.name for swap in _selected(only)}
    _rebind([(n, m, type(m).__bases__[0]) for n, m in model.named_modules() if type(m).__name__ in ours])
    return model


def swapped(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The names of the modules that run on lemmata now, by operator."""
    names = {swap.op: tuple(n for n, m in model.named_modules() if type(m).__name__ == swap.name) for swap in SWAPS}
    return {op: modules for op, modules in names.items() if modules}
