"""Races where warps have roles: what barriers, waits and fences order passes, and each that is missing is missed."""

from __future__ import annotations

from typing import Any

import pytest
import tilelang.language as T

from engine_verdicts import STRICT, hypotheses, outcomes
from lemmata.kernels.attention_config import Config
from lemmata.kernels.gather import ASYNC
from lemmata.kernels.hca import hca_fwd
from lemmata.proofs import hca
from lemmata.proofs.engine.hypotheses import Hypotheses
from lemmata.proofs.engine.races import races
from lemmata.proofs.engine.solve import solve
from lemmata.reference.contract import Size

F32, BF16 = "float32", "bfloat16"
SIZES = {"n": Size(0, 2**20)}
CONFIGS = {**STRICT, "tl.disable_warp_specialized": True}


def squared(wrong: str = "") -> Any:
    """y = Σ_t x_t x_tᵀ: one role copies a tile at a time, asynchronously, the other one multiplies and adds."""
    n = T.dynamic("n")
    arrivals = 256 if wrong == "a count of two roles" else 128

    @T.prim_func
    def kernel(x: T.Tensor((n, 64, 64), BF16), y: T.Tensor((64, 64), F32)):
        with T.Kernel(1, threads=256):
            tile = T.alloc_shared((64, 64), BF16)
            acc = T.alloc_fragment((64, 64), F32)
            full = T.alloc_barrier(arrivals)
            empty = T.alloc_barrier(128)
            thread = T.get_thread_binding()
            if thread < 128:
                for t in T.serial(n):
                    if wrong != "no wait for room":
                        T.barrier_wait(empty, 1 - t % 2)
                    for i, j in T.Parallel(64, 64, annotations=ASYNC):
                        tile[i, j] = x[t, i, j]
                    if wrong == "an arrival without the copies":
                        T.barrier_arrive(full)
                    else:
                        T.cp_async_barrier_noinc(full)
            else:
                T.fill(acc, 0)
                for t in T.serial(n):
                    if wrong != "no wait for the tile":
                        T.barrier_wait(full, 0 if wrong == "always the same phase" else t % 2)
                    if wrong == "one wait more":
                        T.barrier_wait(full, t % 2)
                    if wrong != "no fence":
                        T.fence_proxy_async()
                    if wrong == "room before the product":
                        T.barrier_arrive(empty)
                    T.wgmma_gemm(tile, tile, acc, transpose_B=True)
                    if wrong == "registers too early":
                        for i, j in T.Parallel(64, 64):
                            acc[i, j] *= 2
                    if wrong == "room before the wait":
                        T.barrier_arrive(empty)
                    if wrong != "no wait for the product":
                        T.wait_wgmma(1 if wrong == "a wait for the product before" else 0)
                    if not wrong.startswith("room before"):
                        T.barrier_arrive(empty)
                T.wait_wgmma(0)
                T.copy(acc, y)

    return kernel


def refuted(kernel: Any) -> dict[str, list[str]]:
    """What is refuted: statements by kind."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes(races, kernel, hypotheses(kernel, "y", sizes=SIZES), CONFIGS):
        if outcome.verdict == "refuted":
            found.setdefault(outcome.condition.kind, []).append(outcome.condition.statement)
    return found


@pytest.mark.parametrize("change", ["", "one wait more"])
def test_roles_that_meet_are_ordered(change: str) -> None:
    kernel = squared(change)
    assert not refuted(kernel)
    analysis = races(kernel, hypotheses(kernel, "y", sizes=SIZES), CONFIGS)
    assert {c.kind for c in analysis.conditions} == {"phase", "race", "barrier"}
    assert "tl.mbarrier_wait_parity" not in analysis.unmodelled


@pytest.mark.parametrize(
    ("wrong", "kind", "what"),
    [
        ("no wait for room", "race", "tile"),
        ("always the same phase", "phase", "full"),
        ("an arrival without the copies", "race", "tile"),
        ("no wait for the tile", "race", "tile"),
        ("no fence", "race", "tile"),
        ("room before the product", "race", "tile"),
        ("room before the wait", "race", "tile"),
        ("registers too early", "race", "acc"),
        ("no wait for the product", "race", "tile"),
        ("a wait for the product before", "race", "tile"),
        ("a count of two roles", "phase", "256 arrivals, and 128 come"),
    ],
)
def test_what_is_missing_is_missed(wrong: str, kind: str, what: str) -> None:
    found = refuted(squared(wrong))
    assert any(what in statement for statement in found.get(kind, [])), found


def of_hca(D: int) -> set[str]:
    """The verdicts, and what kinds of conditions are refuted."""
    cfg = Config(64, D, 64, 0.125)
    proof = hca._proof(cfg)
    analysis = races(hca_fwd(cfg), Hypotheses.of(proof.contract, proof.statics, proof.kernel), proof.pass_configs)
    assert {solve(site, witness=False).verdict for site in analysis.sites} == {"refuted"}
    return {c.statement for c in analysis.conditions if solve(c, witness=False).verdict != "proved"}


def test_the_kernel_that_ships() -> None:
    assert not of_hca(128)


def test_a_barrier_that_the_compiler_gives_to_two_roles() -> None:
    """Heads of 64 columns, which the kernel is not called with: one barrier is named for the copier and for a multiplier."""
    assert any("threads 0 to 127 and no others" in statement for statement in of_hca(64))
