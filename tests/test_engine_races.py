"""Layer 1, races: barriers that are needed are missed, and those that are not are not."""

import pytest
import tilelang.language as T

from corpus import EXAMPLES
from engine_verdicts import MANUAL, STRICT, hypotheses, kinds, only, outcomes, refuted
from lemmata.kernels import sinkhorn
from lemmata.proofs.engine import extract
from lemmata.proofs.engine.errors import Unsupported
from lemmata.proofs.engine.hypotheses import Hypotheses
from lemmata.proofs.engine.order.questions import order
from lemmata.reference.sinkhorn import BACKWARD


def has_barrier(prim_func, configs) -> bool:
    return "tvm_storage_sync" in extract.device(prim_func, guards=False, pass_configs=configs).script()


def test_a_private_lane_of_shared_memory_needs_no_barrier():
    kernel = sinkhorn.sinkhorn_bwd(sinkhorn.Config(n=4))
    assert not has_barrier(kernel, STRICT)
    found = outcomes(order, kernel, Hypotheses.of(BACKWARD, {"n": 4, "iterations": 20, "eps": 1e-6}, kernel), STRICT)
    assert kinds(found) == {"race"}
    assert {o.verdict for o in found} == {"proved"}


def neighbours_lane(offset: int):
    """Each thread writes its own lane; it reads its own, or one beside it."""

    @T.prim_func
    def kernel(A: T.Tensor((32, 4), "float32"), B: T.Tensor((32,), "float32")):
        with T.Kernel(1, threads=32):
            tx = T.get_thread_binding()
            history = T.alloc_shared((3, 4, 32), "float32")
            for step in T.serial(3):
                for i in T.unroll(4):
                    history[step, i, tx] = A[tx, i]
            B[tx] = history[2, 3, (tx + offset) % 32]

    return kernel


def test_reading_the_neighbours_lane_is_a_race():
    kernel = neighbours_lane(0)
    assert not refuted(order, kernel, hypotheses(kernel, "B"), MANUAL)
    kernel = neighbours_lane(1)
    outcome, model = only(refuted(order, kernel, hypotheses(kernel, "B"), MANUAL))
    assert outcome.condition.kind == "race"
    assert model["tx"] == (model["tx'"] + 1) % 32
    assert (model["step"], model["i"]) == (2, 3)
    assert "history" in outcome.condition.site.text


def strided_guard():
    """The compiler hoists the barrier that the loop needs out of the guard (tile-ai/tilelang #2612)."""

    @T.prim_func
    def kernel(A: T.Tensor((128,), "float32"), B: T.Tensor((128,), "float32")):
        with T.Kernel(1, threads=128):
            tx = T.get_thread_binding()
            S = T.alloc_shared((128,), "float32")
            acc = T.alloc_local((1,), "float32")
            acc[0] = 0.0
            S[tx] = 0.0
            if tx % 4 == 0:
                for k in T.serial(4):
                    S[tx] = A[tx] + k
                    acc[0] += S[124 - tx]
            B[tx] = acc[0]

    return kernel


def test_the_compilers_hoisted_barrier_is_a_race():
    kernel = strided_guard()
    assert has_barrier(kernel, STRICT)
    outcome, model = only(refuted(order, kernel, hypotheses(kernel, "B"), STRICT))
    assert outcome.condition.kind == "race"
    assert model["tx"] + model["tx'"] == 124
    assert model["tx"] % 4 == model["tx'"] % 4 == 0


def through_shared():
    """A copy through shared memory, whose layout the compiler swizzles."""
    M, N = T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def kernel(A: T.Tensor((M, N), "float16"), B: T.Tensor((N, 64), "float16"), C: T.Tensor((M, 64), "float32")):
        with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
            a = T.alloc_shared((64, 32), "float16")
            b = T.alloc_shared((32, 64), "float16")
            c = T.alloc_fragment((64, 64), "float32")
            T.clear(c)
            for k in T.serial(T.ceildiv(N, 32)):
                T.copy(A[block * 64, k * 32], a)
                T.copy(B[k * 32, 0], b)
                T.gemm(a, b, c)
            T.copy(c, C[block * 64, 0])

    return kernel


def test_swizzled_tiles_of_a_matrix_product():
    kernel = through_shared()
    given = hypotheses(kernel, "C")
    assert "// 32 * 32" in extract.device(kernel, guards=False, arch="sm_80").script()  # the swizzle
    found = outcomes(order, kernel, given, STRICT, arch="sm_80")
    assert kinds(found) == {"race", "barrier"}
    assert {o.verdict for o in found} == {"proved"}
    bare = refuted(order, kernel, given, MANUAL, arch="sm_80")
    assert kinds(bare) == {"race"}
    assert len(bare) >= 2  # of each operand


def stored_by_matrices(rows: int):
    """A product, whose result a warp stores to shared memory matrix by matrix: two of them, or four, at once."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(A: T.Tensor((M, 64), "bfloat16"), B: T.Tensor((32, 64), "bfloat16"), C: T.Tensor((M, 32), "bfloat16")):
        with T.Kernel(M // rows, threads=128) as block:
            a = T.alloc_shared((rows, 64), "bfloat16")
            b = T.alloc_shared((32, 64), "bfloat16")
            c = T.alloc_fragment((rows, 32), "float32")
            tile = T.alloc_shared((rows, 32), "bfloat16")
            T.copy(A[block * rows, 0], a)
            T.copy(B, b)
            T.gemm(a, b, c, transpose_B=True, clear_accum=True)
            T.copy(c, tile)
            for i, j in T.Parallel(rows, 32):
                C[block * rows + i, j] = tile[i, j]

    return kernel


@pytest.mark.parametrize(("rows", "matrices", "product"), [(16, 2, "ptx_mma"), (64, 4, "wgmma")])
def test_matrices_stored_by_a_warp(rows, matrices, product):
    kernel = stored_by_matrices(rows)
    given = hypotheses(kernel, "C")
    device = extract.device(kernel, guards=False, pass_configs=STRICT).script()
    assert f"ptx_stmatrix(0, {matrices}, " in device
    assert product in device
    assert not refuted(order, kernel, given, STRICT)
    bare = [o.condition.statement for o in refuted(order, kernel, given, MANUAL)]
    assert any("read of tile" in s and "write of tile" in s for s in bare)


def rounds(after_write: bool, after_read: bool):
    """In every round a thread writes its slot and reads its neighbour's."""
    steps = T.dynamic("steps")

    @T.prim_func
    def kernel(A: T.Tensor((steps, 64), "float32"), B: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            S = T.alloc_shared((64,), "float32")
            acc = T.alloc_local((1,), "float32")
            acc[0] = 0.0
            for k in T.serial(steps):
                S[tx] = A[k, tx]
                if after_write:
                    T.sync_threads()
                acc[0] += S[tx ^ 1]
                if after_read:
                    T.sync_threads()
            B[tx] = acc[0]

    return kernel


@pytest.mark.parametrize("after_write", [True, False])
@pytest.mark.parametrize("after_read", [True, False])
def test_a_loop_needs_a_barrier_on_both_sides(after_write, after_read):
    kernel = rounds(after_write, after_read)
    found = refuted(order, kernel, hypotheses(kernel, "B"), MANUAL)
    if after_write and after_read:
        assert not found
        return
    model = only(found)[1]
    assert model["tx"] == model["tx'"] ^ 1
    if after_write:  # the next round's write meets this round's read
        assert model["k'"] == model["k"] + 1


def handover(barrier: str):
    """One write, perhaps a barrier, one read of the neighbour's slot."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((64,), "float32"), X: T.Tensor((n,), "float32"), B: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            S = T.alloc_shared((64,), "float32")
            S[tx] = A[tx]
            if barrier == "always":
                T.sync_threads()
            elif barrier == "in a loop that may not run":
                for _ in T.serial(n):
                    T.sync_threads()
            elif barrier == "in a loop of two":
                for _ in T.serial(2):
                    T.sync_threads()
            elif barrier == "in one arm":
                if n > 5:
                    T.sync_threads()
            elif barrier == "in both arms":
                if n > 5:
                    T.sync_threads()
                else:
                    T.sync_threads()
            elif barrier == "of some threads":
                if tx < 16:
                    T.sync_threads()
            elif barrier == "as often as the thread's number":
                for _ in T.serial(tx):
                    T.sync_threads()
            B[tx] = S[63 - tx]

    return kernel


@pytest.mark.parametrize("barrier", ["always", "in a loop of two", "in both arms"])
def test_a_certain_barrier_separates(barrier):
    kernel = handover(barrier)
    assert not refuted(order, kernel, hypotheses(kernel, "B"), MANUAL)


@pytest.mark.parametrize("barrier", ["never", "in a loop that may not run", "in one arm"])
def test_an_uncertain_barrier_does_not(barrier):
    kernel = handover(barrier)
    model = only(refuted(order, kernel, hypotheses(kernel, "B"), MANUAL))[1]
    assert model["tx"] + model["tx'"] == 63


@pytest.mark.parametrize("barrier", ["of some threads", "as often as the thread's number"])
def test_all_threads_must_reach_a_barrier(barrier):
    kernel = handover(barrier)
    assert "barrier" in kinds(refuted(order, kernel, hypotheses(kernel, "B"), MANUAL))


def reuse(barrier: bool):
    """Two buffers, one dead before the other lives: the compiler gives them the same memory."""

    @T.prim_func
    def kernel(A: T.Tensor((64,), "float32"), B: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            first = T.alloc_shared((64,), "float32")
            second = T.alloc_shared((64,), "float32")
            kept = T.alloc_local((1,), "float32")
            first[tx] = A[tx]
            T.sync_threads()
            kept[0] = first[tx ^ 1]
            if barrier:
                T.sync_threads()
            second[tx] = kept[0]
            T.sync_threads()
            B[tx] = second[tx ^ 3]

    return kernel


def test_buffers_that_share_memory():
    kernel = reuse(barrier=True)
    assert "handle_add_byte_offset" in extract.device(kernel, guards=False, pass_configs=MANUAL).script()
    assert not refuted(order, kernel, hypotheses(kernel, "B"), MANUAL)
    kernel = reuse(barrier=False)
    outcome, model = only(refuted(order, kernel, hypotheses(kernel, "B"), MANUAL))
    assert "second" in outcome.condition.statement
    assert "first" in outcome.condition.statement
    assert model["tx"] == model["tx'"] ^ 1


def exchange(offset: int):
    """Each thread reads back from global memory what it, or another thread, has just written."""

    @T.prim_func
    def kernel(A: T.Tensor((256,), "float32"), B: T.Tensor((256,), "float32"), C: T.Tensor((256,), "float32")):
        with T.Kernel(4, threads=64) as block:
            i = block * 64 + T.get_thread_binding()
            B[i] = A[i]
            C[i] = B[(i + offset) % 256]

    return kernel


def test_global_memory_is_not_ordered_between_threads():
    kernel = exchange(0)
    assert not refuted(order, kernel, hypotheses(kernel, "B", "C"), MANUAL)
    kernel = exchange(64)
    model = only(refuted(order, kernel, hypotheses(kernel, "B", "C"), MANUAL))[1]
    assert model["bx'"] == (model["bx"] - 1) % 4
    assert model["tx"] == model["tx'"]


def test_a_transpose_needs_its_barrier():
    example = EXAMPLES["transpose"]
    for bug in (None, "dropped barrier"):
        kernel = example.build(bug)
        found = refuted(order, kernel, Hypotheses.of(example.contract, {}, kernel), example.pass_configs)
        assert kinds(found) == ({"race"} if bug else set())


def test_a_barrier_of_part_of_a_block_is_refused():
    @T.prim_func
    def partial(A: T.Tensor((128,), "float32"), B: T.Tensor((128,), "float32")):
        with T.Kernel(1, threads=128):
            tx = T.get_thread_binding()
            S = T.alloc_shared((128,), "float32")
            if tx < 64:
                S[tx] = A[tx]
                T.sync_threads(3, 64)
                B[tx] = S[63 - tx]

    with pytest.raises(Unsupported, match="some threads"):
        order(partial, hypotheses(partial, "B"), MANUAL)


def test_instructions_that_are_not_modelled_are_named():
    kernel = through_shared()
    assert "tirx.ptx_mma" in order(kernel, hypotheses(kernel, "C"), STRICT, arch="sm_80").unmodelled
    assert not any("wgmma" in name for name in order(kernel, hypotheses(kernel, "C"), STRICT).unmodelled), "modelled"
