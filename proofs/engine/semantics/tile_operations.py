"""What the tile operations mean: each a formula over the elements of the regions that it is given.

T.copy skips what lies outside its source (it reads 0) or its destination, as TileLang defines it; every other access must
be in bounds by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

from ..base.errors import Unsupported
from ..compiler.source_text import describe
from .algebra import Binary, Reduction, V
from .expressions import Expressions


class TileOperations(Expressions[V]):
    """Runs T.fill, T.copy, the reductions and T.gemm."""

    def _fill(self, call: Any) -> None:
        """Compute D[i...] = value."""
        data, lower, extents = self._region(call.args[0])
        value = self._cast(self.evaluate(call.args[1]), str(call.args[1].dtype), str(data.dtype))
        with ExitStack() as stack:
            index = self._axes(stack, lower, extents)
            self._store(data, index, value)

    def _copy(self, call: Any) -> None:
        """Compute D[i...] = S[i...] where i is inside D. S reads as 0 outside its shape. Extents of 1 are dropped."""
        source, source_lower, source_extents = self._region(call.args[0])
        target, target_lower, target_extents = self._region(call.args[1])
        one = self.algebra.literal(1, "int32")
        wide, narrow = ([d for d, e in enumerate(x) if not self._is(e, one)] for x in (target_extents, source_extents))
        pairs = zip(wide, narrow, strict=False)
        if len(wide) != len(narrow) or not all(self._is(target_extents[a], source_extents[b]) for a, b in pairs):
            raise Unsupported(f"a copy between regions of different extents: {describe(call)}")
        with ExitStack() as stack:
            index = self._axes(stack, target_lower, target_extents)
            place = list(source_lower)
            for a, b in zip(wide, narrow, strict=True):
                place[b] = self._add(source_lower[b], self._sub(index[a], target_lower[a]))
            inside = self._inside(source, place)
            zero = self.algebra.literal(0, str(source.dtype))
            with self.algebra.guard(inside):
                value = self._load(source, place)
            value = self.algebra.select(inside, value, zero, str(source.dtype))
            with self.algebra.guard(self._inside(target, index)):
                self._store(target, index, self._cast(value, str(source.dtype), str(target.dtype)))

    def _reduce(self, call: Any) -> None:
        """Compute D[i...] = op over k of S[i..., k, ...].

        Unless it is cleared, the old value of D takes part. Operations named "abs..." take absolute values first.
        """
        source, source_lower, source_extents = self._region(call.args[0])
        target, target_lower, target_extents = self._region(call.args[1])
        name, dim, clear = str(call.args[2].value), int(call.args[3]), bool(int(call.args[4]))
        absolute, kind = name.startswith("abs"), cast(Reduction, name.removeprefix("abs"))
        if kind not in ("sum", "max", "min"):
            raise Unsupported(f"reduction {name}")
        dtype = str(target.dtype)
        with ExitStack() as stack:
            index = self._axes(stack, target_lower, target_extents)
            offsets = [self._sub(i, lower) for i, lower in zip(index, target_lower, strict=True)]
            if len(target_extents) == len(source_extents):
                del offsets[dim]
            offsets = offsets[: len(source_extents) - 1]  # a full reduction has a target of one element

            def element(k: V) -> V:
                place = [*offsets[:dim], k, *offsets[dim:]]
                place = [self._add(lower, i) for lower, i in zip(source_lower, place, strict=True)]
                value = self._cast(self._load(source, place), str(source.dtype), dtype)
                return self.algebra.unary("abs", value, dtype) if absolute else value

            value = self.algebra.reduce(kind, source_extents[dim], element, dtype)
            if not clear:
                combine: Binary = "add" if kind == "sum" else kind
                value = self.algebra.binary(combine, self._load(target, index), value, dtype)
            self._store(target, index, value)

    def _gemm(self, call: Any) -> None:
        """Compute C[i, j] += Σ_k A[i, k] B[k, j] in the type of C.

        A and B may be transposed, and C may be cleared first.
        """
        a, a_lower, a_extents = self._region(call.args[0])
        b, b_lower, _ = self._region(call.args[1])
        c, c_lower, c_extents = self._region(call.args[2])
        transpose_a, transpose_b, clear = (bool(int(call.args[i])) for i in (3, 4, 9))
        dtype = str(c.dtype)
        depth = a_extents[-2 if transpose_a else -1]

        def element(buffer: Any, lower: Sequence[V], row: V, column: V, transposed: bool) -> V:
            first, second = (column, row) if transposed else (row, column)
            place = [*lower[:-2], self._add(lower[-2], first), self._add(lower[-1], second)]
            return self._cast(self._load(buffer, place), str(buffer.dtype), dtype)

        with ExitStack() as stack:
            index = self._axes(stack, c_lower, c_extents)
            i, j = (self._sub(index[d], c_lower[d]) for d in (-2, -1))

            def product(k: V) -> V:
                left, right = element(a, a_lower, i, k, transpose_a), element(b, b_lower, k, j, transpose_b)
                return self.algebra.binary("mul", left, right, dtype)

            value = self.algebra.reduce("sum", depth, product, dtype)
            if not clear:
                value = self.algebra.binary("add", self._load(c, index), value, dtype)
            self._store(c, index, value)

    def _region(self, region: Any) -> tuple[Any, list[V], list[V]]:
        """Return the buffer, the first element and the extents of a ``tl.region``."""
        load, _, *extents = region.args
        lower = [self.evaluate(i) for i in load.indices]
        sizes = [self.evaluate(e) for e in extents]
        missing = len(lower) - len(sizes)
        return load.buffer, lower, [self.algebra.literal(1, "int32")] * missing + sizes

    def _axes(self, stack: ExitStack, lower: Sequence[V], extents: Sequence[V]) -> list[V]:
        """Return an index for each dimension of a region; one wider than 1 has a variable."""
        zero, one = self.algebra.literal(0, "int32"), self.algebra.literal(1, "int32")
        index = []
        for first, extent in zip(lower, extents, strict=True):
            if self._is(extent, one):
                index.append(first)
            else:
                index.append(self._add(first, stack.enter_context(self.algebra.axis("e", zero, extent))))
        return index

    def _inside(self, buffer: Any, index: Sequence[V]) -> V:
        """Return whether an index lies within a buffer's shape."""
        inside = self.algebra.literal(True, "bool")
        for i, dim in zip(index, buffer.shape, strict=True):
            low = self.algebra.compare("ge", i, self.algebra.literal(0, "int32"), "int32")
            high = self.algebra.compare("lt", i, self.evaluate(dim), "int32")
            inside = self.algebra.binary("and", inside, self.algebra.binary("and", low, high, "bool"), "bool")
        return inside
