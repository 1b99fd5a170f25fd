"""That the kernels of one call of top-k, one after the other, list the first k entries of a row.

Entry x of a row is before entry y if its score is higher, or equal and its index smaller. Of a set S of entries, b_S(x) are
before x, and the first k are those with b_S(x) < k. Each kernel cuts a list of entries into pieces and leaves of each piece the
first k, by index: that is theorem ``listed``. The theorems here say that what is left has the same first k as the row, and is a
list by index again. So has what further kernels leave, and a list that is one piece leaves its first k and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import z3
from torch import Tensor

from ..kernels import topk as select
from ..kernels.build import forget
from ..reference.topk import topk
from .engine.base.conditions import Condition
from .engine.layers.lemmas import Tested, Theorem, lemma


def _one(condition: z3.BoolRef) -> z3.ArithRef:
    """Return 1 if the condition holds, else 0: what an entry adds to a count."""
    return z3.If(condition, 1, 0)


def _first() -> Sequence[Condition]:
    """Compare a set U that a kernel selects of S with the first k of S. Counts go over the entries y of S.

    U has ``size`` elements, at most k, and all of S if fewer. What is before an element of U is one.
    """
    x_in, y_in, before, after = z3.Bools("x_in_U y_in_U y_before_x x_before_y")
    b, u, rest, size, k = z3.Ints("b u rest size k")
    of_x, of_y = z3.Implies(z3.And(x_in, before), y_in), z3.Implies(z3.And(y_in, after), x_in)
    of_b, of_u = _one(before), _one(z3.And(before, y_in))
    other = _one(z3.And(z3.Not(before), y_in))
    return [
        lemma("of x in U, as many elements of U as of S are before it", b + of_b == u + of_u, of_x, x_in, b == u),
        lemma("all others of U are x, or are not before it: with x they are at least 1, so that b < k", b < k,
              b == u, u + rest == size, rest >= 1, size <= k),
        lemma("of x in S and not in U, which differs from y in U, all of U is before it", other == 0,
              of_y, z3.Not(x_in), z3.Implies(y_in, z3.Or(before, after))),
        lemma("so that b >= k, as U has k elements", b >= k, u == size, b >= u, z3.Implies(size < k, x_in), z3.Not(x_in)),
    ]  # fmt: skip


def _same() -> Sequence[Condition]:
    """Compare the first k of S with those of T, which holds the first k of each piece P of S, and nothing but elements of S.

    s, t and p count the elements of S, T and x's piece before x, along the order: b is the number of those of S before y.
    """
    in_s, in_t, in_p = z3.Bools("y_in_S y_in_T y_in_P")
    s, t, p, k, of_s, of_t, of_p = z3.Ints("s t p k b_S b_T b_P")
    least, more = z3.If(s < k, s, k), s + _one(in_s)
    return [
        lemma("no more of a piece than of S are before x", p + _one(in_p) <= more, z3.Implies(in_p, in_s), p <= s),
        lemma("nor more of T than of S", t + _one(in_t) <= more, z3.Implies(in_t, in_s), t <= s),
        lemma("the first k of S are among the first k of their pieces, so that T has them", of_p < k, of_s < k, of_p <= of_s),
        lemma("along the order, T has at least as many as S, up to k", t + _one(in_t) >= z3.If(more < k, more, k),
              t >= least, z3.Implies(z3.And(in_s, s < k), in_t)),
        lemma("an entry is among the first k of T if and only if among those of S", (of_t < k) == (of_s < k),
              of_t <= of_s, of_t >= z3.If(of_s < k, of_s, k)),
    ]  # fmt: skip


def _ascending() -> Sequence[Condition]:
    """Compare candidates at places u < v of what a kernel leaves, k to a piece; -1 stands for none.

    Candidate c of place u is at place f(u) of the list before, in piece u // k of P places, or is that place of the row.
    """
    u, v, k, P, f, g, c, d, R = z3.Ints("u v k P f_u f_v c_u c_v R")
    own = f / P == u / k, g / P == v / k  # each is of its piece
    within = z3.Implies(u / k == v / k, f < g)  # as a kernel lists the places of a piece
    return [
        lemma("places of what was selected ascend", f < g, u < v, k > 0, P > 0, *own, within),
        lemma("so do its entries, if those of the list before ascend", c < d, f < g, z3.Implies(f < g, c < d)),
        lemma("so that of two that score alike the one with the smaller place has the smaller index", (f < g) == (c < d),
              z3.Implies(f < g, c < d), z3.Implies(g < f, d < c), f != g),
        lemma("an entry of a list of R places is in one of ceil(R / P) pieces", z3.And(f / P >= 0, f / P < (R + P - 1) / P),
              f >= 0, f < R, P > 0),
        lemma("a list of R places has no more than P if it is one piece", R <= P, (R + P - 1) / P == 1, P > 0),
    ]  # fmt: skip


def _as_claimed(scores: Tensor, lengths: Tensor, found: Tensor, out: Tensor, cfg: select.Config) -> None:
    """Do to each piece what the theorem says of the kernel: candidates ``found`` in order, -1 for none."""
    rows, columns = scores.shape
    seen = (lengths + 1) // cfg.ratio if cfg.ratio else lengths
    of_row = torch.full((rows,), columns)
    of_row[: len(seen)] = seen[:rows].clamp(0, columns)
    out.fill_(-1)
    for row, piece in ((r, p) for r in range(rows) for p in range(out.shape[1])):
        if cfg.ratio and of_row[row] <= cfg.k:
            every = torch.arange(int(of_row[row]) if piece == 0 else 0)
        else:
            part = found[row, piece * cfg.piece : (piece + 1) * cfg.piece]
            part = part[(part >= 0) & (part < of_row[row])].long()
            places = topk(scores[row, part].unsqueeze(0), None, cfg.k)[0]
            every = part[places[places >= 0].long()]
        out[row, piece, : len(every)] = every


def _launched(factory: Callable[..., Any], cfg: select.Config) -> Callable[..., None]:
    """Return what stands for a kernel of top-k: it takes the kernel's tensors."""

    def launch(scores: Tensor, lengths: Tensor, *others: Tensor) -> None:
        every = torch.arange(scores.shape[1]).expand(scores.shape[0], -1)
        found, out = others if factory is select.topk_merge else (every, *others)
        list_width = found.shape[1]
        if out.shape != (scores.shape[0], -(-list_width // cfg.piece), cfg.k):
            raise ValueError(f"out: expected a piece for every {cfg.piece} of {list_width}, got {tuple(out.shape)}")
        _as_claimed(scores, lengths, found, out, cfg)

    return launch


CALLS = (  # columns, k, the number of each row's entries or the position of its query, the ratio
    (1, 1, None, 0),
    (4096, 40, [4096, 5, 0, -3], 0),
    (32768, 512, None, 0),
    (32769, 512, [32769, 32768, 100], 0),
    (70000, 2048, [40000, 70000], 0),
    (70000, 512, [279_999, 2047, 2051, 140_000], 4),
    (2**20, 2048, [2**20], 0),
)


def _scores(rows: int, columns: int) -> Tensor:
    """Return scores, many of them alike, some of them NaN and infinite."""
    drawn = torch.randint(-3, 400, (rows, columns), generator=torch.Generator().manual_seed(columns)).float()
    drawn[drawn == -3], drawn[drawn == -2], drawn[drawn == -1] = torch.nan, -torch.inf, -0.0
    return drawn


def _calls() -> Iterator[tuple[str, bool]]:
    with patch.object(select, "build", _launched):
        for columns, k, lengths, ratio in CALLS:
            given = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
            scores = _scores(2 if lengths is None else len(lengths), columns)
            forget()
            try:
                got = select.select_pieces(scores, given, k, ratio).view(-1, k)
            finally:
                forget()
            seen = given if given is None or not ratio else (given + 1) // ratio
            right = topk(scores, seen, k)
            if ratio and seen is not None:  # a query's row of at most k entries is taken whole
                few = seen <= k
                whole = torch.arange(k).expand(len(seen), -1)
                right = torch.where(few[:, None], torch.where(whole < seen[:, None], whole, -1).int(), right)
            yield f"{columns} columns, k = {k}", torch.equal(got, right)


def _tried() -> tuple[bool, str]:
    """Run ``select_pieces`` with functions in the place of its kernels that do what is claimed of these."""
    found = list(_calls())
    return all(right for _, right in found), f"{len(found)} calls, of one kernel to four"


COMPOSED = (
    Theorem("first", "A set of at most k entries, all if fewer, that has what is before its elements, is the first k.",
            _first, "two counts over the entries, and one over those that are not before x"),
    Theorem("pieces", "What holds the first k of each piece of a row, and nothing but entries of it, has the row's first k.",
            _same, "counts along the order; from a list to the next, any number of times"),
    Theorem("ascending", "If the entries of a list ascend, so do those that a kernel leaves of it, -1 aside; each entry is in "
            "one piece.", _ascending, "places of other pieces ascend as the pieces do"),
    Tested("calls", "With functions in the place of kernels that leave of each piece what is claimed, calls of 1 to 2^20 "
           "columns give the result of reference/topk.py: with and without lengths, and of queries at positions.", _tried),
)  # fmt: skip
