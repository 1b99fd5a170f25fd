"""What a proof puts into tables is forgotten behind it, so that many proofs in one process need no more memory than one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ParamSpec, TypeVar

from ..base.setting import Setting

P = ParamSpec("P")
T = TypeVar("T")

_inside = Setting(False)
_tables: list[dict[Any, Any]] = []
_remembered: list[Any] = []


def table() -> dict[Any, Any]:
    """Return a table that only grows, except where it is made to forget."""
    _tables.append({})
    return _tables[-1]


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Keep what a function returns, which is of what the tables hold, until they forget."""
    kept = cache(function)
    _remembered.append(kept)
    return kept  # type: ignore[return-value]  # the type of what cache returns forgets the parameters


@contextmanager
def forgetting() -> Iterator[None]:
    """Forget at the end of the outermost such block what came into the tables in it.

    Who keeps a form or an atom beyond that proves nothing with it: no other is the same, nor has its number.
    """
    if _inside.value:
        yield
        return
    lengths = list(map(len, _tables))
    try:
        with _inside.set_to(True):
            yield
    finally:
        for each, length in zip(_tables, lengths, strict=True):
            for key in list(itertools.islice(each, length, None)):
                del each[key]
        for kept in _remembered:
            kept.cache_clear()
