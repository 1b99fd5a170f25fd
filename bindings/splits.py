"""Into how many splits a GPU cuts the keys of few queries: as their number says, or into one, as the environment may ask."""

from __future__ import annotations

import os
from typing import Any

from .registry import Implementation, lazily

VARIABLE = "LEMMATA_SPLITS"


def one_asked() -> bool:
    """Return whether the environment asks for one split.

    Raises:
        ValueError: it asks for another number.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "1"):
        raise ValueError(f"{VARIABLE}: expected 1, or that it is not set, got {asked!r}")
    return asked == "1"


def launcher(name: str) -> Implementation:
    """Return what launches ``csa`` or ``hca``, with the keys in as many splits as are asked for at the time of the call."""
    shared_out, whole = lazily(f"lemmata.kernels.{name}", name), lazily("lemmata.kernels.one_split", name)

    def call(*args: Any) -> Any:
        return (whole if one_asked() else shared_out)(*args)

    return call
