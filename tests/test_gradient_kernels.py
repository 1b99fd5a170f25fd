"""The kernels of the backward of attention, run by the interpreter: parts, and sums of them bit for bit."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from lemmata.bindings import gradients as gradients_on_gpu
from lemmata.bindings.sparse_attention import widened_backward
from lemmata.kernels import csa as csa_kernels
from lemmata.kernels import gradient_sums as sums
from lemmata.kernels import hca as hca_kernels
from lemmata.kernels.csa import csa_bwd
from lemmata.kernels.hca import hca_bwd
from lemmata.kernels.sparse_attention_config import BackwardConfig
from lemmata.proofs import interpret
from lemmata.reference import csa, hca, swa

D = 128
run: Any = interpret


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_after_the_other(total: Tensor, parts: list[Tensor]) -> Tensor:
    for part in parts:
        total = total + part.float()
    return total


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("past", [0, 3])
def test_the_window_is_summed_in_the_order_of_the_queries(blocks: int, past: int) -> None:
    B, S, window = 2, 20, 5
    parts, before = normal(B, S, window, blocks, D).bfloat16(), normal(B, past + S, D, seed=1)
    total = before.clone()
    run(sums.sum_window(sums.Config(D, blocks, window)), parts, total, outputs=())
    for b in range(B):
        for r in range(past + S):
            slots = [(s, r - past + window - 1 - s) for s in range(S)]
            mine = [parts[b, s, i, h] for s, i in slots if 0 <= i < window for h in range(blocks)]
            assert torch.equal(total[b, r], one_after_the_other(before[b, r], mine))


@pytest.mark.parametrize("blocks", [1, 2])
def test_what_is_listed_is_summed_in_its_order(blocks: int) -> None:
    counts = [0, 1, 15, 16, 17, 33, 0]
    N, R = sum(counts), len(counts)
    parts, before = normal(N, blocks, D).bfloat16(), normal(R, D, seed=1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2)).int()
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)]).int()
    total = before.clone()
    run(sums.sum_listed(sums.Config(D, blocks)), parts, order, starts[:-1], starts[1:], total, outputs=())
    for r in range(R):
        mine = [parts[n, h] for n in order[starts[r] : starts[r + 1]] for h in range(blocks)]
        assert torch.equal(total[r], one_after_the_other(before[r], mine))
    backwards = before.clone()
    run(sums.sum_listed(sums.Config(D, blocks)), parts, order.flip(0), starts[:-1], starts[1:], backwards, outputs=())
    assert not torch.equal(total, backwards), "another order has other bits"


@pytest.mark.parametrize("offset", [-3, 0, 5, 1000])
def test_an_entry_has_the_parts_of_the_queries_that_see_it(offset: int) -> None:
    B, S, T, ratio = 1, 19, 4, 4
    parts, before = normal(B, S, T, 1, D).bfloat16(), normal(B, T, D, seed=1)
    seen = hca.visible(torch.tensor([offset]), S, ratio)[0]
    for s in range(S):
        parts[0, s, max(int(seen[s]), 0) :] = torch.nan
    total = before.clone()
    run(sums.sum_visible(sums.Config(D, ratio=ratio)), parts, torch.tensor([offset]).int(), total, outputs=())
    for e in range(T):
        mine = [parts[0, s, e, 0] for s in range(S) if e < seen[s]]
        assert torch.equal(total[0, e], one_after_the_other(before[0, e], mine))


def test_products_of_columns() -> None:
    x, y, total = normal(5, 8, D).bfloat16(), normal(5, 8, D, seed=1).bfloat16(), torch.empty(5, 8)
    run(sums.delta(sums.Config(D)), x, y, total)
    torch.testing.assert_close(total, (x.double() * y.double()).sum(-1).float(), rtol=1e-5, atol=1e-5)


def gradients(op: str, change: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    """What the kernel writes, and what the reference computes in fp64 from the same; the kernel's grad_lse is changed."""
    B, S, P, T, K, H, window, ratio = 1, 3 if op == "csa" else 1, 70, 70, 66, 8, 66, 4
    cfg = BackwardConfig(H, D, window, 0.1, ratio)
    q, window_kv, entries = (
        normal(*shape, D, seed=i).bfloat16() for i, shape in enumerate(((B, S, H), (B, P + S), (B, T)))
    )
    indices = torch.randint(-3, T + 3, (B, S, K), generator=torch.Generator().manual_seed(3)).int()
    sink, offset = normal(H, seed=4), torch.tensor([P]).int()
    listed = (indices,) if op == "csa" else ()
    statics = (window, 0.1) if op == "csa" else (ratio, window, 0.1)
    module: Any = csa if op == "csa" else hca
    wide = [x.double() for x in (q, window_kv, entries)]
    out, lse = getattr(module, op)(*wide, *listed, sink.double(), offset, *statics)
    grad_out, grad_lse = normal(B, S, H, D, seed=5).bfloat16(), normal(B, S, H, seed=6)
    delta = (out * grad_out).sum(-1)
    results = [torch.empty(B, S, H, D), torch.empty(B, S, window, 1, D), torch.empty(B, S, K if listed else T, 1, D)]
    results = [x.bfloat16() for x in results]
    given = (q, window_kv, entries, *listed, sink, offset, lse.float(), delta.float())
    run((csa_bwd if op == "csa" else hca_bwd)(cfg), grad_out, grad_lse * change, *given, *results)
    stats = sink.double(), offset, lse, delta
    of_q, *parts = getattr(module, f"{op}_parts")(
        grad_out.double(), grad_lse.double(), *wide, *listed, *stats, *statics, blocks=1
    )
    return list(zip(results, (of_q, *parts), strict=True))


@pytest.mark.parametrize("op", ["csa", "hca"])
def test_parts_are_those_of_the_reference(op: str) -> None:
    for got, want in gradients(op):
        assert (got - want).norm() < 2**-7 * want.norm()


def test_a_gradient_of_lse_that_is_lost_is_noticed() -> None:
    (of_q, want), *_ = gradients("csa", change=0.0)
    assert (of_q - want).norm() > 2**-7 * want.norm()


@pytest.mark.parametrize("op", ["csa", "swa"])  # swa runs the kernel of hca
def test_the_backward_as_on_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launchers with every kernel interpreted, two groups of queries, heads that are filled up."""

    def built(factory: Any, cfg: Any) -> Any:
        outputs = () if factory.__name__.startswith("sum_") else None
        return lambda *tensors: run(factory(cfg), *tensors, outputs=outputs)

    for module in (csa_kernels, hca_kernels, sums):
        monkeypatch.setattr(module, "build", built)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(gradients_on_gpu, "WORKSPACE", 1)
    B, S, P, T, K, H, D, window, ratio = 1, 2, 3, 4, 5, 8, 64, 3, 2
    q, window_kv, entries = (
        normal(*shape, D, seed=i).bfloat16() for i, shape in enumerate(((B, S, H), (B, P + S), (B, T)))
    )
    indices = torch.randint(-2, T + 2, (B, S, K), generator=torch.Generator().manual_seed(3)).int()
    tensors = {"q": q, "window_kv": window_kv, "compressed_kv": entries, "indices": indices, "sink": normal(H, seed=4)}
    tensors["offset"] = torch.tensor([P]).int()
    unused = {"csa": (), "hca": ("indices",), "swa": ("indices", "compressed_kv")}[op]
    tensors = {name: x for name, x in tensors.items() if name not in unused}
    statics = (ratio, window, 0.1) if op == "hca" else (window, 0.1)
    reference: Any = {"csa": csa, "hca": hca, "swa": swa}[op]
    wide = {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
    out, lse = getattr(reference, op)(*wide.values(), *statics)
    grads = normal(B, S, H, D, seed=5).bfloat16(), normal(B, S, H, seed=6)
    want = getattr(reference, f"{op}_bwd")(*(g.double() for g in grads), *wide.values(), out, lse, *statics)
    given = {"grad_out": grads[0], "grad_lse": grads[1]} | tensors | {"out": out.bfloat16(), "lse": lse.float()}
    binding: Any = importlib.import_module(f"lemmata.bindings.{op}")
    got = widened_backward(binding.backward if op == "hca" else binding._backward)(given, statics)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() < 2**-6 * b.norm()
