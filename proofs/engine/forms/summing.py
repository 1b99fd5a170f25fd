"""How sums are built for the time of a proof: over tiles, term by term, and which are written out.

It is not trusted: these are choices. ``normal_form`` builds a sum by laws of its own, which hold for tiles of any size and
for any extent that is written out. A proof makes the kernel's sums and the reference's meet by such choices.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from ..base.setting import Setting
from .ring import Form, Rational, form

_tilings = Setting[dict[Form, tuple[int, bool]]]({})
_splitting = Setting[int | None](None)


def tiled(
    extent: Form | Rational, block: int, *, strided: bool = False
) -> AbstractContextManager[dict[Form, tuple[int, bool]]]:
    """Build a sum over ``extent`` elements, inside, as one over blocks of one over the elements of a block.

    Sum_{k < n} f(k) = Sum_{t < ⌈n/block⌉} Sum_{b < block} [t block + b < n] f(t block + b), where the condition is left
    out if the block divides every coefficient of n. ``strided``: the two sums are exchanged.
    """
    return _tilings.set_to(_tilings.value | {form(extent): (block, strided)})


def splitting(longest: int) -> AbstractContextManager[int | None]:
    """Make several sums, inside, of a term of a sum's body that becomes several terms when the variable is bound.

    Then equal sums are the same more often, but there are more of them. Those of more than ``longest`` terms are not
    written out.
    """
    return _splitting.set_to(longest)


def tiling(extent: Form) -> tuple[int, bool] | None:
    """Return how a sum is tiled now: the elements of a tile, and whether the two sums are exchanged; or None."""
    return _tilings.value.get(extent)


def splits() -> bool:
    """Return whether sums are split term by term now."""
    return _splitting.value is not None


def longest(otherwise: int) -> int:
    """Return the largest constant extent of a sum that is written out now."""
    return otherwise if _splitting.value is None else _splitting.value
