"""Layer 1, coverage: every element once. Each style of tiling, honest, and with the errors that such tilings have."""

import pytest
import tilelang.language as T

from corpus import EXAMPLES
from engine_verdicts import STRICT, hypotheses, kinds, only, outcomes, refuted
from lemmata.kernels import sinkhorn
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.layers.coverage import coverage
from lemmata.reference.contract import Size
from lemmata.reference.sinkhorn import BACKWARD, FORWARD

STATICS = {"iterations": 20, "eps": 1e-6}
HONEST = {"copy_1d", "copy_2d", "gather", "matmul", "softmax", "transpose"}
GRID_Y = {"M": Size(high=65535 * 64), "N": Size(high=65535 * 64)}


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sinkhorn(n):
    for build, contract in ((sinkhorn.sinkhorn_fwd, FORWARD), (sinkhorn.sinkhorn_bwd, BACKWARD)):
        kernel = build(sinkhorn.Config(n=n))
        found = outcomes(coverage, kernel, Hypotheses.of(contract, {"n": n, **STATICS}, kernel), STRICT)
        assert kinds(found) == {"coverage", "uniqueness"}
        assert {o.verdict for o in found} == {"proved"}


@pytest.mark.parametrize("name", sorted(HONEST))
def test_the_corpus(name):
    example = EXAMPLES[name]
    ours = {bug: set(expected) for bug, expected in example.bugs.items() if "coverage" in expected}
    for bug, expected in {None: set(), **ours}.items():
        kernel = example.build(bug)
        found = refuted(coverage, kernel, Hypotheses.of(example.contract, {}, kernel), example.pass_configs)
        assert kinds(found) == expected


def rows(bug: str = ""):
    """One thread per row of 4 x 4, unrolled and vectorised."""
    count = T.dynamic("count")
    threads = 32
    grid = count // threads if bug == "floor grid" else T.ceildiv(count, threads)
    stride = threads - 1 if bug == "stride" else threads
    limit = count - 1 if bug == "guard" else count
    columns = 3 if bug == "loop" else 4

    @T.prim_func
    def kernel(x: T.Tensor((count, 4, 4), "float32"), out: T.Tensor((count, 4, 4), "float32")):
        with T.Kernel(grid, threads=threads) as block:
            matrix = block * stride + T.get_thread_binding()
            if matrix < limit:
                for i in T.unroll(4):
                    for j in T.unroll(columns):
                        out[matrix, i, 0 if bug == "column" else j] = x[matrix, i, j]

    return kernel


@pytest.mark.parametrize(
    ("bug", "expected"),
    [
        ("", set()),
        ("floor grid", {"coverage"}),
        ("guard", {"coverage"}),
        ("stride", {"coverage", "uniqueness"}),
        ("loop", {"coverage"}),
        ("column", {"coverage", "uniqueness"}),
    ],
)
def test_a_thread_per_row(bug, expected):
    kernel = rows(bug)
    assert kinds(refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT)) == expected


def test_the_counterexample_names_the_element():
    kernel = rows("guard")
    model = only(refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT))[1]
    assert model["out.0"] == model["count"] - 1
    kernel = rows("stride")
    found = refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT)
    twice = next(o.counterexample for o in found if o.condition.kind == "uniqueness")
    assert twice["bx"] * 31 + twice["tx"] == twice["bx'"] * 31 + twice["tx'"] < twice["count"]
    assert (twice["bx"], twice["tx"]) != (twice["bx'"], twice["tx'"])


EVEN = {"M": Size(high=2**30 - 1)}


def tiles(grid: int, rows: int = 64, missing: bool = False):
    """A copy in ragged tiles, over a 2-D grid or the same flattened."""
    M, N = T.dynamic("M"), T.dynamic("N")
    across = N // 64 if missing else T.ceildiv(N, 64)

    @T.prim_func
    def flat(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32")):
        with T.Kernel(across * T.ceildiv(M, rows), threads=128) as block:
            for i, j in T.Parallel(rows, 64):
                m, n = block // T.ceildiv(N, 64) * rows + i, block % T.ceildiv(N, 64) * 64 + j
                if m < M and n < N:
                    B[m, n] = A[m, n]

    @T.prim_func
    def plane(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32")):
        with T.Kernel(across, T.ceildiv(M, rows), threads=128) as (bx, by):
            tile = T.alloc_fragment((rows, 64), "float32")
            T.copy(A[by * rows, bx * 64], tile)
            T.copy(tile, B[by * rows, bx * 64])

    return flat if grid == 1 else plane


@pytest.mark.parametrize("grid", [1, 2])
def test_ragged_tiles(grid):
    kernel = tiles(grid)
    assert not refuted(coverage, kernel, hypotheses(kernel, "B", sizes=GRID_Y), STRICT)
    kernel = tiles(grid, missing=True)
    model = only(refuted(coverage, kernel, hypotheses(kernel, "B", sizes=GRID_Y), STRICT))[1]
    assert model["N"] % 64 != 0


def two_to_a_row(rows: int = 2, half: int = 64):
    """Two blocks to a row, a half each: the block index is a row and which half of it."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(A: T.Tensor((M, 128), "float32"), B: T.Tensor((M, 128), "float32")):
        with T.Kernel(M * 2, threads=64) as block:
            tx = T.get_thread_binding()
            if block // rows < M:
                B[block // rows, block % 2 * half + tx] = A[block // rows, block % 2 * half + tx]

    return kernel


@pytest.mark.parametrize(
    ("change", "wrong"), [({}, set()), ({"rows": 3}, {"coverage"}), ({"half": 63}, {"uniqueness"})]
)
def test_two_blocks_to_a_row(change, wrong):
    kernel = two_to_a_row(**change)
    assert kinds(refuted(coverage, kernel, hypotheses(kernel, "B", sizes=EVEN), STRICT)) >= wrong
    assert wrong or not refuted(coverage, kernel, hypotheses(kernel, "B", sizes=EVEN), STRICT)


def strip(step: int):
    """A block per row, which its threads walk in a loop of varying length; the row's sum by one thread."""
    M, N = T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def kernel(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32"), S: T.Tensor((M,), "float32")):
        with T.Kernel(M, threads=128) as row:
            tx = T.get_thread_binding()
            for k in T.serial(T.ceildiv(N, 128)):
                if k * step + tx < N:
                    B[row, k * step + tx] = A[row, k * step + tx]
            if tx == 0:
                S[row] = A[row, 0]

    return kernel


def test_loops_of_varying_length_and_single_threads():
    kernel = strip(128)
    assert not refuted(coverage, kernel, hypotheses(kernel, "B", "S"), STRICT)
    kernel = strip(129)
    assert kinds(refuted(coverage, kernel, hypotheses(kernel, "B", "S"), STRICT)) == {"coverage"}
    kernel = strip(127)
    assert kinds(refuted(coverage, kernel, hypotheses(kernel, "B", "S"), STRICT)) == {"coverage", "uniqueness"}


def halves(second: int):
    """Two statements write a half of each row."""
    count = T.dynamic("count")

    @T.prim_func
    def kernel(x: T.Tensor((count, 8), "float32"), out: T.Tensor((count, 8), "float32")):
        with T.Kernel(count, threads=32) as block:
            tx = T.get_thread_binding()
            if tx < 4:
                out[block, tx] = x[block, tx]
            if tx >= 8 and tx < 12:
                out[block, tx - 8 + second] = x[block, tx]

    return kernel


def test_two_statements():
    kernel = halves(4)
    assert not refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT)
    kernel = halves(3)
    found = refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT)
    assert kinds(found) == {"coverage", "uniqueness"}
    assert next(o.counterexample for o in found if o.condition.kind == "coverage")["out.1"] == 7


def repeated(times: int):
    count = T.dynamic("count")

    @T.prim_func
    def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
        with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
            i = block * 32 + T.get_thread_binding()
            if i < count:
                for k in T.serial(times):
                    out[i] = x[i] + k

    return kernel


def test_writing_twice_is_not_once():
    kernel = repeated(1)
    assert not refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT)
    kernel = repeated(2)
    found = refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT)
    model = next(o.counterexample for o in found if o.condition.kind == "uniqueness")
    assert {model["k"], model["k'"]} == {0, 1}


def test_an_output_that_is_never_written():
    kernel = repeated(1)
    given = hypotheses(kernel, "x", "out")
    model = only(refuted(coverage, kernel, given, STRICT))[1]
    assert 0 <= model["x.0"] < model["count"]


def test_writes_that_depend_on_data():
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
            i = block * 32 + T.get_thread_binding()
            if i < n and x[i] > 0:
                out[i] = x[i]

    assert kinds(refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT)) == {"coverage"}


def test_scattered_writes_are_refused():
    n = T.dynamic("n")

    @T.prim_func
    def kernel(at: T.Tensor((n,), "int32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
            i = block * 32 + T.get_thread_binding()
            if i < n:
                out[at[i]] = 1.0

    with pytest.raises(Unsupported):
        coverage(kernel, hypotheses(kernel, "out"), STRICT)


def test_a_place_read_from_memory_is_not_ours_to_choose():
    @T.prim_func
    def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
        with T.Kernel(1, threads=32):
            tx = T.get_thread_binding()
            first = T.alloc_shared((1,), "int32")
            if tx == 0:
                first[0] = 0
            T.sync_threads()
            out[first[0] + tx] = x[tx]

    with pytest.raises(Unsupported, match="not a multiple"):
        coverage(kernel, hypotheses(kernel, "out"), STRICT)


def test_an_input_that_is_written():
    @T.prim_func
    def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
        with T.Kernel(1, threads=32):
            tx = T.get_thread_binding()
            out[tx] = x[tx]
            x[tx] = 0.0

    outcome = only(refuted(coverage, kernel, hypotheses(kernel, "out"), STRICT))[0]
    assert outcome.condition.statement == "x, which is no output, is not written"


def test_bulk_stores_are_refused():
    M = T.dynamic("M")

    @T.prim_func
    def kernel(A: T.Tensor((M, 64), "float32"), B: T.Tensor((M, 64), "float32")):
        with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
            tile = T.alloc_shared((64, 64), "float32")
            T.copy(A[block * 64, 0], tile)
            T.copy(tile, B[block * 64, 0])

    given = hypotheses(kernel, "B")
    with pytest.raises(Unsupported, match="tma_store"):
        coverage(kernel, given, STRICT)
    assert not refuted(coverage, kernel, given, STRICT, arch="sm_80")
