"""Layer 0 on values: what is stored to a bounded output, how far a counter counts, shifts and bits of unsigned numbers."""

import pytest
import tilelang.language as T

from engine_verdicts import MANUAL, hypotheses, kinds, outcomes, refuted
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.layers.bounds import bounds
from lemmata.reference.contract import Elements, Size

WIDTH = 64
BELOW = {"out": Elements(-1, "N")}
SIZES = {"N": Size(0, 2**20)}


def stored(value: str):
    """A row of indices; the seen ones come out of shared memory, where they could be anything."""
    rows, columns = T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def kernel(
        x: T.Tensor((rows, columns), "int32"),
        y: T.Tensor((rows, WIDTH), "int32"),
        out: T.Tensor((rows, WIDTH), "int32"),
    ):
        with T.Kernel(rows, threads=WIDTH) as row:
            thread = T.get_thread_binding()
            kept = T.alloc_shared((WIDTH,), "int32")
            kept[thread] = y[row, thread]
            if value == "guarded":
                if thread < columns:
                    out[row, thread] = thread
                else:
                    out[row, thread] = -1
            elif value == "clamped":
                j = kept[thread]
                out[row, thread] = T.if_then_else(j >= 0 and j < columns, j, -1)
            elif value == "one too many":
                out[row, thread] = T.min(thread, columns)
            elif value == "two below":
                out[row, thread] = T.if_then_else(thread < columns, thread, -2)
            elif value == "read twice":
                out[row, thread] = T.if_then_else(kept[thread] >= 0 and kept[thread] < columns, kept[thread], -1)
            elif value == "unguarded":
                out[row, thread] = kept[thread]
            elif value == "atomic":
                out[row, thread] = -1
                T.atomic_add(out[row, thread], 1)

    return kernel


@pytest.mark.parametrize("value", ["guarded", "clamped"])
def test_what_is_stored_lies_in_the_range_of_the_contract(value):
    kernel = stored(value)
    found = outcomes(bounds, kernel, hypotheses(kernel, "out", sizes=SIZES, elements=BELOW), MANUAL)
    assert {o.verdict for o in found} == {"proved"}
    assert "value" in kinds(found)


@pytest.mark.parametrize("value", ["one too many", "two below", "read twice", "unguarded", "atomic"])
def test_what_may_lie_outside_is_refuted(value):
    kernel = stored(value)
    found = refuted(bounds, kernel, hypotheses(kernel, "out", sizes=SIZES, elements=BELOW), MANUAL)
    assert kinds(found) == {"value"}
    assert not refuted(bounds, kernel, hypotheses(kernel, "out", sizes=SIZES), MANUAL), (
        "without a promise none is broken"
    )


def test_a_bound_on_floats_is_refused():
    rows = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((rows,), "float32"), out: T.Tensor((rows,), "float32")):
        with T.Kernel(rows, threads=1) as row:
            out[row] = x[row]

    with pytest.raises(Unsupported, match="whose elements the contract bounds"):
        bounds(kernel, hypotheses(kernel, "out", elements={"out": Elements(0, 2)}), MANUAL)


def counting(amount: str, most: int = 2**20):
    """Every thread counts something of its columns."""
    columns = T.dynamic("N")
    step = 2**12 if amount == "large" else 1

    @T.prim_func
    def kernel(x: T.Tensor((columns,), "int32"), out: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            thread = T.get_thread_binding()
            count = T.alloc_local((2,), "int32")
            count[0] = x[0] if amount == "from an input" else 0
            count[1] = 0
            for j in T.serial(columns):
                if amount == "of an input":
                    count[0] += x[j]
                elif amount == "itself":
                    count[0] += count[0]
                else:
                    count[0] += T.if_then_else(x[j] > 0, step, 0)
            out[thread] = count[0]

    return kernel


@pytest.mark.parametrize(
    ("amount", "most", "holds"),
    [
        ("small", 2**20, True),
        ("small", 2**31 - 2, True),
        ("large", 2**18, True),
        ("large", 2**20, False),
        ("from an input", 2**20, False),
        ("of an input", 2**20, False),
        ("itself", 2**20, False),
    ],
)
def test_a_counter_does_not_overflow_as_long_as_it_counts_small_amounts(amount, most, holds):
    kernel = counting(amount)
    found = refuted(bounds, kernel, hypotheses(kernel, "out", sizes={"N": Size(1, most)}), MANUAL)
    assert kinds(found) == (set() if holds else {"overflow"})


def binned(shift: int, bins: int, width: int = 32):
    """A histogram of sortable keys by their leading bits, and a shift by the number of the iteration."""
    count = T.dynamic("N")

    @T.prim_func
    def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            thread = T.get_thread_binding()
            bin_of = T.alloc_shared((bins,), "int32")
            for j in T.serial(count):
                bits = T.reinterpret(x[j], "uint32")
                key = bits ^ T.if_then_else(bits >> T.uint32(31) != 0, T.uint32(0xFFFFFFFF), T.uint32(0x80000000))
                T.atomic_add(bin_of[T.cast(key >> T.uint32(shift), "int32")], 1)
            out[thread] = 0
            for d in T.serial(width):
                if (thread >> d) % 2 == 1:
                    out[thread] = thread & (1 << T.min(d, 5))

    return kernel


def test_the_leading_bits_of_a_key_name_a_bin():
    kernel = binned(21, 2048)
    assert not refuted(bounds, kernel, hypotheses(kernel, "out"), MANUAL)


@pytest.mark.parametrize(
    ("shift", "bins", "width", "kind"), [(20, 2048, 32, "bounds"), (21, 2047, 32, "bounds"), (21, 2048, 33, "overflow")]
)
def test_too_few_bins_or_too_wide_a_shift_are_refuted(shift, bins, width, kind):
    kernel = binned(shift, bins, width)
    assert kinds(refuted(bounds, kernel, hypotheses(kernel, "out"), MANUAL)) == {kind}
