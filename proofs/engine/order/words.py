"""What conditions on order say, in words.

It is not trusted: its text is read by people, and no proof looks at it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..access.trace import Access
from .progress import kind


def named(a: Access) -> str:
    """Return an access with what makes it."""
    whose = {"copy": "copy's ", "operand": "product's ", "result": "product's ", "bulk": "TMA's "}.get(kind(a), "")
    return f"{whose}{a}"


def unmet(a: Access, b: Access) -> str:
    """Return that two accesses by two threads do not meet."""
    return f"no other thread's {b}{_where(a, b)} meets this {a} unordered"


def lacking(a: Access, b: Access, missing: Iterable[str]) -> str:
    """Return that two accesses do not meet, for which something is missing on some run."""
    return f"no {named(b)}{_where(a, b)} meets this {named(a)}, {' or '.join(dict.fromkeys(missing))}"


def _where(a: Access, b: Access) -> str:
    return "" if a.context.site == b.context.site else f" in {b.context.site.text}"
