"""How sums are built for the time of a proof: over tiles, term by term, and which are written out.

It is not trusted: these are choices. ``normal_form`` builds a sum by laws of its own, which hold for tiles of any size and
for any extent that is written out. A proof makes the kernel's sums and the reference's meet by such choices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .ring import Form, Rational, form

_tilings: dict[Form, tuple[int, bool]] = {}
_splitting: list[int] = []


@contextmanager
def tiled(extent: Form | Rational, block: int, *, strided: bool = False) -> Iterator[None]:
    """Build a sum over ``extent`` elements, inside, as one over blocks of one over the elements of a block.

    Sum_{k < n} f(k) = Sum_{t < ⌈n/block⌉} Sum_{b < block} [t block + b < n] f(t block + b), where the condition is left
    out if the block divides every coefficient of n. ``strided``: the two sums are exchanged.
    """
    before = dict(_tilings)
    _tilings[form(extent)] = block, strided
    try:
        yield
    finally:
        _tilings.clear()
        _tilings.update(before)


@contextmanager
def splitting(longest: int) -> Iterator[None]:
    """Make several sums, inside, of a term of a sum's body that becomes several terms when the variable is bound.

    Then equal sums are the same more often, but there are more of them. Those of more than ``longest`` terms are not
    written out.
    """
    _splitting.append(longest)
    try:
        yield
    finally:
        _splitting.pop()


def tiling(extent: Form) -> tuple[int, bool] | None:
    """Return how a sum is tiled now: the elements of a tile, and whether the two sums are exchanged; or None."""
    return _tilings.get(extent)


def splits() -> bool:
    """Return whether sums are split term by term now."""
    return bool(_splitting)


def longest(otherwise: int) -> int:
    """Return the largest constant extent of a sum that is written out now."""
    return _splitting[-1] if _splitting else otherwise
