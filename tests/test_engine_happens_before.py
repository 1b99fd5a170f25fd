"""Layer 1, races, where warps have roles: what orders them is needed, all of it, and enough."""

from __future__ import annotations

from typing import Any

import pytest
import tilelang.language as T

from engine_verdicts import MANUAL, STRICT, hypotheses, kinds, outcomes, refuted
from lemmata.kernels.attention_config import Config
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.hca import hca_fwd
from lemmata.proofs import hca
from lemmata.proofs.engine.conditions import Outcome
from lemmata.proofs.engine.errors import Unsupported
from lemmata.proofs.engine.hypotheses import Hypotheses
from lemmata.proofs.engine.order.questions import READERS_FENCE, order
from lemmata.proofs.engine.solve import solve

BF16, F32 = "bfloat16", "float32"
ASYNC = {"parallel_prefer_async": True, "parallel_async_without_async_commit_wait": True}
ROLE = 128  # threads


def handed_on(error: str = "") -> Any:
    """One role copies rows to shared memory; the other adds each thread's neighbour's element."""
    n = T.dynamic("n")
    count = 64 if error == "a count that is too low" else ROLE

    @T.prim_func
    def kernel(A: T.Tensor((n, ROLE), F32), B: T.Tensor((ROLE,), F32)):
        with T.Kernel(1, threads=2 * ROLE):
            row = T.alloc_shared((ROLE,), F32, scope="shared")
            total = T.alloc_local((1,), F32)
            ready = T.alloc_barrier(count)
            free = T.alloc_barrier(ROLE)
            thread = T.get_thread_binding()
            if thread < ROLE:
                for t in T.serial(n):
                    if error != "no wait for room":
                        T.barrier_wait(free, (t + 1) % 2)
                    row[thread] = A[t, thread]
                    if error == "an arrival of some":
                        if thread % 2 == 0:
                            T.barrier_arrive(ready)
                    elif error == "an arrival in some iterations":
                        if t > 0:
                            T.barrier_arrive(ready)
                    elif error == "two arrivals":
                        T.barrier_arrive(ready)
                        T.barrier_arrive(ready)
                    else:
                        T.barrier_arrive(ready)
            else:
                total[0] = 0.0
                for t in T.serial(n - 1 if error == "an iteration less" else n):
                    if error == "the other parity":
                        T.barrier_wait(ready, (t + 1) % 2)
                    elif error == "one parity":
                        T.barrier_wait(ready, 0)
                    elif error != "no wait":
                        T.barrier_wait(ready, t % 2)
                    if error == "two waits":
                        T.barrier_wait(ready, t % 2)
                    if error == "a wait for what is over":
                        T.barrier_wait(free, (t + 1) % 2)
                    if error == "room too early":
                        T.barrier_arrive(free)
                    total[0] += row[(thread + 1) % ROLE]
                    if error != "room too early":
                        T.barrier_arrive(free)
                B[thread - ROLE] = total[0]

    return kernel


@pytest.mark.parametrize("more", ["", "two waits", "a wait for what is over"])
def test_rows_that_are_handed_on(more: str) -> None:
    kernel = handed_on(more)
    found = outcomes(order, kernel, hypotheses(kernel, "B"), MANUAL)
    assert {o.verdict for o in found} == {"proved"}
    assert {"race", "phase"} <= kinds(found)
    assert order(kernel, hypotheses(kernel, "B"), MANUAL).unmodelled == frozenset()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("no wait", "race", "read of row"),
        ("the other parity", "race", "read of row"),
        ("one parity", "phase", "waits at ready[0] for the phase of its iteration"),
        ("no wait for room", "race", "read of row"),
        ("room too early", "race", "read of row"),
        ("a count that is too low", "phase", "ready[0] counts 64 arrivals, and 128 come"),
        ("two arrivals", "phase", "ready[0] counts 128 arrivals, and 256 come"),
        ("an arrival of some", "phase", "all of threads 0 to 127 reach this"),
        ("an arrival in some iterations", "phase", "all of threads 0 to 127 reach this"),
        ("an iteration less", "phase", "equally often"),
    ],
)
def test_rows_that_are_handed_on_wrongly(error: str, kind: str, message: str) -> None:
    kernel = handed_on(error)
    found = refuted(order, kernel, hypotheses(kernel, "B"), MANUAL)
    assert any(o.condition.kind == kind and message in o.condition.statement for o in found), statements(found)


def product(error: str = "") -> Any:
    """One role copies tiles and their weights; the other multiplies by the tiles and weighs the sum."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(Q: T.Tensor((64, 64), BF16), A: T.Tensor((n, 64, 64), BF16), C: T.Tensor((64, 64), F32)):
        with T.Kernel(1, threads=2 * ROLE):
            q = T.alloc_shared((64, 64), BF16)
            k = T.alloc_shared((64, 64), BF16)
            p = T.alloc_shared((64, 64), BF16)
            z = T.alloc_fragment((64, 64), F32)
            weights = T.alloc_fragment((64, 64), BF16)
            acc = T.alloc_fragment((64, 64), F32)
            fetched = T.alloc_barrier(ROLE)
            ready = T.alloc_barrier(ROLE)
            spare = T.alloc_barrier(ROLE)
            free = T.alloc_barrier(ROLE)
            thread = T.get_thread_binding()
            if thread < ROLE:
                for t in T.serial(n):
                    T.barrier_wait(free, (t + 1) % 2)
                    for i, j in T.Parallel(64, 64, annotations=ASYNC):
                        k[i, j] = A[t, i, j]
                    if error == "copies that another barrier counts":
                        T.barrier_arrive(ready)
                        T.cp_async_barrier_noinc(spare)
                    else:
                        T.cp_async_barrier_noinc(ready)
                        T.barrier_arrive(spare)
            else:
                for i, j in T.Parallel(64, 64, annotations=ASYNC):
                    q[i, j] = Q[i, j]
                T.cp_async_barrier_noinc(fetched)
                T.fill(acc, 0)
                T.barrier_wait(fetched, 0)
                T.fence_proxy_async()
                for t in T.serial(n):
                    if error != "no wait":
                        T.barrier_wait(ready, t % 2)
                    if error != "no fence":
                        T.fence_proxy_async()
                    if error == "two fences":
                        T.fence_proxy_async()
                    T.wgmma_gemm(q, k, z, transpose_B=True, clear_accum=True)
                    if error == "room before the product is over":
                        T.barrier_arrive(free)
                    if error != "a product that is not awaited":
                        T.wait_wgmma(1 if error == "a group too few" else 0)
                    T.copy(z, weights)
                    T.copy(weights, p)
                    if error != "no fence of weights":
                        T.fence_proxy_async()
                    T.sync_threads(3, ROLE)
                    T.wgmma_gemm(p, k, acc)
                    if error == "a sum that is touched":
                        for i, j in T.Parallel(64, 64):
                            acc[i, j] = acc[i, j] * 2
                    T.wait_wgmma(0)
                    T.barrier_wait(spare, t % 2)
                    if error != "room before the product is over":
                        T.barrier_arrive(free)
                T.copy(acc, C)

    return kernel


@pytest.mark.parametrize("more", ["", "two fences", "no fence of weights"])  # where the compiler adds one
def test_products_of_copies(more: str) -> None:
    kernel = product(more)
    found = outcomes(order, kernel, hypotheses(kernel, "C"), PASS_CONFIGS)
    assert {o.verdict for o in found} == {"proved"}
    assert {"race", "phase", "barrier"} <= kinds(found)
    unmodelled = order(kernel, hypotheses(kernel, "C"), PASS_CONFIGS).unmodelled
    left = unmodelled - {READERS_FENCE}
    assert not [name for name in left if "barrier" in name or "cp_async" in name or "ptx_wgmma" in name]


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        ("no wait", ["read of k", "write of k"]),
        ("no fence", ["read of k", "write of k"]),
        ("room before the product is over", ["read of k", "write of k"]),
        ("a product that is not awaited", ["read of z", "product's write of z, not waited for"]),
        ("a group too few", ["read of z", "product's write of z, not waited for"]),
        ("a sum that is touched", ["read of acc", "product's write of acc, not waited for"]),
        ("copies that another barrier counts", ["read of k", "write of k"]),
    ],
)
def test_products_of_copies_gone_wrong(error: str, messages: list[str]) -> None:
    kernel = product(error)
    found = refuted(order, kernel, hypotheses(kernel, "C"), PASS_CONFIGS)
    assert any(all(m in o.condition.statement for m in messages) for o in found), statements(found)


def statements(found: list[Outcome]) -> str:
    """What is refuted, in words."""
    return "\n".join(f"{o.condition.kind}: {o.condition.statement}" for o in found)


def test_a_barrier_of_two_roles_is_refuted() -> None:
    """A barrier of part of a block orders the threads of one role only."""

    @T.prim_func
    def kernel(A: T.Tensor((ROLE,), F32), B: T.Tensor((ROLE,), F32)):
        with T.Kernel(1, threads=2 * ROLE):
            row = T.alloc_shared((ROLE,), F32, scope="shared")
            ready = T.alloc_barrier(ROLE)
            thread = T.get_thread_binding()
            if thread < ROLE:
                row[thread] = A[thread]
                T.barrier_arrive(ready)
                T.sync_threads(3, 2 * ROLE)
            else:
                T.sync_threads(3, 2 * ROLE)
                B[thread - ROLE] = row[thread - ROLE]

    found = refuted(order, kernel, hypotheses(kernel, "B"), MANUAL)
    assert kinds(found) == {"barrier", "race"}


def test_shared_memory_outside_the_roles_is_refused() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((ROLE,), F32), B: T.Tensor((ROLE,), F32)):
        with T.Kernel(1, threads=2 * ROLE):
            row = T.alloc_shared((ROLE,), F32, scope="shared")
            ready = T.alloc_barrier(ROLE)
            thread = T.get_thread_binding()
            row[thread % ROLE] = A[thread % ROLE]
            if thread < ROLE:
                T.barrier_arrive(ready)
            else:
                T.barrier_wait(ready, 0)
                B[thread - ROLE] = row[thread - ROLE]

    with pytest.raises(Unsupported, match="roles"):
        order(kernel, hypotheses(kernel, "B"), STRICT)


def of_hca(D: int) -> set[str]:
    """The verdicts, and what kinds of conditions are refuted."""
    cfg = Config(64, D, 64, 0.125)
    proof = hca._proof(cfg)
    analysis = order(hca_fwd(cfg), Hypotheses.of(proof.contract, proof.statics, proof.kernel), proof.pass_configs)
    assert {solve(site, witness=False).verdict for site in analysis.sites} == {"refuted"}
    return {c.statement for c in analysis.conditions if solve(c, witness=False).verdict != "proved"}


def test_the_kernel_that_ships() -> None:
    assert not of_hca(128)


def test_a_barrier_that_the_compiler_gives_to_two_roles() -> None:
    """Heads of 64 columns, which the kernel is not called with: one barrier is named for the copier and for a multiplier."""
    assert any("threads 0 to 127 and no others" in statement for statement in of_hca(64))
