"""What only CSA needs: indices of any content. And that both cores stand alike on windows, sinks, offsets and NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lemmata
from attention_cases import INF, NAN, case, check, planted_is_caught, within_flash_mla
from inputs import make
from lemmata.bindings.sparse_attention import widened
from lemmata.reference import csa
from opspec import OpSpec
from specs_csa import CSA
from specs_hca import HCA
from specs_swa import SWA

GARBAGE = (-1, -2, -(2**31), 2**31 - 1)
each = pytest.mark.parametrize("spec", [CSA, HCA, SWA], ids=["csa", "hca", "swa"])


def run(tensors: dict[str, Tensor], **more: Any) -> tuple[Tensor, Tensor]:
    return lemmata.csa(**tensors, **more)


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(data=st.data())
def test_shapes_at_every_edge(device: torch.device, data: st.DataObject) -> None:
    window = data.draw(st.sampled_from((1, 2, 5, 33)))
    sizes = {
        "B": data.draw(st.sampled_from((1, 2))),
        "S": data.draw(st.sampled_from((1, 2, window, window + 1))),
        "P": data.draw(st.sampled_from((0, 1, window - 1, window, window + 1))),
        "T": data.draw(st.sampled_from((0, 1, 7))),
        "K": data.draw(st.sampled_from((0, 1, 7, 9))),
    }
    configuration = {"H": 8, "D": 64, "window": window, "scale": 0.125}
    call = make(CSA.contract, configuration, sizes, data.draw(st.integers(0, 99))).to(device)
    indices, sink, offset = call.tensors[3:]
    offset[:] = data.draw(st.sampled_from((-2, 0, 1, window - 1, window, window + 1, sizes["P"])))
    kind = data.draw(st.sampled_from(("any", "none", "equal", "descending")))
    if kind == "none":
        indices[:] = -1
    elif kind == "equal":
        indices[:] = sizes["T"] - 1
    elif kind == "descending":
        indices[:] = torch.arange(sizes["K"], device=device).flip(0)
    sink[0] = data.draw(st.sampled_from((0.0, -INF, 3.0)))
    check(CSA, call)


@pytest.mark.parametrize("garbage", [*GARBAGE, "T"])
def test_an_invalid_index_reads_nothing(device: torch.device, garbage: int | str) -> None:
    tensors = case(CSA, device)
    T = tensors["compressed_kv"].shape[1]
    tensors["indices"].clamp_(1, T - 2)
    tensors["compressed_kv"][:, [0, -1]] = NAN
    without = run(tensors | {"indices": tensors["indices"][..., 1:]})
    tensors["indices"][..., 0] = T if garbage == "T" else garbage
    some = run(tensors)
    for one, other in zip(some, without, strict=True):
        torch.testing.assert_close(one, other)
    assert some[1].isfinite().all()
    tensors["compressed_kv"][:, [0, -1]] = 7.0
    assert equal(run(tensors), some), "what is not read changes no bit"
    for wrong in (0, T - 1):
        tensors["indices"][..., 0] = wrong
        assert not torch.allclose(run(tensors)[1], without[1], atol=1e-2)


def test_no_entry_at_all(device: torch.device) -> None:
    tensors = case(CSA, device)
    alone = lemmata.swa(tensors["q"], tensors["window_kv"], tensors["sink"], window=5)
    none = tensors["compressed_kv"][:, :0]
    for changed in (
        {"indices": torch.full_like(tensors["indices"], -1)},
        {"indices": tensors["indices"][..., :0]},
        {"compressed_kv": none},
        {"compressed_kv": none, "indices": tensors["indices"][..., :0]},
    ):
        got = run(tensors | changed, window=5)
        for one, other in zip(got, alone, strict=True):
            torch.testing.assert_close(one, other)
    assert not torch.allclose(run(tensors, window=5)[1], alone[1])


def test_an_index_that_comes_twice_counts_twice(device: torch.device) -> None:
    tensors = case(CSA, device, S=1)
    tensors["indices"] = torch.tensor([3, 5, 3], dtype=torch.int32, device=device).expand(3, 1, 3)
    rows = tensors["compressed_kv"][:, [3, 5, 3]]
    distinct = torch.arange(3, dtype=torch.int32, device=device).expand(3, 1, 3)
    assert equal(run(tensors), run(tensors | {"compressed_kv": rows, "indices": distinct}))
    assert not equal(run(tensors), run(tensors | {"indices": tensors["indices"][..., :2]}))


def test_the_order_of_the_indices_is_free(device: torch.device) -> None:
    tensors = case(CSA, device)
    shuffled = tensors["indices"].flip(-1)
    assert not torch.equal(shuffled, tensors["indices"])
    for one, other in zip(run(tensors), run(tensors | {"indices": shuffled}), strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-5)


def test_with_all_indices_it_is_hca(device: torch.device) -> None:
    tensors = case(CSA, device, S=30, T=40)
    del tensors["indices"]
    every = torch.arange(40, device=device)
    seen = (51 + torch.arange(30, device=device)) // 2
    indices = torch.where(every < seen.unsqueeze(-1), every, -1).int().expand(3, 30, 40)
    dense = lemmata.hca(**tensors, ratio=2, offset=50)
    for one, other in zip(lemmata.csa(**tensors, indices=indices, offset=50), dense, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-5)
    late = lemmata.hca(**tensors, ratio=2, offset=49)
    assert not torch.allclose(late[1], dense[1], atol=1e-3), "causality off by one"


def test_gradcheck_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 5, 2, 3), (2, 8, 3), (2, 4, 3), (2,)
    inputs = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    indices = torch.randint(-2, 6, (2, 5, 6), generator=generator, dtype=torch.int32)
    fixed = {"indices": indices, "offset": torch.tensor([-2, 2], dtype=torch.int32), "window": 3, "scale": 0.125}
    planted_is_caught(csa.csa, csa.csa_bwd, inputs, fixed)


def test_the_shapes_of_deepseek(device: torch.device) -> None:
    sizes = {"B": 1, "P": 127, "T": 700, "K": 512}
    for H, S in ((64, 3), (64, 9), (128, 3), (128, 9)):
        statics = {"H": H, "D": 512, "window": 128, "scale": 512**-0.5}
        call = make(CSA.contract, statics, sizes | {"S": S}, 3).to(device)
        call.tensors[3].remainder_(701)
        call.tensors[5][:] = 5000
        check(CSA, call)
        got = CSA.run(call)
        assert within_flash_mla(CSA, call, got)
        assert not within_flash_mla(CSA, call, got * 1.03)


@each
def test_chunks_change_no_bit(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    call = spec.sample(2, S=40)
    whole = spec.run(call)
    g = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    _, grads = spec.grads(spec.op, call, g)
    monkeypatch.setattr("lemmata.bindings.sparse_attention._CHUNK", 3 * 64 * 50)
    calls = []
    module = __import__(f"lemmata.reference.{spec.name}", fromlist=["_"])
    unit: Callable[..., Any] = getattr(module, spec.name)
    monkeypatch.setattr(module, spec.name, lambda *a: calls.append(a[0].shape[1]) or unit(*a))
    again, again_grads = spec.grads(spec.op, call, g)
    assert torch.equal(again, whole)
    assert 1 < max(calls) < 40
    for a, b in zip(again_grads, grads, strict=True):
        torch.testing.assert_close(a, b)


def test_narrow_heads_are_filled_up() -> None:
    """What the launcher of the kernel is given, and what becomes of its result."""
    widths = []

    def launcher(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        widths.append({x.shape[-1] for x in args[:3]})
        return csa.csa(*args)

    generator = torch.Generator().manual_seed(1)
    for D in (64, 128):
        q, window_kv, entries = (torch.randn(*s, D, generator=generator) for s in ((2, 3, 8), (2, 5), (2, 4)))
        others = torch.randint(-1, 5, (2, 3, 6)).int(), torch.randn(8), torch.tensor([0, 9]).int(), 4, 0.125
        got = widened(launcher)(q, window_kv, entries, *others)
        for a, b in zip(got, csa.csa(q, window_kv, entries, *others), strict=True):
            torch.testing.assert_close(a, b)
            assert a.is_contiguous()
    assert widths == [{128}, {128}]
