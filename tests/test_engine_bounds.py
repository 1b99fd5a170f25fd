"""Layer 0 on kernels that ship, and its parts; what is out of bounds, wraps or cannot launch is in verdicts/bounds."""

import pytest
import z3

from engine_verdicts import hypotheses, kinds, outcomes, refuted
from lemmata.kernels import sinkhorn
from lemmata.proofs.engine.base.conditions import Condition, Outcome, Site
from lemmata.proofs.engine.base.errors import Unsupported, UnsupportedVersion
from lemmata.proofs.engine.base.report import Layer
from lemmata.proofs.engine.compiler import extract
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.layers.bounds import bounds, grows, rounds_down
from lemmata.proofs.engine.layers.problem import Problem
from lemmata.proofs.engine.layers.row_major import digits, quotients
from lemmata.proofs.engine.layers.verdicts import layer
from lemmata.proofs.engine.smt.solve import solve
from lemmata.reference.sinkhorn import BACKWARD, FORWARD
from verdicts import STRICT, opened

STATICS = {"n": 4, "iterations": 20, "eps": 1e-6}


@pytest.mark.parametrize(
    ("build", "contract"), [(sinkhorn.sinkhorn_fwd, FORWARD), (sinkhorn.sinkhorn_bwd, BACKWARD)], ids=["fwd", "bwd"]
)
def test_sinkhorn(build, contract):
    kernel = build(sinkhorn.Config(n=4))
    found = outcomes(bounds, kernel, Hypotheses.of(contract, STATICS, kernel), STRICT)
    assert {o.verdict for o in found} == {"proved"}
    assert kinds(found) == {"bounds", "overflow", "launch", "cast"}
    assert len(found) > 50


def test_the_compilers_guards_do_not_hide_an_error():
    file = opened("bounds/copy_off_by_one")
    found = outcomes(bounds, file.kernel, hypotheses(file), {})  # shipped with guards
    assert kinds([o for o in found if o.verdict == "refuted"]) == {"own bounds"}
    guarded = [o for o in found if o.condition.kind == "guarded bounds"]
    assert guarded
    assert {o.verdict for o in guarded} == {"proved"}


def test_a_layer_that_may_stop_at_its_first_failure_does_not_stop_at_what_the_compiler_guards():
    """Where mutants are tried, one failure is enough; that of a kernel's own bounds alone is none."""

    def brief(name: str) -> Layer:
        file = opened(f"bounds/{name}")
        claimed = {"statics": {}, "compare": None, "lemmas": (), "examples": None, "waivers": (), "dead": {}}
        problem = Problem(
            file.kernel, file.CONTRACT, **claimed, pass_configs={}, arch=extract.ARCH, solve=solve, brief=True
        )
        return layer(problem, "L0")

    assert brief("copy_guarded_by_the_compiler_right").holds
    assert not brief("copy_guarded_and_narrowed").holds


def test_conditions_are_proved_at_once_and_fail_one_by_one():
    n, k, asked = *z3.Ints("n k"), []

    def counted(c: Condition, **means: bool) -> Outcome:
        asked.append(means)
        return solve(c, **means)

    def claimed(*goals: z3.BoolRef, brief: bool = False) -> list[str]:
        asked.clear()
        nothing = {"kernel": None, "contract": None, "statics": {}, "compare": None, "lemmas": (), "examples": None}
        problem = Problem(**nothing, pass_configs={}, waivers=(), dead={}, arch="", solve=counted, brief=brief)
        conditions = [Condition("bounds", str(g), (n > 0, k >= n), g, Site("")) for g in goals]
        found = problem.outcomes("L0", [*conditions, Condition("bounds", "alone", (n > 2,), n > 1, Site(""))])
        assert [o.condition for o in found[:3]] == conditions[: len(found)]
        return [o.verdict for o in found]

    assert claimed(k > 0, k >= n, n >= 1) == ["proved"] * 4
    assert len(asked) == 2
    assert claimed(k > 0, k > n, n >= 1) == ["proved", "refuted", "proved", "proved"]
    assert len(asked) == 5
    assert claimed(k > 0, k > n, n >= 1, brief=True) == ["proved", "refuted"]


def test_a_gathered_index_of_minus_one():
    file = opened("bounds/gather_not_masked")
    found = refuted(bounds, file.kernel, hypotheses(file), STRICT)
    assert all("read of table" in o.condition.statement for o in found)
    model = found[0].counterexample
    assert model is not None
    assert -1 in [value for name, value in model.items() if name.startswith("indices[")]


def test_what_is_said_of_flat_indices_is_true():
    i, j, k, M, N = z3.Ints("i j k M N")
    given = [grows(d) for d in digits(i * M * N + (j / 2) * N + 3 * k, (z3.Int("L"), M, N))]
    assert len(given) == 2
    for lemma in given:
        assert solve(Condition("bounds", "", (), lemma, Site(""))).verdict == "proved"


def test_digits_of_an_index_with_numbers_for_factors_and_quotients():
    """The index of a part of a gradient: Z3 has 131072 S b as the product of 131072 and S b, and two blocks x have a query."""
    B, S, b, x, t, i, thread, lane = z3.Ints("B S b x t i thread lane")
    shape = B, S, *map(z3.IntVal, (128, 2, 512))
    slot = 64 * t + 16 * i + thread / 8
    index = 131072 * S * b + 131072 * (x / 2) + 1024 * slot + 512 * (x % 2) + 8 * (thread % 8) + lane
    found = list(digits(index, shape))
    assert [d.value for d in found if d.scaled] == [b]
    assert [q.dividend for q in quotients(found)] == [x]
    extents = {B: 2**16, S: 2**30, b: B, x: 2 * S, t: 2, i: 4, thread: 128, lane: 8}
    hypotheses = *(z3.And(n >= 0, n < extent) for n, extent in extents.items()), B * S <= 2**24

    def verdict(*said: z3.BoolRef) -> str:
        goal = z3.And(index >= 0, index < B * S * 131072)
        return solve(Condition("bounds", "", (*hypotheses, *said), goal, Site("")), few=True).verdict

    assert verdict(*(grows(d) for d in found if d.scaled), *map(rounds_down, quotients(found))) == "proved"
    assert verdict() == "unknown", "a solver sees it by itself"


def test_a_summand_of_an_index_is_part_of_one_digit():
    """The index of a result in five splits: 2560 S b is 5 b times the stride of the splits too."""
    b, split, s, S = z3.Ints("b split s S")
    shape = z3.Int("B"), z3.IntVal(5), S, z3.IntVal(512)
    found = list(digits(2560 * S * b + 512 * S * split + 512 * s + z3.Int("d"), shape))
    assert [d.value for d in found] == [b, split, s]


def test_contracts_of_another_kernel_are_refused():
    kernel = opened("bounds/gather_right").kernel
    with pytest.raises(Unsupported, match="declares tensors"):
        Hypotheses.of(FORWARD, STATICS, kernel)
    with pytest.raises(Unsupported, match="logits: the kernel declares shape"):
        Hypotheses.of(FORWARD, {**STATICS, "n": 3}, sinkhorn.sinkhorn_fwd(sinkhorn.Config(n=4)))


def test_the_three_levels():
    kernel = opened("bounds/product_right").kernel
    tile, thread, device = (
        extract.lower(kernel, guards=False).tile.script(),
        extract.lower(kernel, guards=False, arch="sm_80").thread.script(),
        extract.lower(kernel, guards=False, arch="sm_80").device.script(),
    )
    assert "T.gemm" in tile or "tileop.gemm" in tile
    assert "threadIdx.x" in thread
    assert "tvm_storage_sync" not in thread
    assert "tvm_storage_sync" in device


def test_another_release_is_refused(monkeypatch):
    monkeypatch.setattr(extract, "version", lambda package: "0.1.16")
    with pytest.raises(UnsupportedVersion, match=r"tilelang 0\.1\.15, found 0\.1\.16"):
        extract.require_tilelang()
