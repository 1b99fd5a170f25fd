"""The interpreter where threads differ: words, warps, atomic additions, barriers, races."""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tilelang.language as T
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.execution.symbolic import execute
from lemmata.proofs.engine.interpreter.interpret import Fault, interpret

ALL = 2**32 - 1
few = settings(max_examples=15, deadline=None)
WORDS = st.one_of(st.sampled_from((0, 1, 2**31 - 1, 2**31, 2**31 + 1, ALL)), st.integers(0, ALL))


def signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


EXPRESSIONS: dict[str, tuple[Callable[..., Any], Callable[[int, int], int]]] = {
    "add": (lambda x, y: x + y, lambda x, y: (x + y) & ALL),
    "sub": (lambda x, y: x - y, lambda x, y: (x - y) & ALL),
    "mul": (lambda x, y: x * y, lambda x, y: (x * y) & ALL),
    "min": (T.min, min),
    "max": (T.max, max),
    "mod": (lambda x, y: x % T.uint32(3), lambda x, y: x % 3),
    "and": (lambda x, y: x & y, lambda x, y: x & y),
    "or": (lambda x, y: x | y, lambda x, y: x | y),
    "xor": (lambda x, y: x ^ y, lambda x, y: x ^ y),
    "left": (lambda x, y: x << (y & T.uint32(31)), lambda x, y: (x << (y & 31)) & ALL),
    "right": (lambda x, y: x >> (y & T.uint32(31)), lambda x, y: x >> (y & 31)),
    "right, signed": (
        lambda x, y: T.cast(T.reinterpret(x, "int32") >> T.cast(y & T.uint32(31), "int32"), "uint32"),
        lambda x, y: (signed(x) >> (y & 31)) & ALL,
    ),
    "less": (lambda x, y: T.if_then_else(x < y, T.uint32(1), T.uint32(0)), lambda x, y: int(x < y)),
    "less, signed": (
        lambda x, y: T.if_then_else(T.reinterpret(x, "int32") < T.cast(y, "int32"), T.uint32(1), T.uint32(0)),
        lambda x, y: int(signed(x) < signed(y)),
    ),
    "clz": (
        lambda x, y: T.cast(T.clz(T.reinterpret(x, "int32")), "uint32"),
        lambda x, y: 32 - x.bit_length(),
    ),
    "popcount": (lambda x, y: T.popcount(x), lambda x, y: x.bit_count()),
    "float": (lambda x, y: T.reinterpret(T.abs(T.reinterpret(x, "float32")), "uint32"), lambda x, y: x & (2**31 - 1)),
}


@cache
def words(name: str) -> Any:
    n = T.dynamic("n")
    f = EXPRESSIONS[name][0]

    @T.prim_func
    def kernel(x: T.Tensor((n,), "uint32"), y: T.Tensor((n,), "uint32"), out: T.Tensor((n,), "uint32")):
        with T.Kernel(T.ceildiv(n, 8), threads=8) as block:
            i = block * 8 + T.get_thread_binding()
            if i < n:
                out[i] = f(x[i], y[i])

    return kernel


@pytest.mark.parametrize("name", EXPRESSIONS)
@few
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20))
def test_words_wrap(name: str, pairs: list[tuple[int, int]]) -> None:
    x, y = (torch.tensor(each).to(torch.uint32) for each in zip(*pairs, strict=True))
    out = torch.zeros_like(x)
    interpret(words(name), x, y, out)
    assert out.tolist() == [EXPRESSIONS[name][1](a, b) for a, b in pairs]


def test_a_shift_of_all_bits_is_a_fault() -> None:
    @T.prim_func
    def kernel(x: T.Tensor((1,), "uint32"), out: T.Tensor((1,), "uint32")):
        with T.Kernel(1, threads=1):
            out[0] = T.uint32(1) << x[0]

    out = torch.zeros(1, dtype=torch.uint32)
    interpret(kernel, torch.tensor([31], dtype=torch.uint32), out)
    assert out.tolist() == [2**31]
    with pytest.raises(Fault, match="a shift by no number of its bits"):
        interpret(kernel, torch.tensor([32], dtype=torch.uint32), out)


# Warps


def across(exchange: Callable[..., Any], guard: Callable[..., Any] = lambda thread: thread >= 0) -> Any:
    """out = exchange(x of this thread, thread) in threads where the guard holds, else -1."""

    @T.prim_func
    def kernel(x: T.Tensor((96,), "int32"), out: T.Tensor((96,), "int32")):
        with T.Kernel(1, threads=96):
            thread, own = T.get_thread_binding(), T.alloc_var("int32")
            own = x[thread]
            out[thread] = -1
            if guard(thread):
                out[thread] = T.cast(exchange(own, thread), "int32")

    return kernel


SHUFFLES: dict[str, tuple[Callable[..., Any], Callable[[int], int]]] = {
    "up": (lambda x, t: T.shfl_up(x, 4), lambda lane: lane - 4 if lane >= 4 else lane),
    "down": (lambda x, t: T.shfl_down(x, 16), lambda lane: lane + 16 if lane < 16 else lane),
    "xor": (lambda x, t: T.shfl_xor(x, 5), lambda lane: lane ^ 5),
    "from one": (lambda x, t: T.shfl_sync(x, 7), lambda lane: 7),
    "from each its own": (lambda x, t: T.shfl_sync(x, (t * 3 + 1) % 32), lambda lane: (lane * 3 + 1) % 32),
    "from beyond the warp": (lambda x, t: T.shfl_sync(x, t), lambda lane: lane),
    "up by 32": (lambda x, t: T.shfl_up(x, 32), lambda lane: lane),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_exchanges_stay_in_the_warp(name: str) -> None:
    x, out = torch.randperm(96).int(), torch.zeros(96, dtype=torch.int32)
    exchange, source = SHUFFLES[name]
    interpret(across(exchange), x, out)
    assert out.tolist() == [int(x[t - t % 32 + source(t % 32)]) for t in range(96)]


def test_a_ballot_has_a_bit_for_each_lane() -> None:
    x, out = torch.randint(0, 2, (96,)).int(), torch.zeros(96, dtype=torch.int32)
    interpret(across(lambda x, t: T.cast(T.ballot(x == 1), "uint32")), x, out)
    expected = [sum(int(x[w * 32 + lane]) << lane for lane in range(32)) for w in range(3)]
    assert (out.long() & ALL).tolist() == [expected[t // 32] for t in range(96)]


def test_warps_may_part_but_not_the_threads_of_one() -> None:
    x, out = torch.arange(96).int(), torch.zeros(96, dtype=torch.int32)
    interpret(across(lambda x, t: T.shfl_xor(x, 1), lambda t: t // 32 != 1), x, out)
    assert out.tolist() == [t ^ 1 if t // 32 != 1 else -1 for t in range(96)]
    for exchange in (lambda x, t: T.shfl_xor(x, 1), lambda x, t: T.ballot(x > 0)):
        with pytest.raises(Fault, match="an exchange without all threads of a warp"):
            interpret(across(exchange, lambda t: t != 40), x, out)


def test_parts_of_warps_are_refused() -> None:
    x, out = torch.arange(96).int(), torch.zeros(96, dtype=torch.int32)
    with pytest.raises(Unsupported, match="an exchange within a part of a warp"):
        interpret(across(lambda x, t: T.shfl_xor(x, 1, width=16)), x, out)


# Shared memory


def histogram(without: str = "") -> Any:
    """out[v] = the number of i with x[i] = v and i >= 3; then each thread runs as many iterations as it has counted."""

    @T.prim_func
    def kernel(x: T.Tensor((64,), "int32"), out: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            thread, steps = T.get_thread_binding(), T.alloc_var("int32", init=0)
            counts = T.alloc_shared((64,), "int32")
            if without != "initialisation":
                counts[thread] = 0
            if without != "first barrier":
                T.sync_threads()
            if thread >= 3:
                T.atomic_add(counts[x[thread]], 1)
                if without == "uniform control":
                    T.sync_threads()
            if without != "second barrier":
                T.sync_threads()
            for _ in T.serial(counts[63 - thread]):
                steps += 1
            if without == "third barrier":
                counts[thread] = 0
            out[63 - thread] = steps

    return kernel


def counted(x: Tensor, **options: Any) -> Tensor:
    out = torch.zeros(64, dtype=torch.int32)
    interpret(histogram(), x, out, **options)
    return out


@few
@given(x=st.lists(st.integers(0, 63), min_size=64, max_size=64).map(lambda v: torch.tensor(v, dtype=torch.int32)))
def test_atomic_additions_and_loops_of_each_threads_own(x: Tensor) -> None:
    assert torch.equal(counted(x, races=True, longest=61), x[3:].bincount(minlength=64).int())


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("initialisation", r"addition to uninitialised counts\[20\] of shape \[64\] by thread 3"),
        ("uniform control", "a barrier that some threads do not reach"),
        ("first barrier", r"a race: add of counts\[20\] of shape \[64\] by thread 3"),
        ("second barrier", r"a race: read of counts\[20\] of shape \[64\] by thread 43"),
        ("third barrier", r"a race: write of counts\[0\] of shape \[64\] by thread 0"),
    ],
)
def test_faults_of_shared_memory(without: str, message: str) -> None:
    x, out = torch.full((64,), 20, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    with pytest.raises(Fault, match=message):
        interpret(histogram(without), x, out, races=True)


def test_equal_writes_are_a_race_too() -> None:
    @T.prim_func
    def kernel(out: T.Tensor((1,), "int32")):
        with T.Kernel(1, threads=32):
            out[0] = 7

    interpret(kernel, out := torch.zeros(1, dtype=torch.int32))
    assert out.item() == 7
    with pytest.raises(Fault, match=r"a race: write of out\[0\]"):
        interpret(kernel, out, races=True)


def test_long_loops() -> None:
    x = torch.full((64,), 20, dtype=torch.int32)
    assert counted(x, longest=61)[20] == 61
    with pytest.raises(Fault, match="a loop of 61 iterations"):
        counted(x, longest=60)


def test_none_of_this_is_symbolic() -> None:
    with pytest.raises(Unsupported, match=r"call of tl\.atomic_add_elem_op"):
        execute(histogram())
    with pytest.raises(Unsupported, match=r"function tl\.shfl_xor_sync"):
        execute(across(lambda x, t: T.shfl_xor(x, 1)))
    with pytest.raises(Unsupported, match="ballot in the symbolic reading"):
        execute(across(lambda x, t: T.ballot(x > 0)))
