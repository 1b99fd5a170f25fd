"""Theorems about CSA and HCA: who is attended to, and that splits of the keys add up to all of them."""

from __future__ import annotations

from collections.abc import Sequence

import z3

from .engine.base.conditions import Condition
from .engine.layers.lemmas import Lemma, Theorem, lemma


def _window() -> Sequence[Condition]:
    """Return that slot j of tile u of the window holds the token s - window + 1 + u N + j."""
    s, window, N, u, j, w, P, offset = z3.Ints("s window N u j w P offset")
    slot, start = u * N + j, s - window + 1
    token = start + slot
    seen = z3.And(token <= s, P + token >= 0, offset + token >= 0)
    given = (window >= 1, N >= 1, u >= 0, j >= 0, j < N, u * N >= 0)
    divided = (w == u * N + j, w >= 0, w < window)
    other, k = z3.Ints("other k")
    apart = z3.And(
        z3.Implies(other >= u + 1, other * N >= u * N + N), z3.Implies(u >= other + 1, u * N >= other * N + N)
    )
    return [
        lemma("a token seen is at a position in (query - window, query]",
              z3.And(offset + token > offset + s - window, offset + token <= offset + s), seen, *given),
        lemma("it has a position and a row", z3.And(offset + token >= 0, P + token >= 0), seen, *given),
        lemma("each such token is in a slot that is seen", seen,
              *given, *divided, P + start + w >= 0, offset + start + w >= 0),
        lemma("a product with N is monotone", apart, N >= 1),
        lemma("and in no other slot", z3.And(other == u, k == j), *given, apart, k >= 0, k < N, other * N + k == slot),
    ]  # fmt: skip


def _entries() -> Sequence[Condition]:
    """Return that ⌊(position + 1) / ratio⌋ entries end at the position or before."""
    position, ratio, count, T, j = z3.Ints("position ratio count T j")
    defined = z3.And(ratio * count <= position + 1, position + 1 < ratio * count + ratio)
    ended, seen = ratio * (j + 1) <= position + 1, z3.And(j < count, j < T)
    below, above = ratio * (j + 1) <= ratio * count, ratio * (count + 1) <= ratio * (j + 1)
    given = (ratio >= 1, j >= 0, defined)
    return [
        lemma("j + 1 <= count gives ratio (j + 1) <= ratio count", below, ratio >= 1, j + 1 <= count),
        lemma("count + 1 <= j + 1 gives ratio (count + 1) <= ratio (j + 1)", above, ratio >= 1, count <= j),
        lemma("an entry seen ends at the query or before", ended, *given, seen, below),
        lemma("an entry that does is seen, if it is there", seen, *given, j < T, ended, z3.Implies(count <= j, above)),
    ]  # fmt: skip


def _partition() -> Sequence[Condition]:
    """Return that split y of r begins at tile ⌊n y / r⌋."""
    n, y, r, first, end = z3.Ints("n y r first end")

    def quotient(q: z3.ArithRef, a: z3.ArithRef) -> z3.BoolRef:
        return z3.And(r * q <= a, a < r * q + r)

    given = (n >= 0, y >= 0, r >= 1, quotient(first, n * y), quotient(end, n * y + n))
    return [
        lemma("the first split begins at tile 0", first == 0, r >= 1, quotient(first, z3.IntVal(0)),
              z3.Implies(first >= 1, r * first >= r), z3.Implies(first <= -1, r * first <= -r)),
        lemma("the last one ends at tile n", end == n, r >= 1, quotient(end, r * n),
              z3.Implies(end >= n + 1, r * end >= r * n + r), z3.Implies(end <= n - 1, r * end <= r * n - r)),
        lemma("a split ends where it begins or after", first <= end, *given,
              z3.Implies(first >= end + 1, r * first >= r * end + r)),
    ]  # fmt: skip


def _splits() -> Sequence[Condition]:
    """Return that splits add up: m and v are the sums of exp z and exp z k over one, M and V over those before it."""
    m, v, M, V, s, row_sum, acc = z3.Reals("m v M V s row_sum acc")
    e, mass, weighed = z3.Reals("exp(row_max) mass weighed")
    given = (e * row_sum == m, e * acc == v)
    return [
        lemma("one more split adds its weighted sum", weighed + e * acc == V + v, weighed == V, *given),
        lemma("and its mass", mass + e * row_sum == M + m, mass == M, *given),
        lemma(
            "there is a key if and only if there is mass",
            z3.And(M + m >= 0, (M + m > 0) == z3.Or(M > 0, m > 0)),
            M >= 0,
            m >= 0,
        ),
        lemma("what combine divides by is not 0", M + s > 0, M >= 0, s > 0),
    ]


WINDOW = Theorem(
    "window", "A query attends to the tokens at positions in (query - window, query] that have a row and a position of at "
    "least 0: to none else, and to each once.", _window, "layer L2 says that the keys are those of such slots",
)  # fmt: skip
ENTRIES = Theorem(
    "causality", "A query attends to entry j < T exactly if ratio (j + 1) <= position + 1: to none that ends after it, and to "
    "each other one.", _entries, "layer L2 says that these are the first floor((position + 1) / ratio) that there are",
)  # fmt: skip
PARTITION = Theorem(
    "partition", "Of n tiles each is in exactly one of r splits, those from floor(n y / r) to floor(n (y + 1) / r).",
    _partition, "induction over the splits: each begins where the one before ends",
)  # fmt: skip
SPLIT: tuple[Lemma, ...] = (
    PARTITION,
    Theorem("splits", "What combine makes of the splits are out and lse of all keys: for the row_max, row_sum and acc of a "
            "split, exp(row_max) row_sum is m, the sum of exp z, and exp(row_max) acc is v, that of exp z k.", _splits,
            "induction over the splits, which by partition share out the tiles; layer L2 says what each kernel computes"),
)  # fmt: skip
