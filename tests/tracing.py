"""TileLang's rewriting of a kernel's Python, done once for each text: it is the same for every size, and takes longest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import CellType, CodeType, FunctionType
from typing import Any

from tilelang.language.eager import builder
from tilelang.language.eager.utils import get_func_nonlocals

Rewrite = Callable[[Any], Any]


def once(rewrite: Rewrite) -> Rewrite:
    """Return the same function of a macro or kernel, which gives a text that it knows the names around it anew.

    What becomes of a text does not depend on what those names stand for, only on which there are. One text may stand in
    two modules, which what is known keeps alive.
    """
    known: dict[tuple[CodeType, int, tuple[str, ...]], Any] = {}

    def rewritten(function: Any) -> Any:
        names = get_func_nonlocals(function)
        key = function.__code__, id(function.__globals__), tuple(names)
        if key not in known:
            known[key] = rewrite(function)
        kept = known[key]
        inside = tuple(CellType(names[name]) for name in kept.gen.__code__.co_freevars)
        of = kept.gen
        return replace(kept, gen=FunctionType(of.__code__, of.__globals__, of.__name__, of.__defaults__, inside))

    return rewritten


TILELANGS: Rewrite = builder.mutate


def install() -> None:
    """Let TileLang rewrite each text once, from now on."""
    if builder.mutate is TILELANGS:
        builder.mutate = once(TILELANGS)
