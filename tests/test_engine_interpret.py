"""The interpreter against torch, operation by operation, and the faults that it must find."""

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

from corpus_kernels import matmul, online_softmax
from lemmata.kernels.sinkhorn import Config, sinkhorn_bwd, sinkhorn_fwd
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.compiler.extract import lower
from lemmata.proofs.engine.interpreter.interpret import Fault, interpret
from lemmata.reference.sinkhorn import sinkhorn
from lemmata.reference.sinkhorn import sinkhorn_bwd as sinkhorn_bwd_reference
from verdicts import opened

FLOATS = st.floats(-50, 50, width=32)
few = settings(max_examples=15, deadline=None)


def tensors(low: int = 1, high: int = 40, elements: Any = FLOATS) -> Any:
    return st.lists(elements, min_size=low, max_size=high).map(lambda values: torch.tensor(values))


@cache
def elementwise(name: str, source: str = "float32", target: str = "float32") -> Any:
    """out[i] = f(x[i], y[i]), 8 elements to a block, for the expression of that name."""
    n = T.dynamic("n")
    f = EXPRESSIONS[name][0]

    @T.prim_func
    def kernel(x: T.Tensor((n,), source), y: T.Tensor((n,), source), out: T.Tensor((n,), target)):
        with T.Kernel(T.ceildiv(n, 8), threads=8) as block:
            for i in T.Parallel(8):
                if block * 8 + i < n:
                    out[block * 8 + i] = f(x[block * 8 + i], y[block * 8 + i])

    return kernel


EXPRESSIONS: dict[str, tuple[Callable[..., Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "add": (lambda x, y: x + y, torch.add),
    "sub": (lambda x, y: x - y, torch.sub),
    "mul": (lambda x, y: x * y, torch.mul),
    "div": (lambda x, y: x / (y * y + 1), lambda x, y: x / (y * y + 1)),
    "max": (T.max, torch.maximum),
    "min": (T.min, torch.minimum),
    "exp": (lambda x, y: T.exp(x), lambda x, y: x.exp()),
    "exp2": (lambda x, y: T.exp2(x), lambda x, y: x.exp2()),
    "log": (lambda x, y: T.log(x * x + 1), lambda x, y: (x * x + 1).log()),
    "log2": (lambda x, y: T.log2(x * x + 1), lambda x, y: (x * x + 1).log2()),
    "sqrt": (lambda x, y: T.sqrt(x * x), lambda x, y: (x * x).sqrt()),
    "rsqrt": (lambda x, y: T.rsqrt(x * x + 1), lambda x, y: (x * x + 1).rsqrt()),
    "fast_rcp": (lambda x, y: T.fast_rcp(x * x + 1), lambda x, y: 1 / (x * x + 1)),
    "abs": (lambda x, y: T.abs(x), lambda x, y: x.abs()),
    "floor": (lambda x, y: T.floor(x), lambda x, y: x.floor()),
    "ceil": (lambda x, y: T.ceil(x), lambda x, y: x.ceil()),
    "tanh": (lambda x, y: T.tanh(x), lambda x, y: x.tanh()),
    "sigmoid": (lambda x, y: T.sigmoid(x), lambda x, y: x.sigmoid()),
    "sin": (lambda x, y: T.sin(x), lambda x, y: x.sin()),
    "cos": (lambda x, y: T.cos(x), lambda x, y: x.cos()),
    "erf": (lambda x, y: T.erf(x), lambda x, y: x.erf()),
    "pow": (lambda x, y: T.pow(x, T.float32(2.0)), lambda x, y: x.pow(2.0)),
    "lt": (lambda x, y: T.if_then_else(x < y, x, 7.0), lambda x, y: torch.where(x < y, x, 7.0)),
    "ge": (lambda x, y: T.if_then_else(x >= y, x, 7.0), lambda x, y: torch.where(x >= y, x, 7.0)),
    "eq": (lambda x, y: T.if_then_else(x == y, 1.0, 7.0), lambda x, y: torch.where(x == y, 1.0, 7.0)),
    "and, not": (
        lambda x, y: T.Select(T.And(x > 0, T.Not(y > 0)), x, y),
        lambda x, y: torch.where((x > 0) & ~(y > 0), x, y),
    ),
    "or": (lambda x, y: T.Select(T.Or(x > 0, y > 0), x, y), lambda x, y: torch.where((x > 0) | (y > 0), x, y)),
    "infinity": (
        lambda x, y: T.if_then_else(x > 0, T.infinity("float32"), -T.infinity("float32")),
        lambda x, y: torch.where(x > 0, torch.inf, -torch.inf),
    ),
}
INTEGERS: dict[str, tuple[Callable[..., Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "floordiv": (lambda x, y: x // y, lambda x, y: x.div(y, rounding_mode="floor")),
    "floormod": (lambda x, y: x % y, lambda x, y: x.remainder(y)),
    "truncdiv": (T.truncdiv, lambda x, y: x.div(y, rounding_mode="trunc")),
    "truncmod": (T.truncmod, lambda x, y: x.fmod(y)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
@few
@given(data=st.data())
def test_expressions_agree_with_torch(name: str, data: Any) -> None:
    x = data.draw(tensors())
    y = data.draw(tensors(len(x), len(x)))
    out = torch.full_like(x, torch.nan)
    interpret(elementwise(name), x, y, out)
    torch.testing.assert_close(out, EXPRESSIONS[name][1](x, y), rtol=1e-6, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("name", INTEGERS)
@few
@given(data=st.data())
def test_integer_division_agrees_with_torch(name: str, data: Any) -> None:
    x = data.draw(tensors(elements=st.integers(-100, 100)))
    y = data.draw(tensors(len(x), len(x), st.integers(1, 9)))
    EXPRESSIONS[name] = INTEGERS[name]
    out = torch.zeros(len(x), dtype=torch.int32)
    interpret(elementwise(name, "int32", "int32"), x.int(), y.int(), out)
    EXPRESSIONS.pop(name)
    assert torch.equal(out, INTEGERS[name][1](x, y).int())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "float8_e4m3fn"])
@few
@given(x=tensors())
def test_storage_is_rounded_to_its_type(dtype: str, x: Tensor) -> None:
    out = torch.zeros(len(x), dtype=getattr(torch, dtype))
    EXPRESSIONS["cast"] = (lambda a, b: T.cast(a, dtype), lambda a, b: a)
    interpret(elementwise.__wrapped__("cast", "float32", dtype), x, x, out)
    EXPRESSIONS.pop("cast")
    assert torch.equal(out.float(), x.to(out.dtype).float())


def test_arithmetic_is_in_the_type_of_the_kernel() -> None:
    """1 + 2^-9 is 1 in bfloat16, and 2^24 + 1 is 2^24 in float32."""
    out = torch.zeros(1, dtype=torch.bfloat16)
    interpret(
        elementwise("add", "bfloat16", "bfloat16"), torch.ones(1).bfloat16(), torch.tensor([2.0**-9]).bfloat16(), out
    )
    assert out.item() == 1
    wide = torch.zeros(1)
    interpret(elementwise("add"), torch.tensor([2.0**24]), torch.ones(1), wide)
    assert wide.item() == 2**24


@cache
def reduction(kind: str, dim: int, clear: bool) -> Any:
    m, n = 5, 7
    shape = (n,) if dim == 0 else (m,)
    reduce = getattr(T, f"reduce_{kind}")
    options = {"dim": dim} if kind == "abssum" else {"dim": dim, "clear": clear}  # abssum always clears

    @T.prim_func
    def kernel(x: T.Tensor((m, n), "float32"), start: T.Tensor(shape, "float32"), out: T.Tensor(shape, "float32")):
        with T.Kernel(1, threads=32):
            source, target = T.alloc_fragment((m, n), "float32"), T.alloc_fragment(shape, "float32")
            T.copy(x, source)
            T.copy(start, target)
            reduce(source, target, **options)
            T.copy(target, out)

    return kernel


REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sum": lambda x, d: x.sum(d),
    "max": lambda x, d: x.amax(d),
    "min": lambda x, d: x.amin(d),
    "abssum": lambda x, d: x.abs().sum(d),
    "absmax": lambda x, d: x.abs().amax(d),
}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", REDUCTIONS)
@few
@given(data=st.data())
def test_reductions_agree_with_torch(kind: str, dim: int, data: Any) -> None:
    x = data.draw(tensors(35, 35)).reshape(5, 7)
    start = data.draw(tensors(x.shape[1 - dim], x.shape[1 - dim]))
    clear = kind.startswith("abs") or data.draw(st.booleans())
    wanted = REDUCTIONS[kind](x, dim)
    if not clear:
        wanted = {"sum": torch.add, "max": torch.maximum, "min": torch.minimum}[kind](start, wanted)
    out = torch.zeros_like(start)
    interpret(reduction(kind, dim, clear), x, start, out)
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-4)


@cache
def product(transpose_a: bool, transpose_b: bool, clear: bool) -> Any:
    m, n, k = 16, 24, 32
    a_shape, b_shape = ((k, m) if transpose_a else (m, k)), ((n, k) if transpose_b else (k, n))

    @T.prim_func
    def kernel(
        a: T.Tensor(a_shape, "bfloat16"),
        b: T.Tensor(b_shape, "bfloat16"),
        start: T.Tensor((m, n), "float32"),
        c: T.Tensor((m, n), "float32"),
    ):
        with T.Kernel(1, threads=128):
            a_tile, b_tile = T.alloc_shared(a_shape, "bfloat16"), T.alloc_shared(b_shape, "bfloat16")
            c_tile = T.alloc_fragment((m, n), "float32")
            T.copy(a, a_tile)
            T.copy(b, b_tile)
            T.copy(start, c_tile)
            T.gemm(a_tile, b_tile, c_tile, transpose_A=transpose_a, transpose_B=transpose_b, clear_accum=clear)
            T.copy(c_tile, c)

    return kernel


@few
@given(transpose_a=st.booleans(), transpose_b=st.booleans(), clear=st.booleans(), seed=st.integers(0, 99))
def test_gemm_agrees_with_torch(transpose_a: bool, transpose_b: bool, clear: bool, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(s, generator=random).bfloat16() for s in ((16, 32), (32, 24)))
    start, c = torch.randn(16, 24, generator=random), torch.zeros(16, 24)
    operands = (a.T.contiguous() if transpose_a else a), (b.T.contiguous() if transpose_b else b)
    interpret(product(transpose_a, transpose_b, clear), *operands, start, c)
    torch.testing.assert_close(c, a.float() @ b.float() + (0 if clear else start), rtol=1e-5, atol=1e-5)


def blocked_copy() -> Any:
    m, n = T.dynamic("m"), T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((m, n), "float32"), out: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(m, 8), T.ceildiv(n, 8), threads=32) as (bx, by):
            shared = T.alloc_shared((8, 8), "float32")
            T.copy(x[bx * 8, by * 8], shared)
            for i, j in T.Parallel(8, 8):
                shared[i, j] = shared[i, j] + 1
            T.copy(shared, out[bx * 8, by * 8])

    return kernel


@few
@given(m=st.integers(0, 20), n=st.integers(1, 20))
def test_copies_of_ragged_tiles(m: int, n: int) -> None:
    x, out = torch.randn(m, n), torch.zeros(m, n)
    interpret(blocked_copy(), x, out)
    assert torch.equal(out, x + 1)


def control() -> Any:
    """Every kind of control: threads, loops of each kind, branches, while, a variable, a view."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32"), odd: T.Tensor((n,), "int32")):
        with T.Kernel(T.ceildiv(n, 16), threads=16) as block:
            row = block * 16 + T.get_thread_binding()
            own = T.alloc_local((4,), "float32")
            flat = T.reshape(own, (2, 2))
            count = T.alloc_var("int32", init=0)
            if row < n:
                for j in T.vectorized(4):
                    own[j] = x[row, j]
                for k in T.serial(2):
                    for j in T.unroll(2):
                        flat[k, j] = flat[k, j] * 2
                while count * count < row:
                    count += 1
                if row % 2 == 1:
                    own[0] = 0
                else:
                    own[0] = T.cast(count, "float32")
                odd[row] = count
                for j in T.serial(4):
                    out[row, j] = own[j]

    return kernel


@few
@given(n=st.integers(1, 40))
def test_control_flow(n: int) -> None:
    x, out, odd = torch.randn(n, 4), torch.zeros(n, 4), torch.zeros(n, dtype=torch.int32)
    interpret(control(), x, out, odd)
    rows = torch.arange(n)
    assert torch.equal(odd, rows.sqrt().ceil().int())
    wanted = x * 2
    wanted[:, 0] = torch.where(rows % 2 == 1, 0.0, rows.sqrt().ceil())
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("iterations", [1, 2, 20])
@pytest.mark.parametrize("count", [0, 1, 33])
def test_sinkhorn_agrees_with_its_reference(count: int, iterations: int) -> None:
    torch.manual_seed(0)
    logits, grad = 3 * torch.randn(count, 4, 4), torch.randn(count, 4, 4)
    out, grad_logits = torch.zeros_like(logits), torch.zeros_like(logits)
    cfg = Config(iterations=iterations)
    interpret(sinkhorn_fwd(cfg), logits, out)
    torch.testing.assert_close(out, sinkhorn(logits.double(), iterations).float(), rtol=1e-5, atol=1e-6)
    interpret(sinkhorn_bwd(cfg), grad, logits, grad_logits)
    wanted = sinkhorn_bwd_reference(grad.double(), logits.double(), iterations).float()
    torch.testing.assert_close(grad_logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [lambda f: f, lambda f: lower(f, guards=False).tile])
def test_tile_kernels_agree_with_torch(level: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(33, 40).half(), torch.randn(40, 7).half(), torch.zeros(33, 7)
    interpret(level(matmul()), a, b, c)
    torch.testing.assert_close(c, a.float() @ b.float())
    x, v, out = 4 * torch.randn(35, 64), torch.randn(35, 64), torch.zeros(35)
    interpret(level(online_softmax()), x, v, out)
    torch.testing.assert_close(out, (x.softmax(-1) * v).sum(-1))
    wide, tall = torch.randn(33, 40), torch.zeros(40, 33)
    interpret(level(opened("races/transpose_right").kernel), wide, tall)
    assert torch.equal(tall, wide.T)


# Planted faults


def faulty(bug: str) -> Any:
    """out[i] = x[i] through a buffer of each thread and one of the block, with one thing wrong."""
    n = T.dynamic("n")
    shift = 1 if bug == "read out of bounds" else 0
    ahead = 1 if bug == "write out of bounds" else 0

    @T.prim_func
    def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 8), threads=8) as block:
            i = block * 8 + T.get_thread_binding()
            own = T.alloc_local((2,), "float32")
            shared = T.alloc_shared((8,), "float32")
            if i < n:
                own[0] = x[i + shift]
                if bug == "uninitialised":
                    own[0] = own[1]
                if bug == "division by 0":
                    own[0] = x[i // (i - i)]
                if bug == "clash":
                    shared[0] = own[0]
                if bug == "unwritten":
                    if i != 5:
                        out[i] = own[0]
                else:
                    out[i + ahead] = own[0]

    return kernel


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (
            "read out of bounds",
            r"access out of bounds of x\[10\] of shape \[10\] by thread 1.*x\[i \+ 1\].*blockIdx.x = 1",
        ),
        ("write out of bounds", r"access out of bounds of out\[10\] of shape \[10\] by thread 1.*blockIdx.x = 1"),
        ("uninitialised", r"read of uninitialised own\[1\] of shape \[2\] by thread 0.*own\[0\] = own\[1\]"),
        ("unwritten", r"out\[5\] is never written, nor are 0 other"),
        ("division by 0", r"division by 0"),
        ("clash", r"different values written at once to shared\[0\]"),
    ],
)
def test_faults_are_found(bug: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        interpret(faulty(bug), torch.arange(10.0), torch.zeros(10))


def test_the_kernel_without_the_faults_is_clean() -> None:
    x, out = torch.arange(10.0), torch.zeros(10)
    interpret(faulty("none"), x, out)
    assert torch.equal(x, out)


def test_dependent_iterations_are_rejected() -> None:
    @T.prim_func
    def kernel(out: T.Tensor((8,), "float32")):
        with T.Kernel(1, threads=8):
            buffer = T.alloc_shared((8,), "float32")
            T.clear(buffer)
            for i in T.Parallel(7):
                buffer[i] = buffer[i + 1] + 1
            T.copy(buffer, out)

    with pytest.raises(Unsupported, match="depend on one another through buffer"):
        interpret(kernel, torch.zeros(8))


def test_wrong_arguments_are_rejected() -> None:
    with pytest.raises(TypeError, match=r"x: expected torch\.float32"):
        interpret(faulty("none"), torch.zeros(3, dtype=torch.float64), torch.zeros(3))
    with pytest.raises(ValueError, match="out: expected 3 along n, got 4"):
        interpret(faulty("none"), torch.zeros(3), torch.zeros(4))
