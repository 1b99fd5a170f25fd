"""The second opinion over prime fields: on every kernel whose equality is proved, and on wrong ones, of which it must tell."""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import tilelang.language as T
import torch

from claims import proofs
from lemmata.kernels import mhc_pre
from lemmata.kernels.combine import combine
from lemmata.kernels.sinkhorn import Config as SinkhornConfig
from lemmata.kernels.sparse_attention_config import Config
from lemmata.operators import OPERATORS
from lemmata.proofs import csa, hca, mhc, second_opinion, sinkhorn, verify
from lemmata.proofs.combine import added
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.forms import normal_form, ring
from lemmata.proofs.engine.guards.mutate import Candidate, candidates, mutants
from lemmata.proofs.engine.interpreter.interpret import Fault
from lemmata.proofs.engine.interpreter.second_opinion import run
from lemmata.proofs.suite import Proof
from lemmata.reference import csa as csa_reference
from lemmata.reference import hca as hca_reference
from lemmata.reference import indexer as indexer_reference
from lemmata.reference import mhc as mhc_reference
from lemmata.reference import sinkhorn as sinkhorn_reference
from lemmata.reference.topk_check import topk_check
from verdicts import STRICT, Proved, contract, opened
from verdicts import Unsupported as Refusal

exhaustive = pytest.mark.exhaustive
Question = dict[str, Any]  # arguments of second_opinion beside kernel and contract, or in their place


def offsets(*of: int) -> dict[str, torch.Tensor]:
    return {"offset": torch.tensor(of, dtype=torch.int32)}


def of_sinkhorn(p: Proof) -> Question:
    """Two blocks, the second of one matrix."""
    of = sinkhorn_reference.sinkhorn if p.contract.op == "sinkhorn" else sinkhorn_reference.sinkhorn_bwd
    more = {name: p.statics[name] for name in ("iterations", "eps")}
    return {"reference": partial(of, **more), "sizes": {"count": 33}}


def of_scores(p: Proof) -> Question:
    """A chunk that the first sequence sees whole, and one of which it sees a part; short chunks have another that sees less."""
    eight_bits = len(p.contract.inputs) == 5
    of = indexer_reference.indexer_scores_fp8 if eight_bits else indexer_reference.indexer_scores
    queries, ratio, chunk = 128 // int(p.statics["H"]), int(p.statics["ratio"]), int(p.statics["chunk"])
    seen = [ratio * (chunk + 20), ratio * 30][: 1 if chunk > 256 else 2]
    sizes = {"B": len(seen), "S": queries + 1, "T": chunk + 40}
    return {"reference": partial(of, ratio=ratio), "sizes": sizes, "given": offsets(*seen)}


def of_scores_backward(p: Proof) -> Question:
    """A pair of tiles and a part of another; a block of four queries and one of a single one."""

    def reference(*inputs: Any) -> Any:
        of_q, _, of_weights = indexer_reference.indexer_scores_bwd(*inputs, ratio=int(p.statics["ratio"]))
        return of_q, of_weights

    return {"reference": reference, "sizes": {"B": 2, "S": 5, "T": 300}, "given": offsets(1100, 100)}


def of_scores_backward_of_keys(p: Proof) -> Question:
    """An odd number of queries, some of whose splits are empty, and a block of entries that is not full."""
    splits, ratio = int(p.statics["splits"]), int(p.statics["ratio"])

    def reference(grad_out: Any, *others: Any) -> Any:
        pairs = -(-grad_out.shape[1] // 2)
        pair = (torch.arange(grad_out.shape[1]) // 2).unsqueeze(-1)
        ends = [pairs * y // splits for y in range(splits + 1)]
        inside = [(pair >= a) & (pair < b) for a, b in itertools.pairwise(ends)]
        each = (
            indexer_reference.indexer_scores_bwd(torch.where(i, grad_out, 0.0), *others, ratio=ratio) for i in inside
        )
        return torch.cat([of_k.unsqueeze(1) for _, of_k, _ in each], 1)

    return {"reference": reference, "sizes": {"B": 1, "S": 5, "T": 70}, "given": offsets(272)}


def of_attention(p: Proof) -> Question:
    """A window whose first token is missing, and a tile of entries that is not full."""
    ratio, listed = p.statics.get("ratio"), {"K": 140} if "csa" in p.contract.op else {}
    more = {n: p.statics[n] for n in ("window", "scale", "ratio") if n in p.statics}
    whole: Callable[..., Any] = hca_reference.hca if ratio else csa_reference.csa
    sizes = {"B": 1, "S": 2, "P": 125, "T": 150, **listed}
    asked: Question = {"sizes": sizes, "given": offsets(int(140 * ratio) if ratio else 126)}
    if p.statics["splits"] == 1:

        def split(*inputs: Any) -> Any:
            out, lse = whole(*inputs, **more)
            return out.unsqueeze(1), lse.unsqueeze(1).unsqueeze(1)

        return {**asked, "reference": split}

    cfg = Config(int(p.statics["H"]), int(p.statics["D"]), splits=int(p.statics["splits"]))

    def both(field: Any, inputs: Mapping[str, Any]) -> Any:
        parts = run(field, p.kernel, inputs)
        return run(field, combine(cfg), {"accs": parts["out"], "stats": parts["stats"], "sink": inputs["sink"]})

    operator = hca_reference.HCA if ratio else csa_reference.CSA
    asked["sizes"] = {**sizes, "S": 1}
    return {**asked, "kernel": both, "contract": operator, "reference": partial(whole, **more)}


def of_combine(p: Proof) -> Question:
    """The sums of splits as the claim has them; ``of_attention`` runs this kernel on what other kernels write."""
    return {"reference": added, "sizes": {"B": 1, "S": 1}}


def of_attention_backward(p: Proof) -> Question:
    """A part of a tile of the window, and of one of entries."""
    parts: Callable[..., Any] = hca_reference.hca_parts if "ratio" in p.statics else csa_reference.csa_parts
    more = {n: p.statics[n] for n in ("window", "scale", "ratio") if n in p.statics}

    def reference(*inputs: Any) -> Any:
        of_q, *of_keys = parts(*inputs, **more)
        return of_q, *(x.unsqueeze(3) for x in of_keys)

    sizes = {"B": 1, "S": 2, "P": 125, "T": 70, **({} if "ratio" in p.statics else {"K": 70})}
    return {"reference": reference, "sizes": sizes, "given": offsets(int(p.statics.get("ratio", 2)) * 66)}


def of_delta(p: Proof) -> Question:
    return {"reference": lambda x, y: (x * y).sum(-1), "sizes": {"N": 3}}


def of_window_sum(p: Proof) -> Question:
    """Rows before the first query, and of more parts than are read at once."""
    window = int(p.statics["window"])

    def reference(parts: Any, total: Any) -> Any:
        row, s, slot = (torch.arange(n) for n in (total.shape[1], parts.shape[1], window))
        past = total.shape[1] - parts.shape[1]
        here = row.view(-1, 1, 1) == past + s.view(-1, 1) + slot - (window - 1)
        return total + torch.einsum("rsi,bsind->brd", here.double(), parts)

    return {"reference": reference, "sizes": {"B": 1, "S": 18, "P": 3}}


def of_list_sum(p: Proof) -> Question:
    """Rows without a part, of more than are read at once, and of a list that would end beyond all parts."""
    ends = {"starts": [0, 3, 3, 20, 50], "ends": [3, 3, 20, 60, 40]}
    given = {name: torch.tensor(of, dtype=torch.int32) for name, of in ends.items()}

    def reference(parts: Any, order: Any, starts: Any, ends: Any, total: Any) -> Any:
        n = torch.arange(len(order))
        listed = (n >= starts.unsqueeze(-1)) & (n < ends.unsqueeze(-1))
        return total + torch.einsum("rn,nbd->rd", listed.double(), parts[order])

    return {"reference": reference, "sizes": {"N": 40, "R": 5}, "given": given}


def of_visible_sum(p: Proof) -> Question:
    """An entry that all queries see, one that some do, and one that none does."""

    def reference(parts: Any, offset: Any, total: Any) -> Any:
        seen = indexer_reference.visible(offset, parts.shape[1], int(p.statics["ratio"])).unsqueeze(-1)
        seen = torch.arange(total.shape[1]) < seen
        return total + torch.einsum("bse,bsend->bed", seen.double(), parts)

    return {"reference": reference, "sizes": {"B": 1, "S": 20, "T": 3}, "given": offsets(250)}


def of_streams(p: Proof) -> Question:
    """Streams of two tokens, after a layer or before it."""
    of = {
        "mhc_post": mhc_reference.mhc_post,
        "mhc_post_bwd": mhc_reference.mhc_post_bwd,
        "mhc_weigh": mhc._weighted,
    }
    return {"reference": of[p.contract.op], "sizes": {"tokens": 2}}


def of_coefficients(p: Proof) -> Question:
    """What is projected of two tokens, or the coefficients from that."""
    cfg = mhc_pre.Config(int(p.statics["hc"]), int(p.statics["hidden"]), head="head" in p.statics)
    _, of = mhc._project(cfg) if p.contract.op == "mhc_project" else mhc._gates(cfg)
    return {"reference": of, "sizes": {"tokens": 2}}


QUESTIONS: dict[str, Callable[[Proof], Question]] = {
    **dict.fromkeys(("mhc_post_fwd", "mhc_post_bwd", "mhc_weigh"), of_streams),
    **dict.fromkeys(("mhc_project", "mhc_gates", "mhc_head_gates"), of_coefficients),
    **dict.fromkeys(("sinkhorn_fwd", "sinkhorn_bwd"), of_sinkhorn),
    **dict.fromkeys(("indexer_scores", "indexer_scores_fp8"), of_scores),
    **{"indexer_scores_bwd_q": of_scores_backward, "indexer_scores_bwd_k": of_scores_backward_of_keys},
    **{"combine": of_combine, "delta": of_delta},
    **{"sum_window": of_window_sum, "sum_listed": of_list_sum, "sum_visible": of_visible_sum},
    **dict.fromkeys(("csa_fwd", "hca_fwd"), of_attention),
    **dict.fromkeys(("csa_bwd", "hca_bwd"), of_attention_backward),
}
REFUSED = {"topk_check": "another type"}  # it takes the bits of floats, which are no numbers of a field


def name(p: Proof) -> str:
    return str(p.kernel.attrs["global_symbol"])


def proved_equal() -> list[Any]:
    """Every proof that claims L2; those of other sizes of the same text in the exhaustive run."""

    def marks(p: Proof) -> Any:
        of = p.statics
        streams = of.get("hidden") == 7168 or of.get("hc", 4) != 4
        of_head = "head" in of and name(p) == "mhc_project"
        other = of.get("n", 2) != 2, of.get("chunk") == 2048, of.get("splits") == 5, p.op == "swa", streams, of_head
        return [exhaustive] if any(other) else []

    every = [p for op in OPERATORS for p in proofs(op) if "L2" in p.claimed()]
    found = {p.name: p for p in reversed(every)}  # one operator may have another's kernel
    return [pytest.param(p, id=p.name, marks=marks(p)) for p in reversed(found.values())]


@pytest.mark.parametrize("proof", proved_equal())
def test_what_is_proved_equal_is_equal_over_prime_fields(proof: Proof) -> None:
    """The kernel as it ships, beside the reference as it is."""
    if name(proof) in REFUSED:
        with pytest.raises(Unsupported, match=REFUSED[name(proof)]):
            second_opinion(proof.kernel, proof.contract, topk_check, sizes={"R": 1, "T": 9}, statics=proof.statics)
        return
    asked = {
        "kernel": proof.kernel,
        "contract": proof.contract,
        "statics": proof.statics,
        **QUESTIONS[name(proof)](proof),
    }
    assert second_opinion(**asked) == []


@pytest.mark.parametrize("factor", [lambda s: s, lambda s: s.sqrt()], ids=["a root for its inverse", "no norm"])
def test_coefficients_with_another_norm_are_told(factor: Callable[[Any], Any]) -> None:
    (proof,) = (p for p in mhc._reading(mhc_pre.Config()) if p.contract.op == "mhc_gates")
    asked = of_coefficients(proof)

    def wrong(sums: Any, squares: Any, *others: Any) -> Any:
        s = squares.sum(1) / (4 * 4096) + 1e-6
        return asked["reference"](sums * factor(s).unsqueeze(-1).unsqueeze(-1), squares, *others)

    question = {**asked, "reference": wrong}
    assert second_opinion(kernel=proof.kernel, contract=proof.contract, statics=proof.statics, **question) != []


SMALL = Config(64, 64, 64, 0.125)
NOTHING = [("csa", {"T": 3, "K": 0}), ("csa", {"T": 0, "K": 3}), ("hca", {"T": 0})]


def small(op: str, **more: Any) -> tuple[Proof, Question]:
    """A kernel of attention of the same text, with smaller numbers; a query beyond the window, and one before position 0."""
    proof = (csa if op == "csa" else hca)._proof(SMALL)
    asked = of_attention(proof)
    return proof, {
        **asked,
        "sizes": {**asked["sizes"], "B": 2, **more},
        "given": offsets(20000, -9),
        "statics": proof.statics,
    }


@pytest.mark.parametrize(("op", "sizes"), NOTHING)
def test_a_query_that_sees_nothing(op: str, sizes: dict[str, int]) -> None:
    """Its out is 0 and its lse is +inf, which no residue says."""
    proof, asked = small(op, **sizes)
    assert second_opinion(proof.kernel, proof.contract, **asked) == []

    def other(*inputs: Any) -> Any:
        out, lse = asked["reference"](*inputs)
        return out, -lse

    differ = second_opinion(proof.kernel, proof.contract, **{**asked, "reference": other})
    assert any("and 255 other" in each for each in differ), "those of both sequences"


# What only a second opinion sees: a law that does not hold


# A parameter of each kernel is named as no other input is: so what the engine keeps of a wrong law is about it alone.


@T.prim_func
def square(squared: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        for i in T.Parallel(32):
            out[i] = squared[i] * squared[i]


@T.prim_func
def exponential(doubled: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        for i in T.Parallel(32):
            out[i] = T.exp(doubled[i] * 2)


@T.prim_func
def row_sums(summed: T.Tensor((8, 32), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=32):
        rows, sums = T.alloc_fragment((8, 32), "float32"), T.alloc_fragment((8,), "float32")
        T.copy(summed, rows)
        T.reduce_sum(rows, sums, dim=1)
        T.copy(sums, out)


def exp_without_factors(p: Any, exp: Any = normal_form.exp) -> Any:
    return exp(ring.of_terms(dict.fromkeys(p.terms, 1)))


def sum_of_any_extent(extent: Any, body: Any, summation: Any = normal_form.summation) -> Any:
    return summation(32 if normal_form.form(extent).constant else extent, body)


LAWS = [
    pytest.param(square, lambda x: x, (normal_form.Read, "idempotent", True), id="x x = x"),
    pytest.param(exponential, torch.exp, (normal_form, "exp", exp_without_factors), id="exp(2 x) = exp(x)"),
    pytest.param(
        row_sums,
        lambda x: x[:, :31].sum(-1),
        (normal_form, "summation", sum_of_any_extent),
        id="the extent is no matter",
    ),
]


@pytest.mark.parametrize(("kernel", "reference", "law"), LAWS)
def test_a_wrong_law_proves_a_wrong_kernel_that_still_differs(
    kernel: Any, reference: Any, law: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = contract(kernel, "out")

    def proved() -> bool:
        return verify(kernel, given, reference=reference, layers=["L2"], pass_configs=STRICT).holds

    with monkeypatch.context() as wrong:
        wrong.setattr(*law)
        assert proved(), "the law is used"
        assert second_opinion(kernel, given, reference, sizes={})
    assert not proved()


# Wrong kernels


def told(kernel: Any, *arguments: Any, **options: Any) -> bool:
    """Whether a second opinion tells of a wrong kernel: by a difference, a fault, or a number that it cannot follow."""
    try:
        return bool(second_opinion(kernel, *arguments, **options))
    except (Fault, Unsupported):
        return True


def test_every_mutant_of_sinkhorn_that_is_not_equal_is_told() -> None:
    """Every twelfth, at two columns and three iterations; where L2 proves one that stays in bounds, nothing differs."""
    proof = sinkhorn._proof(SinkhornConfig(2, 3), back=False)
    asked = {**of_sinkhorn(proof), "statics": proof.statics}
    differ = 0
    for mutant in mutants(proof.kernel)[::12]:
        report = verify(
            mutant.prim_func,
            proof.contract,
            statics=proof.statics,
            compare=proof.compare,
            layers=["L2"],
            pass_configs=proof.pass_configs,
        )
        if report.holds:
            with suppress(Fault):
                assert second_opinion(mutant.prim_func, proof.contract, **asked) == [], mutant.name
        elif {failure.kind for failure in report.failures} == {"equivalence"}:
            assert told(mutant.prim_func, proof.contract, **asked), mutant.name
            differ += 1
    assert differ >= 10


OF_HCA = (  # by a part of the name; L2 refutes each
    "dropped rescale @ row_sum1[h] = row_sum1[h] * rescale1[h]",
    "dropped rescale @ acc0[h, d] = acc0[h, d] * rescale0[h]",
    "@ token <= s -> token < s",
    "index-1 @ rows_shared[1, j] -> rows_shared[0, j]",
    "dropped operand @ row_max0[h] * 0.125 + T.log(row_sum0[h]) -> row_max0[h] * 0.125",
    "constant @ row_max0[h] * 0.18033688 -> row_max0[h] * 0.36067376",
    "dropped operand @ sink[T.min(h, 63)] * 1.44269504 - row_max0[h] * 0.18033688 -> sink[",
    "dropped statement @ row_sum1[h] = row_sum1[h] + reduced[h]",
    "other operator @ row_sum0[h] + reduced[h] -> row_sum0[h] - reduced[h]",
    "dropped operand @ 1 + (visible[0] + 128 - 1) // 128 -> (visible[0] + 128 - 1) // 128",
    "dropped guard @ token <= s and token >= oldest[0] -> token <= s",
)
NO_MAXIMUM = "dropped operand @ T.max(reduced[h], row_max_shared[0, h]) -> row_max_shared[0, h]"  # equal over the reals


@cache
def of_hca() -> list[Candidate]:
    return list(candidates(hca._proof(SMALL).kernel))


@pytest.mark.parametrize("error", [*OF_HCA, NO_MAXIMUM])
def test_mutants_of_attention(error: str) -> None:
    proof, asked = small("hca")
    asked["given"] = offsets(20000, 40)
    wrong = next(m.make() for m in of_hca() if error in m.name)
    assert bool(second_opinion(wrong, proof.contract, **asked)) == (error != NO_MAXIMUM)


FOLDER = Path(__file__).parent / "verdicts" / "equality"
NOT_SEEN = {
    "constant_of_float64": "constants closer than 2^-22 are one",
    "masked_scores_from_minus_infinity": "it takes a row of which all is masked",
}


@pytest.mark.parametrize("file", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_it_agrees_with_the_verdicts(file: str) -> None:
    """What is right is not told of, what is wrong is; what the engine refuses may be either."""
    found = opened(f"equality/{file}")
    sizes = {of: max(min(19, size.high), size.low) for of, size in found.CONTRACT.sizes.items()}
    asked = found.kernel, found.CONTRACT, found.reference
    if isinstance(found.VERDICT, Proved):
        assert second_opinion(*asked, sizes=sizes) == []
    elif not isinstance(found.VERDICT, Refusal):
        assert told(*asked, sizes=sizes) == (file not in NOT_SEEN)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (lambda x: T.floor(x), "floor of a float"),
        (lambda x: T.cast(T.cast(x, "int32"), "float32"), "to another type"),
        (lambda x: T.exp(T.exp(x)), "without a residue"),
    ],
)
def test_what_has_no_meaning_in_a_field_is_refused_by_name(of: Callable[[Any], Any], words: str) -> None:
    @T.prim_func
    def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
        with T.Kernel(1, threads=4):
            for i in T.Parallel(4):
                out[i] = of(x[i])

    with pytest.raises(Unsupported, match=words):
        second_opinion(kernel, contract(kernel, "out"), lambda x: x.exp().exp(), sizes={})


@pytest.mark.parametrize(
    "reference", [torch.floor, lambda x: x.long(), lambda x: x.view(torch.int32), lambda x: x.max(0)]
)
def test_a_function_of_torch_without_a_meaning_is_refused_by_name(reference: Any) -> None:
    with pytest.raises(Unsupported, match="in a second opinion"):
        second_opinion(square, contract(square, "out"), reference, sizes={})
