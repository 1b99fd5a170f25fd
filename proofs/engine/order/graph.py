"""A graph of what follows what: nodes in parts, and edges that lead some iterations of a part's loop further on.

Of rounds it holds two, one after the other. A part is passed in each of them, if only in its first iteration, so a path may
lead through it. But how many iterations it has is another matter, so that those of a part count only where a path begins or
ends in it.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from .roles import AFTER, INSIDE

State = tuple[int, bool, bool]  # a node; whether all threads are ordered, and a proxy fence passed, on the way there


class Edge(NamedTuple):
    """From one node to another: how many iterations on; whether it orders all threads, or proxies, and shows writes."""

    weight: int = 0
    orders: bool = False
    fences: bool = False
    shows: bool = True


class Graph:
    """Nodes in parts, and edges from a part to the same or a later one."""

    def __init__(self) -> None:
        self.span = 0  # nodes of a round, if there are two
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

    def repeat(self) -> None:
        """Add a second round like the first: node n of one is node n + span of the other."""
        self.span = len(self._parts)
        self._parts += [part + AFTER + 1 for part in self._parts]
        self._edges += [[(b + self.span, edge) for b, edge in edges] for edges in self._edges]

    def least(
        self, a: int, b: int, *, orders: bool = True, fenced: bool = False, shown: bool = False, looping: bool = True
    ) -> int | None:
        """Return the least weight of a path from a node to another; None if there is none.

        ``orders``: only of those that order all threads; ``fenced``: only of those with a proxy fence; ``shown``: only of those
        at whose end all is seen that was written before them; ``looping``: also of those through iterations of the loops.
        """
        key = a, shown, looping
        if key not in self._known:
            self._known[key] = self._weights(a, shown, looping)
        weights, ends = self._known[key], itertools.product([b], {True, orders}, {True, fenced})
        return min((weights[s] for s in ends if s in weights), default=None)

    def _weights(self, a: int, shown: bool, looping: bool) -> dict[State, int]:
        """Return the least weight of a path to every state."""
        weights: dict[State, int] = {(a, False, False): 0}
        layers: list[list[State]] = [[(a, False, False)], []]
        weight = 0
        while layers[weight]:
            for node, ordered, fenced in layers[weight]:  # which grows
                for b, edge in self._edges[node]:
                    after, total = (b, ordered or edge.orders, fenced or edge.fences), weight + edge.weight
                    through = (looping or self._parts[b] != INSIDE) and (edge.shows or not shown)
                    through = through and (not self.span or self._certain(a, (node, b), weight, edge.weight))
                    if through and weights.get(after, total + 1) > total:
                        weights[after] = total
                        layers[total].append(after)
            weight += 1
            layers.append([])
        return weights

    def _certain(self, a: int, edge: tuple[int, int], weight: int, further: int) -> bool:
        """Return whether a path from ``a`` needs no more iterations of a part that it leads through than one."""
        begun, here, there = (self._parts[n] for n in (a, *edge))
        if begun % (AFTER + 1) == INSIDE:
            return not further or here == begun
        return not weight or here == there
