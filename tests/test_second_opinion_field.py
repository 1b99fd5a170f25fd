"""The second opinion over prime fields: on every kernel whose equality is proved, and on wrong ones, of which it must tell."""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tilelang.language as T
import torch

from claims import proofs
from field_questions import QUESTIONS, Question, config_of, of_attention, of_sinkhorn, of_weighing, offsets
from lemmata.kernels import mhc_project
from lemmata.kernels.sinkhorn import Config as SinkhornConfig
from lemmata.kernels.sparse_attention_config import Config
from lemmata.operators import OPERATORS
from lemmata.proofs import compressor, csa, hca, mhc_backward, mhc_post_pre, second_opinion, sinkhorn, verify
from lemmata.proofs import mhc_pre as mhc
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.forms import normal_form, ring
from lemmata.proofs.engine.guards.mutate import Candidate, candidates, mutants
from lemmata.proofs.engine.interpreter import second_opinion as of_fields
from lemmata.proofs.engine.interpreter.interpret import Fault
from lemmata.proofs.suite import Proof
from verdicts import STRICT, Proved, contract, opened
from verdicts import Unsupported as Refusal

exhaustive = pytest.mark.exhaustive
REFUSED = {
    "topk_check": "another type",  # it takes the bits of floats, which are no numbers of a field
    "mhc_weigh": "without a residue",  # the exponentials of what a root divided; mhc_head_weigh is the same without them
    "mhc_weigh_norm": "without a residue",  # the same
    "loss_rows": "without a residue",  # weights times logarithms of sums; loss_scores_bwd has the same sums
}


def name(p: Proof) -> str:
    return str(p.kernel.attrs["global_symbol"])


IN_SPLITS = "mhc_project", "mhc_split", "mhc_multiply", "mhc_project_bwd", "mhc_weigh", "mhc_mix", "mhc_weigh_norm"


def narrower(p: Proof) -> Proof:
    """The same kernel for streams of four splits of the columns, of which those that ship have 32."""
    cfg = replace(config_of(p), hidden=8 * mhc_project.COLUMNS)
    assert cfg.tiles == config_of(p).tiles, "a split is of as many tiles"
    return next(q for q in in_splits(cfg) if name(q) == name(p))


def in_splits(cfg: mhc_project.Config) -> list[Proof]:
    """The proofs of what takes the columns in splits, among others."""
    return [*mhc.reading(cfg), *mhc_backward.backward(cfg), *mhc_post_pre.between(cfg)]


def proved_equal() -> list[Any]:
    """Every proof that claims L2; those of other sizes of the same text in the exhaustive run."""

    def marks(p: Proof) -> Any:
        of = p.statics
        streams = of.get("hidden") == 7168 or of.get("hc", 4) != 4
        of_head = "head" in of and not name(p).startswith("mhc_head")
        streams |= of.get("chunks", 4) != 4
        other = of.get("n", 2) != 2, of.get("chunk") == 2048, of.get("splits") == 5, p.op == "swa", streams, of_head
        other += (name(p) in IN_SPLITS and of["hidden"] == 4096, name(p) == "compress_step" and of["D"] == 128)
        return [exhaustive] if any(other) else []

    every = [p for op in OPERATORS for p in proofs(op) if "L2" in p.claimed()]
    shipped = mhc_project.Config()
    every += [narrower(p) for p in in_splits(shipped) if name(p) in IN_SPLITS]
    found = {p.name: p for p in reversed(every)}  # one operator may have another's kernel
    return [pytest.param(p, id=p.name, marks=marks(p)) for p in reversed(found.values())]


@pytest.mark.parametrize("proof", proved_equal())
def test_what_is_proved_equal_is_equal_over_prime_fields(proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel as it ships, beside the reference as it is."""
    asked = {
        "kernel": proof.kernel,
        "contract": proof.contract,
        "statics": proof.statics,
        **QUESTIONS[name(proof)](proof),
    }
    if name(proof) in REFUSED:
        monkeypatch.setattr(of_fields, "_AGAIN", 0)  # no other numbers would do
        with pytest.raises(Unsupported, match=REFUSED[name(proof)]):
            second_opinion(**asked)
    else:
        assert second_opinion(**asked) == []


@pytest.mark.parametrize(
    "kernel", ["compress_fwd", "compress_norm", "compress_norm_bwd", "compress_few_bwd", "compress_pool"]
)
def test_entries_in_another_order_are_told(kernel: str) -> None:
    proof = next(p for p in compressor.proofs() if name(p) == kernel)
    asked = QUESTIONS[kernel](proof)

    def wrong(*inputs: Any) -> Any:
        found = asked["reference"](*inputs)
        turned = [torch.cat([x[:, 1:], x[:, :1]], 1) for x in (found if isinstance(found, tuple) else (found,))]
        return tuple(turned)

    question = {
        "kernel": proof.kernel,
        "contract": proof.contract,
        "statics": proof.statics,
        **asked,
        "reference": wrong,
    }
    assert second_opinion(**question) != []


@pytest.mark.parametrize("kernel", ["compress_step", "compress_step_pool", "compress_step_norm", "compress_keep"])
def test_rows_and_entries_in_other_places_are_told(kernel: str) -> None:
    """Planted: of each output places, rows of a page or entries one further; of a single entry the channels."""
    proof = next(p for p in compressor.proofs() if name(p) == kernel)
    asked = QUESTIONS[kernel](proof)
    for output in range(len(proof.contract.outputs)):

        def wrong(*inputs: Any, output: int = output) -> Any:
            found = asked["reference"](*inputs)
            found = list(found if isinstance(found, tuple) else (found,))
            of, dim = found[output], 1 if found[output].shape[1] > 1 else -1
            found[output] = torch.cat([of[:, 1:], of[:, :1]] if dim == 1 else [of[..., 1:], of[..., :1]], dim)
            return tuple(found)

        question = {"kernel": proof.kernel, "contract": proof.contract, "statics": proof.statics, **asked}
        assert second_opinion(**{**question, "reference": wrong}) != []


@pytest.mark.parametrize("factor", [lambda s: s, lambda s: s.sqrt()], ids=["a root for its inverse", "no norm"])
def test_coefficients_with_another_norm_are_told(factor: Callable[[Any], Any]) -> None:
    (proof,) = (p for p in mhc.reading(mhc_project.Config(head=True)) if p.contract.op == "mhc_head_weigh")
    asked = of_weighing(proof)

    def wrong(x: Any, sums: Any, squares: Any, *others: Any) -> Any:
        s = squares.sum(1) / (4 * 4096) + 1e-6
        return asked["reference"](x, sums * factor(s).unsqueeze(-1).unsqueeze(-1), squares, *others)

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
    "@ token <= first + i * 132 -> token < first + i * 132",
    "index-1 @ rows_shared[1, j] -> rows_shared[0, j]",
    "dropped operand @ row_max0[h] * 0.125 + T.log(row_sum0[h]) -> row_max0[h] * 0.125",
    "constant @ row_max0[h] * 0.18033688 -> row_max0[h] * 0.36067376",
    "dropped operand @ sink[T.min(h, 63)] * 1.44269504 - row_max0[h] * 0.18033688 -> sink[",
    "dropped statement @ row_sum1[h] = row_sum1[h] + reduced[h]",
    "other operator @ row_sum0[h] + reduced[h] -> row_sum0[h] - reduced[h]",
    "dropped operand @ 1 + (seen[0] + 128 - 1) // 128 -> (seen[0] + 128 - 1) // 128",
    "dropped guard @ token <= first + i * 132 and token >= oldest[0] -> token <= first + i * 132",
)
RAISED_LATE = "constant @ growth > 8 -> growth > 16"  # equal over the reals


@cache
def of_hca() -> list[Candidate]:
    return list(candidates(hca._proof(SMALL).kernel))


@pytest.mark.parametrize("error", [*OF_HCA, RAISED_LATE])
def test_mutants_of_attention(error: str) -> None:
    proof, asked = small("hca")
    asked["given"] = offsets(20000, 40)
    wrong = next(m.make() for m in of_hca() if error in m.name)
    assert bool(second_opinion(wrong, proof.contract, **asked)) == (error != RAISED_LATE)


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
