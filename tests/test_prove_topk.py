"""The proofs of top-k: the checker, the theorems about its criterion, and what they do not let pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tilelang.language as T
import torch
import z3
from torch import Tensor

from claims import proofs
from lemmata.kernels import radix
from lemmata.kernels import topk as select
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.topk_check import Config, topk_check
from lemmata.proofs import topk as claims
from lemmata.proofs.command import summary
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.base.text import lines
from lemmata.proofs.engine.execution.symbolic import execute
from lemmata.proofs.engine.guards.mutate import candidates
from lemmata.proofs.engine.interpreter.interpret import Fault, interpret
from lemmata.proofs.engine.layers.lemmas import Examples, lemma
from lemmata.proofs.engine.smt.solve import solve
from lemmata.proofs.engine.verify import verify
from lemmata.proofs.suite import Proof
from lemmata.proofs.table import mutation_table
from lemmata.proofs.topk_runs import FEW, INF, MINUS, NAN, ONE, examples
from lemmata.reference import indexer
from lemmata.reference import topk_check as criterion
from lemmata.reference.topk import CHECK, topk
from verdicts import opened

BITS = torch.tensor([0, 1, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FFFFFFF, 0x3F800000], dtype=torch.int32)
BITS = torch.cat([BITS, BITS + torch.tensor(-(2**31), dtype=torch.int32)])  # the same with the sign set


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


OFTEN = {"topk_check k=512 float32", "topk k=512 threads=1024 ratio=4 float32"}
OFTEN |= {"topk_merge k=512 threads=128 ratio=4 float32", "topk k=40 float32"}


def topk_proofs() -> list[Any]:
    """All of them: at each run one of each kernel, the others by make test-all."""
    found = proofs("topk")
    assert {p.name for p in found} >= OFTEN
    return [pytest.param(p, id=p.name, marks=[] if p.name in OFTEN else pytest.mark.exhaustive) for p in found]


@pytest.mark.parametrize("proof", topk_proofs())
def test_every_kernel_that_ships_is_proved(proof: Proof) -> None:
    report = proof.run()
    assert report.holds, "\n".join(map(str, report.failures))
    assert all(layer.guards > 20 for layer in report.layers if layer.name in ("L0", "L1"))
    assumed = [s for layer in report.layers if layer.name == "L2" for s in layer.statements]
    assert not assumed, "the scores may be any floats"


def rows(seed: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of few bit patterns, and for most of them the right answer with one slot changed."""
    random = torch.Generator().manual_seed(seed)
    width = 13
    scores = BITS[torch.randint(len(BITS), (40, width), generator=random)].view(torch.float32).to(dtype)
    lengths = torch.randint(-1, width + 2, (40,), generator=random, dtype=torch.int32)
    indices = topk(scores, lengths, k)
    slot = torch.randint(k, (40, 1), generator=random)
    other = torch.randint(-2, width + 1, (40, 1), generator=random, dtype=torch.int32)
    changed = indices.scatter(1, slot, other)
    return scores, lengths, torch.where(torch.arange(40)[:, None] < 10, indices, changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 8, 20])
def test_the_kernel_as_interpreted_is_the_criterion_and_that_is_the_answer(k: int, dtype: torch.dtype) -> None:
    for seed in range(3):
        scores, lengths, indices = rows(seed, k, dtype)
        out = torch.empty(len(scores), dtype=torch.int32)
        interpret(topk_check(Config(k, str(dtype).removeprefix("torch."), threads=32)), scores, lengths, indices, out)
        right = (topk(scores, lengths, k) == indices).all(-1).int()
        assert torch.equal(out, right)
        assert torch.equal(criterion.topk_check(scores, lengths, indices), right)
        assert 0 < right.sum() < len(right)


def test_the_theorems_are_about_the_references_integers() -> None:
    for b in [*BITS.tolist(), *range(-5, 5), -(2**31) + 1]:
        score = torch.tensor(b, dtype=torch.int32).view(torch.float32)
        ours = z3.simplify(claims.signed_magnitude(z3.BitVecVal(b, 32))).as_signed_long()
        assert ours == criterion.signed_magnitude(score).item()


def test_the_keys_are_what_the_theorems_say() -> None:
    for b in BITS.tolist():
        score = torch.tensor(b, dtype=torch.int32).view(torch.float32)
        key = z3.simplify(claims.sortable_key(z3.BitVecVal(b, 32))).as_long()
        assert key == (2**31 + criterion.signed_magnitude(score).item() if score > float("-inf") else 0)


# The selection kernel, run


def selected(scores: Tensor, lengths: Tensor, k: int, ratio: int = 0) -> Tensor:
    """What the interpreted kernels select, in pieces that are merged, as ``select`` launches them."""
    cfg = select.Config(k, str(scores.dtype).removeprefix("torch."), threads=128, ratio=ratio)
    rows, length = scores.shape
    out = torch.empty(rows, -(-length // cfg.piece), k, dtype=torch.int32)
    interpret(select.topk(cfg), scores, lengths, out, races=True)
    while out.shape[1] > 1:
        candidates = out.view(rows, -1)
        out = torch.empty(rows, -(-candidates.shape[1] // cfg.piece), k, dtype=torch.int32)
        interpret(select.topk_merge(cfg), scores, lengths, candidates, out, races=True)
    return out.view(rows, k)


def few(width: int, *bits: int) -> Tensor:
    choice = torch.randint(len(bits), (width,), generator=torch.Generator().manual_seed(width))
    return torch.tensor(bits)[choice].to(torch.uint32).view(torch.float32)


ROWS = torch.stack([few(70, *FEW), few(70, ONE), few(70, INF + MINUS, NAN), few(70, 0, MINUS), few(70, *FEW[::-1])])
LENGTHS = torch.tensor([70, 2**31 - 1, 70, 3, 0], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 5, 512])
def test_the_interpreted_kernel_selects_as_the_reference(k: int, dtype: torch.dtype) -> None:
    scores = ROWS.to(dtype)
    assert torch.equal(selected(scores, LENGTHS, k), topk(scores, LENGTHS, k))


@pytest.mark.parametrize(("k", "dtype"), [(5, torch.bfloat16), (512, torch.float32)])
def test_pieces_are_merged_as_the_reference_selects(k: int, dtype: torch.dtype) -> None:
    row = torch.randn(1, 2 * 4096 + 5, generator=torch.Generator().manual_seed(k))
    scores = torch.where(row > 0, few(row.shape[1], *FEW), row).to(dtype)
    lengths = torch.tensor([2 * 4096 - 1], dtype=torch.int32)
    assert torch.equal(selected(scores, lengths, k), topk(scores, lengths, k))


def test_rows_that_have_no_length_are_whole() -> None:
    scores = torch.randn(2, 2 * 4096 + 5, generator=torch.Generator().manual_seed(0))
    none, one = torch.empty(0, dtype=torch.int32), torch.tensor([70], dtype=torch.int32)
    whole = topk(scores, None, 40)
    assert torch.equal(selected(scores, none, 40), whole)
    assert torch.equal(selected(scores, one, 40), torch.cat([topk(scores[:1], one, 40), whole[1:]]))


def test_a_position_tells_what_a_query_sees() -> None:
    positions = torch.tensor([-9, 0, 2, 3, 18, 19, 22, 23, 24, 279, 2**30], dtype=torch.int32)
    scores = ROWS[:1].expand(len(positions), -1).contiguous()
    scores[:, 1] = float("nan")
    lengths = ((positions + 1) // 4).clamp(0, 70)
    expected = torch.where((lengths <= 5)[:, None], indexer.everything(lengths, 5), topk(scores, lengths, 5))
    assert torch.equal(selected(scores, positions, 5, ratio=4), expected)
    assert not torch.equal(topk(scores, lengths, 5), expected), "NaN is selected where all are"


def test_the_search_in_bf16_ends_with_the_first_bin_of_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge lies below the key that it stands for, unless it is rounded up: the planted error leaves that out."""
    scores = torch.tensor([[1.0, 1.0, 1.0078125, 3.0, -2.0, 1.0, 1.0078125]]).bfloat16()
    lengths = torch.tensor([7], dtype=torch.int32)
    assert torch.equal(selected(scores, lengths, 4), topk(scores, lengths, 4))
    search = select.raise_edge
    monkeypatch.setattr(select, "raise_edge", lambda zeros, *more: search(16, *more))
    monkeypatch.setattr(select.Config, "zeros", 0)
    assert not torch.equal(selected(scores, lengths, 4), topk(scores, lengths, 4))


def test_ties_that_are_all_taken_do_not_go_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = select.Config(40, threads=128)
    monkeypatch.setattr(select, "CUT", radix.ALL)
    assert not torch.equal(selected(ROWS, LENGTHS, 13), topk(ROWS, LENGTHS, 13))
    assert not all(right for _, right in examples(cfg).check(select.topk(cfg)))


def test_every_barrier_is_needed() -> None:
    cfg = select.Config(40, threads=128)
    without = [m.make() for m in candidates(select.topk(cfg)) if m.operator == "dropped barrier"]
    assert len(without) == 8
    for mutant in without:
        with pytest.raises(Fault, match="a race"):
            list(examples(cfg).check(mutant))


def test_a_run_is_no_proof_and_says_so() -> None:
    cfg = select.Config(5, threads=128)

    def check(kernel: Any) -> Iterator[tuple[str, bool]]:
        yield "few values", torch.equal(right, topk(ROWS, LENGTHS, 5))

    right = topk(ROWS, LENGTHS, 5)
    proof = Proof(
        "topk", select.topk(cfg), claims.PIECES, {"k": 5}, None, PASS_CONFIGS, examples=Examples("as it should", check)
    )
    report = proof.run(layers=["run"])
    assert report.holds
    assert not report.layers[0].proves
    _, line, statement = lines(proof.name, report)
    assert "tested" in line
    assert "1/1 runs" in line
    assert "proved" not in line
    assert "as it should [tested, not proved (1 runs)]" in statement
    assert summary([report]).startswith("0 of 0 kernels proved, 0 of 0 conditions")
    right = right + 1
    failed = proof.run(layers=["run"], fresh=True)
    assert not failed.holds
    assert [str(f) for f in failed.failures] == ["wrong result: few values"]


def test_runs_kill_mutants() -> None:
    """Each error in a copy is refuted: by a fault or by the result; what only lengthens the grid does not change it."""

    def check(kernel: Any) -> Iterator[tuple[str, bool]]:
        x, out = torch.arange(200.0), torch.zeros(200)
        interpret(kernel, x, out)
        yield "200 numbers", torch.equal(x, out)

    file = opened("coverage/copy_right")
    report = verify(
        file.kernel,
        file.CONTRACT,
        examples=Examples("x = out", check),
        layers=["run"],
        mutate=True,
        pass_configs=PASS_CONFIGS,
    )
    kinds = {m.reason.split(":")[0] for m in report.mutations if m.fate == "killed"}
    assert kinds == {"fault", "result"}
    assert {m.layer for m in report.mutations if m.fate == "killed"} == {"run"}
    survivors = [m.operator for m in report.mutations if m.fate == "equivalent"]
    assert survivors
    assert len(survivors) < 0.2 * len(report.mutations)
    assert len(report.unexplained) == len(survivors)
    assert "| operator | mutants | run | L2 |" in mutation_table([("copy", report)])


FALSE = {
    "the bits themselves": lambda b: b,
    "-0 below 0": lambda b: z3.If(b >= 0, b, b ^ 0x7FFFFFFF),
    "negative numbers reversed": lambda b: z3.If(b >= 0, b, b - z3.BitVecVal(-(2**31), 32)),
}


@pytest.mark.parametrize("name", FALSE)
def test_other_integers_do_not_compare_as_the_numbers_do(name: str) -> None:
    b, c = z3.BitVecs("b c", 32)
    x, y = (z3.fpBVToFP(n, z3.Float32()) for n in (b, c))
    numbers = z3.Not(z3.Or(z3.fpIsNaN(x), z3.fpIsNaN(y)))
    order = lemma("order", (FALSE[name](b) < FALSE[name](c)) == z3.fpLT(x, y), numbers)
    same = lemma("same", (FALSE[name](b) == FALSE[name](c)) == z3.fpEQ(x, y), numbers)
    assert {solve(order).verdict, solve(same).verdict} == {"proved", "refuted"} or solve(order).verdict == "refuted"


def test_a_checker_that_lets_nan_pass_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    from lemmata.kernels import topk_check as kernels

    monkeypatch.setattr(kernels, "is_valid", lambda magnitude: magnitude > -kernels.INFINITY)
    proof = next(iter(proofs("topk")))
    report = verify(
        topk_check(Config()), CHECK, statics={"k": 512}, compare=proof.compare, pass_configs=PASS_CONFIGS, layers=["L2"]
    )
    assert {f.kind for f in report.failures} == {"equivalence"}


def test_unsigned_arithmetic_is_no_arithmetic_of_integers() -> None:
    @T.prim_func
    def kernel(x: T.Tensor((4,), "uint32"), out: T.Tensor((4,), "uint32")):
        with T.Kernel(4, threads=1) as i:
            out[i] = x[i] - T.uint32(1)

    with pytest.raises(Unsupported, match="modulo a power of two"):
        execute(kernel)
