"""What is claimed of the Lightning Indexer's score kernels: scores are the reference's, and causal.

A score is a sum over heads of relu of a sum over D. The kernel splits the sum over heads into groups, lanes and pairs, so
that of the reference is written out; the sum over D stays a symbol. The loop over a chunk carries nothing from one
iteration to the next, so that one iteration at a symbolic index stands for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import z3

from ..kernels.build import PASS_CONFIGS
from ..kernels.indexer import Config, fp8, indexer_scores, indexer_scores_fp8
from ..reference import indexer as reference
from ..reference.contract import Contract
from . import indexer_backward
from .engine.base.conditions import Condition
from .engine.execution.invariants import Invariant
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.extended import Value
from .engine.layers.lemmas import Lemma, Theorem, lemma
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.semantics.semantics import serial_loops
from .engine.verify import Compare, Compared, against
from .suite import Proof


def compare(cfg: Config) -> Compare:
    """Compare the reference, its sum over heads written out, with any number of iterations that carry nothing."""
    _, contract, scores = _parts(cfg)

    def scored(*inputs: SymbolicTensor) -> SymbolicTensor:
        out = tensor(scores(*inputs, ratio=cfg.ratio))

        def element(*i: nf.Form) -> Value:
            value = out.value(*i)
            return Value(sums.few_written_out(value.form), value.finite, value.sign)

        return SymbolicTensor(out.form_shape, element)

    def compared(kernel: Any, facts: Facts) -> Compared:
        loops = dict.fromkeys(serial_loops(kernel).values(), Invariant())
        return against(scored, contract, loops)(kernel, facts)

    return compared


def _parts(cfg: Config) -> tuple[Callable[[Config], Any], Contract, Callable[..., Any]]:
    """Return the factory, the contract and the reference."""
    if cfg.dtype == "bfloat16":
        return indexer_scores, reference.SCORES, reference.indexer_scores
    return indexer_scores_fp8, reference.SCORES_FP8, reference.indexer_scores_fp8


def _visible(position: z3.ArithRef, ratio: z3.ArithRef, name: str) -> tuple[z3.ArithRef, z3.BoolRef]:
    """Return ⌊(position + 1) / ratio⌋, the number of entries seen from a position, and what defines it."""
    count = z3.Int(name)
    return count, z3.And(ratio * count <= position + 1, position + 1 < ratio * count + ratio)


def _causality() -> Sequence[Condition]:
    position, ratio, j = z3.Ints("position ratio j")
    count, defined = _visible(position, ratio, "visible")
    last = ratio * j + ratio - 1
    given = (ratio >= 1, position >= 0, j >= 0, defined)
    seen, unseen = ratio * (j + 1) <= ratio * count, ratio * (count + 1) <= ratio * (j + 1)
    return [
        lemma("j + 1 <= visible gives ratio (j + 1) <= ratio visible", seen, ratio >= 1, j + 1 <= count),
        lemma("visible + 1 <= j + 1 gives ratio (visible + 1) <= ratio (j + 1)", unseen, ratio >= 1, count <= j),
        lemma("an entry seen ends at the position or before", last <= position, *given, j < count, seen),
        lemma("an entry not seen ends after the position", last > position, *given, j >= count, unseen),
    ]  # fmt: skip


def _monotone() -> Sequence[Condition]:
    """Prove that the later of two positions sees as much: what the kernel decides for a block's first query or its last."""
    first, later, ratio, chunk, end, j = z3.Ints("first later ratio chunk end j")
    few, few_defined = _visible(first, ratio, "seen_first")
    many, many_defined = _visible(later, ratio, "seen_later")
    given = (ratio >= 1, first >= 0, first <= later, few_defined, many_defined)
    step = z3.Implies(many + 1 <= few, ratio * (many + 1) <= ratio * few)
    return [
        lemma("a product with ratio is monotone", step, ratio >= 1),
        lemma("a later position sees as many entries", few <= many, *given, step),
        lemma("a chunk that the first query sees whole, all see whole", j < many, few <= many, end <= few, j < end),
        lemma("a chunk of which the last query sees nothing, none sees", j >= few, few <= many, chunk >= many, j >= chunk),
    ]  # fmt: skip


def _scale() -> Sequence[Condition]:
    s, x, rest, w = z3.Reals("s x rest w")

    def relu(y: z3.ArithRef) -> z3.ArithRef:
        return z3.If(y > 0, y, 0)

    return [
        lemma("s relu(x) = relu(s x) for s >= 0", s * relu(x) == relu(s * x), s >= 0),
        lemma("the scale of one more head goes into its relu",
              s * (rest + w * relu(x)) == s * rest + w * relu(s * x), s >= 0, s * relu(x) == relu(s * x)),
    ]  # fmt: skip


CAUSAL: tuple[Lemma, ...] = (
    Theorem("causality", "The score of entry j for query t is finite exactly if ratio j + ratio - 1 <= offset + t, for any "
            "offset and t >= 0 and ratio >= 1: none of an entry that ends after the query, and each other one.", _causality,
            "layer L2: each element that the kernel writes is finite exactly if j < visible; layer L1: it writes each element"),
    Theorem("chunks", "What the first query of a block sees whole, all see whole; what the last one does not see, none sees.",
            _monotone),
)  # fmt: skip
SCALED: tuple[Lemma, ...] = (
    *CAUSAL,
    Theorem("scale", "For a scale s >= 0, s times the sum over heads of w relu(x) is the sum of w relu(s x).", _scale,
            "induction over the heads"),
)  # fmt: skip


FRAGMENT = "a loop over a fragment gets the fragment's own extent from the compiler, which emits the same code"
SCORED = "a chunk that no query sees is scored instead of filled, with the same result"
COMPARED = "a chunk seen whole is swept with comparisons, with the same result"
ONE_PRODUCT = "a stage of bf16 is one product: u = 0"
FILLED, WHOLE = "(offset[b] + query + 2) // 4", "(offset[b] + query + 1) // 4"
SWEEP = f"first + 2048 <= T.min(L, {WHOLE})"
LOOPS = (("i", 2), ("g", 8), ("lane", 4), ("p", 2), ("j", 64), ("j", 128))
EQUIVALENTS = {
    **{f"loop end @ for {v} in 0:{n} -> for {v} in 0:{n + 1}": FRAGMENT for v, n in LOOPS},
    **{f"loop start @ for {v} in 0:{n} -> for {v} in -1:{n}": FRAGMENT for v, n in LOOPS},
    f"dropped guard @ if first >= {FILLED} -> never": SCORED,
    f"off by one @ first >= {FILLED} -> first > {FILLED}": SCORED,
    f"dropped operand @ {FILLED} -> offset[b] + query + 2": SCORED,
    "constant @ offset[b] + query + 2 -> offset[b] + query + 3": SCORED,
    f"constant @ {FILLED} -> (offset[b] + query + 2) // 3": SCORED,
    f"dropped guard @ if {SWEEP} and query + 2 <= S -> never": COMPARED,
    f"off by one @ {SWEEP} -> {SWEEP.replace('<=', '<')}": COMPARED,
    "constant @ first + 2048 -> first + 2049": COMPARED,
    f"other operator @ {WHOLE} -> (offset[b] + query + 1) % 4": COMPARED,
    "other operator @ offset[b] + query + 1 -> offset[b] + query - 1": COMPARED,
    "dropped operand @ offset[b] + query + 1 -> offset[b] + query": COMPARED,
    "dropped operand @ offset[b] + query + 1 -> 1": COMPARED,
    "other operator @ offset[b] + query -> offset[b] - query": COMPARED,
    "dropped operand @ offset[b] + query -> offset[b]": COMPARED,
    "dropped operand @ offset[b] + query -> query": COMPARED,
    "constant @ offset[b] + query + 1 -> T.Add(offset[b] + query, 0)": COMPARED,
    f"constant @ {WHOLE} -> (offset[b] + query + 1) // 5": COMPARED,
    "off by one @ query + 2 <= S -> query + 2 < S": COMPARED,
    "constant @ query + 2 -> query + 3": COMPARED,
    "stride @ u * 64 -> u * 63": ONE_PRODUCT,
    "stride @ u * 64 -> u * 65": ONE_PRODUCT,
    "dropped operand @ u * 64 -> u": ONE_PRODUCT,
    'other operator @ T.infinity("float32") * -1 -> T.infinity("float32") / -1': "the same infinity",
}
AGAIN = {f"{name}, occurrence 2": reason for name, reason in EQUIVALENTS.items()}  # the sweeps have the same lines


def _proof(cfg: Config, **more: Any) -> Proof:
    factory, contract, _ = _parts(cfg)
    statics = {"H": cfg.H, "D": cfg.D, "ratio": cfg.ratio, "chunk": cfg.chunk}
    return Proof("indexer", factory(cfg), contract, statics, compare(cfg), PASS_CONFIGS, **more)


def proofs() -> Iterator[Proof]:
    """Yield DeepSeek-V4's sizes with both chunks in every layer, and every other number of heads and width."""
    mutants: dict[str, Any] = {"mutate": True, "every": 8, "equivalents": EQUIVALENTS | AGAIN}
    yield _proof(Config(), lemmas=CAUSAL, **mutants)
    yield _proof(fp8(), lemmas=SCALED, **mutants)
    yield _proof(Config(chunk=256))
    yield _proof(fp8(chunk=256))
    yield _proof(Config(8, 32, 1, chunk=256))
    yield _proof(fp8(16, 64, 128, 256))
    yield _proof(fp8(32, 128, 3, 256))
    yield from indexer_backward.proofs()
