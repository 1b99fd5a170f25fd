"""The benchmarks of csa, hca and swa: what FlashMLA is given is what lemmata is given, and other results are not timed."""

from __future__ import annotations

import contextlib
import functools
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from lemmata import bindings
from lemmata.bench import attention, csa, hca, swa
from lemmata.bench.attention import SCALE, WINDOW, Inputs, Sizes
from lemmata.bench.pages import PAGE, D, pages, random_rows
from lemmata.bindings.splits import VARIABLE
from specs_attention import Dense, index_counts, past_counts, window_counts

T = 192  # entries: three pages
TINY = {
    "csa prefill": functools.partial(csa._case, 1, 11, 64, T, 70),
    "csa prefill, 8 heads": functools.partial(csa._case, 1, 11, 8, T, 70),
    "csa decode": functools.partial(csa._case, 2, 1, 64, T, 64),
    "csa decode of 3 queries": functools.partial(csa._case, 2, 3, 64, T, 64),
    "hca prefill": functools.partial(hca._case, 1, 11, 128 * T + 1),
    "hca decode": functools.partial(hca._case, 2, 1, 128 * T),
    "swa prefill": functools.partial(swa._case, 1, 11),
    "swa prefill, 8 heads": functools.partial(swa._case, 1, 11, 8),
    "swa decode": functools.partial(swa._case, 2, 1),
}
tiny = pytest.mark.parametrize("name", TINY)


def _attend(q: Tensor, keys: Tensor, seen: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of q [n, H, D] over keys [n, K, D], in fp64."""
    keys = keys.double().masked_fill(~seen.unsqueeze(-1), 0)
    z = (SCALE * (q.double() @ keys.mT)).masked_fill(~seen.unsqueeze(1), -torch.inf)
    lse = z.logsumexp(-1)
    return (torch.logaddexp(lse, sink.double()).neg().unsqueeze(-1) + z).exp() @ keys, lse


def _read(cache: Tensor, indices: Tensor) -> Tensor:
    """Rows of a cache in fp8, byte by byte."""
    count, page, one, size = cache.shape
    assert (cache.dtype, one, size) == (torch.uint8, 1, 584)
    assert cache.stride(0) % 576 == 0
    assert cache.stride()[1:] == (584, 584, 1)
    memory = torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage())
    rows = []
    for index in indices.flatten().tolist():
        assert 0 <= index < count * page
        start = index // page * cache.stride(0)
        data = memory[start + index % page * 576 :][:576]
        scales = memory[start + page * 576 + index % page * 8 :][:7]
        narrow = data[:448].view(torch.float8_e4m3fn).double().view(7, 64)
        powers = 2.0 ** (scales.double() - 127)
        rows.append(torch.cat([(narrow * powers.unsqueeze(-1)).flatten(), data[448:].view(torch.bfloat16).double()]))
    return torch.stack(rows).view(*indices.shape, D)


def _flash_mla(noise=0.0, wrong=0, lost=0):
    """What stands for the peer: its interface, what it asks of its arguments; with noise, wrong rows or the first keys lost."""

    def sparse_fwd(q, kv, indices, sm_scale, d_v=512, attn_sink=None, topk_length=None, use_legacy=False):
        assert (q.shape[1] in (64, 128), q.dtype, kv.dtype, indices.dtype) == (True, *[torch.bfloat16] * 2, torch.int32)
        assert (kv.shape[1:], indices.shape[:2]) == ((1, D), (len(q), 1))
        assert indices.shape[2] % 128 == 0
        assert (sm_scale, d_v, use_legacy, attn_sink.dtype) == (SCALE, 512, True, torch.float32)
        indices = indices[:, 0]
        seen = (indices >= 0) & (indices < len(kv))
        seen[0, :lost] = False
        rows = (torch.where(seen, indices, 0) + wrong) % len(kv)
        out, lse = _attend(q, kv[rows, 0], seen, attn_sink)
        return (out + noise).bfloat16(), lse, lse.float()

    def with_kvcache(
        q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None, *,
        softmax_scale, indices, attn_sink, extra_k_cache=None, extra_indices_in_kvcache=None, use_legacy,
    ):  # fmt: skip
        assert (block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata) == (None, None, 512, "plan")
        assert (softmax_scale, use_legacy, q.shape[2] in (64, 128)) == (SCALE, True, True)
        keys, seen = [], []
        caches = [(k_cache, indices), (extra_k_cache, extra_indices_in_kvcache)]
        for cache, listed in caches if extra_k_cache is not None else caches[:1]:
            assert (listed.dtype, listed.shape[:2], listed.shape[2] % 64) == (torch.int32, q.shape[:2], 0)
            listed = listed.flatten(0, 1)
            seen.append(listed != -1)
            keys.append(_read(cache, (listed.clamp(min=0) + wrong) % cache.shape[:2].numel()))
        seen[0][0, :lost] = False
        out, lse = _attend(q.flatten(0, 1), torch.cat(keys, 1), torch.cat(seen, -1), attn_sink)
        out, lse = out.unflatten(0, q.shape[:2]), lse.unflatten(0, q.shape[:2])
        return (out + noise).bfloat16(), lse.float().mT

    return SimpleNamespace(
        flash_mla_sparse_fwd=sparse_fwd,
        flash_mla_with_kvcache=with_kvcache,
        get_mla_metadata=lambda: ("plan", None),
    )


@pytest.fixture
def case_of(monkeypatch):
    """Cases of tiny inputs, and the peer's stand-in, on the CPU."""
    for module in (csa, hca, swa):
        monkeypatch.setattr(module, "inputs", functools.partial(module.inputs, device="cpu"))

    def case(name, **peer):
        monkeypatch.setattr(attention, "find", lambda module: _flash_mla(**peer))
        torch.manual_seed(0)
        return TINY[name]()

    return case


@tiny
def test_results_that_agree_are_timed(case_of, name):
    case = case_of(name)
    case.agree()
    assert len(case.contenders) == 2
    assert not case.absent
    for make in case.contenders.values():
        out, lse = make()()
        assert (out.shape[-1], out.shape[:-1]) == (D, lse.shape)
        assert out.isfinite().all()


def test_in_other_splits_the_environment_asks_for_them(case_of, monkeypatch):
    asked = []
    monkeypatch.setattr(csa, "_ours", lambda x: lambda: asked.append(os.environ.get(VARIABLE)))
    case = case_of("csa decode")
    for each in (case, attention.in_splits(1, case), attention.in_splits(5, case)):
        each.contenders["lemmata"]()()
    assert asked == [None, "1", "5"]
    assert [attention.in_splits(n, case).shape for n in (1, 2)] == [
        f"{case.shape}, one split",
        f"{case.shape}, 2 splits",
    ]
    with pytest.raises(TypeError):
        attention.in_splits(4, case).agree()  # compares what the stand-in returned: None
    assert asked == [None, "1", "5", "4"]
    assert VARIABLE not in os.environ


@tiny
@pytest.mark.parametrize("planted", [{"noise": 2e-3}, {"noise": torch.nan}, {"wrong": 1}, {"lost": 1}], ids=str)
def test_others_are_not(case_of, name, planted):
    with pytest.raises(RuntimeError, match=r"expected (out|lse) within FlashMLA's tolerances"):
        case_of(name, **planted).agree()


@pytest.mark.parametrize("name", ["csa prefill", "hca decode", "swa prefill"])
def test_where_both_differ_the_formula_says_who_is_off(case_of, name):
    make, operator, *_ = case_of(name).agree.args
    x = make()
    ours = operator(x)()[0]
    off = torch.zeros_like(ours)
    off[-1, -1, 3, 5] = 2e-2
    for tolerance in (attention.PREFILL[0], attention.DECODE[0]):
        tolerance = tolerance._replace(difference=1e-3)
        attention.require_close(x, "out", ours, ours + off, tolerance)
        with pytest.raises(RuntimeError, match="got 1 of"):
            attention.require_close(x, "out", ours + off, ours, tolerance)
        with pytest.raises(RuntimeError, match="got 1 of"):
            attention.require_close(x, "lse", ours, ours + off, tolerance)


def _oracle(x: Inputs, counts: np.ndarray) -> Dense:
    rows = torch.cat([x.window_kv, x.compressed_kv], 1).double().numpy()
    assert not counts[np.isnan(rows).any(-1)[:, None].repeat(counts.shape[1], 1)].any()
    return Dense(x.q.double().numpy(), np.nan_to_num(rows), counts, x.sink.double().numpy(), SCALE)


@pytest.mark.parametrize("S", [1, 3])
def test_the_inputs_are_what_they_are_said_to_be(S):
    x = csa.inputs(Sizes(2, S, 8, T, 4 * T), 64, "cpu")
    offset = x.offset.numpy()
    assert (offset == 4 * T - S).all()
    counts = index_counts(x.entries.numpy(), T)
    assert (counts.sum(-1) == 64).all()
    assert counts.max() == 1
    assert (counts <= past_counts(S, T, offset, 4)).all()
    assert x.compressed_kv.isnan().any(-1).sum() == (counts.sum(1) == 0).sum() > 0
    counts = np.concatenate([window_counts(S, WINDOW - 1, offset, WINDOW), counts], -1)
    _compare(csa._ours(x)(), _oracle(x, counts))

    x = hca.inputs(Sizes(2, S, 8, T, 128 * T + 1), "cpu")
    offset = x.offset.numpy()
    counts = past_counts(S, T, offset, 128)
    assert (counts == index_counts(x.entries.numpy(), T)).all()
    counts = np.concatenate([window_counts(S, WINDOW - 1, offset, WINDOW), counts], -1)
    _compare(hca._ours(x)(), _oracle(x, counts))

    x = swa.inputs(Sizes(2, S, 8, 0, 500), "cpu")
    _compare(swa._ours(x)(), _oracle(x, window_counts(S, WINDOW - 1, x.offset.numpy(), WINDOW)))


def test_the_kernel_of_swa_is_compiled_beforehand(monkeypatch):
    pytest.importorskip("tilelang")
    from lemmata.kernels import build, combine

    asked = set()
    monkeypatch.setattr(combine, "build", lambda *pair: asked.add(pair) or (lambda *tensors: None))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    for B, S in ((1, swa.QUERIES), (1, 1), (128, 1)):
        build.forget()
        x = swa.inputs(Sizes(B, S, swa.H, 0, swa.TOKENS), "meta")
        bindings.swa._launch(x.q, x.window_kv, x.sink, x.offset, WINDOW, SCALE)
    build.forget()
    assert len(asked) == 1
    assert asked <= {job[1:] for job in swa.compilations()}


def _compare(results: tuple[Tensor, Tensor], oracle: Dense) -> None:
    out, lse = results
    np.testing.assert_allclose(lse.double().numpy(), oracle.lse, rtol=1e-5)
    np.testing.assert_allclose(out.double().numpy(), oracle.out, rtol=2**-8, atol=1e-6)


def test_pages_hold_rows_exactly():
    rows = random_rows(2, PAGE, "cpu")
    cache = pages(rows)
    assert torch.equal(_read(cache, torch.arange(2 * PAGE)), rows.flatten(0, 1).double())
    rows[0, 3, :] = torch.nan
    assert _read(pages(rows), torch.tensor([3])).isnan().all()
    rows[0, 3, :] = 0
    assert not _read(pages(rows), torch.tensor([3])).any()


LIMITS = {
    "csa prefill 4096, 64 heads, 512 of 2048 entries": 800.0,
    "csa prefill 4096, 64 heads, 512 of 65536 entries": None,
    "csa prefill 4096, 128 heads, 1024 of 2048 entries": 2600.0,
    "csa prefill 4096, 8 heads, 512 of 2048 entries": None,
    "csa prefill 4096, 16 heads, 512 of 2048 entries": None,
    "csa decode 128, 64 heads, 512 of 2048 entries": 60.0,
    "csa decode 1, 64 heads, 512 of 2048 entries": 15.0,
    "csa decode 8, 64 heads, 512 of 2048 entries": None,
    "csa decode 32, 64 heads, 512 of 2048 entries": None,
    "csa decode 1 x 4, 64 heads, 512 of 2048 entries": None,
    "csa decode 32 x 4, 64 heads, 512 of 2048 entries": None,
    "csa decode 1, 128 heads, 1024 of 2048 entries": None,
    "csa decode 32, 128 heads, 1024 of 2048 entries": None,
    "csa decode 128, 128 heads, 1024 of 2048 entries": None,
    "csa decode 1, 64 heads, 512 of 2048 entries, 5 splits": None,
    "csa decode 8, 64 heads, 512 of 2048 entries, 5 splits": None,
    "csa decode 1, 64 heads, 512 of 2048 entries, one split": None,
    "csa decode 32, 64 heads, 512 of 2048 entries, one split": None,
    "csa decode 128, 64 heads, 512 of 2048 entries, one split": None,
    "csa decode 32 x 4, 64 heads, 512 of 2048 entries, one split": None,
    "csa decode 1, 128 heads, 1024 of 2048 entries, 9 splits": None,
    "csa decode 32, 128 heads, 1024 of 2048 entries, one split": None,
    "csa decode 128, 128 heads, 1024 of 2048 entries, one split": None,
    "hca prefill 4096, 64 heads, 1024 entries": 1350.0,
    "hca prefill 4096, 64 heads, 8192 entries": None,
    "hca decode 1, 64 heads, 1024 entries": None,
    "hca decode 32, 64 heads, 1024 entries": None,
    "hca decode 128, 64 heads, 1024 entries": None,
    "hca decode 1, 64 heads, 1024 entries, 9 splits": None,
    "hca decode 1, 64 heads, 1024 entries, one split": None,
    "hca decode 32, 64 heads, 1024 entries, 3 splits": None,
    "hca decode 32, 64 heads, 1024 entries, one split": None,
    "hca decode 128, 64 heads, 1024 entries, 3 splits": None,
    "hca decode 128, 64 heads, 1024 entries, one split": None,
    "swa prefill 4096, 64 heads": None,
    "swa decode 1, 64 heads": None,
    "swa decode 128, 64 heads": None,
    "csa backward 4096, 64 heads, 512 of 8192 entries": 3400.0,
    "csa backward 4096, 64 heads, 512 of 65536 entries": 5600.0,
    "csa backward 4096, 128 heads, 1024 of 8192 entries": 11000.0,
    "csa backward 4096, 8 heads, 512 of 8192 entries": 1950.0,
    "hca backward 4096, 64 heads, 1024 entries": 5000.0,
    "swa backward 4096, 64 heads": None,
}
"""The limits of all cases, in microseconds, by operator and shape."""


def test_the_cases_and_their_bounds(monkeypatch):
    monkeypatch.setattr(attention, "find", lambda module: None)
    cases = {(case.op, case.shape): case for module in (csa, hca, swa) for case in module.cases()}
    limits = {" ".join(name): case.limit_us for name, case in cases.items()}
    assert limits == LIMITS
    assert {case.absent for case in cases.values()} == {
        ("FlashMLA",), ("FlashMLA on 64 heads",), ("FlashMLA, fp8 cache",), ("cuDNN Frontend",),
    }  # fmt: skip
    case = cases["csa", "prefill 4096, 64 heads, 512 of 2048 entries"]
    assert (case.bound, case.bound_us) == ("bf16 tensor cores", pytest.approx(4096 * 640 * 64 * 2048 / 793e12 * 1e6))
    case = cases["hca", "prefill 4096, 64 heads, 1024 entries"]
    keys = sum(128 + (i + 1) // 128 for i in range(131072 - 4096, 131072))
    assert case.bound_us == pytest.approx(keys * 64 * 2048 / 793e12 * 1e6)
    case = cases["csa", "backward 4096, 64 heads, 512 of 8192 entries"]
    assert case.bound_us == pytest.approx(4096 * 640 * 64 * 5120 / 793e12 * 1e6)
    case = cases["csa", "decode 128, 64 heads, 512 of 2048 entries"]
    moved = 128 * (640 * 1024 + 64 * (2 * 1024 + 4) + 4 * 512)
    assert (case.bound, case.bound_us) == ("memory", pytest.approx(moved / 4.3e12 * 1e6))
    assert case.bytes == moved - 128 * 640 * (1024 - 584)
