"""Into how many splits a GPU cuts the keys of few queries: as many as their number says, or as the environment asks for."""

from __future__ import annotations

import os
from typing import Any

from .registry import Implementation, lazily

VARIABLE, MOST = "LEMMATA_SPLITS", 9


def asked() -> int | None:
    """Return how many splits the environment asks for, or None.

    Raises:
        ValueError: that is no number from 1 to 9.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    if value not in map(str, range(1, MOST + 1)):
        raise ValueError(f"{VARIABLE}: expected a number from 1 to {MOST}, or that it is not set, got {value!r}")
    return int(value)


def launcher(name: str) -> Implementation:
    """Return what launches ``csa`` or ``hca``, with the keys in as many splits as are asked for at the time of the call."""
    chosen, given = lazily(f"lemmata.kernels.{name}", name), lazily("lemmata.kernels.given_splits", name)

    def call(*args: Any) -> Any:
        splits = asked()
        return chosen(*args) if splits is None else given(splits, *args)

    return call
