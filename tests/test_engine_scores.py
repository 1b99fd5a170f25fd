"""C functions of a kernel's own, quotients, clamped indices, sums written out, moved pointers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tilelang import tvm

from evaluation import evaluate
from lemmata.proofs import interpret
from lemmata.proofs.engine.access import intrinsics
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.entailment import Facts
from lemmata.proofs.engine.forms.sums import all_written_out, few_written_out
from lemmata.proofs.engine.layers.comparison import symbolic_input
from lemmata.proofs.engine.reference.pull_array import Integers
from lemmata.proofs.engine.reference.symbolic_torch import SymbolicTensor, tensor
from lemmata.proofs.engine.reference.torch_functions import arange
from lemmata.proofs.engine.semantics.expressions import externs
from verdicts import opened

tirx = tvm.tirx
x, y = nf.variable("x"), nf.variable("y")


# C functions


def test_the_interpreter_runs_it_and_keeps_nan() -> None:
    rows = torch.randn(3, 32)
    rows[1, 7] = torch.nan
    out = torch.empty_like(rows)
    interpret(opened("equality/c_function_right").kernel, rows, out)
    torch.testing.assert_close(out, rows.relu(), rtol=0, atol=0, equal_nan=True)


def test_no_text_is_no_function() -> None:
    assert externs("") == {}
    text = opened("equality/c_function_right").SOURCE
    assert externs(text + text.replace("larger", "max_nan")) == {"larger": "maxnan", "max_nan": "maxnan"}


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

    outer = 3 * nf.summation(32, lambda h: nf.maximum([inner(h), nf.ZERO]))
    terms = [3 * nf.maximum([inner(nf.form(h)), nf.ZERO]) for h in range(32)]
    assert few_written_out(outer) is sum(terms, nf.ZERO)
    assert few_written_out(outer) is not sum(terms[1:], nf.ZERO)
    variable = nf.summation(nf.variable("n"), lambda h: nf.read("w", h))
    assert few_written_out(variable) is variable


def test_sums_are_written_out_inside_too_unless_they_have_too_many_elements() -> None:
    def rows(height: int, width: int) -> nf.Form:
        return nf.summation(height, lambda h: nf.exp(nf.summation(width, lambda d: nf.read("q", h, d))))

    elements = [[nf.read("q", h, d) for d in range(32)] for h in range(20)]
    assert all_written_out(rows(20, 32)) is sum((nf.exp(sum(row, nf.ZERO)) for row in elements), nf.ZERO)
    assert all_written_out(rows(128, 127)) is not rows(128, 127)
    assert all_written_out(rows(128, 128)) is rows(128, 128)  # 128 sums of 128, and the sum of these


# Integers under conditions


def at_least(a: nf.Form, b: nf.Form | int) -> nf.Form:
    return nf.indicator("ge", a - b, integer=True)


def test_a_clamped_index_is_the_index_where_it_is_in_range() -> None:
    facts, size = Facts(), nf.variable("S")
    clamped = -nf.maximum([-x, 1 - size])
    element = nf.read("q", clamped)
    assert facts.decide_all(element) is element
    with facts.assuming(at_least(size, x + 1)):
        assert facts.decide_all(element) is nf.read("q", x)
    with facts.assuming(at_least(x, size)):
        assert facts.decide_all(element) is nf.read("q", size - 1)
    assert facts.decide_all(element) is element, "what held on a path is forgotten behind it"


def test_the_larger_of_real_numbers_is_not_decided_as_if_they_were_integers() -> None:
    facts, real = Facts({"i": (0, None)}), nf.read("r", x)
    square = nf.maximum([2 * real**2, real])  # at 1/4 the second is the larger
    assert facts.decide_all(square) is square
    whole = nf.read("i", x)
    assert facts.decide_all(nf.maximum([2 * whole**2, whole])) is 2 * whole**2


def test_what_becomes_known_later_is_used() -> None:
    facts = Facts()
    assert facts.decide(at_least(x, 3)) is None
    facts.add(at_least(x, 5))
    assert facts.decide(at_least(x, 3)) is True
    facts.bound(y, nf.form(9))
    assert facts.decide(at_least(nf.form(7), y)) is None
    facts.bound(y, nf.form(8))
    assert facts.decide(at_least(nf.form(7), y)) is True


# Quotients of the reference


def test_a_quotient_of_the_reference_is_by_a_positive_integer() -> None:
    first = symbolic_input("first", (nf.variable("rows"),), Integers())
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
