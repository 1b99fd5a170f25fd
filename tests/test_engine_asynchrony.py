"""Layer 1, asynchrony: a wait, a fence or a barrier that is needed is missed, and one that is not is not."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import tilelang.language as T
from tvm import tirx

from engine_verdicts import MANUAL, STRICT, hypotheses, kinds, refuted
from lemmata.kernels.gather import ASYNC
from lemmata.kernels.indexer import Config, fp8
from lemmata.proofs import indexer
from lemmata.proofs.engine import extract
from lemmata.proofs.engine.hypotheses import Hypotheses
from lemmata.proofs.engine.order.questions import MODELLED, READERS_FENCE, order, within_blocks
from lemmata.proofs.engine.solve import solve
from lemmata.reference.contract import Size

BF16, F32 = "bfloat16", "float32"
CONFIGS = {**MANUAL, "tl.disable_warp_specialized": True}
SIZES = {"tiles": Size(0, 2**20)}


def found(kernel: Any) -> list[str]:
    """What is refuted, in words."""
    wrong = refuted(order, kernel, hypotheses(kernel, "C", sizes=SIZES), CONFIGS)
    assert kinds(wrong) <= {"async"}
    return [o.condition.statement for o in wrong]


def pipeline(change: str = "", more: str = ""):
    """Products with tiles that stream through two stages: one is multiplied while the next one is under way."""
    tiles = T.dynamic("tiles")

    @T.macro
    def load(B, ks, t, stage):
        for j, d in T.Parallel(32, 64, annotations=ASYNC):
            ks[stage, j, d] = B[t, j, d]

    @T.macro
    def arrival():
        if change == "fence before the wait":
            T.fence_proxy_async()
        if change != "no wait":
            T.ptx_wait_group(1 if change == "wait for all but one" else 0)
        if more == "wait":
            T.ptx_wait_group(0)
        if change not in ("no fence", "fence before the wait", "fence after the barrier"):
            T.fence_proxy_async()
        if change != "no barrier":
            T.sync_threads()
        if change == "fence after the barrier":
            T.fence_proxy_async()
        if more == "barrier":
            T.sync_threads()

    @T.prim_func
    def kernel(A: T.Tensor((64, 64), BF16), B: T.Tensor((tiles, 32, 64), BF16), C: T.Tensor((64, 32), F32)):
        with T.Kernel(1, threads=128):
            qs = T.alloc_shared((64, 64), BF16)
            ks = T.alloc_shared((2, 32, 64), BF16)
            z = T.alloc_fragment((64, 32), F32)
            for i, d in T.Parallel(64, 64, annotations=ASYNC):
                qs[i, d] = A[i, d]
            if tiles > 0:
                load(B, ks, 0, 0)
            T.ptx_commit_group()
            if more == "empty group":
                T.ptx_commit_group()
            T.fill(z, 0)
            for t in T.serial(tiles):
                arrival()
                if t + 1 < tiles:
                    load(B, ks, t + 1, t % 2 if change == "load into the stage read" else (t + 1) % 2)
                if change != "no commit":
                    T.ptx_commit_group()
                if more == "empty group":
                    T.ptx_commit_group()
                T.wgmma_gemm(qs, ks[t % 2, :, :], z, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                if change == "use of the result before the wait":
                    for i, j in T.Parallel(64, 32):
                        z[i, j] *= 2
                if change == "wait for all but one product":
                    T.wait_wgmma(1)
                elif change == "wait for products if there are more":
                    if t + 1 < tiles:
                        T.wait_wgmma(0)
                elif change != "no wait for products":
                    T.wait_wgmma(0)
                if more == "wait for products":
                    T.wait_wgmma(0)
            T.copy(z, C)

    return kernel


@pytest.mark.parametrize("more", ["", "wait", "barrier", "empty group", "wait for products"])
def test_a_pipeline_that_waits(more):
    kernel = pipeline(more=more)
    assert not found(kernel)
    analysis = order(kernel, hypotheses(kernel, "C", sizes=SIZES), CONFIGS)
    assert len(analysis.conditions) > 5
    assert not analysis.unmodelled & MODELLED
    whose = " ".join(site.statement for site in analysis.sites)
    assert all(s in whose for s in ("copy's write of ks", "product's read of ks", "product's write of z"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no wait", "product's read of ks .* meets this copy's write of ks, not awaited"),
        ("wait for all but one", "product's read of ks .* meets this copy's write of ks, not awaited"),
        ("no commit", "product's read of ks .* meets this copy's write of ks, not committed"),
        ("no barrier", "product's read of ks .* meets this copy's write of ks, with no barrier after the wait"),
        ("load into the stage read", "product's read of ks .* meets this copy's write of ks, not awaited"),
        ("no wait for products", "copy's write of ks .* meets this product's read of ks, not waited for"),
        ("wait for all but one product", "copy's write of ks .* meets this product's read of ks, not waited for"),
        ("wait for products if there are more", "read of z .* meets this product's write of z, not waited for"),
        ("use of the result before the wait", "write of z .* meets this product's write of z, not waited for"),
    ],
)
def test_a_pipeline_that_does_not_wait(change, words):
    assert any(re.search(words, statement) for statement in found(pipeline(change)))


def without(device: Any, name: str, *which: int) -> Any:
    """The function without some of its calls of one intrinsic, by their place in the text; of all, if none is given."""
    count = itertools.count()

    def dropped(s: Any) -> Any:
        call = s.value
        if getattr(getattr(call, "op", None), "name", "") != name:
            return None
        number = next(count)
        return tirx.Evaluate(tirx.const(0)) if not which or number in which else None

    return device.with_body(tirx.stmt_functor.ir_transform(device.body, None, dropped, ["tirx.Evaluate"]))


def lowered(kernel: Any, **options: Any) -> Any:
    return extract.device(kernel, guards=False, pass_configs=CONFIGS, **options)


def refuted_within(kernel: Any, device: Any) -> list[str]:
    """What is refuted of a function at device level, in words."""
    return [o.condition.statement for o in refuted(within_blocks, device, hypotheses(kernel, "C", sizes=SIZES))]


FENCE = "tl.fence_proxy_async"  # the kernel's own comes first, then the one that the compiler places at the product


@pytest.mark.parametrize(("change", "right"), [("", True), ("no fence", False), ("fence before the wait", False)])
def test_the_fence_of_those_who_write(change, right):
    kernel = pipeline(change)
    device = without(lowered(kernel), FENCE, 0 if change == "no fence" else 1)
    statements = refuted_within(kernel, device)
    assert right != bool(statements)
    words = "product's read of ks .* meets this copy's write of ks, with no proxy fence after the wait"
    assert right or any(re.search(words, s) for s in statements)
    assert READERS_FENCE not in within_blocks(device, hypotheses(kernel, "C", sizes=SIZES)).unmodelled


@pytest.mark.parametrize("change", ["no fence", "fence before the wait", "fence after the barrier"])
def test_a_fence_of_those_who_read_is_named(change):
    kernel = pipeline(change)
    assert not found(kernel)
    given = hypotheses(kernel, "C", sizes=SIZES)
    assert READERS_FENCE in order(kernel, given, CONFIGS).unmodelled
    assert READERS_FENCE not in order(pipeline(), given, CONFIGS).unmodelled


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tl.warpgroup_arrive", "product's write of z .* meets this write of z, with no warpgroup_arrive between"),
        ("tl.warpgroup_commit_batch", "copy's write of ks .* meets this product's read of ks, not in a batch"),
    ],
)
def test_what_the_compiler_places_at_a_product(name, words):
    kernel = pipeline()
    device = lowered(kernel)
    assert not refuted_within(kernel, device)
    assert any(re.search(words, statement) for statement in refuted_within(kernel, without(device, name)))


def stored(barrier: bool = True):
    """A product with what the threads themselves store to shared memory, in every step of a loop."""
    tiles = T.dynamic("tiles")

    @T.prim_func
    def kernel(A: T.Tensor((tiles, 64, 64), BF16), B: T.Tensor((tiles, 32, 64), BF16), C: T.Tensor((64, 32), F32)):
        with T.Kernel(1, threads=128):
            qs = T.alloc_shared((64, 64), BF16)
            ks = T.alloc_shared((32, 64), BF16)
            z = T.alloc_fragment((64, 32), F32)
            T.fill(z, 0)
            for t in T.serial(tiles):
                for i, d in T.Parallel(64, 64):
                    qs[i, d] = A[t, i, d] * 2
                for j, d in T.Parallel(32, 64):
                    ks[j, d] = B[t, j, d] * 2
                T.fence_proxy_async()
                if barrier:
                    T.sync_threads()
                T.wgmma_gemm(qs, ks, z, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.wait_wgmma(0)
                T.sync_threads()
            T.copy(z, C)

    return kernel


def test_a_product_of_what_threads_store():
    kernel = stored()
    device = lowered(kernel)
    assert not refuted_within(kernel, device)
    words = "product's read of qs .* meets this write of qs, with no proxy fence between"
    assert any(re.search(words, s) for s in refuted_within(kernel, without(device, FENCE)))
    words = "write of qs .* meets this product's read of qs, with no barrier after the wait"
    assert any(re.search(words, s) for s in refuted_within(kernel, without(device, "tirx.tvm_storage_sync", 1)))
    words = "product's read of qs .* meets this write of qs, with no barrier between"
    assert any(re.search(words, s) for s in found(stored(barrier=False)))


def handover(wait: str):
    """A copy, perhaps a wait, a barrier, and a load by another thread."""
    tiles = T.dynamic("tiles")

    @T.prim_func
    def kernel(A: T.Tensor((64, 8), F32), C: T.Tensor((64, 8), F32), B: T.Tensor((tiles,), F32)):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            S = T.alloc_shared((64, 8), F32)
            if wait not in ("if the copy was made", "if another was made") or tiles > 5:
                for i, d in T.Parallel(64, 8, annotations=ASYNC):
                    S[i, d] = A[i, d]
            T.ptx_commit_group()
            if wait in ("always", "by the thread itself"):
                T.ptx_wait_group(0)
            elif wait == "if the copy was made":
                if tiles > 5:
                    T.ptx_wait_group(0)
            elif wait == "if another was made":
                if tiles > 6:
                    T.ptx_wait_group(0)
            elif wait == "by some threads":
                if tx < 32:
                    T.ptx_wait_group(0)
            elif wait == "in a loop that may not run":
                for _ in T.serial(tiles):
                    T.ptx_wait_group(0)
            elif wait == "in a loop of two":
                for _ in T.serial(2):
                    T.ptx_wait_group(0)
            if wait != "by the thread itself":
                T.sync_threads()
            for i, d in T.Parallel(64, 8):
                C[i, d] = S[i if wait == "by the thread itself" else 63 - i, d]

    return kernel


@pytest.mark.parametrize("wait", ["always", "if the copy was made", "in a loop of two", "by the thread itself"])
def test_a_certain_wait(wait):
    assert not found(handover(wait))


@pytest.mark.parametrize("wait", ["never", "if another was made", "by some threads", "in a loop that may not run"])
def test_an_uncertain_wait(wait):
    assert {"not awaited" in statement for statement in found(handover(wait))} == {True}


def by_the_compiler():
    """A product whose pipeline the compiler makes."""
    tiles = T.dynamic("tiles")

    @T.prim_func
    def kernel(A: T.Tensor((tiles, 64, 32), BF16), B: T.Tensor((tiles, 32, 32), BF16), C: T.Tensor((64, 32), F32)):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((64, 32), BF16)
            b = T.alloc_shared((32, 32), BF16)
            c = T.alloc_fragment((64, 32), F32)
            T.clear(c)
            for k in T.Pipelined(tiles, num_stages=2):
                T.copy(A[k, 0:64, 0:32], a)
                T.copy(B[k, 0:32, 0:32], b)
                T.gemm(a, b, c)
            T.copy(c, C)

    return kernel


def test_waits_that_the_compiler_places():
    kernel = by_the_compiler()
    device = extract.device(kernel, guards=False, pass_configs=STRICT, arch="sm_80")
    assert not refuted_within(kernel, device)
    words = "read of a .* meets this copy's write of a, not (awaited|committed)"
    for name in ("tirx.ptx_wait_group", "tirx.ptx_commit_group"):
        assert any(re.search(words, statement) for statement in refuted_within(kernel, without(device, name)))


SHIPPED = {
    "indexer": lambda: indexer._proof(Config(chunk=256)),
    "indexer fp8": lambda: indexer._proof(fp8(32, 128, 3, 256)),
}


@pytest.mark.parametrize("which", SHIPPED)
def test_the_kernels_that_ship(which):
    proof = SHIPPED[which]()
    given = Hypotheses.of(proof.contract, proof.statics, proof.kernel)
    analysis = order(proof.kernel, given, proof.pass_configs)
    assert {solve(site, witness=False).verdict for site in analysis.sites} == {"refuted"}
    assert {solve(condition).verdict for condition in analysis.conditions} == {"proved"}
    assert READERS_FENCE in analysis.unmodelled
