"""Changing the class of a module that FSDP2, a parametrisation or accelerate has changed before."""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from torch import nn

_FROM = "_lemmata_from"
_NOT_COPIED = {"__dict__", "__weakref__", _FROM}
_BOUND = "forward", "_old_forward"  # accelerate keeps the forward that it wraps under the second name


def keeps_forward(kind: type, base: type) -> bool:
    """Return whether a class is ``base``, or a subclass with the same forward whose methods can be carried over.

    FSDP2's and parametrisations' classes are; a class with a forward of its own is not, nor is one whose methods call
    ``super()``, which remembers the class.
    """
    if not issubclass(kind, base) or not _same_forward(kind, base):
        return False
    between = [c for c in kind.__mro__ if issubclass(c, base) and c is not base]
    methods = (f for c in between for name, f in vars(c).items() if name != "__init__" and isinstance(f, FunctionType))
    return not any("__class__" in f.__code__.co_freevars for f in methods)


def _same_forward(kind: Any, base: Any) -> bool:
    """Return whether a class has the forward of ``base``, or the one that a class of transformers' layers makes of it.

    There each subclass gets a forward of its own that checkpoints, of the same code, around the one that it inherits.
    """
    forward, code = kind.forward, getattr(base.forward, "__code__", None)
    while forward is not base.forward and code is not None and getattr(forward, "__code__", None) is code:
        forward = getattr(forward, "__wrapped__", None)
    return forward is base.forward


def rebased(kind: type, old: type, new: type) -> type:
    """Return the class with ``new`` in the place of ``old`` among its ancestors.

    A class that was made here and has not changed since is traced back to the very one it was made from.
    """
    if kind is old:
        return new
    made = {*_NOT_COPIED, "forward"} if _same_forward(kind, old) else _NOT_COPIED
    namespace = {name: value for name, value in vars(kind).items() if name not in made}
    origin, then = vars(kind).get(_FROM, (None, None))
    if origin is not None and new in origin.__mro__ and old not in origin.__mro__ and then == namespace:
        return origin  # type: ignore[no-any-return]
    bases = tuple(rebased(base, old, new) if issubclass(base, old) else base for base in kind.__bases__)
    return type(kind)(kind.__name__, bases, namespace | {_FROM: (kind, namespace)})


def foreign_forward(module: nn.Module, known: tuple[Any, ...]) -> bool:
    """Return whether the module has a ``forward`` of its own that would call what it calls, whatever its class."""
    bound = [vars(module)[name] for name in _BOUND if name in vars(module)]
    return bool(bound) and not any(_binds(b, module, known) for b in bound)


def _binds(bound: Any, module: nn.Module, known: tuple[Any, ...]) -> bool:
    return isinstance(bound, MethodType) and bound.__self__ is module and bound.__func__ in known


def rebind(module: nn.Module, old: type, new: type) -> None:
    """Change the module's class, and the forward that accelerate bound before it wrapped the module."""
    forwards = old.forward, new.forward  # type: ignore[attr-defined]
    for name in _BOUND:
        bound = vars(module).get(name)
        if _binds(bound, module, forwards[:1]):
            vars(module)[name] = MethodType(forwards[1], module)
    module.__class__ = rebased(type(module), old, new)


def calls_its_class(module: nn.Module) -> bool:
    """Return whether its own ``forward`` is its class's, which accelerate leaves bound when it takes a hook away.

    So it is inside accelerate's hook too where that does no more than move tensors to the module's device.
    """
    hook, inner = vars(module).get("_hf_hook"), vars(module).get("forward")
    if type(hook).__name__ == "AlignDevicesHook" and not getattr(hook, "offload", True):
        inner = vars(module).get("_old_forward")
    return _binds(inner, module, (type(module).forward,))
