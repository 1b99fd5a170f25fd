"""FLOPs that torch counts for an operator: those of the products of its reference, and what elements take besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from inputs import Call
from lemmata.operators import OPERATORS
from opspec import OpSpec
from specs import DIFFERENTIABLE, SPECS

Besides = Callable[[Call, bool], int]


def dots(call: Call) -> int:
    """How many products of a query and an entry the scores take."""
    (B, S, H, _), T = call.tensors[0].shape, call.tensors[1].shape[1]
    return B * S * H * T


def afresh(call: Call, backward: bool) -> int:
    """What a backward multiplies: the teacher's products again, and three of the indexer's for each candidate."""
    (B, S, H, D), (core_H, core_D) = call.tensors[0].shape, call.tensors[3].shape[2:]
    candidates = call.tensors[1].shape[1] if "ratio" in call.statics else call.tensors[5].shape[2]
    return 2 * B * S * candidates * (core_H * core_D + 3 * H * D) if backward else 0


def mixed(call: Call, backward: bool) -> int:
    """Products of the streams with the weights that each of them has, that of the layer's result included."""
    hc = call.tensors[0].shape[-2]
    return (4 if backward else 2) * (hc + 1) * call.tensors[0].numel()


def weighted(call: Call, backward: bool) -> int:
    """The sum of the streams with their weights, and three times as much backward."""
    return (6 if backward else 2) * call.tensors[0].numel()


def pooled(call: Call, backward: bool) -> int:
    """A bias, a sum of weights, and a product that is added up, for each channel of a token; three times as much backward."""
    return (12 if backward else 4) * call.tensors[0].numel()


BESIDES: dict[str, Besides] = {
    "sinkhorn": lambda call, backward: (
        (12 if backward else 4) * int(call.statics["iterations"]) * call.tensors[0].numel()
    ),
    "mhc_pre": weighted,
    "mhc_post": mixed,
    "mhc_post_pre": lambda call, backward: (
        mixed(call, backward) + weighted(call, backward) + weighted(call, False) * backward
    ),
    "mhc_head": weighted,
    "indexer_scores": lambda call, backward: (4 if backward else 2) * dots(call),
    "indexer_scores_fp8": lambda call, _: 2 * dots(call),
    "indexer_topk": lambda call, _: 2 * dots(call),
    "compress": pooled,
    "compress_overlap": pooled,
    "compress_step": pooled,
    "compress_step_overlap": pooled,
    "indexer_loss": afresh,
    "indexer_loss_dense": afresh,
}
"""What is no product of the reference: weights, sums, divisions. Of attention only products count, as torch counts it."""


def counted(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()  # type: ignore[no-any-return]


def products(spec: OpSpec, call: Call) -> int:
    return counted(lambda: spec.reference(*call.tensors, **call.statics))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_the_count_is_that_of_the_reference(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(4).to(device)
    wanted = products(spec, call.to("cpu")) + BESIDES.get(spec.name, lambda *_: 0)(call, False)
    assert counted(lambda: spec.run(call)) == wanted
    assert (wanted == 0) == (spec.operator == "topk"), "comparisons are no arithmetic"


@pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=lambda s: s.name)
def test_the_count_of_the_backward(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(4).to(device)
    g = torch.ones_like(spec.run(call))
    backward = counted(lambda: spec.grads(spec.op, call, g)) - counted(lambda: spec.run(call))
    thrice, with_scores = ("indexer_scores", "mhc_pre", "mhc_post_pre", "mhc_head"), ("csa", "hca", "swa")
    ratio = dict.fromkeys(thrice, 3.0) | dict.fromkeys(with_scores, 2.5)  # products backward for each forward
    of_products = products(spec, call.to("cpu")) * ratio.get(spec.name, 0)
    assert backward == of_products + BESIDES.get(spec.name, lambda *_: 0)(call, True)


def test_every_operator_has_a_formula() -> None:
    ours = {name for name in dir(torch.ops.lemmata) if name.endswith(("_fwd", "_bwd", "_check"))}
    assert len(ours) > len(OPERATORS)
    assert all(getattr(torch.ops.lemmata, name) in flop_registry for name in ours)


def test_a_query_that_takes_everything_costs_nothing() -> None:
    spec = next(s for s in SPECS if s.name == "indexer_topk")
    assert counted(lambda: spec.run(spec.sample(at=3))) == 0


def test_an_operator_without_a_formula_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted error: that is what the counts would be compared with."""
    spec = DIFFERENTIABLE[0]
    monkeypatch.delitem(flop_registry, spec.overload.overloadpacket)  # type: ignore[attr-defined]
    call = spec.sample(4)
    assert counted(lambda: spec.run(call)) == 0 != BESIDES[spec.name](call, False)
