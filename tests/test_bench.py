"""The benchmarks measure what they say, as far as no GPU is needed to tell."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from lemmata.bench import bars, cudnn, indexer, report, timing, topk
from lemmata.bench.roofline import bound
from lemmata.bindings import chunks
from lemmata.operators import OPERATORS, Operator
from lemmata.reference.indexer import indexer_scores_fp8

FIGURE = timing.Figure("op", "s", "lemmata", 2.0, 2.5, 0.01, 1.0, "memory", 1.5)


def test_inputs_are_cold_when_their_turn_comes_again():
    for size in (1, 2**10, 2**20, 2**24, 2**27, 2**29, 2**32):
        calls = timing.calls_of(size)
        assert calls >= 3
        assert calls == 2048 or calls * size >= timing.ROTATION_BYTES
        assert calls >= 20 or calls * size <= timing.KEPT_BYTES or calls == 3


def test_the_bound_is_the_slowest_part():
    assert bound(bytes=4.3e6) == (1.0, "memory")
    assert bound(bytes=0, fp32=1, special=1) == (1.0, "launch")
    assert bound(bytes=4.3e6, bf16=793e7, fp8=1511e6) == (10.0, "bf16 tensor cores")
    assert bound(bytes=4.3e6, fp8=1511e7)[1] == "fp8 tensor cores"


def test_the_indexer_is_bound_by_the_products_that_are_seen():
    cases = {(case.op, case.shape): case for case in indexer.cases()}
    case = cases["indexer_scores", "fp8 4096 x 32768"]
    pairs = sum((131072 - 4096 + t + 1) // 4 for t in range(4096))
    assert case.bound == "fp8 tensor cores"
    assert case.bound_us == pytest.approx(2 * 64 * 128 * pairs / 1511e12 * 1e6)
    assert case.bytes > 4 * 4096 * 32768
    assert cases["indexer_scores", "bf16 4096 x 32768"].bound == "bf16 tensor cores"


@pytest.fixture
def asked(monkeypatch):
    """The kernels that launchers ask for; they are not run."""
    pytest.importorskip("tilelang")
    from lemmata.kernels import indexer, indexer_backward, topk

    pairs = set()
    for module in (indexer, indexer_backward, topk):
        monkeypatch.setattr(module, "build", lambda *pair: pairs.add(pair) or (lambda *tensors: None))
    return pairs


def test_the_kernels_of_topk_are_compiled_beforehand(asked):
    from lemmata.kernels.topk import select

    for shape in topk.SHAPES:
        select(*topk.inputs(*shape, device="meta"), topk.K)
    assert asked == {job[1:] for job in topk.compilations()}


def test_the_kernels_of_the_indexer_are_compiled_beforehand(asked):
    from lemmata.kernels.indexer import scores, scores_fp8
    from lemmata.kernels.indexer_backward import scores_bwd
    from lemmata.kernels.topk import select_pieces

    for case in indexer.cases():
        dtype, entries = case.shape.split(" ")[-4], int(case.shape.split(" ")[-1])
        tensors = indexer.inputs({"bf16": indexer.BF16, "fp8": indexer.FP8}[dtype], 4096, entries, device="meta")
        if case.shape.startswith("backward"):
            scores_bwd(torch.empty(1, 4096, entries, device="meta"), *tensors, 4)
            continue
        if case.op == "indexer_scores":
            (scores if dtype == "bf16" else scores_fp8)(*tensors, 4)
            continue
        q, k, weights, k_scale, offset = tensors
        for b, s in chunks.groups(q, 0, chunks.held(k, indexer.K, indexer.WORKSPACE)):
            of_group = scores_fp8(q[b, s], k[b], weights[b, s], k_scale[b], offset[b], 4).flatten(0, 1)
            select_pieces(of_group, torch.empty(len(of_group), dtype=torch.int32, device="meta"), indexer.K, 4)
    kernels = {job[1:] for job in indexer.compilations() if len(job) == 3}
    assert asked == kernels


def test_a_selection_of_other_values_is_not_timed(monkeypatch):
    make = functools.partial(topk.inputs, torch.float32, 3, 1000, device="cpu")
    topk._agree(make)
    right = topk._ours
    monkeypatch.setattr(topk, "_ours", lambda *tensors: right(*tensors) // 2 * 2)
    with pytest.raises(RuntimeError, match=r"expected the values of torch\.topk, got others in \d+ places"):
        topk._agree(make)
    monkeypatch.setattr(topk, "_ours", lambda scores, lengths: right(scores, lengths // 3))
    with pytest.raises(RuntimeError, match="expected 512 indices of every row, got fewer"):
        topk._agree(make)


@pytest.mark.parametrize("smaller", [True, False])
def test_what_flashinfer_selects_must_be_selected(monkeypatch, smaller):
    """Among equal scores too, which torch.topk is not asked for."""

    def top_k(scores, k, *, deterministic, tie_break):
        assert (deterministic, tie_break) == (True, 1)
        if smaller:
            return None, scores.sort(stable=True, descending=True).indices[:, :k]
        return None, scores.shape[1] - 1 - scores.flip(-1).sort(stable=True, descending=True).indices[:, :k]

    peer = SimpleNamespace(top_k=top_k, TopKTieBreak=SimpleNamespace(SMALL=1))
    monkeypatch.setattr(topk, "find", lambda module: peer if module == "flashinfer" else None)
    case = topk._case(torch.float32, 3, 1000)
    assert (list(case.contenders), case.absent) == (["lemmata", "torch.topk", topk.PEER], ())
    scores = torch.randint(3, (3, 1000), generator=torch.Generator().manual_seed(0)).float()
    wrong = pytest.raises(RuntimeError, match=r"expected the indices of FlashInfer, got others in \d+ places")
    with contextlib.nullcontext() if smaller else wrong:
        topk._agree(lambda: (scores, torch.full((3,), 1000, dtype=torch.int32)))


def test_without_flashinfer_it_is_said_to_be_absent(monkeypatch):
    monkeypatch.setattr(topk, "find", lambda module: None)
    case = topk._case(torch.float32, 3, 1000)
    assert (list(case.contenders), case.absent) == (["lemmata", "torch.topk"], (topk.PEER,))


def _deep_gemm(factor):
    """What stands for the peer: its interface, the reference's formula."""

    def fp8_mqa_logits(q, kv, weights, start, end, clean_logits):
        assert start.dtype == end.dtype == torch.int32
        assert not start.any()
        offset = 4 * end.min() * torch.ones(1, dtype=torch.int32)
        scores = indexer_scores_fp8(q[None], kv[0][None], weights[None], kv[1][None], offset.int())[0]
        return scores * factor if clean_logits else torch.where(scores.isinf(), torch.nan, scores * factor)

    return SimpleNamespace(fp8_mqa_logits=fp8_mqa_logits)


@pytest.mark.parametrize("agree", [indexer._agree_on_scores, indexer._agree_on_selection])
def test_scores_unlike_the_peers_are_not_timed(monkeypatch, agree):
    monkeypatch.setattr(indexer, "inputs", functools.partial(indexer.inputs, device="cpu"))
    monkeypatch.setattr(indexer, "find", lambda module: _deep_gemm(1))
    agree(4, 700)
    noise = torch.randn(4, 700, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(indexer, "find", lambda module: _deep_gemm(noise))
    with pytest.raises(RuntimeError, match="from DeepGEMM's, got"):
        agree(4, 700)
    monkeypatch.setattr(indexer, "find", lambda module: _deep_gemm(torch.nan))
    with pytest.raises(RuntimeError, match="from DeepGEMM's, got"):
        agree(4, 700)


def test_gradients_unlike_the_references_are_not_timed(monkeypatch):
    monkeypatch.setattr(indexer, "QUERIES", 4)
    monkeypatch.setattr(indexer, "inputs", functools.partial(indexer.inputs, device="cpu"))
    monkeypatch.setattr(indexer, "_upstream", lambda entries: torch.ones(1, 4, entries))
    indexer._agree_on_gradients(70)
    right = chunks.scores_bwd
    monkeypatch.setattr(chunks, "scores_bwd", lambda *given: (right(*given)[0], *(1.1 * x for x in right(*given)[1:])))
    with pytest.raises(RuntimeError, match=r"expected result 1 within 1e-05 of the reference's, got"):
        indexer._agree_on_gradients(70)


def test_an_absent_peer_is_said_to_be_absent(monkeypatch):
    monkeypatch.setattr(indexer, "find", lambda module: None)
    peers = "DeepGEMM", "DeepGEMM", None, None, *["DeepGEMM + torch.topk"] * 2, cudnn.WITH_LOSS
    assert [case.absent for case in indexer.cases()] == [() if peer is None else (peer,) for peer in peers]
    assert all(list(case.contenders) == ["lemmata"] for case in indexer.cases())
    monkeypatch.setattr(indexer, "find", lambda module: _deep_gemm(1))
    assert {peer for case in indexer.cases() for peer in case.absent} == {cudnn.WITH_LOSS}


def test_a_case_that_fails_leaves_the_others(monkeypatch):
    def fail():
        raise RuntimeError("they differ")

    def case(name, **fields):
        return timing.Case("op", name, 1, 1.0, "memory", None, {}, **fields)

    cases = [case("bad", agree=fail), case("good", absent=("peer",))]
    monkeypatch.setitem(
        sys.modules,
        "lemmata.bench.fake",
        SimpleNamespace(compilations=lambda: [(os.rmdir, "/absent")], cases=lambda: cases),
    )
    monkeypatch.setitem(OPERATORS, "fake", Operator("fake", "Fake", (), ()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(report, "measure", lambda case: case.agree() or [FIGURE])
    written = []
    monkeypatch.setattr(report, "update", lambda figures, partly=False: written.extend(figures))
    found = report.run(["fake"])
    assert found == report.Measured([FIGURE], ["op good: peer is absent"], ["op bad: RuntimeError: they differ"])
    assert [figure["op"] for figure in written] == ["op", "op"], "as the case ends, and all at last"


def test_tables_of_several_operators():
    ours = FIGURE.__dict__
    figures = [ours, ours | {"contender": "peer", "burst_us": 3.0}, ours | {"shape": "t"}, ours | {"op": "other"}]
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(*report.tables(figures))
    text = console.export_text()
    assert "3.00 / 2.50" in text
    assert text.count("peer") == 1
    assert "other: microseconds, burst / sustained" in text
    assert "| op | t | 2.00 | 1.0 (memory) | none | | |" in report.markdown(figures)
    assert report.missed([FIGURE]) == ["op s: expected at most 1.5 us, got 2.0 us"]


def test_bars_are_as_long_as_times():
    """A planted error is told too: a sustained time in the place of a burst."""
    ours, theirs = FIGURE.__dict__, FIGURE.__dict__ | {"contender": "peer", "burst_us": 4.0, "sustained_us": 5.0}

    def lengths(*figures):
        drawn = bars.picture("title", bars.panels(figures))
        found = re.findall(
            rf'<rect x="{bars.LEFT}" y="[\d.]+" width="([\d.]+)" height="{bars.BAR}" class="([a-z ]+)"', drawn
        )
        return {kind: float(width) / (bars.RIGHT - bars.LEFT) for width, kind in found}

    found = lengths(ours, theirs)
    assert found == pytest.approx({"ours pale": 0.5, "ours": 0.4, "rival pale": 1.0, "rival": 0.8}, abs=1e-3)
    assert lengths(ours | {"burst_us": 2.5}, theirs) != pytest.approx(found, abs=1e-3)
    assert "0.80 x, slower" in bars.picture("title", bars.panels([ours | {"burst_us": 5.0}, theirs]))
    assert "no contender" in bars.picture("title", bars.panels([ours]))


def test_the_case_that_the_documentation_times(monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "measuring.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    def on_cpu(case):
        case.agree()
        shapes = [make()().shape for make in case.contenders.values()]
        assert shapes == [(4096, 4, 4)] * 2
        assert case.bytes == 2 * 4 * shapes[0].numel()
        return [
            timing.Figure("sinkhorn", case.shape, name, 2.0, 3.0, 0.01, 1.0, "launch", None) for name in case.contenders
        ]

    monkeypatch.setattr(timing, "measure", on_cpu)
    exec(program.replace('"cuda"', '"cpu"'), {})
    assert capsys.readouterr().out == "lemmata 2.0 3.0 0.01\ntorch 2.0 3.0 0.01\n"
