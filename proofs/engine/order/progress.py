"""What becomes of an operation on a run that goes on from it, and what it still needs before a later access.

Of two accesses to the same bytes, one of them a write, there must lie between them, on every run, what the table of
``docs/proofs.md`` says. `Progress.lacks` says it again: a group must be closed and awaited, or a batch finished, by the thread
that issued it; then comes a barrier, unless the same thread goes on; and before a product or TMA reads, a proxy fence. An
atomic operation counts as a store, but beside another one, which leaves open what each of them finds.

A proxy fence orders what lies before it on the way from a write to a read, so it counts on either side of the barrier: by
those who wrote, as is usual, or by those who read. Where only the latter is there, that is among what is named as not
modelled. Copies that nothing awaits at the end of a kernel end with its block, whose memory no one uses any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..access.trace import Access, Event, Node
from ..base.errors import Unsupported
from ..compiler.instructions import Does, does
from .roles import accesses, events, pending

Kind = Literal["copy", "operand", "result", "bulk", "load", "store", "register", "atomic", "none"]
Lack = tuple[str, bool]  # what is missing, and whether the access is harmless if it is by the same thread
Fence = Literal["", "before", "after"]  # the last barrier

_MEMORY: tuple[Kind, ...] = ("copy", "operand", "bulk", "load", "store", "atomic")
_READING: frozenset[Kind] = frozenset({"operand", "bulk", "load"})
FENCED: frozenset[Kind] = frozenset({"operand", "bulk"})
"""The kinds of access that see what threads have written only beyond a proxy fence."""
CONFLICTS: frozenset[tuple[Kind, Kind]] = frozenset(
    (a, b) for a, b in itertools.product(_MEMORY, repeat=2) if not ({a, b} <= _READING or a == b == "atomic")
) | {("result", "register"), ("register", "result")}
"""The kinds of two accesses that conflict if they are to the same bytes."""


def kind(a: Access) -> Kind:
    """Return what kind of access it is, as far as order goes; "none" if its order is not modelled."""
    effect = does(a.intrinsic or "")
    if effect == "product":
        return "operand" if a.region.shared else "result"
    if a.region.scope.startswith("local"):
        return "register"
    if not a.region.shared or a.region.scope == "shared.barrier":
        return "none"
    if effect in ("copy", "atomic", "bulk"):
        return effect
    return "none" if a.intrinsic else "load" if a.mode == "read" else "store"


def conflict(first: Access, second: Access) -> bool:
    """Return whether two accesses to the same bytes would conflict."""
    allocation = first.region.allocation == second.region.allocation
    return allocation and "write" in (first.mode, second.mode) and (kind(first), kind(second)) in CONFLICTS


@dataclass(frozen=True)
class Progress:
    """What has become of an operation."""

    what: Literal["copy", "product", "bulk", "plain", "register"]  # the operation, whose kinds of access begin alike
    groups: int | None = None  # that are closed from its own on (0: it is in none); None once it is over
    fence: Fence = ""  # whether the fence that it needs has come since, before or after the last barrier
    passed: bool = False  # whether a barrier has come since

    def lacks(self, later: Kind) -> Lack | None:
        """Return what is still missing before a later access of a kind to the same bytes."""
        if self.groups is not None:
            unit, waited = ("in a batch", "waited for") if self.what == "product" else ("committed", "awaited")
            return f"not {waited if self.groups else unit}", False
        if self.what == "register":
            return None if self.fence else ("with no warpgroup_arrive between", False)
        if later == "register":
            return None
        since = "between" if self.what == "plain" else "after the wait"
        if later in FENCED and not self.fence:
            return f"with no proxy fence {since}", False
        alone = self.what != "product" and later != "operand"
        return None if self.passed else (f"with no barrier {since}", alone)


BEGIN: Mapping[Kind, Progress] = {
    **{"copy": Progress("copy", 0), "bulk": Progress("bulk", 0), "register": Progress("register")},
    **dict.fromkeys(("operand", "result"), Progress("product", 0)),
    **dict.fromkeys(("load", "store", "atomic"), Progress("plain")),
}
"""The progress of an operation as it is issued."""
_GROUPS: Mapping[str, tuple[Does, Does]] = {
    "copy": ("commit", "await"),
    "product": ("batch", "finish"),
    "bulk": ("close", "drain"),
}
"""What closes a group of operations, and what waits for groups."""


class Steps:
    """What events of a program do to the progress of operations.

    Groups are counted as far as some wait in it can tell them apart. ``meets`` says whether an event is a barrier of all
    threads that run the program.
    """

    def __init__(self, nodes: Sequence[Node], meets: Callable[[Event], bool]) -> None:
        self._meets = meets
        left = [(e.does, _pending(e)) for e in events(nodes)]
        self._most = {what: 1 + max([n for does, n in left if does == what], default=0) for _, what in _GROUPS.values()}
        self._fenced = any(kind(a) in FENCED for node in nodes for a in accesses(node))
        self.deepest = max(self._most.values())

    def settled(self, progress: Progress) -> bool:
        """Return whether an operation lacks nothing any more, whatever comes."""
        if progress.what == "register":
            return bool(progress.fence)
        return progress.groups is None and progress.passed and (progress.fence == "before" or not self._fenced)

    def after(self, progress: Progress, event: Event) -> Progress:
        """Return the progress after an event."""
        if progress.groups is not None:
            closes, waits = _GROUPS[progress.what]
            if event.does == closes:
                return replace(progress, groups=min(progress.groups + 1, self._most[waits]))
            over = event.does == waits and progress.groups > _pending(event)
            return replace(progress, groups=None) if over else progress
        if self._meets(event):
            return replace(progress, passed=True, fence=progress.fence and "before")
        fence = "registers" if progress.what == "register" else "fence"
        return replace(progress, fence="after") if event.does == fence and not progress.fence else progress


def _pending(event: Event) -> int:
    """Return how many groups a wait leaves under way; Unsupported if the number varies."""
    if (number := pending(event)) is None:
        raise Unsupported(f"a wait for a varying number of groups: {event.call}")
    return number
