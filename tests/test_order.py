"""The model of order: what pipelines, roles and mbarriers need is needed, all of it, and enough; nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest
import tilelang.language as T
from tilelang import tvm

from engine_verdicts import kinds, outcomes, refuted
from lemmata.proofs.engine.base.conditions import Outcome
from lemmata.proofs.engine.compiler import extract
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.order.questions import deadlock_free, order, within_blocks
from lemmata.reference.contract import Size
from verdicts import ASYNC, MANUAL, STRICT, contract

F32, F16 = "float32", "float16"
ROLE = 64  # threads
CONFIGS = {**MANUAL, "tl.disable_warp_specialized": True}
STRICTLY = {**STRICT, "tl.disable_thread_storage_sync": False, "tl.disable_tma_lower": True}
SIZES = {"n": Size(0, 2**20)}
tirx = tvm.tirx


def hypotheses(kernel: Any, *outputs: str, sizes: dict[str, Size]) -> Hypotheses:
    """Return what may be assumed of a call of a kernel."""
    return Hypotheses.of(contract(kernel, *outputs, sizes=sizes), {}, kernel)


def wrong(kernel: Any, *outputs: str, **options: Any) -> list[Outcome]:
    """What is refuted."""
    return refuted(order, kernel, hypotheses(kernel, *outputs, sizes=SIZES), CONFIGS, **options)


def says(found: list[Outcome], kind: str, *words: str) -> bool:
    """Whether a condition of that kind with those words is among them."""
    return any(o.condition.kind == kind and all(w in o.condition.statement for w in words) for o in found)


def ring(stages: int, pending: int, ahead: int, commits: int = 1) -> Any:
    """Rows come through a ring of stages, copied so many iterations ahead; a thread adds its neighbour's element."""
    n = T.dynamic("n")

    @T.macro
    def load(A, S, t):
        for j in T.Parallel(64, annotations=ASYNC):
            S[t % stages, j] = A[t, j]

    @T.prim_func
    def kernel(A: T.Tensor((n, 64), F32), B: T.Tensor((64,), F32)):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            S = T.alloc_shared((stages, 64), F32)
            total = T.alloc_local((1,), F32)
            total[0] = 0.0
            for t in T.unroll(ahead):
                if t < n:
                    load(A, S, t)
                for _ in T.unroll(commits):
                    T.ptx_commit_group()
            for t in T.serial(n):
                T.ptx_wait_group(pending)
                T.sync_threads()
                if t + ahead < n:
                    load(A, S, t + ahead)
                for _ in T.unroll(commits):
                    T.ptx_commit_group()
                total[0] += S[t % stages, 63 - tx]
            B[tx] = total[0]

    return kernel


@pytest.mark.parametrize(("stages", "pending"), [(2, 0), (3, 1), (4, 2), (6, 4)])
def test_a_ring_of_stages(stages: int, pending: int) -> None:
    assert not wrong(ring(stages, pending, stages - 1), "B")
    assert says(
        wrong(ring(stages, pending + 1, stages - 1), "B"), "async", "read of S", "copy's write of S, not awaited"
    )


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_stage_that_is_still_read(stages: int) -> None:
    assert says(wrong(ring(stages, stages - 1, stages), "B"), "async", "copy's write of S")


@pytest.mark.parametrize(("pending", "right"), [(4, True), (5, True), (6, False)])
def test_several_groups_in_an_iteration(pending: int, right: bool) -> None:
    found = wrong(ring(4, pending, 3, commits=2), "B")
    assert right != says(found, "async", "not awaited")


def pipelined(stages: int) -> Any:
    """A product whose pipeline the compiler makes."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((n, 64, 32), F16), B: T.Tensor((n, 32, 32), F16), C: T.Tensor((64, 32), F32)):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((64, 32), F16)
            b = T.alloc_shared((32, 32), F16)
            c = T.alloc_fragment((64, 32), F32)
            T.clear(c)
            for k in T.Pipelined(n, num_stages=stages):
                T.copy(A[k, 0:64, 0:32], a)
                T.copy(B[k, 0:32, 0:32], b)
                T.gemm(a, b, c)
            T.copy(c, C)

    return kernel


def weaker(device: Any) -> Any:
    """The function with waits that leave one group of copies more under way."""

    def changed(s: Any) -> Any:
        call = s.value
        if getattr(getattr(call, "op", None), "name", "") != "tirx.ptx_wait_group":
            return None
        return tirx.Evaluate(tirx.Call(call.dtype, call.op, [call.args[0] + 1]))

    return device.with_body(tirx.stmt_functor.ir_transform(device.body, None, changed, ["tirx.Evaluate"]))


@pytest.mark.parametrize("stages", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_pipelines_that_the_compiler_makes(stages: int) -> None:
    kernel = pipelined(stages)
    given = hypotheses(kernel, "C", sizes=SIZES)
    device = extract.lower(kernel, guards=False, pass_configs=CONFIGS | STRICTLY, arch="sm_80").device
    assert not refuted(within_blocks, device, given)
    assert says(refuted(within_blocks, weaker(device), given), "async", "copy's write of")


def test_a_proxy_fence_that_the_compiler_leaves_out() -> None:
    """TileLang fences the products in a pipeline's loop, but not those after it, which read copies that came later."""
    kernel = pipelined(4)
    device = extract.lower(kernel, guards=False, pass_configs=CONFIGS | STRICTLY, arch="sm_90a").device
    found = refuted(within_blocks, device, hypotheses(kernel, "C", sizes=SIZES))
    assert found
    assert all("no proxy fence after the wait" in o.condition.statement for o in found)


def read_back(change: str, how: str) -> Any:
    """Blocks copy rows of B to shared memory: their own, which they have just written, or another block's."""

    @T.prim_func
    def kernel(A: T.Tensor((4, 64), F32), B: T.Tensor((4, 64), F32), C: T.Tensor((4, 64), F32)):
        with T.Kernel(4, threads=64) as block:
            tx = T.get_thread_binding()
            S = T.alloc_shared((64,), F32)
            if change != "nothing is written":
                B[block, tx] = A[block, tx]
            row = block if change == "own" else (block + 1) % 4
            if how == "async":
                for j in T.Parallel(64, annotations=ASYNC):
                    S[j] = (A if change == "of an input" else B)[row, j]
                T.ptx_commit_group()
                T.ptx_wait_group(0)
            else:
                for j in T.Parallel(64):
                    S[j] = (A if change == "of an input" else B)[row, j]
            T.sync_threads()
            C[block, tx] = S[63 - tx]

    return kernel


@pytest.mark.parametrize("how", ["async", "plain"])
def test_the_source_of_a_copy_is_read(how: str) -> None:
    assert says(wrong(read_back("of another", how), "B", "C"), "race", "write of B", "read of B")
    assert not wrong(read_back("of an input", how), "B", "C")


def handed(change: str = "") -> Any:
    """One role brings rows, the other adds; each waits for the other."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((n, ROLE), F32), B: T.Tensor((ROLE,), F32)):
        with T.Kernel(1, threads=2 * ROLE):
            row = T.alloc_shared((ROLE,), F32, scope="shared")
            total = T.alloc_local((1,), F32)
            ready = T.alloc_barrier(2 * ROLE if change == "a count that is too high" else ROLE)
            free = T.alloc_barrier(ROLE)
            begun = T.alloc_barrier(ROLE)
            done = T.alloc_barrier(ROLE)
            thread = T.get_thread_binding()
            if thread < ROLE:
                if change == "each first waits for the other":
                    T.barrier_wait(done, 0)
                T.barrier_arrive(begun)
                for t in T.serial(n):
                    T.barrier_wait(free, (t if change == "free is flipped" else t + 1) % 2)
                    row[thread] = A[t, thread]
                    T.barrier_arrive(ready)
                if change == "a wait for the last phase":
                    T.barrier_wait(free, (n - 1) % 2)
                if change == "a wait for one phase more":
                    T.barrier_wait(free, n % 2)
                if change == "an end that is awaited":
                    T.barrier_wait(done, 0)
            else:
                T.barrier_wait(begun, 1 if change == "the second phase of one" else 0)
                total[0] = 0.0
                if change == "each first waits for the other":
                    T.barrier_arrive(done)
                for t in T.serial(n):
                    T.barrier_wait(ready, t % 2)
                    total[0] += row[(thread + 1) % ROLE]
                    if change != "nobody makes room":
                        T.barrier_arrive(free)
                if change != "each first waits for the other":
                    T.barrier_arrive(done)
                B[thread - ROLE] = total[0]

    return kernel


@pytest.mark.parametrize("change", ["", "an end that is awaited", "a wait for the last phase"])
def test_roles_that_pass_all_waits(change: str) -> None:
    kernel = handed(change)
    found = outcomes(order, kernel, hypotheses(kernel, "B", sizes=SIZES), MANUAL)
    assert {o.verdict for o in found} == {"proved"}
    assert "deadlock" in kinds(found)
    assert deadlock_free(found, ()) == (
        "deadlock-free: every thread gets past each barrier and each wait, in every timing",
    )


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ("free is flipped", "deadlock", "free[0], in every timing; not so: threads 64 to 127 arrive only after it"),
        (
            "each first waits for the other",
            "deadlock",
            "done[0], in every timing; not so: threads 64 to 127 arrive only",
        ),
        ("nobody makes room", "deadlock", "free[0], in every timing; not so: nobody arrives"),
        ("a wait for one phase more", "phase", "this waits at free[0] for the phase of the last iteration before it"),
        ("the second phase of one", "deadlock", "which phase it waits for is not known"),
        ("a count that is too high", "phase", "ready[0] counts 128 arrivals, and 64 come"),
    ],
)
def test_roles_that_wait_for_ever(change: str, kind: str, words: str) -> None:
    kernel = handed(change)
    found = outcomes(order, kernel, hypotheses(kernel, "B", sizes=SIZES), MANUAL)
    assert says([o for o in found if o.verdict == "refuted"], kind, words)
    assert not deadlock_free(found, ())


def watched(waits: bool) -> Any:
    """A role that only watches may see a phase too late, when the next one has ended: then it waits for ever."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((n,), F32), B: T.Tensor((ROLE,), F32)):
        with T.Kernel(1, threads=2 * ROLE):
            ticks = T.alloc_barrier(ROLE)
            seen = T.alloc_barrier(ROLE)
            thread = T.get_thread_binding()
            if thread < ROLE:
                for t in T.serial(n):
                    if waits:
                        T.barrier_wait(seen, (t + 1) % 2)
                    T.sync_threads(3, ROLE)
                    T.barrier_arrive(ticks)
            else:
                for t in T.serial(n):
                    T.barrier_wait(ticks, t % 2)
                    T.barrier_arrive(seen)
                B[thread - ROLE] = A[0]

    return kernel


def test_a_phase_that_is_missed() -> None:
    for waits in (True, False):
        kernel = watched(waits)
        given = hypotheses(kernel, "B", sizes={"n": Size(1, 2**20)})
        found = refuted(order, kernel, given, MANUAL)
        assert waits != says(found, "deadlock", "ticks[0]", "the phase after may end before it is seen")
        assert not (waits and found)


def one_role(change: str = "") -> Any:
    """All threads meet at an mbarrier."""

    @T.prim_func
    def kernel(A: T.Tensor((128,), F32), B: T.Tensor((128,), F32)):
        with T.Kernel(1, threads=128):
            S = T.alloc_shared((128,), F32, scope="shared")
            met = T.alloc_barrier(128)
            tx = T.get_thread_binding()
            S[tx] = A[tx]
            if change == "a wait before":
                T.barrier_wait(met, 0)
            if change != "nobody arrives":
                T.barrier_arrive(met)
            if change not in ("no wait", "a wait before"):
                T.barrier_wait(met, 0)
            B[tx] = S[127 - tx]

    return kernel


def test_all_threads_at_an_mbarrier() -> None:
    assert not wrong(one_role(), "B")
    assert says(wrong(one_role("no wait"), "B"), "race", "read of S")
    assert says(wrong(one_role("nobody arrives"), "B"), "deadlock", "nobody arrives")
    assert says(wrong(one_role("a wait before"), "B"), "deadlock", "arrive only after it")


def committed(change: str = "") -> Any:
    """Copies under a condition, committed in a loop, awaited before a barrier in a branch that all take alike."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((64, 64), F32), X: T.Tensor((n,), F32), B: T.Tensor((64, 64), F32)):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            S = T.alloc_shared((64, 64), F32)
            for i in T.serial(64):
                if n > i:
                    for j in T.Parallel(64, annotations=ASYNC):
                        S[i, j] = A[i, j]
                T.ptx_commit_group()
            T.ptx_wait_group(1 if change == "the last is not awaited" else 0)
            if n > 7 or change == "always":
                T.sync_threads()
            for i in T.serial(64):
                if n > (i if change == "more are read" else i + 7):
                    B[i, tx] = S[i, 63 - tx]

    return kernel


def test_groups_that_are_committed_in_a_loop() -> None:
    assert not wrong(committed(), "B")
    assert not wrong(committed("always"), "B")
    assert says(wrong(committed("more are read"), "B"), "async", "with no barrier after the wait")
    assert says(wrong(committed("the last is not awaited"), "B"), "async", "not awaited")


def dead_arm(change: str) -> Any:
    """An arrival under a condition that always holds; what stands in the other arm is never done."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((n,), F32), R: T.Tensor((ROLE,), F32), B: T.Tensor((ROLE,), F32)):
        with T.Kernel(1, threads=2 * ROLE):
            row = T.alloc_shared((ROLE,), F32, scope="shared")
            ready = T.alloc_barrier(ROLE)
            thread = T.get_thread_binding()
            if thread < ROLE:
                for j in T.Parallel(ROLE, annotations=ASYNC):
                    row[j] = R[j]
                T.ptx_commit_group()
                if change == "awaited":
                    T.ptx_wait_group(0)
                if n >= 0:
                    T.barrier_arrive(ready)
                else:
                    T.ptx_wait_group(0)
            else:
                T.barrier_wait(ready, 0)
                B[thread - ROLE] = row[thread - ROLE]

    return kernel


def test_what_is_never_done_orders_nothing() -> None:
    assert not wrong(dead_arm("awaited"), "B")
    assert says(wrong(dead_arm(""), "B"), "race", "write of row", "read of row")
