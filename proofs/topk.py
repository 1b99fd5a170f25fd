"""What is claimed of the top-k kernels.

The selection kernels are proved to stay in bounds and to write only indices that exist, and some of them to list the first
k entries of each piece of a row (topk_selection.py). One is run on examples, which its mutants fail (topk_runs.py).
A further kernel, ``topk_check``, looks at a result and says whether it is the answer. It is proved too: its output is the
criterion of reference/topk_check.py, whatever the bits of the scores, and the theorems below say that one row of indices
alone meets the criterion, the first k of the total order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import z3

from ..kernels import topk as select
from ..kernels.build import PASS_CONFIGS
from ..kernels.topk_check import NAMES, Config, topk_check
from ..operators import OPERATORS
from ..reference import topk_check as criterion
from ..reference.contract import Contract, Elements, Size, TensorSpec
from ..reference.topk import CHECK, TOPK, topk
from .engine.base.conditions import Condition
from .engine.execution import symbolic
from .engine.execution.invariants import Determined, Invariant
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.layers.comparison import symbolic_input
from .engine.layers.lemmas import Lemma, Tested, Theorem, lemma
from .engine.reference.pull_array import Integers
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.semantics.semantics import serial_loops
from .engine.verify import Compare, Compared
from .suite import Proof
from .topk_pieces import COMPOSED
from .topk_runs import examples
from .topk_selection import listed, sortable_key

selection: Callable[..., Any] = criterion.selection  # of tensors that are not torch.Tensor
ahead: Callable[..., Any] = criterion.ahead
check: Callable[..., Any] = criterion.topk_check
_LENGTHS = TensorSpec("lengths", "M", (torch.int32,))
_POSITIONS = replace(_LENGTHS, elements=Elements(high=2**31 - 1))  # to which 1 is added
PIECES = replace(
    TOPK,
    sizes={**TOPK.sizes, "M": Size(), "N": Size(0, 2**13)},  # rows that have a length, pieces of a row
    inputs=(TOPK.inputs[0], _LENGTHS),
    outputs=(replace(TOPK.outputs[0], shape="R N k"),),
    probes=({"R": 37, "T": 1009, "M": 37, "N": 3}, {"R": 2**16, "T": 2**20, "M": 0, "N": 256}),
)
MERGE = replace(
    PIECES,
    op="topk_merge",
    sizes={**PIECES.sizes, "C": Size()},
    inputs=(*PIECES.inputs, TensorSpec("candidates", "R C", (torch.int32,), Elements(-1, "T"))),
    probes=({"R": 37, "T": 1009, "M": 0, "C": 24, "N": 3}, {"R": 2**16, "T": 2**20, "M": 2**16, "C": 2**19, "N": 256}),
)
ROWS, COLUMNS = nf.variable("R"), nf.variable("T")


def _inputs(k: int) -> tuple[SymbolicTensor, ...]:
    return (
        symbolic_input("scores", (ROWS, COLUMNS), raw=True),
        symbolic_input("lengths", (ROWS,), Integers.of(torch.int32)),
        symbolic_input("indices", (ROWS, k), Integers.of(torch.int32)),
    )


def _checker(cfg: Config) -> Compare:
    """Prove the checker: thread i counts the entries of its own columns.

    Before iteration t it has sum_{s<t} ahead[row, s threads + i].
    """

    def compare(kernel: Any, facts: Facts) -> Compared:
        scores, lengths, indices = _inputs(cfg.k)
        *_, last = selection(scores, lengths, indices)
        counts = tensor(ahead(scores, lengths, last))

        def counted(s: Any, i: nf.Form) -> nf.Form:
            def one(tile: nf.Form) -> nf.Form:
                entry = tile * cfg.threads + i
                return counts.at(symbolic.block(), entry) * nf.indicator("ge", COLUMNS - 1 - entry, integer=True)

            return nf.summation(s.t, one)

        (loop,) = serial_loops(kernel).values()
        invariant = Invariant(determined={NAMES.ahead: Determined(counted)})
        done = symbolic.execute(kernel, invariants={loop: invariant}, facts=facts, raw=("scores",))
        with nf.tiled(COLUMNS, cfg.threads, strided=True):
            out = tensor(check(scores, lengths, indices))
            return done, [*done.equations, *done.compare("out", out.at)]

    return compare


_FP32, _BF16 = z3.Float32(), z3.FPSort(8, 8)


def _number(bits: z3.BitVecRef) -> z3.FPRef:
    return z3.fpBVToFP(bits, _FP32)


def _selectable(x: z3.FPRef) -> z3.BoolRef:
    """Return x > -inf, which is false of NaN."""
    return z3.fpGT(x, z3.fpMinusInfinity(_FP32))


def signed_magnitude(b: z3.BitVecRef) -> z3.BitVecRef:
    """Return the checker's integer, as the reference has it."""
    return z3.If(b >= 0, b, z3.BitVecVal(-(2**31), 32) - b)


def _magnitudes() -> Sequence[Condition]:
    """Compare signed magnitudes: b and c are any 32 bits, x and y the fp32 numbers that they stand for."""
    b, c = z3.BitVecs("b c", 32)
    x, y, s, t = _number(b), _number(c), signed_magnitude(b), signed_magnitude(c)
    numbers = z3.Not(z3.Or(z3.fpIsNaN(x), z3.fpIsNaN(y)))
    valid = z3.And(s > -criterion.INFINITY, s <= criterion.INFINITY)
    return [
        lemma("s(b) < s(c) if and only if x < y", (s < t) == z3.fpLT(x, y), numbers),
        lemma("s(b) = s(c) if and only if x = y, so that -0 is 0", (s == t) == z3.fpEQ(x, y), numbers),
        lemma("-INFINITY < s(b) <= INFINITY if and only if x > -inf", valid == _selectable(x)),
        lemma("-2^31 - b does not wrap for b < 0", z3.BVSubNoUnderflow(z3.BitVecVal(-(2**31), 32), b, signed=True), b < 0),
    ]  # fmt: skip


def _keys() -> Sequence[Condition]:
    """Compare keys: b and c are any 32 bits, x and y the fp32 numbers that they stand for."""
    b, c = z3.BitVecs("b c", 32)
    x, y, key, other = _number(b), _number(c), sortable_key(b), sortable_key(c)
    both = _selectable(x), _selectable(y)
    return [
        lemma("key(b) < key(c) if and only if x < y", z3.ULT(key, other) == z3.fpLT(x, y), *both),
        lemma("key(b) = key(c) if and only if x = y, so that -0 is 0", (key == other) == z3.fpEQ(x, y), *both),
        lemma("key(b) is 0 exactly for -inf and NaN", (key == 0) == z3.Not(_selectable(x))),
        lemma(
            "signed_magnitude is in the same order",
            z3.ULT(key, other) == (signed_magnitude(b) < signed_magnitude(c)),
            *both,
        ),
    ]


def _bfloat16() -> Sequence[Condition]:
    h = z3.BitVec("h", 16)
    x, wide = z3.fpBVToFP(h, _BF16), _number(z3.Concat(h, z3.BitVecVal(0, 16)))
    return [
        lemma("bits h, then 16 zeros, are the same number in fp32",
              z3.fpToFP(z3.RNE(), x, _FP32) == wide, z3.Not(z3.fpIsNaN(x))),
        lemma("and NaN in fp32 only if NaN in bf16", z3.fpIsNaN(x) == z3.fpIsNaN(wide)),
    ]  # fmt: skip


def _ranks() -> Sequence[Condition]:
    s, t, i, j = z3.Ints("s t i j")
    within = [z3.And(n >= 0, n < criterion.STEP) for n in (i, j)]
    r, q = s * criterion.STEP - i, t * criterion.STEP - j
    lowest = s * criterion.STEP - i > criterion.LOWEST
    return [
        lemma("rank(i) > rank(j) if and only if s_i > s_j, or s_i = s_j and i < j",
              (r > q) == z3.Or(s > t, z3.And(s == t, i < j)), *within),
        lemma("rank(i) = rank(j) only if i = j", z3.Implies(r == q, i == j), *within),
        lemma("every rank is above LOWEST", lowest, s > -(2**31), within[0]),
    ]  # fmt: skip


def _right(p: z3.ArithRef, j: z3.ArithRef, before: z3.ArithRef, valid: z3.BoolRef) -> z3.BoolRef:
    """Return what the criterion says of index j in slot p, after the one before it; ``valid`` includes 0 <= j < length."""
    return z3.Or(j == -1, z3.And(j >= 0, valid, z3.Or(p == 0, z3.And(before >= 0, before < j))))


def _slots() -> Sequence[Condition]:
    p, j, before, earlier, m = z3.Ints("p j before earlier m")
    valid = z3.Bool("valid")
    right, later = _right(p, j, before, valid), p > 0
    return [
        lemma("an index is -1 or valid", z3.Or(j == -1, z3.And(j >= 0, valid)), right),
        lemma("-1 follows -1", j == -1, right, later, before == -1),
        lemma("an index that is not -1 is larger than the one before", j > before, right, later, j >= 0),
        lemma("and larger than every earlier one, if that one was", j > earlier, right, later, j >= 0, before >= earlier),
        lemma("if m slots before p are taken, all of them, and this one is, then p + 1 are", z3.If(j >= 0, p + 1, m) == m + 1,
              right, j >= 0, m == p),
        lemma("if this one is not, no later one is, and m stays", z3.If(j >= 0, p + 1, m) == m, right, j == -1),
    ]  # fmt: skip


def _counting() -> Sequence[Condition]:
    """Count sets of entries: a and s are the numbers of elements of A and S below j."""
    in_a, in_s = z3.Bools("A S")
    a, s, more = z3.Ints("a s more")
    one_a, one_s = z3.If(in_a, 1, 0), z3.If(in_s, 1, 0)
    subset = z3.Implies(in_s, in_a)
    return [
        lemma("if S lies in A then a - s never falls", a + one_a - (s + one_s) >= a - s, subset),
        lemma("if it rises somewhere it is positive from there on", a + one_a - (s + one_s) + more > 0, subset, in_a,
              z3.Not(in_s), a - s >= 0, more >= 0),
        lemma("if it does not rise then j is in both or in neither", in_a == in_s, subset, a + one_a - (s + one_s) == a - s),
    ]  # fmt: skip


def _criterion_holds_of_the_first() -> Sequence[Condition]:
    """Compare entries x and y, where the last one selected has rank ``last``.

    S is upward closed: what comes before a member is one.
    """
    x, y, last, lowest = z3.Ints("x y last lowest")
    in_s, y_in_s, in_a = z3.Bools("S Sy A")
    closed = z3.Implies(z3.And(y_in_s, x > y), in_s)
    return [
        lemma("every entry selected has at least rank last", x >= last, z3.Implies(in_s, last <= x), in_s),
        lemma("if A = S and A is what has at least rank last, what comes before a member is a member",
              in_s, in_a == (x >= last), in_s == in_a, y >= last, x > y),
        lemma("if S is upward closed and its lowest member has rank last, S is what has at least rank last",
              in_s == (x >= last), y_in_s, y == last, closed, z3.Implies(in_s, x >= last), z3.Implies(x == y, in_s == y_in_s)),
        lemma("with lowest below every rank, what has at least that rank is every valid entry", x >= lowest, lowest < x),
    ]  # fmt: skip


def _unique() -> Sequence[Condition]:
    """Suppose that x is in U and not in V, y in V and not in U, and that U and V are upward closed: there is no such pair."""
    x, y = z3.Ints("x y")
    x_in_u, x_in_v, y_in_u, y_in_v = z3.Bools("xU xV yU yV")
    closed = [z3.Implies(z3.And(y_in_v, x > y), x_in_v), z3.Implies(z3.And(x_in_u, y > x), y_in_u)]
    return [
        lemma("of two upward closed sets one lies in the other", z3.BoolVal(False), *closed, x != y, x_in_u, z3.Not(x_in_v),
              y_in_v, z3.Not(y_in_u)),
    ]  # fmt: skip


_VALUES = (float("nan"), float("-inf"), -1.0, -0.0, 0.0, 1.0, float("inf"))


def _exhaustive() -> tuple[bool, str]:
    """Test all rows of up to three of the values above, all lengths from -1 to 4, all pairs of indices from -2 to 4."""
    count = 0
    for width in range(4):
        rows = list(product(product(_VALUES, repeat=width), range(-1, 5), product(range(-2, 5), repeat=2)))
        scores = torch.tensor([r for r, _, _ in rows]).view(len(rows), width)
        lengths = torch.tensor([n for _, n, _ in rows], dtype=torch.int32)
        indices = torch.tensor([i for _, _, i in rows], dtype=torch.int32)
        right = (topk(scores, lengths, 2) == indices).all(-1)
        if not torch.equal(criterion.topk_check(scores, lengths, indices), right.int()):
            return False, f"rows of {width}"
        count += len(rows)
    return True, f"{count} rows"


LEMMAS: tuple[Lemma, ...] = (
    Theorem("magnitudes", "For all bits of two fp32 scores: signed_magnitude compares as the numbers do, and is in (-INFINITY, "
            "INFINITY] exactly for scores above -inf, which NaN is not.", _magnitudes),
    Theorem("keys", "The keys of the selection kernel compare as the scores above -inf do, and are 0 for all others.", _keys),
    Theorem("bfloat16", "A bf16 score and its fp32 are the same number, or both NaN.", _bfloat16),
    Theorem("ranks", "For indices below 2^20: rank is injective, and higher exactly for the entry that comes first: score "
            "descending, then index ascending.", _ranks, "with magnitudes, that is the order of the scores"),
    Theorem("slots", "If no index is wrong by itself then those that are not -1 come first, are valid, ascend and are "
            "distinct, and count is their number.", _slots, "induction over the slots"),
    Theorem("counting", "If S lies in A, both finite, and they have as many elements, then S = A.", _counting,
            "induction over the entries: a - s begins and ends at 0"),
    Theorem("criterion", "The criterion holds exactly if the indices are those of the first min(k, number of valid) entries "
            "of the order, ascending, then -1.", _criterion_holds_of_the_first,
            "S is the set selected, A that of the valid entries ahead, of at least rank last; by counting S = A. If every "
            "slot is taken last is the lowest rank in S, else LOWEST, and then A is every valid entry"),
    Theorem("unique", "Each row of scores has one right row of indices.", _unique,
            "two right rows select as many entries, so that the two sets are equal; ascending, they are one row"),
    Tested("exhaustive", "For all rows of up to three scores from NaN, -inf, -1, -0, 0, 1, inf, lengths -1 to 4, and pairs of "
           "indices -2 to 4: the criterion holds exactly of the result of reference/topk.py.", _exhaustive),
    *COMPOSED,
)  # fmt: skip


_LANES = "T.shfl_xor_sync(4294967295, least[0], T.shift_left(1, s), 32)"
_LAST = "T.if_then_else(shift[0] <= 0, 2, 3)"
_WHOLE = "wanted[0] == before[0] + counts[q]"
_BEYOND = "what lanes from 4 on add, no lane before them sees"
_FEW = "with fewer keys than are wanted the edge stays below all of them"
EQUIVALENTS = {  # of k = 40 and 128 threads
    "other operator @ bits + 2147483648 -> bits - 2147483648": "modulo 2^32 they are the same",
    "stride @ g * 32 -> g * 33": "the keys of a thread are one group: g is 0",
    f"other operator @ T.max(least[0], {_LANES}) -> T.min(least[0], {_LANES})":
        "a weaker bound: the search begins further down, and ends with the same edge",
    "loop end @ for s in 1:5 -> for s in 1:6": "once more each lane exchanges with itself: of 32 five bits count",
    "loop end @ for s in 0:5 -> for s in 0:6": "once more each lane exchanges with itself: of 32 five bits count",
    "wrong buffer @ wanted[0] -> status[0]": "status is 0: the search goes on where it could end, to the same edge",
    f"constant @ T.if_then_else({_WHOLE}, 1, {_LAST}) -> T.if_then_else({_WHOLE}, 2, {_LAST})":
        "if all of the bin are wanted, so are all that equal its edge",
    "dropped guard @ if search[3] == 2 -> always": "where all from the edge on are wanted, so are all that equal it",
    "constant @ T.min(lane, 3) -> T.min(lane, 4), occurrence 2": "lanes from 4 on read nothing",
    'other operator @ T.infinity("float32") * -1 -> T.infinity("float32") / -1': "the same infinity",
    "constant @ first + 4096 -> first + 4097": "loads that need no guard have one",
    "constant @ most[0] = 1 -> most[0] = 0": "the maxima of groups are at least 1",
    "constant @ most_of_group[0] = 1 -> most_of_group[0] = 2": "no key is 1",
    "loop end @ for s in 0:1 -> for s in 0:0": "every other lane is a group of its own: 64 of them bound the edge",
    "wrong buffer @ least[0] -> most[0], occurrence 2": "the keys of a thread are one group: both are its largest",
    "loop start @ for s in 1:5 -> for s in 0:5": "both lanes of a group have the same",
    "constant @ thread % 4 -> thread % 3": "the groups of three warps, 48, bound the edge too",
    "off by one @ lane < 4 -> lane <= 4": _BEYOND,
    "constant @ T.if_then_else(lane < 4, totals[T.min(lane, 3)], 0) -> "
    "T.if_then_else(lane < 4, totals[T.min(lane, 3)], 1), occurrence 2": _BEYOND,
    "wrong buffer @ running[0] -> running[0]": "the variable of the same name holds the same sum",
    "constant @ thread == 0 -> thread == -1": _FEW,
    "dropped statement @ status[0] = 1": _FEW,
    "loop end @ for s in 0:5 -> for s in 0:6, occurrence 4": "no lane has one 32 before it",
    'constant @ T.min(T.clz(T.reinterpret("int32", lowest[0])), 31) -> T.min(T.clz(T.reinterpret("int32", lowest[0])), 32)':
        "a word with a bit set has at most 31 zeros before it",
    "dropped operand @ j * 128 -> j": "there are more threads than indices: j is 0",
}  # fmt: skip


def _check(cfg: Config, **more: Any) -> Proof:
    statics = {"k": cfg.k}
    return Proof("topk", topk_check(cfg), CHECK, statics, _checker(cfg), PASS_CONFIGS, **more)


def _select(cfg: select.Config, **more: Any) -> Proof:
    """Return what is claimed of the selection kernel.

    Where it writes depends on other threads' counts: L1 does not read that, and ``_listed`` has a theorem of it.
    """
    return Proof(
        "topk", select.topk(cfg), _of_rows(PIECES, cfg), {"k": cfg.k}, None, PASS_CONFIGS, **{"layers": ("L0",), **more}
    )


def _merge(cfg: select.Config) -> Proof:
    return Proof("topk", select.topk_merge(cfg), _of_rows(MERGE, cfg), {"k": cfg.k}, None, PASS_CONFIGS, layers=("L0",))


def _listed(claimed: Proof, cfg: select.Config, *, merge: bool = False) -> Proof:
    """Return what is claimed of a selection kernel, with what it lists."""
    statics = {"k": cfg.k, "threads": cfg.threads, "ratio": cfg.ratio}
    lemmas = (listed(claimed.kernel, cfg, merge=merge),)
    return replace(claimed, statics=statics, layers=("L0", "lemmas"), lemmas=lemmas)


def _of_rows(contract: Contract, cfg: select.Config) -> Contract:
    """Return the contract of a kernel whose rows have lengths, or queries at positions."""
    return replace(contract, inputs=tuple(_POSITIONS if cfg.ratio and x is _LENGTHS else x for x in contract.inputs))


def _listings() -> Iterator[tuple[Callable[..., Any], Any]]:
    """Yield the selection kernels that are proved to list the first k: those that ship, of bf16, and without a ratio."""
    yield from OPERATORS["topk"].shipped()
    for k, dtype, threads, ratio in ((2048, "bfloat16", 512, 4), (512, "float32", 1024, 0)):
        yield select.topk, select.Config(k, dtype, threads, ratio)
        yield select.topk_merge, select.Config(k, dtype, 256, ratio)


def proofs() -> Iterator[Proof]:
    """Yield the checker in every layer, for a k that fills the block and one that does not; the selection, listed or run."""
    yield _check(Config(), lemmas=LEMMAS, mutate=True, every=6)
    yield _check(Config(300, "bfloat16"), mutate=True, every=6)
    for factory, cfg in _listings():
        merge = factory is select.topk_merge
        yield _listed(_merge(cfg) if merge else _select(cfg), cfg, merge=merge)
    run = select.Config(40, threads=128)
    yield _select(run, layers=("L0", "run"), examples=examples(run), mutate=True, every=8, equivalents=EQUIVALENTS)
