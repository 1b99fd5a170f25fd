"""C functions of a kernel's own, quotients, clamped indices, sums written out, results that may be -inf, moved pointers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tilelang.language as T
import torch
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx

from engine_verdicts import STRICT
from evaluation import evaluate
from lemmata.proofs import interpret, verify
from lemmata.proofs.engine.access import intrinsics
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.base.report import Report
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.entailment import Facts
from lemmata.proofs.engine.forms.sums import few_written_out
from lemmata.proofs.engine.reference.symbolic_torch import SymbolicTensor, symbolic_input, tensor
from lemmata.proofs.engine.reference.torch_functions import arange
from lemmata.proofs.engine.semantics.externs import externs
from lemmata.reference.contract import Contract, Elements, Size, TensorSpec

MAX = """__device__ __forceinline__ float larger(float a, float b) {
  float c; asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); return c;
}
"""
F32, I32 = (torch.float32,), (torch.int32,)
x, y = nf.variable("x"), nf.variable("y")


# C functions


def clipped(source: str = MAX, name: str = "larger") -> Any:
    """out = the larger of x and 0."""
    rows = T.dynamic("rows")

    @T.prim_func
    def clipped(x: T.Tensor((rows, 32), "float32"), out: T.Tensor((rows, 32), "float32")):
        with T.Kernel(rows, threads=32, prelude=source) as row:
            for i in T.Parallel(32):
                out[row, i] = T.call_extern("float32", name, x[row, i], T.float32(0))

    return clipped


CLIPPED = Contract(
    "clipped",
    {"rows": Size(0, 2**20)},
    {},
    (TensorSpec("x", "rows 32", F32),),
    (TensorSpec("out", "rows 32", F32),),
    ({"rows": 1}, {"rows": 2**20}),
)


def test_a_c_function_is_known_by_its_text_and_named_in_the_verdict() -> None:
    report = verify(clipped(), CLIPPED, reference=lambda x: x.relu(), pass_configs=STRICT)
    assert report.holds, "\n".join(map(str, report.failures))
    assert "trusted: larger, C text of the kernel's own, is maxnan" in report.layers[2].statements
    assert {"larger", "attribute pragma_import_c"} <= set(report.layers[0].unmodelled)


@pytest.mark.parametrize(
    "kernel",
    [
        clipped(MAX.replace("max.NaN.f32", "min.NaN.f32")),
        clipped(MAX.replace("max.NaN.f32", "max.f32")),
        clipped(MAX.replace('"f"(a), "f"(b)', '"f"(a), "f"(a)')),
        clipped(MAX + "#define larger smaller\n"),
        clipped(MAX, name="smaller"),
    ],
    ids=["smaller", "drops NaN", "one argument", "more text", "another name"],
)
def test_another_c_text_is_refused(kernel: Any) -> None:
    report = verify(kernel, CLIPPED, reference=lambda x: x.relu(), pass_configs=STRICT, layers=["L2"])
    assert [f.kind for f in report.failures] == ["unsupported"]


def test_a_wrong_use_of_a_c_function_is_refuted() -> None:
    report = verify(clipped(), CLIPPED, reference=lambda x: x, pass_configs=STRICT, layers=["L2"])
    assert [f.kind for f in report.failures] == ["equivalence"]


def test_the_interpreter_runs_it_and_keeps_nan() -> None:
    rows = torch.randn(3, 32)
    rows[1, 7] = torch.nan
    out = torch.empty_like(rows)
    interpret(clipped(), rows, out)
    torch.testing.assert_close(out, rows.relu(), rtol=0, atol=0, equal_nan=True)


def test_no_text_is_no_function() -> None:
    assert externs("") == {}
    assert externs(MAX + MAX.replace("larger", "max_nan")) == {"larger": "maxnan", "max_nan": "maxnan"}


# Quotients and sums


@given(st.integers(-40, 40), st.integers(-40, 40), st.integers(-90, 90), st.integers(1, 12), st.integers(0, 9))
def test_a_quotient_is_that_of_the_numbers(a: int, b: int, c: int, divisor: int, at: int) -> None:
    form = nf.floordiv(a * x + b * y + c, divisor)
    value = evaluate(form, {"x": at, "y": 7}, {}, {"floordiv": lambda p, q: p // q})
    assert value == (a * at + b * 7 + c) // divisor


def test_a_quotient_is_simplified_when_its_dividend_becomes_known() -> None:
    (((number, _),),) = x.terms
    assert nf.substitute(nf.floordiv(x, 8), {number: 24 * y + 17}) is 3 * y + 2
    assert nf.floordiv(x, 8) is not nf.floordiv(x + 1, 8)


def test_a_sum_is_written_out_where_it_stands_and_not_inside() -> None:
    def inner(h: nf.Form) -> nf.Form:
        return nf.summation(64, lambda d: nf.read("q", h, d))

    outer = 3 * nf.summation(32, lambda h: nf.maximum([(nf.ONE, inner(h)), (nf.ONE, nf.ZERO)]))
    terms = [3 * nf.maximum([(nf.ONE, inner(nf.form(h))), (nf.ONE, nf.ZERO)]) for h in range(32)]
    assert few_written_out(outer) is sum(terms, nf.ZERO)
    assert few_written_out(outer) is not sum(terms[1:], nf.ZERO)
    variable = nf.summation(nf.variable("n"), lambda h: nf.read("w", h))
    assert few_written_out(variable) is variable


# Integers under conditions


def at_least(a: nf.Form, b: nf.Form | int) -> nf.Form:
    return nf.indicator("ge", a - b, integer=True)


def test_a_clamped_index_is_the_index_where_it_is_in_range() -> None:
    facts, size = Facts(), nf.variable("S")
    clamped = -nf.maximum([(nf.ONE, -x), (nf.ONE, 1 - size)])
    element = nf.read("q", clamped)
    assert facts.decide_all(element) is element
    with facts.assuming(at_least(size, x + 1)):
        assert facts.decide_all(element) is nf.read("q", x)
    with facts.assuming(at_least(x, size)):
        assert facts.decide_all(element) is nf.read("q", size - 1)
    assert facts.decide_all(element) is element, "what held on a path is forgotten behind it"


def test_the_larger_of_real_numbers_is_not_decided_as_if_they_were_integers() -> None:
    facts, real = Facts({"i": (0, None)}), nf.read("r", x)
    square = nf.maximum([(nf.ONE, 2 * real**2), (nf.ONE, real)])  # at 1/4 the second is the larger
    assert facts.decide_all(square) is square
    whole = nf.read("i", x)
    assert facts.decide_all(nf.maximum([(nf.ONE, 2 * whole**2), (nf.ONE, whole)])) is 2 * whole**2


def test_what_becomes_known_later_is_used() -> None:
    facts = Facts()
    assert facts.decide(at_least(x, 3)) is None
    facts.add(at_least(x, 5))
    assert facts.decide(at_least(x, 3)) is True
    facts.bound(y, nf.form(9))
    assert facts.decide(at_least(nf.form(7), y)) is None
    facts.bound(y, nf.form(8))
    assert facts.decide(at_least(nf.form(7), y)) is True


# Results that may be -inf


def masked(bug: str = "") -> Any:
    """out[r, j] = x[r, j] for j < (first[r] + 2) // 4, -inf elsewhere."""
    rows = T.dynamic("rows")
    one = 1 if bug == "one more" else 0
    sign = 1 if bug == "inf" else -1

    @T.prim_func
    def masked(
        x: T.Tensor((rows, 32), "float32"), first: T.Tensor((rows,), "int32"), out: T.Tensor((rows, 32), "float32")
    ):
        with T.Kernel(rows, threads=32) as row:
            for j in T.Parallel(32):
                rest = T.float32(0) if bug == "zero" else sign * T.infinity("float32")
                out[row, j] = T.if_then_else(j < (first[row] + 2) // 4 + one, x[row, j], rest)

    return masked


def mask(x: Any, first: Any) -> Any:
    seen = torch.arange(32, device=x.device) < ((first + 2) // 4).unsqueeze(-1)
    return torch.where(seen, x, float("-inf"))


def proved(kernel: Any, reference: Callable[..., Any] = mask) -> Report:
    first = TensorSpec("first", "rows", I32, Elements(0, 2**30))
    contract = Contract("masked", CLIPPED.sizes, {}, (*CLIPPED.inputs, first), CLIPPED.outputs, CLIPPED.probes)
    return verify(kernel, contract, reference=reference, pass_configs=STRICT, layers=["L0", "L1", "L2"])


def test_results_are_infinite_where_the_reference_is() -> None:
    report = proved(masked())
    assert report.holds, "\n".join(map(str, report.failures))


@pytest.mark.parametrize("bug", ["one more", "inf", "zero"])
def test_another_infinity_is_refuted(bug: str) -> None:
    assert {f.kind for f in proved(masked(bug)).failures} == {"equivalence"}


def test_a_reference_that_is_finite_is_not_met_by_an_infinity() -> None:
    assert {f.kind for f in proved(masked(), lambda x, first: x).failures} == {"equivalence"}


def test_a_quotient_of_the_reference_is_by_a_positive_integer() -> None:
    first = symbolic_input("first", (nf.variable("rows"),), integer=True)
    assert (first // 4).at(x) is nf.floordiv(nf.read("first", x), 4)
    assert ((arange(32) + 8) // 4).at(x) is nf.floordiv(x, 4) + 2
    for wrong in (lambda: first // 0, lambda: first // -4, lambda: tensor(1.5) // 4):
        with pytest.raises(Unsupported, match="rounded down"):
            wrong()
    assert isinstance(first // 1, SymbolicTensor)


# Pointers


def pointer(extent: int, shift: int) -> Any:
    """A pointer to bf16 elements 16, 17, ... of a buffer, moved on by some bytes."""
    data = tirx.Var("data", "handle")
    kind = tirx.Call("bfloat16", tirx.op.Op.get("tirx.type_annotation"), [])
    base = tirx.Call("handle", tirx.op.Op.get("tirx.tvm_access_ptr"), [kind, data, 16, extent, 1])
    return base, tirx.Call("handle", tirx.op.Op.get("tirx.handle_add_byte_offset"), [base, shift])


def test_a_moved_pointer_reaches_what_is_left() -> None:
    base, moved = pointer(64, 32)
    found, shift = intrinsics._moved_on(moved)
    assert found.same_as(base)
    assert shift == 16
    assert intrinsics._moved_on(base) == (base, 0)


@pytest.mark.parametrize("shift", [128, 33, -2], ids=["to the end", "inside an element", "back"])
def test_a_pointer_moved_elsewhere_is_refused(shift: int) -> None:
    with pytest.raises(Unsupported, match="moved out"):
        intrinsics._moved_on(pointer(64, shift)[1])
