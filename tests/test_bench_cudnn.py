"""The backward of cuDNN Frontend beside ours: it is given what ours is given, and gradients unlike ours are not timed."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lemmata.bench import attention, csa, cudnn, hca, indexer, swa
from lemmata.bench.attention import SCALE, Sizes
from lemmata.bench.pages import D
from lemmata.reference import indexer as reference
from lemmata.reference.indexer import visible

TINY = {
    "csa": functools.partial(csa._backward, 4, 192, 70),
    "csa, few heads": functools.partial(csa._backward, 2, 192, 70),
    "hca": functools.partial(hca._backward, 5000.0),
    "swa": swa._backward,
}


def _attention_bwd(tensors: list[Tensor], lists: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of q [S, H, D], kv [R, D] and sink [H] from out, its gradient and lse; lists hold -1 for none."""
    q, kv, out, dout, lse, sink = tensors
    keys = kv[lists.clamp(min=0).long()]
    total, delta = torch.logaddexp(lse, sink), (out * dout).sum(-1)
    z = (SCALE * q @ keys.mT).masked_fill((lists < 0).unsqueeze(1), -torch.inf)
    p = (z - total.unsqueeze(-1)).exp()
    ds = SCALE * p * (dout @ keys.mT - delta.unsqueeze(-1))
    dkv = torch.zeros_like(kv).index_add_(0, lists.clamp(min=0).flatten(), (ds.mT @ q + p.mT @ dout).flatten(0, 1))
    return ds @ keys, dkv, -(delta * (sink - total).exp()).sum(0)


def _peer(factor: float = 1.0, lost: int = 0) -> SimpleNamespace:
    """Return what stands for the peer: its interface and formulas; with a wrong factor, or the first keys lost."""

    def sparse_attention_backward_wrapper(q, kv, out, dout, lse, attn_sink, topk_idxs, softmax_scale):
        assert (out.shape, dout.shape, lse.shape, softmax_scale) == (q.shape, q.shape, q.shape[:2], SCALE)
        assert (kv.shape[1:], attn_sink.shape, topk_idxs.dtype) == ((D,), q.shape[1:2], torch.int32)
        assert all(x.is_contiguous() and x.isfinite().all() for x in (q, kv, out, dout, lse, attn_sink))
        topk_idxs = torch.where(torch.arange(topk_idxs.shape[1]) < lost, -1, topk_idxs)
        exact = [x.double() for x in (q, kv, out, dout, lse, attn_sink)]
        dq, dkv, d_sink = _attention_bwd(exact, topk_idxs)
        return {"dq": dq.to(q.dtype), "dkv": (factor * dkv).to(kv.dtype), "d_sink": d_sink.float()}

    def dense_indexer_backward_wrapper(
        index_q, weights, index_k, attn_score, attn_l1norm, index_score, index_lse, grad_loss, ratio, q_causal_offsets
    ):
        assert {x.dtype for x in (index_q, weights, index_k)} == {torch.bfloat16}
        S, T = index_score.shape[1:]
        seen = torch.arange(T) < visible(q_causal_offsets, S, ratio).unsqueeze(-1)
        target = torch.where(seen, attn_score / attn_l1norm.unsqueeze(-1), 0.0)
        predicted = torch.where(seen, (index_score - index_lse.unsqueeze(-1)).exp(), 0.0)
        index_score.copy_(torch.where(seen, grad_loss * (predicted - target) / S, -torch.inf))
        leaves = [x.double().requires_grad_() for x in (index_q, index_k, weights)]
        scores = reference.indexer_scores(*leaves, q_causal_offsets, ratio)
        upstream = index_score.nan_to_num(neginf=0.0).double()
        found = torch.autograd.grad(scores.nan_to_num(neginf=0.0), leaves, upstream)
        return {"d_index_q": found[0].bfloat16(), "d_index_k": factor * found[1], "d_weights": found[2].bfloat16()}

    return SimpleNamespace(**locals())


@pytest.fixture
def peer(monkeypatch):
    """Return what gives the peer's stand-in, on tiny inputs of the CPU."""
    for module in (csa, hca, swa):
        monkeypatch.setattr(module, "inputs", functools.partial(module.inputs, device="cpu"))
        monkeypatch.setattr(module, "QUERIES", 3)
    monkeypatch.setattr(hca, "H", 4)
    monkeypatch.setattr(swa, "H", 4)
    monkeypatch.setattr(hca, "TOKENS", 128 * 20)
    monkeypatch.setattr(indexer, "QUERIES", 4)
    monkeypatch.setattr(indexer, "inputs", functools.partial(indexer.inputs, device="cpu"))
    monkeypatch.setattr(indexer, "_upstream", lambda entries: torch.ones(1, 4, entries))
    torch.manual_seed(0)
    return lambda **planted: monkeypatch.setattr(cudnn, "find", lambda module: _peer(**planted))


@pytest.mark.parametrize("name", TINY)
def test_gradients_that_agree_are_timed(peer, name):
    peer()
    case = TINY[name]()
    case.agree()
    assert (list(case.contenders), case.absent) == (["lemmata", "cuDNN Frontend"], ())
    ours, theirs = (make()() for make in case.contenders.values())
    assert [x.shape for x in ours] == [x.shape for x in theirs]


@pytest.mark.parametrize("planted", [{"factor": 1.01}, {"factor": torch.nan}, {"lost": 1}], ids=str)
@pytest.mark.parametrize("name", TINY)
def test_others_are_not(peer, name, planted):
    peer(**planted)
    with pytest.raises(RuntimeError, match=r"expected result \d within 1e-05 of cuDNN's, got"):
        TINY[name]().agree()


def test_the_gradients_of_scores_agree_under_the_peers_loss(peer):
    peer()
    indexer._agree_on_gradients(70)
    case = indexer._backward(70, 1.0)
    assert list(case.contenders) == ["lemmata", "cuDNN Frontend, with the loss's gradient"]
    peer(factor=1.01)
    with pytest.raises(RuntimeError, match="expected result 1 within 1e-05 of cuDNN's, got"):
        indexer._agree_on_gradients(70)


def test_lists_hold_the_window_and_the_entries(peer):
    x = csa.inputs(Sizes(1, 3, 2, 192, 768), 70)
    rows, lists = attention.merged(x)
    assert lists.shape == (3, 1, 256)
    assert (lists >= 0).sum().item() == 3 * (128 + 70)
    assert torch.equal(rows[lists[1, 0, 0], 0], x.window_kv[0, 1])
