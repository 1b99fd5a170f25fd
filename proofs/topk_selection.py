"""That a selection kernel lists the first k of each piece of a row: conditions made from the kernel's own IR.

The kernel is read by ``engine.execution.readings``, once for each way in which its conditions may be decided. The steps of
``topk_search`` show of each reading what the search ends with, and those of ``topk_listing`` what it writes; ``topk_claims``
says what is claimed of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import z3

from ..kernels import radix
from ..kernels.radix import WARP
from ..kernels.topk import Config
from .engine.base.conditions import Condition, distinct
from .engine.base.errors import Unsupported
from .engine.execution import words
from .engine.execution.counting import Fact
from .engine.execution.readings import runs
from .engine.execution.run import Keys, Run
from .engine.execution.words import word
from .engine.layers.lemmas import Theorem
from .topk_claims import Claims, Index, whole
from .topk_listing import Listing
from .topk_search import Passes
from .topk_steps import BINS

_WORD = z3.BitVecSort(32)
SIZES = {"L": (0, 2**20), "N": (0, 2**13), "M": (0, 2**31 - 1), "C": (0, 2**31 - 1)}
"""The least and the greatest value of the kernels' dimensions, as their contracts have them."""


def sortable_key(b: z3.BitVecRef) -> z3.BitVecRef:
    """Return the selection kernel's key, as kernels/radix.py has it."""
    top, zero = z3.BitVecVal(2**31, 32), z3.BitVecVal(0, 32)
    key = z3.If(z3.ULT(b, top), b + top, zero - b)
    return z3.If(z3.And(z3.ULE(radix.LEAST, key), z3.ULE(key, radix.GREATEST)), key, zero)


def _length(cfg: Config) -> z3.BitVecRef:
    """Return how many entries the block's row has: its length, or all, but none below 0 and none beyond the row."""
    row, columns = z3.BitVec("blockIdx.x", 32), z3.BitVec("L", 32)
    known = z3.Function("lengths", _WORD, _WORD)(row)
    if cfg.ratio:
        known = words.binary("floordiv", known + 1, word(cfg.ratio), "int32")
    known = z3.If(row < z3.BitVec("M", 32), known, columns)
    known = z3.If(known <= columns, known, columns)
    return z3.If(known >= 0, known, word(0))


def _index(cfg: Config, merge: bool) -> Index:
    """Return which entry of its row an entry of the block's piece is, -1 if there is none."""
    row, piece = z3.BitVec("blockIdx.x", 32), z3.BitVec("blockIdx.y", 32)

    def index(entry: z3.BitVecRef) -> z3.BitVecRef:
        place = piece * cfg.piece + entry
        if not merge:
            return place
        candidate = z3.Function("candidates", _WORD, _WORD, _WORD)(row, place)
        return z3.If(place < z3.BitVec("C", 32), candidate, word(-1))

    return index


def _meant(cfg: Config, merge: bool) -> Callable[[z3.BitVecRef], z3.BitVecRef]:
    """Return what the key of an entry of the block's piece is meant to be: 0 where the row has no such entry."""
    row, index = z3.BitVec("blockIdx.x", 32), _index(cfg, merge)
    sort = z3.BitVecSort(words.width(cfg.dtype))

    def key(entry: z3.BitVecRef) -> z3.BitVecRef:
        place = index(entry)
        score = z3.Function("scores", _WORD, _WORD, sort)(row, place)
        bits = words.cast(score, cfg.dtype, "float32") if cfg.dtype != "float32" else score
        return z3.If(z3.And(place >= 0, place < _length(cfg)), sortable_key(bits), word(0))

    return key


def _shown(run: Run, cfg: Config, merge: bool) -> None:
    """Show of one reading of the kernel what its search ends with, and what it writes."""
    for statement, goal in run.obligations:
        run.book.show(statement, goal, *run.sizes)
    search = Passes(run, cfg.k, cfg.zeros, BINS // cfg.threads)
    state, _ = search.passes()
    claims = listing(run, cfg, state.wanted, (search.ended, search.multiple), merge=merge).goals()
    for statement, goal in (*run.obligations, *run.shared.obligations, *claims.items()):
        if not run.book.has(goal):
            raise Unsupported(f"what is not shown: {statement}")


def listing(run: Run, cfg: Config, wanted: z3.BitVecRef, known: tuple[Fact, Fact], *, merge: bool = False) -> Claims:
    """Show what one reading of the kernel writes; return what is claimed.

    Known is what the search ends with, and that keys are multiples of 2^zeros.
    """
    steps = Listing(run, wanted, cfg.k, _index(cfg, merge), _length(cfg))
    steps.listed(*known, cfg.zeros)
    return steps


def _of_run(run: Run, cfg: Config, merge: bool) -> Sequence[Condition]:
    try:
        _shown(run, cfg, merge)
    except (LookupError, AttributeError, TypeError, ValueError, StopIteration, z3.Z3Exception) as error:
        raise Unsupported(f"the steps of the proof do not fit what the kernel does: {error!r}") from error
    return run.book.conditions


def taken_whole(run: Run, cfg: Config) -> Sequence[Condition]:
    """Return what must be proved of the reading of a row that is taken whole."""
    for statement, goal in whole(run, cfg.k, _length(cfg)).items():
        run.book.show(statement, goal, *run.decided, *run.sizes)
    return run.book.conditions


def readings(kernel: Any, cfg: Config, *, merge: bool = False) -> Iterator[Run]:
    """Yield the readings of a selection kernel."""
    sizes = {str(d.name): d for b in kernel.buffer_map.values() for d in b.shape if hasattr(d, "name")}
    known = {name: SIZES[name] if name in SIZES else (0, 2**31 - 1) for name in sizes}
    yield from runs(kernel, cfg.threads, Keys("keys", WARP, _meant(cfg, merge)), known)


def conditions(kernel: Any, cfg: Config, *, merge: bool = False) -> Iterator[Condition]:
    """Yield what must be proved for a selection kernel to list the first k."""
    found: list[Condition] = []
    searched = 0
    for run in readings(kernel, cfg, merge=merge):
        if run.shared.stores or not cfg.ratio:
            searched += 1
            found += _of_run(run, cfg, merge)
        else:
            found += taken_whole(run, cfg)
    if not searched:
        raise Unsupported("the kernel has no search")
    yield from distinct(found)


def listed(kernel: Any, cfg: Config, *, merge: bool = False) -> Theorem:
    """Return the theorem about what a selection kernel writes."""
    entries, order = ("candidates", "place among the candidates") if merge else ("entries", "index")
    short = f" A row of at most {cfg.k} entries is listed whole by its first piece." if cfg.ratio else ""
    return Theorem(
        "listed",
        f"For any scores, lengths and sizes: each block lists in out[row, piece] the selected {entries} of its piece, by "
        f"rising {order}, then -1; it writes each element once, and no two of its threads race in shared memory. Selected are "
        "k, or all that may be selected if there are fewer: each one that comes before a selected one, by key, larger first, "
        f"and then by {order}, smaller first. A key is 0 where the row has no such entry that may be selected, else as in "
        f"theorem keys.{short}",
        lambda: tuple(conditions(kernel, cfg, merge=merge)),
        "of the kernel at the tile level. Let C(n) be how many are selected of the first n entries. C(0) = 0, and C rises by "
        "one after each selected entry and nowhere else: each place below the last C is that of one selected entry",
    )
