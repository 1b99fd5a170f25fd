"""How sums are built for the time of a proof: over tiles, by a rule, or term by term.

The choices are equalities, so that none of them changes what a sum denotes; a proof makes the kernel's sums and the
reference's meet by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from .ring import Form, Rational, form

Rule = Callable[[Callable[[Form], Form]], Form | None]
"""From the body of a sum what the sum is, or None."""

tilings: dict[Form, tuple[int, bool]] = {}
"""For each extent that is tiled now, the elements of a tile, and whether the two sums are exchanged."""
_rules: dict[Form, Rule] = {}
_splitting: list[int] = []


@contextmanager
def tiled(extent: Form | Rational, block: int, *, strided: bool = False) -> Iterator[None]:
    """Build a sum over ``extent`` elements, inside, as one over blocks of one over the elements of a block.

    Sum_{k < n} f(k) = Sum_{t < ⌈n/block⌉} Sum_{b < block} [t block + b < n] f(t block + b), where the condition is left
    out if the block divides every coefficient of n. ``strided``: the two sums are exchanged.
    """
    before = dict(tilings)
    tilings[form(extent)] = block, strided
    try:
        yield
    finally:
        tilings.clear()
        tilings.update(before)


@contextmanager
def ruled(rules: Mapping[Form, Rule]) -> Iterator[None]:
    """Let a sum over one of the extents be, inside, what its rule says of its body, if it says anything."""
    before = dict(_rules)
    _rules.update(rules)
    try:
        yield
    finally:
        _rules.clear()
        _rules.update(before)


def by_rule(extent: Form, body: Callable[[Form], Form]) -> Form | None:
    """Return what the rule for an extent says of a sum; within the rule, sums are built without rules."""
    if extent not in _rules:
        return None
    rules = dict(_rules)
    _rules.clear()
    try:
        return rules[extent](body)
    finally:
        _rules.update(rules)


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


def splits() -> bool:
    """Return whether sums are split term by term now."""
    return bool(_splitting)


def longest(otherwise: int) -> int:
    """Return the largest constant extent of a sum that is written out now."""
    return _splitting[-1] if _splitting else otherwise
