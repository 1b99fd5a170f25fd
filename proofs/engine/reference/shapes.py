"""What a view is to look like: the size that was left open, and which dimensions before and after lie in one another.

It is not trusted: ``reshaping`` takes a size only if the view then has the shape that was asked for and holds as many
elements as before, and dimensions together only if they hold as many elements before and after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.normal_form import ONE, ZERO, Form


def number(shape: Sequence[Form]) -> Form:
    """Return how many elements there are of a shape."""
    return math.prod(shape, start=ONE)


def inferred(old: Sequence[Form], new: Sequence[Form]) -> list[Form]:
    """Return a new shape with the size that was left open, -1.

    Raises:
        Unsupported: whether there is such a size is not known.
    """
    known = number([size for size in new if size.constant != -1])
    rest = ZERO if known is ZERO else number(old) / known
    if any(size.constant == -1 for size in new) and not nf.is_natural(rest):
        raise Unsupported(f"a view of {number(old)} elements in rows of {known}")
    return [rest if size.constant == -1 else size for size in new]


def together(old: Sequence[Form], new: Sequence[Form]) -> Iterator[tuple[int, int]]:
    """Yield how many dimensions before and after, next to each other, hold the same number of elements; as few as can be.

    Raises:
        Unsupported: an extent that varies is to be divided by.
    """
    while old or new:
        ends = ((a, b) for total in range(1, len(old) + len(new) + 1) for a in range(total + 1) for b in [total - a])
        fits = (e for e in ends if e[0] <= len(old) and e[1] <= len(new) and number(old[: e[0]]) is number(new[: e[1]]))
        a, b = next(fits, (len(old), len(new)))
        if any(n.constant is None for n in old[1:a]):
            raise Unsupported(f"a view that divides by {', '.join(map(str, old[1:a]))}")
        yield a, b
        old, new = old[a:], new[b:]
