"""The search of top-k's selection, proved from the kernel: what the proof does not let pass."""

from __future__ import annotations

from typing import Any

import pytest
import tilelang.language as T
import z3

from lemmata.kernels import radix
from lemmata.kernels import topk as select
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.execution import words
from lemmata.proofs.engine.execution.counting import INDEX, KEY, THREAD, Book
from lemmata.proofs.engine.execution.words import word
from lemmata.proofs.engine.smt.solve import solve
from lemmata.proofs.topk_selection import conditions

CFG = select.Config(40, threads=128)


def test_a_prefix_sum_that_stops_early_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @T.macro
    def inclusive(value: Any, thread: Any) -> Any:
        running, up = T.alloc_var(radix.U32), T.alloc_var(radix.U32)
        running = value
        for s in T.unroll(4):
            up = T.shfl_up(running, 1 << s)
            if thread % radix.WARP >= 1 << s:
                running += up
        return running

    monkeypatch.setattr(radix, "_inclusive", inclusive)
    with pytest.raises(Unsupported, match="a sum over threads that are not the first ones"):
        next(conditions(select.topk(CFG), CFG))


def test_a_search_that_ends_in_too_wide_a_bin_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    search = select.raise_edge
    monkeypatch.setattr(select, "raise_edge", lambda zeros, *more: search(16, *more))
    wanted = "after one more bin"
    asked = (c for c in conditions(select.topk(CFG), CFG) if c.statement == wanted)
    assert "refuted" in {solve(c).verdict for c, _ in zip(asked, range(3), strict=False)}


def test_counts_of_keys_are_no_more_than_they_are() -> None:
    book = Book(32, 2)
    low = book.predicate(z3.ULE(KEY, 7))
    goal = z3.ULE(low.count(INDEX), INDEX)
    book.induction("at most n", book.entries, goal, ([low.start], [low.step]))
    assert {solve(c).verdict for c in book.conditions} == {"proved"}
    book.conditions.clear()
    book.induction("at least n", book.entries, z3.UGE(low.count(INDEX), INDEX), ([low.start], [low.step]))
    assert {solve(c).verdict for c in book.conditions} == {"proved", "refuted"}


def test_only_schematic_variables_have_instances() -> None:
    fact = Book(32, 1).show("", z3.ULE(THREAD, THREAD))
    assert fact.at((THREAD, 3)).formula.eq(z3.ULE(word(3), word(3)))
    with pytest.raises(ValueError, match="expected schematic variables"):
        fact.at((z3.BitVec("edge", 32), 0))


def test_a_word_shifted_too_far_may_be_anything() -> None:
    x, s = z3.BitVecs("x s", 32)
    shifted = words.binary("shl", x, s, "uint32")
    solver = z3.Solver()
    solver.add(s == 32, shifted != 0)
    assert solver.check() == z3.sat
    assert z3.simplify(words.binary("floordiv", word(-7), word(2), "int32")).as_signed_long() == -4
    assert z3.simplify(words.popcount(word(0xF0))).as_long() == 4
    assert z3.simplify(words.leading_zeros(word(0))).as_long() == 32
