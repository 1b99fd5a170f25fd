"""Wrong claims that must not be proved: references, contracts and kernels that do not say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tilelang.language as T
import torch
from torch import Tensor

from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.sinkhorn import Config, sinkhorn_fwd
from lemmata.proofs import verify
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.layers.comparison import facts
from lemmata.reference.contract import Contract, Elements, Size, TensorSpec
from lemmata.reference.sinkhorn import FORWARD

FLOAT, INT = (torch.float32,), (torch.int32,)
LARGEST = 2**31 - 256


def elementwise(value: Callable[[Any, Any], Any]) -> Any:
    """out[i] = value(x[i], index[i]) for any count."""
    count = T.dynamic("count")

    @T.prim_func
    def elementwise(
        x: T.Tensor((count,), "float32"), index: T.Tensor((count,), "int32"), out: T.Tensor((count,), "float32")
    ):
        with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
            i = block * 128 + T.get_thread_binding()
            if i < count:
                out[i] = value(x[i], index[i])

    return elementwise


CONTRACT = Contract(
    "elementwise",
    {"count": Size(0, LARGEST)},
    {},
    (TensorSpec("x", "count", FLOAT), TensorSpec("index", "count", INT, Elements(0, 7))),
    (TensorSpec("out", "count", FLOAT),),
    ({"count": 1009}, {"count": LARGEST}),
)


def holds(kernel: Any, reference: Callable[..., Tensor], contract: Contract = CONTRACT) -> bool:
    return verify(kernel, contract, reference=reference, pass_configs=PASS_CONFIGS).holds


def _in_place(x: Tensor) -> Tensor:
    y = x
    y += 1
    return x


X = elementwise(lambda x, i: x)
WRONG = {
    "truncates": lambda x, i: x.long().float(),
    "truth of a float": lambda x, i: x.to(torch.bool).float(),
    "masks where the index is not 0": lambda x, i: x * (i != 0),
    "masks where the index is 0": lambda x, i: x * (i == 0),
    "one element": lambda x, i: x[:1],
    "a dimension more": lambda x, i: x.unsqueeze(0).expand(1, x.shape[0]),
    "in place on an alias": lambda x, i: _in_place(x),
    "half an integer, truncated": lambda x, i: x + (i / 2).long() - i / 2,
    "adds truth values": lambda x, i: x + ((i >= 3) + (i >= 3)) - 2 * (i >= 3),
    "negates truth values": lambda x, i: x + (i >= 3) + (-(i >= 3)),
    "decides on the size": lambda x, i: x if x.shape[0] == 1 else 2 * x,
    "decides on the size, ordered": lambda x, i: x if x.shape[0] > 5 else 2 * x,
}


@pytest.mark.parametrize("name", WRONG)
def test_references_that_say_something_else(name: str) -> None:
    assert holds(X, lambda x, i: x)
    assert not holds(X, WRONG[name])


@pytest.mark.parametrize("reference", [lambda x, i: (i & 1).float(), lambda x, i: (~i).float()], ids=["and", "not"])
def test_bitwise_operations_on_integers_are_not_those_on_truth_values(reference: Callable[..., Tensor]) -> None:
    for value in (lambda x, i: T.cast(i, "float32"), lambda x, i: 1 - T.cast(i, "float32")):
        assert not holds(elementwise(value), reference)


def test_masks_are_masks() -> None:
    kernel = elementwise(lambda x, i: T.if_then_else(i != 0, x, 0.0))
    assert holds(kernel, lambda x, i: x * (i != 0))
    assert holds(kernel, lambda x, i: torch.where(~(i == 0), x, 0.0))
    assert holds(kernel, lambda x, i: torch.where((i > 0) | (i < 0), x, 0.0))
    assert not holds(kernel, lambda x, i: torch.where((i > 0) & (i < 3), x, 0.0))


def test_a_kernel_for_one_size_does_not_meet_a_contract_for_many() -> None:
    wider = replace(FORWARD, sizes={"count": Size(0, 100), "n": Size(1, 8)}, statics={}, probes=())
    probes = ({"count": 7, "n": 4}, {"count": 100, "n": 4})
    report = verify(sinkhorn_fwd(Config()), replace(wider, probes=probes), layers=["L0"], pass_configs=PASS_CONFIGS)
    assert not report.holds
    assert "which the contract leaves open" in report.failures[0].statement


def test_two_sizes_that_the_kernel_ties_are_not_two_sizes() -> None:
    tied = T.dynamic("m")

    @T.prim_func
    def square(x: T.Tensor((tied, tied), "float32"), out: T.Tensor((tied, tied), "float32")):
        with T.Kernel(tied, threads=32) as row:
            for column in T.serial(tied):
                out[row, column] = x[row, column]

    x, out = TensorSpec("x", "m n", FLOAT), TensorSpec("out", "m n", FLOAT)
    probes = ({"m": 9, "n": 9}, {"m": 64, "n": 64})
    contract = Contract("square", {"m": Size(1, 64), "n": Size(1, 64)}, {}, (x,), (out,), probes)
    report = verify(square, contract, layers=["L0"])
    assert not report.holds
    assert "which the contract leaves open" in report.failures[0].statement


def test_a_negative_index_is_not_one_from_the_end() -> None:
    rows = T.dynamic("rows")

    @T.prim_func
    def other_half(x: T.Tensor((rows, 256), "float32"), out: T.Tensor((rows, 128), "float32")):
        with T.Kernel(rows, threads=128) as row:
            lane = T.get_thread_binding()
            out[row, lane] = x[row, lane - 128]

    x, out = TensorSpec("x", "rows 256", FLOAT), TensorSpec("out", "rows 128", FLOAT)
    contract = Contract("half", {"rows": Size(0, 999)}, {}, (x,), (out,), ({"rows": 7}, {"rows": 999}))
    assert not verify(other_half, contract, reference=lambda x: x[:, :128]).holds


def test_an_annotation_that_changes_what_is_read_is_refused() -> None:
    rows = T.dynamic("rows")

    @T.prim_func
    def padded(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows, 8), "float32")):
        with T.Kernel(rows, threads=32) as row:
            tile = T.alloc_shared((1, 8), "float32")
            T.annotate_safe_value({x: 1.0})
            T.copy(x[row, 0], tile)
            T.copy(tile, out[row, 0])

    x, out = TensorSpec("x", "rows 4", FLOAT), TensorSpec("out", "rows 8", FLOAT)
    contract = Contract("padded", {"rows": Size(0, 999)}, {}, (x,), (out,), ({"rows": 7}, {"rows": 999}))
    report = verify(padded, contract, reference=lambda x: x.unsqueeze(-1).expand(x.shape[0], 4, 2), layers=["L2"])
    assert not report.holds
    assert "annotations" in report.failures[0].statement


def test_elements_have_a_range_only_where_they_exist() -> None:
    count, entries = T.dynamic("count"), T.dynamic("entries")

    @T.prim_func
    def guess(
        index: T.Tensor((count,), "int32"), table: T.Tensor((entries,), "float32"), out: T.Tensor((1,), "float32")
    ):
        with T.Kernel(1, threads=32):
            if T.get_thread_binding() == 0:
                out[0] = T.if_then_else(T.if_then_else(count > 0, index[0], -1) < entries, 0.0, 1.0)

    tensors = TensorSpec("index", "count", INT, Elements(0, "entries")), TensorSpec("table", "entries", FLOAT)
    sizes = {"count": Size(0, 99), "entries": Size(0, 99)}
    probes = ({"count": 7, "entries": 9}, {"count": 99, "entries": 99})
    contract = Contract("guess", sizes, {}, tensors, (TensorSpec("out", "1", FLOAT),), probes)
    known = facts(contract)
    empty = nf.indicator("ge", nf.form(0) - nf.variable("count"), integer=True)
    with known.assuming(empty):
        first = nf.indicator("ge", nf.variable("entries") - 1 - nf.read("index", nf.form(0)), integer=True)
        assert known.decide(first) is None, "index[0] does not exist"


def test_overlapping_strides_are_refused() -> None:
    rows = T.dynamic("rows")

    @T.prim_func
    def overlapping(x: T.Tensor((rows, 4), "float32"), out: T.StridedTensor((rows, 4), (2, 1), "float32")):
        with T.Kernel(rows, threads=4) as row:
            out[row, T.get_thread_binding()] = x[row, T.get_thread_binding()]

    x, out = TensorSpec("x", "rows 4", FLOAT), TensorSpec("out", "rows 4", FLOAT)
    contract = Contract("overlap", {"rows": Size(0, 999)}, {}, (x,), (out,), ({"rows": 7}, {"rows": 999}))
    report = verify(overlapping, contract, layers=["L0"])
    assert not report.holds
    assert "strides" in report.failures[0].statement


def test_the_dtypes_of_contract_and_kernel_agree() -> None:
    half = replace(CONTRACT.inputs[0], dtypes=(torch.float16,))
    wrong = replace(CONTRACT, inputs=(half, CONTRACT.inputs[1]))
    with pytest.raises(Unsupported, match="the kernel declares float32, the contract float16"):
        Hypotheses.of(wrong, {}, X)


def test_a_layer_that_was_asked_for_is_not_left_out() -> None:
    with pytest.raises(ValueError, match="expected a reference for L2"):
        verify(X, CONTRACT, layers=["L0", "L2"])


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected options among .*mutate, .* got \['mutant'\]"):
        verify(X, CONTRACT, mutant=True)  # type: ignore[call-arg]


def test_probes_name_every_size() -> None:
    with pytest.raises(ValueError, match="expected probes of all its sizes"):
        verify(X, replace(CONTRACT, probes=({}, {"count": 5})))


@pytest.mark.parametrize("layer", ["L2", "range"])
def test_every_layer_refuses_contradictory_sizes(layer: str) -> None:
    contract = replace(CONTRACT, sizes={"count": Size(5, 4)})
    report = verify(X, contract, reference=lambda x, i: x, layers=[layer], pass_configs=PASS_CONFIGS)
    assert not report.holds
    assert {f.kind for f in report.failures} == {"hollow"}


def branching(few: int) -> Any:
    """A branch for few rows."""
    count = T.dynamic("count")

    @T.prim_func
    def branching(
        x: T.Tensor((count,), "float32"), index: T.Tensor((count,), "int32"), out: T.Tensor((count,), "float32")
    ):
        with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
            i = block * 128 + T.get_thread_binding()
            if i < count:
                out[i] = x[i]
                if count < few:
                    out[i] = x[i + 1]

    return branching


def test_dead_code_is_declared_and_proved_dead() -> None:
    contract = replace(CONTRACT, sizes={"count": Size(3, LARGEST)})

    def found(few: int, dead: dict[str, str]) -> tuple[set[str], tuple[str, ...]]:
        (layer,) = verify(branching(few), contract, layers=["L0"], pass_configs=PASS_CONFIGS, dead=dead).layers
        return {f.kind for f in layer.failures}, layer.statements

    dead = {"count < 3": "there are three", "count < 4": "not so"}
    assert found(3, {}) == ({"hollow"}, ())
    assert found(3, dead) == (set(), ("dead: if count < 3: there are three",))
    assert found(4, dead)[0] == {"dead"}
