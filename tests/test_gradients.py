"""What the backward of attention does around its kernels on a GPU, run on a CPU: the kernels are replaced by references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lemmata.bindings import csa, gradients, hca, swa
from lemmata.reference import csa as csa_reference
from lemmata.reference import hca as hca_reference
from lemmata.reference import swa as swa_reference

H, D, WINDOW, SCALE, RATIO = 6, 128, 3, 0.1, 2
BLOCKS = 2  # of three heads each


def csa_parts(grads: Any, q: Tensor, keys: Any, indices: Tensor, sink: Tensor, offset: Tensor, stats: Any, grad_q: Tensor,
              *, window: int, scale: float) -> list[Tensor]:  # fmt: skip
    tensors = (*grads, q, *keys, indices, sink, offset, *stats)
    assert all(t.is_contiguous() for t in (*tensors, grad_q)), "a copy would take memory that no workspace counts"
    of_q, *parts = csa_reference.csa_parts(*tensors, window, scale, BLOCKS)
    grad_q.copy_(of_q)
    return parts


def hca_parts(grads: Any, q: Tensor, keys: Any, sink: Tensor, offset: Tensor, stats: Any, grad_q: Tensor,
              *, ratio: int, window: int, scale: float) -> list[Tensor]:  # fmt: skip
    of_q, *parts = hca_reference.hca_parts(*grads, q, *keys, sink, offset, *stats, ratio, window, scale, BLOCKS)
    grad_q.copy_(of_q)
    return parts


def columns_product(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)


def add_window(parts: Tensor, total: Tensor) -> None:
    assert total.is_contiguous()
    _, S, window, *_ = parts.shape
    R = total.shape[1]
    for s in range(S):
        for i in range(window):
            if (row := R - S - window + 1 + i + s) >= 0:
                total[:, row] += parts[:, s, i].sum(1)


def add_listed(parts: Tensor, order: Tensor, starts: Tensor, ends: Tensor, total: Tensor) -> None:
    assert order.dtype is starts.dtype is ends.dtype is torch.int32
    assert total.is_contiguous()
    assert total.numel(), "a launch of no blocks is an error on a GPU"
    flat, rows = parts.flatten(0, 2), total.view(-1, D)
    assert len(starts) == len(ends) == len(rows)
    for r in range(len(rows)):
        named = order[starts[r] : ends[r]]
        assert named.tolist() == sorted(named.tolist()), "the order of the queries"
        rows[r] += flat[named].sum((0, 1))


def add_visible(parts: Tensor, offset: Tensor, total: Tensor, ratio: int) -> None:
    assert total.numel(), "a launch of no blocks is an error on a GPU"
    for b, s in torch.cartesian_prod(torch.arange(parts.shape[0]), torch.arange(parts.shape[1])):
        seen = max(min(int(offset[b] + s + 1) // ratio, parts.shape[2]), 0)
        total[b, :seen] += parts[b, s, :seen].sum(1)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csa, "_parts", csa_parts)
    monkeypatch.setattr(csa, "_add_listed", add_listed)
    monkeypatch.setattr(hca, "_parts", hca_parts)
    monkeypatch.setattr(hca, "_add_visible", add_visible)
    monkeypatch.setattr(gradients, "_add_window", add_window)
    monkeypatch.setattr(gradients, "_columns_product", columns_product)


def inputs(B: int, S: int, P: int, T: int, K: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    x = {"q": normal(B, S, H, D), "window_kv": normal(B, P + S, D), "compressed_kv": normal(B, T, D)}
    x["indices"] = torch.randint(-2, T + 2, (B, S, K), generator=g, dtype=torch.int32)  # twice, and none
    x["sink"], x["offset"] = normal(H), torch.randint(-2, 9, (B,), generator=g, dtype=torch.int32)
    return x


CASES = {
    "csa": (csa._backward, csa_reference.csa, csa_reference.csa_bwd, (), (WINDOW, SCALE)),
    "hca": (hca.backward, hca_reference.hca, hca_reference.hca_bwd, ("indices",), (RATIO, WINDOW, SCALE)),
    "swa": (swa._backward, swa_reference.swa, swa_reference.swa_bwd, ("indices", "compressed_kv"), (WINDOW, SCALE)),
}


SHARDS = {"csa": csa_reference, "hca": hca_reference, "swa": swa_reference}


def run(name: str, x: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The gradients as on a GPU, and those of the reference."""
    backward, forward, reference, unused, statics = CASES[name]
    x = {key: tensor for key, tensor in x.items() if key not in unused}
    out, lse = forward(*x.values(), *statics)
    x = {"grad_out": torch.randn_like(out), "grad_lse": torch.randn_like(lse)} | x | {"out": out, "lse": lse}
    return backward(x, statics), reference(*x.values(), *statics)


@pytest.mark.parametrize("name", CASES)
@given(
    B=st.integers(1, 4),
    S=st.integers(1, 6),
    P=st.integers(0, 4),
    T=st.integers(0, 5),
    K=st.integers(0, 4),
    queries=st.sampled_from((0, 1, 2, 3, 100)),
    sorted_=st.sampled_from((1, 8, 2**24)),
)
def test_any_workspace_gives_the_reference(name: str, B: int, S: int, P: int, T: int, K: int, queries: int, sorted_: int
                                           ) -> None:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "WORKSPACE", queries * (WINDOW + max(K, T)) * D * 8)
        patch.setattr(gradients, "_SORTED", sorted_)
        got, want = run(name, inputs(B, S, P, T, K, seed=S + T))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_lse_and_delta_of_more_keys(name: str) -> None:
    backward, forward, _, unused, statics = CASES[name]
    x = {key: tensor for key, tensor in inputs(2, 5, 3, 4, 3, seed=1).items() if key not in unused}
    out, lse = forward(*x.values(), *statics)
    x = {"grad_out": torch.randn_like(out), "grad_lse": torch.randn_like(lse)} | x
    x |= {"lse": lse + 0.5, "delta": torch.randn_like(lse)}
    shard_bwd = getattr(SHARDS[name], f"{name}_shard_bwd")
    got, want = backward(x, statics), shard_bwd(*x.values(), *statics)
    other = backward(x | {"lse": lse}, statics)
    for a, b, c in zip(got, want, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(c, b), "the lse of these keys alone"


def test_a_listing_that_forgets_a_sequence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(2, 3, 0, 4, 3, seed=0)
    got, want = run("csa", x)
    assert torch.allclose(got[2], want[2])
    monkeypatch.setattr(gradients, "_listings", lambda i, T, every: [(torch.arange(i.numel(), dtype=torch.int32),
                        *torch.zeros(2, 2 * T, dtype=torch.int32))])  # fmt: skip
    got, want = run("csa", x)
    assert not torch.allclose(got[2], want[2])


def test_a_group_fills_whole_waves_of_blocks() -> None:
    """A query of 128 heads has two blocks of threads: 78 queries fit, whose 156 blocks would be a wave of 132 and some."""
    parts = {heads: slots * -(-heads // 64) * 512 * 2 for heads, slots in ((8, 640), (64, 640), (128, 1152))}
    assert [gradients.queries_of_group(parts[heads], -(-heads // 64), 132) for heads in (8, 64, 128)] == [264, 264, 66]
    assert gradients.queries_of_group(gradients.WORKSPACE // 5, 1, 132) == 5, "part of a wave, where no more fits"
    assert gradients.queries_of_group(2 * gradients.WORKSPACE, 1, 132) == 1
