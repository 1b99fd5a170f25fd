"""Sums in place, in their order, along a stretch of what a reference sums over; and those that are not what they seem."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("tilelang")

import tilelang.language as T
import torch

from evaluation import evaluate
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.execution.in_order import InOrder, plus
from lemmata.proofs.engine.execution.invariants import Determined, Invariant
from lemmata.proofs.engine.execution.symbolic import Execution, Symbols, execute
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms import sums
from lemmata.proofs.engine.forms.entailment import Facts
from lemmata.proofs.engine.forms.normal_form import ZERO, Form
from lemmata.proofs.engine.forms.sums import Stretch
from lemmata.proofs.engine.layers.comparison import symbolic_input
from lemmata.reference.attention import in_window_bwd

N, BF16, F32 = 32, "bfloat16", "float32"


def adding(body: Any) -> Any:
    """A kernel in which a block of threads changes a row of ``total``."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(parts: T.Tensor((M, N), BF16), total: T.Tensor((M, N), F32)):
        with T.Kernel(M, threads=N) as m:
            acc = T.alloc_fragment((N,), F32)
            body(m, parts, total, acc)

    return kernel


@T.macro
def in_place(m, parts, total, acc):
    for d in T.Parallel(N):
        acc[d] = total[m, d]
    for d in T.Parallel(N):
        total[m, d] = acc[d] + parts[m, d]


@T.macro
def read_again(m, parts, total, acc):
    in_place(m, parts, total, acc)
    for d in T.Parallel(N):
        acc[d] = total[m, d]


@T.macro
def read_in_the_next_iteration(m, parts, total, acc):
    for _ in T.serial(2):
        in_place(m, parts, total, acc)


@T.macro
def moved_in_place(m, parts, total, acc):
    T.copy(total[m, 0:16], total[m, 1:17])


@T.macro
def neighbours_in_place(m, parts, total, acc):
    for d in T.Parallel(N - 1):
        total[m, d] = total[m, d + 1]


@T.macro
def thrice(m, parts, total, acc):
    for d in T.Parallel(N):
        acc[d] = total[m, d]
    for u in T.unroll(3):
        for d in T.Parallel(N):
            acc[d] += parts[m + u, d]
    for d in T.Parallel(N):
        total[m, d] = acc[d]


@T.macro
def doubled(m, parts, total, acc):
    for d in T.Parallel(N):
        total[m, d] = total[m, d] * 2


def written(kernel: Any, **options: Any) -> Form:
    """The element of ``total`` that a kernel writes."""
    (write,) = execute(kernel, **options).writes["total"]
    return write.value.form


def test_what_is_read_before_it_is_written_was_there_before() -> None:
    (write,) = execute(adding(in_place)).writes["total"]
    m, d = write.index
    assert write.value.form is nf.read("total", m, d) + nf.read("parts", m, d)


@pytest.mark.parametrize("body", [read_again, read_in_the_next_iteration])
def test_what_is_written_is_not_read(body: Any) -> None:
    with pytest.raises(Unsupported, match="total in global memory is read after it is written"):
        execute(adding(body))


@pytest.mark.parametrize("body", [moved_in_place, neighbours_in_place])
def test_elements_are_not_moved_in_place(body: Any) -> None:
    with pytest.raises(Unsupported, match=r"moves elements of total|through total"):
        execute(adding(body))


def test_a_sum_keeps_its_order() -> None:
    (write,) = execute(adding(thrice), reading=InOrder).writes["total"]
    m, d = write.index
    parts = [nf.read("parts", m + u, d) for u in range(3)]
    forwards = plus(plus(plus(nf.read("total", m, d), parts[0]), parts[1]), parts[2])
    backwards = plus(plus(plus(nf.read("total", m, d), parts[2]), parts[1]), parts[0])
    assert write.value.form is forwards
    assert write.value.form is not backwards
    assert plus(forwards, ZERO) is forwards


@pytest.mark.parametrize("body", [doubled])
def test_other_arithmetic_of_floats_is_refused(body: Any) -> None:
    assert written(adding(body), reading=Symbols)
    with pytest.raises(Unsupported, match="mul of float32 where sums of floats keep their order"):
        execute(adding(body), reading=InOrder)


def counted(first: int) -> Execution:
    """A sum over the iterations of a loop from ``first`` to M, which is negative for a large ``first``."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(parts: T.Tensor((M, N), F32), total: T.Tensor((N,), F32)):
        with T.Kernel(1, threads=N):
            acc = T.alloc_fragment((N,), F32)
            T.fill(acc, 0)
            for i in T.serial(first, M):
                for d in T.Parallel(N):
                    acc[d] += parts[i, d]
            for d in T.Parallel(N):
                total[d] = acc[d]

    acc = Determined(lambda s, d: nf.summation(s.t, lambda k: nf.read("parts", first + k, d)))
    return execute(kernel, invariants={"i": Invariant(determined={"acc": acc})})


@pytest.mark.parametrize(("first", "runs"), [(0, nf.variable("M")), (3, nf.maximum([nf.variable("M") - 3, ZERO]))])
def test_a_loop_of_fewer_iterations_than_none_runs_none(first: int, runs: Form) -> None:
    run = counted(first)
    assert all(e.holds for e in run.equations)
    assert run.inductions["i"].extent is runs


# A sum of which all but a stretch is 0


K, FIRST, COUNT = nf.variable("K"), nf.variable("first"), nf.variable("count")


def seen(k: Form, end: Form) -> Form:
    return nf.nonnegative(k - FIRST) * nf.nonnegative(end - 1 - k)


def term(k: Form) -> Form:
    return nf.read("x", k)


def along(stretch: Stretch, length: Form, summand: Any, body: Any) -> bool:
    """Whether the rule finds the sum over K of a body to be that of a summand."""
    facts = Facts()
    facts.add(nf.nonnegative(K - FIRST - COUNT))
    with nf.ruled(sums.along(K, stretch, (length, summand), facts)):
        found = nf.summation(K, body)
    return found is nf.summation(length, summand)


def up(n: Form) -> Form:
    return nf.nonnegative(COUNT - 1 - n) * term(FIRST + n)


def down(n: Form) -> Form:
    return nf.nonnegative(COUNT - 1 - n) * term(FIRST + COUNT - 1 - n)


UP, DOWN = Stretch(FIRST, 1, COUNT), Stretch(FIRST + COUNT - 1, -1, COUNT)
LONGER = COUNT + nf.variable("rest")


def body(k: Form) -> Form:
    return seen(k, FIRST + COUNT) * term(k)


@pytest.mark.parametrize(("stretch", "summand"), [(UP, up), (DOWN, down)])
def test_a_sum_along_a_stretch(stretch: Stretch, summand: Any) -> None:
    assert along(stretch, LONGER, summand, body)


WRONG = {
    "another begins earlier": (UP, LONGER, up, lambda k: nf.nonnegative(FIRST + COUNT - 1 - k) * term(k)),
    "another ends later": (UP, LONGER, up, lambda k: seen(k, FIRST + COUNT + 1) * term(k)),
    "too few are summed": (UP, COUNT - 1, up, body),
    "the last of all is beyond": (Stretch(FIRST + 1, 1, COUNT), LONGER, lambda n: up(n + 1), body),
    "the other way round": (UP, LONGER, down, body),
    "something after the stretch": (UP, LONGER, lambda n: term(FIRST + n), body),
}


@pytest.mark.parametrize("error", WRONG)
def test_a_sum_that_is_another_is_not_found(error: str) -> None:
    assert not along(*WRONG[error])


def test_the_sum_over_windows_is_torchs() -> None:
    random = torch.Generator().manual_seed(0)
    grad_rows, window_kv = torch.randn(2, 5, 3, 4, generator=random, dtype=torch.float64), torch.empty(2, 7, 4)
    wanted = in_window_bwd(grad_rows, window_kv)
    of: Any = in_window_bwd
    got = of(symbolic_input("g", (2, 5, 3, 4)), symbolic_input("kv", (2, 7, 4)))
    assert got.shape == (2, 7, 4)
    for index in torch.cartesian_prod(*map(torch.arange, got.shape)).tolist():
        value = evaluate(got.at(*map(nf.form, index)), {}, lambda _, i: float(grad_rows[tuple(i)]))
        assert value == pytest.approx(float(wanted[tuple(index)]))
    with pytest.raises(Unsupported, match="unfold_backward of shape"):
        torch.ops.aten.unfold_backward(symbolic_input("g", (2, 5, 4, 3)), (2, 8, 4), 1, 3, 1)
