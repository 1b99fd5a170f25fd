"""A graph of statements, for all iterations at once, and the least weights of paths in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from .roles import INSIDE

State = tuple[int, bool, bool]  # a node; whether all threads are ordered, and a proxy fence passed, on the way there


@dataclass(frozen=True)
class Edge:
    """From one node to another: how many iterations on; whether it orders all threads, or proxies, and shows writes."""

    weight: int = 0
    orders: bool = False
    fences: bool = False
    shows: bool = True


@dataclass(frozen=True)
class Paths:
    """Which paths count.

    Args:
        fenced: only those with a proxy fence.
        shown: only those at whose end all is seen that was written before them.
        looping: also those through iterations of the loops.
    """

    fenced: bool = False
    shown: bool = False
    looping: bool = True


ALL = Paths()


class Graph:
    """Nodes in parts, and edges from a part to the same or a later one."""

    def __init__(self) -> None:
        self._parts: list[int] = []
        self._edges: list[list[tuple[int, Edge]]] = []
        self._known: dict[tuple[int, bool, bool], dict[State, int]] = {}

    def node(self, part: int) -> int:
        """Add a node, and return its number."""
        self._parts.append(part)
        self._edges.append([])
        return len(self._parts) - 1

    def edge(self, a: int, b: int, edge: Edge) -> None:
        """Add an edge, unless it leads back to an earlier part."""
        if self._parts[a] <= self._parts[b]:
            self._edges[a].append((b, edge))

    def least(self, a: int, b: int, paths: Paths = ALL, orders: bool = True) -> int | None:
        """Return the least weight of a path, of those that order all threads if ``orders``; None if there is none."""
        key = a, paths.shown, paths.looping
        if key not in self._known:
            self._known[key] = self._weights(a, paths)
        weights, ends = self._known[key], itertools.product([b], {True, orders}, {True, paths.fenced})
        return min((weights[s] for s in ends if s in weights), default=None)

    def _weights(self, a: int, paths: Paths) -> dict[State, int]:
        """Return the least weight of a path to every state."""
        weights: dict[State, int] = {(a, False, False): 0}
        layers: list[list[State]] = [[(a, False, False)], []]
        weight = 0
        while layers[weight]:
            for node, ordered, fenced in layers[weight]:  # which grows
                for b, edge in self._edges[node]:
                    after, total = (b, ordered or edge.orders, fenced or edge.fences), weight + edge.weight
                    through = (paths.looping or self._parts[b] != INSIDE) and (edge.shows or not paths.shown)
                    if through and weights.get(after, total + 1) > total:
                        weights[after] = total
                        layers[total].append(after)
            weight += 1
            layers.append([])
        return weights
