"""What a claim must be before anything is proved of it; wrong claims are in verdicts/equality and verdicts/bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tilelang.language as T
import torch

from lemmata.kernels.build import PASS_CONFIGS
from lemmata.proofs import verify
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.layers.comparison import facts
from lemmata.reference.contract import Contract, Elements, Size, TensorSpec
from verdicts import opened

FLOAT, INT = (torch.float32,), (torch.int32,)


FILE = opened("equality/identity_right")
X, CONTRACT = FILE.kernel, FILE.CONTRACT


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
