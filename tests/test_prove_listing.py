"""The listing of top-k's selection, proved from the kernel: what the proof does not let pass."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import z3

from lemmata.kernels import topk as select
from lemmata.kernels.radix import WANTED
from lemmata.proofs.engine.base.conditions import Condition
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.smt.solve import decide, solve
from lemmata.proofs.topk_selection import listing, readings, taken_whole

SEARCH = """bound_edge(cfg.k, cfg.threads, memory, thread)
        raise_edge(cfg.zeros, cfg.threads, memory, thread)
"""
ANY = """if thread == 0:
            for q in T.unroll(4):
                search[q] = T.reinterpret(U32, tensors.scores[at.row, q])
        T.sync_threads()
"""
TEXT = Path(select.__file__).read_text().replace(SEARCH, ANY)
"""The kernels with a search that ends with any numbers at all."""
COUNTED = "k are selected, or all"
"""What hangs on the search."""


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Any]:
    """Return a function that makes of changed text a module of kernels."""
    name = "lemmata.kernels.planted"

    def module(old: str, new: str) -> Any:
        assert old in TEXT
        assert ANY in TEXT
        path = tmp_path / "planted.py"
        path.write_text(TEXT.replace(old, new, 1))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    yield module
    sys.modules.pop(name, None)


def steps(module: Any) -> list[Condition]:
    """Return the steps about the listing, where the last key is tied."""
    cfg = module.Config(40, threads=128)
    run = next(readings(module.topk(cfg), cfg))
    nothing = run.book.show("nothing", z3.BoolVal(True))
    scores = z3.Function("scores", *[z3.BitVecSort(32)] * 3)
    listing(run, cfg, scores(z3.BitVec("blockIdx.x", 32), WANTED), (nothing, nothing))
    return run.book.conditions


def test_the_listing_hangs_on_the_search_alone(planted: Any) -> None:
    open_ = {c.statement for c in steps(planted(ANY, ANY)) if solve(c).verdict != "proved"}
    assert open_ == {COUNTED}


PLACED = "a selected entry is written to its place"
HELD = "what a thread holds at a bit, from n to n + 1"
LOWEST = "lowest = selected & (T.uint32(0) - selected)"
PREFIX = "sum_across_warps(cfg.threads, memory.totals, thread, sums)\n"
ENTRY = "entry = thread * WARP + (WARP - 1) - T.min(T.clz(T.reinterpret(I32, lowest)), WARP - 1)"
WRONG = {
    "bits from the highest": (ENTRY, ENTRY.replace("(WARP - 1) -", ""), PLACED),
    "an inclusive prefix": (PREFIX, PREFIX + "    sums[0] += T.popcount(selected)\n", "what a thread holds at first"),
    "a carry": ("T.uint32(16)), memory", "T.uint32(15)), memory", "prefix sums count words, from n to n + 1"),
    "one place too few": ("place < cfg.k and", "place < cfg.k - 1 and", PLACED),
    "one place too many": ("place += 1", "place += 2", HELD),
    "a tie too few": ("or left > T.uint32(0)", "or left > T.uint32(1)", HELD),
    "ties that are not counted": ("left -= T.uint32(1)", "left -= T.uint32(0)", HELD),
    "the lowest of the complement": (LOWEST, LOWEST.replace("selected &", "(selected ^ T.uint32(2**32 - 1)) &"), HELD),
    "a word that is not cleared": ("selected = selected ^ lowest", "selected = selected | lowest", HELD),
    "one iteration too few": ("T.serial(count)", "T.serial(count - 1)", "a thread has an iteration for each bit"),
    "an entry of another piece": ("piece * cfg.piece + entry\n", "entry\n", PLACED),
    "-1 one too late": ("if place <= j", "if place < j", "-1 is written to the places after them, 0"),
    "keys above the edge": ("memory.keys[i] >= edge", "memory.keys[i] > edge", "bits count keys"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=list(WRONG))
def test_a_wrong_listing_is_refuted(planted: Any, change: tuple[str, str, str]) -> None:
    *texts, statement = change
    asked = [solve(c, witness=False).verdict for c in steps(planted(*texts)) if c.statement == statement]
    assert "refuted" in asked


def test_no_wrong_listing_is_taken_for_the_right_one(planted: Any) -> None:
    """Planted beside the right one: what was proved of that, in whatever names, must not be said of another."""
    proved = [c for c in steps(planted(ANY, ANY)) if decide(c, witness=False, renamed=True).verdict == "proved"]
    assert len(proved) > 100
    for name in ("one place too many", "a tie too few", "keys above the edge"):
        *texts, statement = WRONG[name]
        asked = [
            decide(c, witness=False, renamed=True).verdict for c in steps(planted(*texts)) if c.statement == statement
        ]
        assert "refuted" in asked, name


MASK, FIRST = "masks[0, i * warps + thread // WARP]", "masks[0, thread // WARP * WARP + i]"
CLEARED = "        selected = selected ^ lowest\n"
REFUSED = {
    "words in another order": (MASK, FIRST, "not in the order of the threads"),
    "no barrier": (
        "    T.sync_threads()\n    selected = masks",
        "    selected = masks",
        "one thread writes and another one",
    ),
    "a barrier within": (CLEARED, CLEARED + "        T.sync_threads()\n", "a barrier that some threads may not reach"),
    "an exchange within": (" ^ lowest", " ^ T.shfl_xor(lowest, 1)", "an exchange where threads may diverge"),
    "a store within": (CLEARED, CLEARED + "        masks[0, thread] = lowest\n", "a store to masks in a loop"),
    "a ballot of other keys": ("[i] >= edge", "[i] >= edge + T.cast(thread, U32)", "is not the same of each"),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=list(REFUSED))
def test_what_the_reading_does_not_know_is_refused(planted: Any, change: tuple[str, str, str]) -> None:
    *texts, message = change
    with pytest.raises(Unsupported, match=message):
        steps(planted(*texts))


def test_a_row_that_each_piece_lists_whole_is_refuted(planted: Any) -> None:
    short = "at.index == 0 and slot < at.length"
    for change, verdicts in ((short, {"proved"}), ("slot < at.length", {"proved", "refuted"})):
        module = planted(short, change)
        cfg = module.Config(40, threads=128, ratio=4)
        run = next(readings(module.topk(cfg), cfg))
        assert {solve(c).verdict for c in taken_whole(run, cfg)} == verdicts
