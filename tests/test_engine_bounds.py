"""Layer 0: what is out of bounds, wraps or cannot launch is found, with the sizes and the thread that show it."""

import pytest
import tilelang.language as T
import z3

from corpus import EXAMPLES
from engine_verdicts import LARGEST, STRICT, hypotheses, kinds, only, outcomes, refuted
from lemmata.kernels import sinkhorn
from lemmata.proofs.engine.base.conditions import Condition, Site
from lemmata.proofs.engine.base.errors import Unsupported, UnsupportedVersion
from lemmata.proofs.engine.compiler import extract
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.layers.bounds import bounds, grows
from lemmata.proofs.engine.layers.row_major import digits
from lemmata.proofs.engine.smt.solve import solve
from lemmata.reference.contract import Elements, Size
from lemmata.reference.sinkhorn import BACKWARD, FORWARD

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


@pytest.mark.parametrize("name", ["copy_1d", "copy_2d", "gather", "strided", "transpose"])
def test_the_corpus(name):
    example = EXAMPLES[name]
    for bug, expected in {None: (), **example.bugs}.items():
        kernel = example.build(bug)
        found = refuted(bounds, kernel, Hypotheses.of(example.contract, {}, kernel), example.pass_configs)
        assert kinds(found) == {"bounds", "overflow"} & set(expected)


def rows(bug: str = ""):
    """One thread per row of 4 x 4, vectorised."""
    count = T.dynamic("count")

    @T.prim_func
    def kernel(x: T.Tensor((count, 4, 4), "float32"), out: T.Tensor((count, 4, 4), "float32")):
        with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
            matrix = block * 32 + T.get_thread_binding()
            p = T.alloc_local((4, 4), "float32")
            s = T.alloc_shared((32,), "float32")
            s[matrix % 32 + (1 if bug == "shared" else 0)] = 0.0
            if matrix < count:
                for i in T.unroll(4):
                    for j in T.vectorized(4):
                        p[i, j] = x[matrix, i, j]
                for i in T.unroll(5 if bug == "extent" else 4):
                    for j in T.unroll(4):
                        p[i, j + (1 if bug == "private" else 0)] *= s[matrix % 32]
                for i in T.unroll(4):
                    for j in T.unroll(4):
                        out[matrix, i, j] = p[i, j]

    return kernel


@pytest.mark.parametrize(("bug", "name"), [("", None), ("shared", "s"), ("extent", "p"), ("private", "p")])
def test_private_and_shared_memory(bug, name):
    kernel = rows(bug)
    found = refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)
    assert kinds(found) == ({"bounds"} if name else set())
    assert all(f" of {name}" in o.condition.statement for o in found)


def vector_tail(width: int):
    """Four elements at a time; the guard looks at the first alone."""
    count = T.dynamic("count")

    @T.prim_func
    def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
        with T.Kernel(T.ceildiv(count, 128), threads=32) as block:
            first = (block * 32 + T.get_thread_binding()) * 4
            if first + width <= count:
                for j in T.vectorized(4):
                    out[first + j] = x[first + j]

    return kernel


def test_every_lane_of_a_vector():
    kernel = vector_tail(4)
    assert not refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)
    kernel = vector_tail(3)
    found = refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)
    assert kinds(found) == {"bounds"}
    assert all(o.counterexample["count"] % 4 == 3 for o in found)


def test_the_compilers_guards_do_not_hide_an_error():
    example = EXAMPLES["copy_1d"]
    kernel = example.build("off-by-one guard")
    given = Hypotheses.of(example.contract, {}, kernel)
    found = outcomes(bounds, kernel, given, {})  # shipped with guards
    assert kinds([o for o in found if o.verdict == "refuted"]) == {"bounds"}
    guarded = [o for o in found if o.condition.kind == "guarded bounds"]
    assert guarded
    assert {o.verdict for o in guarded} == {"proved"}


def test_a_gathered_index_of_minus_one():
    example = EXAMPLES["gather"]
    kernel = example.build("index not masked")
    found = refuted(bounds, kernel, Hypotheses.of(example.contract, {}, kernel), STRICT)
    assert all("read of table" in o.condition.statement for o in found)
    model = found[0].counterexample
    assert model is not None
    assert -1 in [value for name, value in model.items() if name.startswith("indices[")]


def of_two_heads(last: int):
    """One entry of each row of ragged rows, which two blocks share, at a multiple of its place."""
    B, S, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("K")

    @T.prim_func
    def kernel(x: T.Tensor((B, S, K), "float32"), out: T.Tensor((B, S, 2), "float32")):
        with T.Kernel(S * 2, 5, B, threads=32) as (block, part, b):
            at = (T.ceildiv(K, 64) + 2) * part // 5 * 64 + T.get_thread_binding() - 128
            if at >= 0 and at < K + last:
                out[b, block // 2, block % 2] = x[b, block // 2, at]

    return kernel


def test_flat_indices_of_several_sizes_that_vary():
    sizes = {"B": Size(high=65535), "S": Size(high=2**30 - 1), "K": Size(high=2**13)}
    kernel = of_two_heads(0)
    assert not refuted(bounds, kernel, hypotheses(kernel, "out", sizes=sizes), STRICT)
    kernel = of_two_heads(1)
    assert kinds(refuted(bounds, kernel, hypotheses(kernel, "out", sizes=sizes), STRICT)) == {"bounds"}


def test_what_is_said_of_flat_indices_is_true():
    i, j, k, M, N = z3.Ints("i j k M N")
    given = [grows(d) for d in digits(i * M * N + (j / 2) * N + 3 * k, (z3.Int("L"), M, N))]
    assert len(given) == 2
    for lemma in given:
        assert solve(Condition("bounds", "", (), lemma, Site(""))).verdict == "proved"


def doubled(width: str):
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
            at = T.alloc_var(width)
            i = block * 128 + T.get_thread_binding()
            if i < n:
                at = T.cast(i, width) * 2 + 1
                out[i] = x[at // 2]

    return kernel


def test_overflow_of_32_bits():
    kernel = doubled("int64")
    assert not refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)
    kernel = doubled("int32")
    assert not refuted(bounds, kernel, hypotheses(kernel, "out", sizes={"n": Size(high=2**30)}), STRICT)
    found = refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)
    assert kinds(found) == {"overflow"}
    assert all(o.counterexample["n"] > 2**30 for o in found)


def test_overflow_in_the_launch():
    kernel = rows()
    edge = 2**31 - 1 - 31  # beyond it count + 31 wraps in the launcher, and block * 32 + thread in the kernel
    assert not refuted(bounds, kernel, hypotheses(kernel, "out", sizes={"count": Size(high=edge)}), STRICT)
    found = refuted(bounds, kernel, hypotheses(kernel, "out", sizes={"count": Size(high=edge + 1)}), STRICT)
    assert kinds(found) == {"overflow"}
    assert {o.counterexample["count"] for o in found} == {edge + 1}


def test_sizes_that_do_not_fit_their_type():
    kernel = vector_tail(4)
    found = refuted(bounds, kernel, hypotheses(kernel, "out", sizes={"count": Size(high=2**32)}), STRICT)
    assert "count fits int32, to which the launcher narrows it" in [o.condition.statement for o in found]


def arithmetic(operation: str):
    n, d = T.dynamic("n"), T.dynamic("d")

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), y: T.Tensor((d,), "float32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
            i = block * 128 + T.get_thread_binding()
            if i < n:
                if operation == "divide":
                    out[i] = x[i // d]
                elif operation == "divide if not zero":
                    if d > 0:
                        out[i] = x[i // d]
                elif operation == "narrow":
                    out[i] = x[i] + T.cast(T.cast(i, "int8"), "float32")
                elif operation == "assume":
                    T.assume(d > 3)
                    out[i] = x[i]

    return kernel


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("divide", "division"), ("divide if not zero", None), ("narrow", "cast"), ("assume", "assume")],
)
def test_arithmetic(operation, kind):
    kernel = arithmetic(operation)
    found = refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)
    assert kinds(found) >= ({kind} if kind else set())
    assert kind or not found


def test_what_is_assumed_may_follow_from_the_contract():
    kernel = arithmetic("assume")
    assert not refuted(bounds, kernel, hypotheses(kernel, "out", sizes={"d": Size(4, LARGEST)}), STRICT)


def choice(lazy: bool):
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n, 2), "float32")):
        with T.Kernel(n, threads=2) as block:
            tx = T.get_thread_binding()
            inside = block + tx < n
            if lazy:
                out[block, tx] = T.if_then_else(inside, x[block + tx], 0.0)
            else:
                out[block, tx] = T.Select(inside, x[block + tx], T.float32(0.0))

    return kernel


def test_a_select_evaluates_both_arms():
    kernel = choice(lazy=True)
    assert not refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)
    kernel = choice(lazy=False)
    assert kinds(refuted(bounds, kernel, hypotheses(kernel, "out"), STRICT)) == {"bounds"}


def plane(threads: int, shared: int):
    M, N = T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def kernel(out: T.Tensor((M, N), "float32")):
        with T.Kernel(M, N, threads=threads) as (bx, by):
            tile = T.alloc_shared((shared,), "float32")
            tx = T.get_thread_binding()
            tile[tx] = 1.0
            if tx == 0:
                out[bx, by] = tile[tx]

    return kernel


def test_limits_of_a_launch():
    kernel = plane(128, 128)
    sizes = {"M": Size(high=2**31 - 1), "N": Size(high=65535)}
    assert not refuted(bounds, kernel, hypotheses(kernel, "out", sizes=sizes), STRICT)
    found = refuted(bounds, kernel, hypotheses(kernel, "out", sizes={**sizes, "N": Size(high=65536)}), STRICT)
    outcome, model = only(found)
    assert "blockIdx.y" in outcome.condition.statement
    assert model["N"] == 65536
    kernel = plane(128, 60_000)
    assert (
        "240000 bytes"
        in only(refuted(bounds, kernel, hypotheses(kernel, "out", sizes=sizes), STRICT))[0].condition.statement
    )
    kernel = plane(128, 50_000)
    assert not refuted(bounds, kernel, hypotheses(kernel, "out", sizes=sizes), STRICT)
    assert refuted(bounds, kernel, hypotheses(kernel, "out", sizes=sizes), STRICT, arch="sm_80")


@pytest.mark.parametrize(
    ("sizes", "elements"),
    [({}, Elements(low=5, high=5)), ({"count": Size(low=7, high=6)}, Elements(low=-1, high="entries"))],
)
def test_contradictory_contracts_reach_nothing(sizes, elements):
    kernel = EXAMPLES["gather"].build(None)
    given = hypotheses(kernel, "out", sizes=sizes, elements={"indices": elements})
    analysis = bounds(kernel, given, STRICT)
    dead = [c for c in analysis.sites if solve(c).verdict == "proved"]
    assert dead
    assert any("read of table" in c.statement for c in dead)


def test_contracts_of_another_kernel_are_refused():
    kernel = EXAMPLES["gather"].build(None)
    with pytest.raises(Unsupported, match="declares tensors"):
        Hypotheses.of(FORWARD, STATICS, kernel)
    with pytest.raises(Unsupported, match="logits: the kernel declares shape"):
        Hypotheses.of(FORWARD, {**STATICS, "n": 3}, sinkhorn.sinkhorn_fwd(sinkhorn.Config(n=4)))


def leaves_early():
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(n, threads=32) as block:
            for k in T.serial(8):
                if k > 3:
                    T.loop_break()
                out[block] = x[block]

    return kernel


def test_jumps_are_refused():
    kernel = leaves_early()
    with pytest.raises(Unsupported, match="loop_break"):
        bounds(kernel, hypotheses(kernel, "out"), STRICT)


def test_intrinsics_that_are_not_modelled_are_named():
    example = EXAMPLES["softmax"]
    kernel = example.build(None)
    analysis = bounds(kernel, Hypotheses.of(example.contract, {}, kernel), STRICT)
    assert any(name.startswith("tl::AllReduce") for name in analysis.unmodelled)


def asynchronous(rows: int):
    """Copies in flight, of which the compiler predicates the ragged ones; ``rows`` of b are read."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(a: T.Tensor((M, 128), "float16"), b: T.Tensor((rows, 64), "float16"), c: T.Tensor((M, 64), "float32")):
        with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
            a_tile = T.alloc_shared((64, 32), "float16")
            b_tile = T.alloc_shared((32, 64), "float16")
            c_tile = T.alloc_fragment((64, 64), "float32")
            T.clear(c_tile)
            for k in T.Pipelined(4, num_stages=2):
                T.copy(a[block * 64, k * 32], a_tile)
                for i, j in T.Parallel(32, 64):
                    b_tile[i, j] = b[k * 32 + i, j]
                T.gemm(a_tile, b_tile, c_tile)
            T.copy(c_tile, c[block * 64, 0])

    return kernel


def test_asynchronous_copies():
    kernel = asynchronous(128)
    assert "ptx_cp_async" in extract.device(kernel, guards=False, arch="sm_80").script()
    assert not refuted(bounds, kernel, hypotheses(kernel, "c"), STRICT, arch="sm_80")
    kernel = asynchronous(127)
    found = refuted(bounds, kernel, hypotheses(kernel, "c"), STRICT, arch="sm_80")
    assert kinds(found) == {"bounds"}
    assert all("read of b" in o.condition.statement for o in found)


def test_the_three_levels():
    kernel = EXAMPLES["matmul"].build(None)
    tile, thread, device = (
        extract.lower(kernel, guards=False).tile.script(),
        extract.lower(kernel, guards=False, arch="sm_80").thread.script(),
        extract.device(kernel, guards=False, arch="sm_80").script(),
    )
    assert "T.gemm" in tile or "tileop.gemm" in tile
    assert "threadIdx.x" in thread
    assert "tvm_storage_sync" not in thread
    assert "tvm_storage_sync" in device


def test_another_release_is_refused(monkeypatch):
    monkeypatch.setattr(extract, "version", lambda package: "0.1.16")
    with pytest.raises(UnsupportedVersion, match=r"tilelang 0\.1\.15, found 0\.1\.16"):
        extract.require_tilelang()
